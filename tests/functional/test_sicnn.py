import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale.errors import ScaleGridError, SettingError, ShapeError
from equiscale.functional import ConvGeometry, multi_column_basis, multi_column_conv2d, support_windows
from tests.functional.reference import slow_lift
from tests.golden import golden_case

COVERS = {"multi_column_basis", "multi_column_conv2d"}

SCALES = [0.67, 1.0, 1.5]


@pytest.fixture
def random(generator: torch.Generator):
    return partial(torch.randn, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("input_scales", [1, 3])
def test_equals_the_published_layer_with_its_gradients(input_scales: int) -> None:
    case = golden_case(f"sicnn_conv_in{input_scales}")
    flat = case["x0"].clone().requires_grad_()
    weight = case.parameters()["weight"].clone().requires_grad_()
    # Published columns are scale-major: (B, S*C, H, W).
    x = flat if input_scales == 1 else flat.unflatten(1, (3, 2)).transpose(1, 2)
    y = multi_column_conv2d(x, weight, multi_column_basis(7, case.config["scales"]))
    published = y.transpose(1, 2).flatten(1, 2)
    published.backward(case["grad_y0"])
    for actual, expected in [
        (published, case["y0"]),
        (flat.grad, case["grad_x0"]),
        (weight.grad, case.parameter_gradients()["weight"]),
    ]:
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def slow_column(kernel: np.ndarray, scale: float, side: int) -> np.ndarray:
    """One kernel on its canvas, resized pixel by pixel, with the L1 norm it had."""
    margin = (side - len(kernel)) // 2
    canvas = np.pad(kernel, margin)
    size = math.floor(side * scale)
    left = (side - size) // 2
    y = np.zeros_like(canvas)
    for i, j in np.ndindex(side, side):
        t = (i - left, j - left)
        if not all(0 <= k < size for k in t):
            continue
        if scale == 1:
            y[i, j] = canvas[i, j]
        elif scale > 1:
            y[i, j] = canvas[math.floor(t[0] / scale), math.floor(t[1] / scale)]
        else:
            source = [k * (side - 1) / (size - 1) if size > 1 else 0.0 for k in t]
            for p, q in np.ndindex(side, side):
                y[i, j] += max(0, 1 - abs(source[0] - p)) * max(0, 1 - abs(source[1] - q)) * canvas[p, q]
    return y * np.abs(kernel).sum() / np.abs(y).sum()


@pytest.mark.parametrize(("kernel_size", "side"), [(3, 5), (5, 7)])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 2)])
def test_equals_the_loops(kernel_size: int, side: int, stride: int, groups: int, random) -> None:
    x, bias = random(2, 4, 3, 6, 7), random(2)
    weight = random(2, 4 // groups, kernel_size, kernel_size)
    delta = np.eye(side**2).reshape(side**2, 1, side, side)
    columns = []
    for s, scale in enumerate(SCALES):
        resized = [[slow_column(kernel.numpy(), scale, side).ravel() for kernel in row] for row in weight]
        columns.append(
            slow_lift(
                x[:, :, s].numpy(), np.array(resized), delta, bias.numpy(),
                stride=stride, padding=side // 2, mode="zeros", groups=groups,
            )
        )  # fmt: skip
    geometry = ConvGeometry(stride=stride, padding="same", groups=groups)
    y = multi_column_conv2d(x, weight, multi_column_basis(kernel_size, SCALES), bias, geometry=geometry)
    torch.testing.assert_close(y, torch.from_numpy(np.concatenate(columns, 2)), rtol=1e-11, atol=1e-11)


def test_an_image_is_seen_by_every_column(random) -> None:
    x, weight, basis = random(2, 4, 6, 7), random(2, 4, 5, 5), multi_column_basis(5, SCALES)
    repeated = x[:, :, None].expand(-1, -1, 3, -1, -1)
    assert torch.equal(multi_column_conv2d(x, weight, basis), multi_column_conv2d(repeated, weight, basis))


def test_the_column_of_scale_one_is_the_ordinary_convolution(random) -> None:
    x, weight = random(2, 4, 6, 7), random(2, 4, 5, 5)
    y = multi_column_conv2d(x, weight, multi_column_basis(5, SCALES))
    torch.testing.assert_close(y[:, :, 1], conv2d(x, weight, padding=2), rtol=1e-13, atol=1e-13)


def test_a_kernel_of_one_pixel_mixes_channels_alike_in_all_columns(random) -> None:
    x, weight = random(2, 4, 3, 6, 7), random(2, 4, 1, 1)
    y = multi_column_conv2d(x, weight, multi_column_basis(1, SCALES), geometry=ConvGeometry(stride=2))
    expected = torch.einsum("oc,bcshw->boshw", weight[:, :, 0, 0], x[..., ::2, ::2])
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("factor", [3, 5])
def test_repeated_pixels_give_the_features_of_scale_one_exactly(factor: int, random) -> None:
    x, weight = random(2, 2, 7, 8), random(3, 2, 3, 3)
    large = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    basis = multi_column_basis(3, [1.0, float(factor)])
    middles = slice(factor // 2, None, factor)
    y = multi_column_conv2d(large, weight, basis)[:, :, 1, middles, middles]
    expected = multi_column_conv2d(x, weight, basis)[:, :, 0]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    beside = multi_column_conv2d(large, weight, basis)[:, :, 1, 0::factor, 0::factor]
    assert (beside - expected).abs().max() > 0.1


def test_windows_change_nothing(random) -> None:
    x, weight = random(2, 4, 3, 6, 7), random(2, 4, 5, 5)
    basis = multi_column_basis(5, [0.5, 1.0, 2.0])
    windows = support_windows(basis)
    assert windows == (3, 5, 11)
    y = multi_column_conv2d(x, weight, basis, windows=windows)
    torch.testing.assert_close(y, multi_column_conv2d(x, weight, basis), rtol=1e-12, atol=1e-12)


def test_kernels_of_zeros_stay_zero_and_have_gradients(random) -> None:
    weight = random(2, 1, 3, 3)
    weight[0] = 0
    weight.requires_grad_()
    y = multi_column_conv2d(random(1, 1, 5, 5), weight, multi_column_basis(3, SCALES))
    y.square().sum().backward()
    assert torch.equal(y[:, 0], torch.zeros_like(y[:, 0]))
    assert bool(torch.isfinite(y).all() and torch.isfinite(weight.grad).all())


def test_kernels_of_which_a_scale_reads_zeros_alone_are_zero_there(random) -> None:
    """At scale 0.67 a canvas of 5 is read at 0, 2 and 4: of a kernel of 3 the centre alone."""
    basis = multi_column_basis(3, SCALES)
    read = basis[:, 0].flatten(1).any(1)  # (K²,): what the smallest scale reads
    assert read.nonzero().tolist() == [[4]]
    weight = torch.where(read, 0.0, 1.0).double().view(1, 1, 3, 3).repeat(1, 2, 1, 1)
    weight[:, 1] = random(1, 3, 3)
    for dtype in (torch.float32, torch.float64):
        x, kernels = random(1, 2, 5, 6).to(dtype), weight.to(dtype).requires_grad_()
        y = multi_column_conv2d(x, kernels, basis.to(dtype))
        y.square().sum().backward()
        assert y.abs().max() < 1e3
        assert kernels.grad.abs().max() < 1e4
        alone = multi_column_conv2d(x[:, 1:], kernels[:, 1:], basis.to(dtype))[:, :, 0]
        torch.testing.assert_close(y[:, :, 0], alone)


def test_derivatives(random) -> None:
    operands = [random(*shape).requires_grad_() for shape in ((1, 2, 3, 4, 5), (2, 2, 3, 3), (2,))]
    basis = multi_column_basis(3, SCALES)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return multi_column_conv2d(x, weight, basis, bias)

    assert torch.autograd.gradcheck(function, operands)


@pytest.mark.parametrize(
    ("x", "weight", "text"),
    [
        ((2, 4, 2, 6, 7), (2, 4, 3, 3), r"or a scale map \(B, 4, 3, H, W\), got \(2, 4, 2, 6, 7\)"),
        ((2, 3, 6, 7), (2, 4, 3, 3), r"an image \(B, 4, H, W\) or .*, got \(2, 3, 6, 7\)"),
        ((4, 6, 7), (2, 4, 3, 3), r"got \(4, 6, 7\)"),
        ((2, 4, 6, 7), (2, 4, 5, 5), r"K² = 9 as in the basis, got \(2, 4, 5, 5\)"),
        ((2, 4, 6, 7), (2, 4, 9), r"K² = 9 as in the basis, got \(2, 4, 9\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(x, weight, text: str) -> None:
    with pytest.raises(ShapeError, match="multi_column_conv2d: expected .*" + text):
        multi_column_conv2d(torch.zeros(x), torch.zeros(weight), multi_column_basis(3, SCALES).float())


@pytest.mark.parametrize(
    ("kernel_size", "scales", "error", "text"),
    [
        (4, SCALES, SettingError, "expected an odd kernel_size of at least 1, got 4"),
        (-1, SCALES, SettingError, "expected an odd kernel_size of at least 1, got -1"),
        (3, [1.5, 1.0], ScaleGridError, "strictly increasing scales"),
        (
            3,
            [0.1, 1.0],
            SettingError,
            "leave something of a kernel of 3 pixels, got 0.1, which falls between",
        ),
        (
            3,
            [0.3, 3.33],
            SettingError,
            "got 0.3, which falls between its pixels on a canvas of 9; use a larger",
        ),
    ],
)
def test_refuses_settings_that_leave_no_kernel(kernel_size: int, scales, error, text: str) -> None:
    with pytest.raises(error, match=text):
        multi_column_basis(kernel_size, scales)
