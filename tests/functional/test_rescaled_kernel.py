from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    rescaled_kernel_basis,
    rescaled_kernel_conv2d,
    rescaled_kernel_valid_conv2d,
    scale_pool,
    synthesize_filters,
)
from tests.functional.reference import slow_lift

COVERS = {"rescaled_kernel_basis", "rescaled_kernel_conv2d", "rescaled_kernel_valid_conv2d", "scale_pool"}

SIZES = [3, 5, 9]
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "area"]


@pytest.fixture
def random(generator: torch.Generator):
    return partial(torch.randn, dtype=torch.float64, generator=generator)


def slow_area(kernel: np.ndarray, size: int) -> np.ndarray:
    """The mean over each large pixel, by sampling it so finely that all borders fall between samples."""
    fine = kernel.repeat(size, 0).repeat(size, 1)
    return fine.reshape(size, len(kernel), size, len(kernel)).mean((1, 3))


def resized(weight: Tensor, size: int, interpolation: str) -> Tensor:
    """The kernels (C', C, K, K) interpolated to one size, with the published norm."""
    if interpolation == "area":
        kernels = [[slow_area(kernel.numpy(), size) for kernel in row] for row in weight]
        larger = torch.from_numpy(np.array(kernels))
    else:
        mode = "nearest-exact" if interpolation == "nearest" else interpolation
        corners = {} if interpolation == "nearest" else {"align_corners": False}
        larger = interpolate(weight, (size, size), mode=mode, **corners)
    return larger * weight.shape[-1] ** 2 / size**2


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("sizes", [SIZES, [5, 7, 9, 11], [1, 3], [7]])
def test_filters_are_the_interpolated_kernels(interpolation, sizes: list[int], random) -> None:
    weight = random(2, 3, sizes[0], sizes[0])
    filters = synthesize_filters(weight.flatten(2), rescaled_kernel_basis(sizes, interpolation))
    for scale, size in enumerate(sizes):
        margin = (sizes[-1] - size) // 2
        inner = slice(margin, margin + size)
        expected = torch.zeros_like(filters[:, :, scale])
        expected[..., inner, inner] = resized(weight, size, interpolation)
        torch.testing.assert_close(filters[:, :, scale], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_smallest_kernel_is_kept_and_constants_keep_their_sum(interpolation) -> None:
    basis = rescaled_kernel_basis(SIZES, interpolation)
    inner = basis[:, 0, 3:6, 3:6].reshape(9, 9)
    torch.testing.assert_close(inner, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-14)
    sums = basis.sum((0, 2, 3))
    torch.testing.assert_close(sums, torch.full_like(sums, 9.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, "same", 1), (2, "same", 2), (1, 2, 1)])
@pytest.mark.parametrize("scale_map", [False, True])
def test_equals_the_loops(stride: int, padding, groups: int, scale_map: bool, random) -> None:
    x = random(2, 2, *[3] * scale_map, 7, 8)
    weight, bias = random(2, 2 // groups, 3, 3), random(2)
    geometry = ConvGeometry(stride=stride, padding=padding, groups=groups)
    basis = rescaled_kernel_basis([3, 5, 7], "bilinear")
    delta = np.eye(49).reshape(49, 1, 7, 7)
    filters = synthesize_filters(weight.flatten(2), basis)
    scales = [
        slow_lift(
            (x[:, :, s] if scale_map else x).numpy(), filters[:, :, s].flatten(2).numpy(), delta,
            bias.numpy(), stride=stride, padding=geometry.margin(7), mode="zeros", groups=groups,
        )
        for s in range(3)
    ]  # fmt: skip
    y = rescaled_kernel_conv2d(x, weight, basis, bias, geometry=geometry, windows=[3, 5, 7])
    torch.testing.assert_close(y, torch.from_numpy(np.concatenate(scales, 2)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale_map", [False, True])
def test_without_padding_larger_kernels_leave_a_blank_border(scale_map: bool, random) -> None:
    x, weight, bias = random(2, 2, *[3] * scale_map, 9, 11), random(4, 2, 3, 3), random(4)
    y = rescaled_kernel_valid_conv2d(x, weight, rescaled_kernel_basis(SIZES, "area"), bias, windows=SIZES)
    assert y.shape == (2, 4, 3, 7, 9)
    for s, size in enumerate(SIZES):
        seen, lost = x[:, :, s] if scale_map else x, (size - 3) // 2
        inner = (..., s, slice(lost, 7 - lost), slice(lost, 9 - lost))
        expected = conv2d(seen, resized(weight, size, "area"), bias)
        torch.testing.assert_close(y[inner], expected, rtol=1e-12, atol=1e-12)
        outside = torch.ones_like(y[0, 0, 0], dtype=torch.bool)
        outside[inner[2:]] = False
        assert (y[:, :, s, outside] == 0).all()
    assert (y[:, :, 0] != 0).all()


@pytest.mark.parametrize(("interpolation", "exact"), [("nearest", True), ("area", True), ("bilinear", False)])
def test_repeated_pixels_give_the_features_of_the_smaller_kernel(interpolation, exact: bool, random) -> None:
    x, weight = random(2, 2, 7, 8), random(3, 2, 3, 3)
    large = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    basis = rescaled_kernel_basis([3, 9], interpolation)
    layer = partial(rescaled_kernel_conv2d, weight=weight, basis=basis, geometry=ConvGeometry(padding="same"))
    error = (layer(large)[:, :, 1, 1::3, 1::3] - layer(x)[:, :, 0]).abs().max().item()
    assert error < 1e-12 if exact else 0.1 < error < 10


def test_derivatives(random) -> None:
    operands = [random(*shape).requires_grad_() for shape in ((1, 2, 5, 6), (2, 2, 3, 3), (2,))]
    basis = rescaled_kernel_basis([3, 5], "bicubic")
    padded = partial(rescaled_kernel_conv2d, geometry=ConvGeometry(padding="same"))
    blank = partial(rescaled_kernel_valid_conv2d, windows=[3, 5])

    for convolution in (padded, blank):

        def function(x: Tensor, weight: Tensor, bias: Tensor, convolution=convolution) -> Tensor:
            return convolution(x, weight, basis, bias)

        assert torch.autograd.gradcheck(function, operands)


@pytest.mark.parametrize(
    ("x", "weight", "text"),
    [
        ((2, 2, 9, 9), (4, 2, 9), r"weights \(C', C / groups, K, K\), got \(4, 2, 9\)"),
        ((2, 2, 9, 9), (4, 2, 5, 5), r"F=9 as in the basis, got \(4, 2, 25\)"),
        ((2, 3, 9, 9), (4, 2, 3, 3), r"\(B, 2, H, W\), got \(2, 3, 9, 9\)"),
        ((2, 2, 2, 9, 9), (4, 2, 3, 3), r"\(B, 2, 3, H, W\), got \(2, 2, 2, 9, 9\)"),
        ((2, 2, 8, 9), (4, 2, 3, 3), r"kernel's 9 pixels, got \(8, 9\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(x, weight, text: str) -> None:
    basis = rescaled_kernel_basis(SIZES, "area").float()
    with pytest.raises(ShapeError, match=text):
        rescaled_kernel_conv2d(torch.zeros(x), torch.zeros(weight), basis)


def test_without_padding_the_largest_kernel_must_fit() -> None:
    basis = rescaled_kernel_basis(SIZES, "area").float()
    with pytest.raises(ShapeError, match=r"kernel's 9 pixels, got \(8, 9\) with padding 0"):
        rescaled_kernel_valid_conv2d(torch.zeros(1, 1, 8, 9), torch.zeros(1, 1, 3, 3), basis, windows=SIZES)


@pytest.mark.parametrize(
    ("x", "windows", "text"),
    [
        ((1, 1, 11, 11), [3], r"3 odd windows of at most 9 pixels, .* got \[3\]"),
        ((1, 1, 11, 11), [3, 4, 9], r"3 odd windows of at most 9 pixels, .* got \[3, 4, 9\]"),
        ((1, 1, 11, 11), [9, 5, 3], r"windows that increase from the weight's 3 .*, got \[9, 5, 3\]"),
        ((1, 1, 11, 11), [3, 5, 7], r"to the basis' 9, got \[3, 5, 7\]"),
        ((1, 1, 11, 11), [5, 7, 9], r"from the weight's 3 pixels .*, got \[5, 7, 9\]"),
        ((1, 1, 4, 11, 11), SIZES, r"an input \(B, 1, 3, H, W\), got \(1, 1, 4, 11, 11\)"),
        ((1, 1, 2, 11, 11), SIZES, r"an input \(B, 1, 3, H, W\), got \(1, 1, 2, 11, 11\)"),
    ],
)
def test_without_padding_windows_and_scales_must_fit(x, windows: list[int], text: str) -> None:
    basis = rescaled_kernel_basis(SIZES, "area").float()
    with pytest.raises(ShapeError, match="rescaled_kernel_valid_conv2d: expected .*" + text):
        rescaled_kernel_valid_conv2d(torch.zeros(x), torch.zeros(1, 1, 3, 3), basis, windows=windows)


@pytest.mark.parametrize("sizes", [[], [4], [3, 3], [5, 3], [3.0, 5.0], [-1]])
def test_refuses_sizes_without_a_centre_or_an_order(sizes) -> None:
    with pytest.raises(SettingError, match=r"expected odd increasing kernel_sizes, got \["):
        rescaled_kernel_basis(sizes, "nearest")
    with pytest.raises(SettingError, match="interpolation of nearest, bilinear, bicubic, area, got 'cubic'"):
        rescaled_kernel_basis([3], "cubic")  # type: ignore[arg-type]


# --- pooling over scales ---


def slow_scale_pool(x: Tensor, kind: str) -> Tensor:
    y = torch.zeros_like(x[:, :, 0])
    for b, c in np.ndindex(*x.shape[:2]):
        scales = x[b, c].numpy()
        if kind == "pixel":
            for i, j in np.ndindex(*scales.shape[1:]):
                y[b, c, i, j] = scales[:, i, j].max()
        else:
            strength = [scale.max() if kind == "slice" else scale.sum() for scale in scales]
            y[b, c] = x[b, c, int(np.argmax(strength))]
    return y


@pytest.mark.parametrize("kind", ["pixel", "slice", "energy"])
def test_pool_equals_the_loops_and_does_not_see_the_order_of_scales(kind, random) -> None:
    x = random(2, 3, 4, 5, 6)
    y = scale_pool(x, kind)
    assert torch.equal(y, slow_scale_pool(x, kind))
    assert torch.equal(scale_pool(x[:, :, [2, 0, 3, 1]], kind), y)
    others = {"pixel", "slice", "energy"} - {kind}
    assert all(not torch.equal(scale_pool(x, other), y) for other in others)


@pytest.mark.parametrize("kind", ["pixel", "slice", "energy"])
def test_derivatives_of_the_pool(kind, random) -> None:
    assert torch.autograd.gradcheck(partial(scale_pool, kind=kind), (random(1, 2, 3, 2, 3).requires_grad_(),))


def test_pool_refuses_images_and_unknown_kinds() -> None:
    with pytest.raises(
        ShapeError, match=r"scale_pool: expected a scale map \(B, C, S, H, W\), got \(2, 3, 4, 4\)"
    ):
        scale_pool(torch.zeros(2, 3, 4, 4))
    with pytest.raises(SettingError, match="a pooling of pixel, slice, energy, got 'max'"):
        scale_pool(torch.zeros(1, 1, 1, 1, 1), "max")  # type: ignore[arg-type]
