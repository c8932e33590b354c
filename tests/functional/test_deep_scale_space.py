"""Discrete Gaussians and dilated correlation against definitions, and the semigroup that is exact."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    discrete_gaussian,
    scale_space_conv2d,
    scale_space_lift2d,
)
from tests.functional.reference import input_channel, pad

COVERS = {"discrete_gaussian", "scale_space_conv2d", "scale_space_lift2d"}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the discrete Gaussian ---


@pytest.mark.parametrize("variance", [1e-8, 1e-3, 0.1875, 0.75, 15.75, 100.0, 1e4])
@pytest.mark.parametrize("radius", [None, 0, 1, 6])
def test_discrete_gaussian_is_the_scaled_bessel_function(variance: float, radius: int | None) -> None:
    special = pytest.importorskip("scipy.special")
    kernel = discrete_gaussian(variance, radius).numpy()
    reach = 4 * math.ceil(variance**0.5) if radius is None else radius
    expected = special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=2e-13, atol=0)


def test_discrete_gaussian_is_a_kernel_of_its_variance() -> None:
    for variance in (0.3, 2.0, 9.0):
        kernel = discrete_gaussian(variance, 60)
        n = torch.arange(-60, 61, dtype=torch.float64)
        assert torch.equal(kernel, kernel.flip(0))
        assert (kernel >= 0).all()
        assert kernel.sum().item() == pytest.approx(1, abs=1e-14)
        assert (kernel * n**2).sum().item() == pytest.approx(variance, rel=1e-12)
    assert discrete_gaussian(0.0).tolist() == [1.0]
    assert discrete_gaussian(0.0, 2).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_variances_add_but_for_the_tails_that_are_cut() -> None:
    """The sampled Gaussian, the control, has no such semigroup."""

    def gap(kernel, radius: int | None) -> float:
        first, second, both = (np.asarray(kernel(t, radius)) for t in (0.4, 0.6, 1.0))
        twice = np.convolve(first, second)
        margin = (len(twice) - len(both)) // 2
        return float(np.abs(twice - np.pad(both, max(margin, 0))).max())

    def sampled(variance: float, radius: int | None) -> np.ndarray:
        n = np.arange(-(radius or 4), (radius or 4) + 1)
        values = np.exp(-(n**2) / (2 * variance))
        return values / values.sum()

    assert gap(discrete_gaussian, 30) < 1e-15
    assert 1e-6 < gap(discrete_gaussian, None) < 1e-3
    assert gap(sampled, 30) > 5e-3


# --- the lift ---


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_lift_is_the_image_and_its_blurred_copies(mode: str) -> None:
    x, kernels = random(2, 3, 9, 11), [discrete_gaussian(0.7), random(3, seed=1)]
    y = scale_space_lift2d(x, kernels, padding_mode=mode)
    assert torch.equal(y[:, :, 0], x)
    for scale, kernel in enumerate(kernels, start=1):
        padded = torch.from_numpy(pad(x.numpy(), len(kernel) // 2, mode)).flatten(0, 1)[:, None]
        expected = conv2d(padded, torch.outer(kernel, kernel)[None, None]).view(x.shape)
        torch.testing.assert_close(y[:, :, scale], expected, rtol=1e-12, atol=1e-12)


def test_rows_and_columns_of_the_lift_are_not_confused() -> None:
    line = torch.zeros(1, 1, 7, 9, dtype=torch.float64)
    line[..., 3, :] = 1.0
    blurred = scale_space_lift2d(line, [discrete_gaussian(0.5, 1)])[0, 0, 1]
    torch.testing.assert_close(blurred[:, 4], torch.nn.functional.pad(discrete_gaussian(0.5, 1), (2, 2)))
    lopsided = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    shifted = scale_space_lift2d(line, [lopsided])[0, 0, 1]
    assert torch.equal(shifted[2, :8], torch.ones(8).double())  # correlation: the pixel after


# --- the scale correlation ---


def slow_conv(x, weight, bias, base: int, geometry: ConvGeometry) -> np.ndarray:
    """y[b,o,s,i,j] = bias[o] + sum of weight[o,c,n,p,q] x[b, c, s+n, i+base^s(p-r), j+base^s(q-r)]."""
    scale_size, size = weight.shape[2], weight.shape[-1]
    num_scales, step = x.shape[2], geometry.stride
    rows, columns = ((side - 1) // step + 1 for side in x.shape[-2:])
    y = np.zeros((len(x), len(weight), num_scales, rows, columns))
    for b, o, s, i, j in np.ndindex(*y.shape):
        y[b, o, s, i, j] = 0 if bias is None else bias[o]
        margin = base**s * (size // 2)
        for c, n in np.ndindex(weight.shape[1], scale_size):
            if s + n >= num_scales and geometry.scale_padding == "zeros":
                continue
            seen = x[b, input_channel(o, c, weight, geometry.groups), min(s + n, num_scales - 1)]
            window = pad(seen, margin, geometry.padding_mode)[i * step :, j * step :]
            taps = window[: base**s * (size - 1) + 1 : base**s, : base**s * (size - 1) + 1 : base**s]
            y[b, o, s, i, j] += np.sum(weight[o, c, n] * taps)
    return y


@pytest.mark.parametrize("scale_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel_size", "base", "bias", "options"),
    [
        (3, 2, True, {}),
        (1, 2, True, {"stride": 2}),
        (3, 2, False, {"stride": 3, "padding_mode": "circular"}),
        (3, 3, True, {"groups": 2, "scale_padding": "replicate"}),
        (3, 2, False, {"padding_mode": "reflect", "stride": 2}),
    ],
)
def test_convolution_equals_the_loops(
    scale_size: int, kernel_size: int, base: int, bias: bool, options: dict
) -> None:
    geometry = ConvGeometry(**{"padding": "same", **options})
    x = random(2, 4, 3, 9, 10)
    weight = random(2, 4 // geometry.groups, scale_size, kernel_size, kernel_size, seed=1)
    offset = random(2, seed=2) if bias else None
    actual = scale_space_conv2d(x, weight, offset, base=base, geometry=geometry)
    operands = x.numpy(), weight.numpy(), None if offset is None else offset.numpy()
    expected = torch.from_numpy(slow_conv(*operands, base, geometry))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def subsampled(x: Tensor, base: int) -> Tensor:
    """The action of the semigroup: scale s is the former s + 1, on every base-th pixel."""
    return x[:, :, 1:, ::base, ::base]


@pytest.mark.parametrize("scale_size", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("base", "size", "options"),
    [
        (2, (17, 20), {}),
        (3, (17, 20), {}),
        (2, (16, 20), {"padding_mode": "circular"}),
        (2, (17, 21), {"padding_mode": "reflect"}),
        (2, (17, 21), {"padding_mode": "replicate", "scale_padding": "replicate"}),
    ],
)
def test_commutes_with_subsampling_exactly(
    base: int, size: tuple[int, int], options: dict, stride: int, scale_size: int
) -> None:
    x, weight = random(2, 3, 3, *size), random(4, 3, scale_size, 3, 3, seed=1)
    settings = {"base": base, "geometry": ConvGeometry(stride=stride, padding="same", **options)}
    before = scale_space_conv2d(subsampled(x, base), weight, **settings)
    after = subsampled(scale_space_conv2d(x, weight, **settings), base)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("base", "size", "padding_mode"),
    [(3, (16, 20), "zeros"), (2, (17, 21), "circular"), (2, (16, 20), "reflect")],
)  # dilations of another base, and sizes that do not fit the border
def test_does_not_commute_with_another_subsampling(
    base: int, size: tuple[int, int], padding_mode: str
) -> None:
    x, weight = random(2, 3, 3, *size), random(4, 3, 1, 3, 3, seed=1)
    settings = {"base": 2, "geometry": ConvGeometry(padding="same", padding_mode=padding_mode)}
    before = scale_space_conv2d(subsampled(x, base), weight, **settings)
    after = subsampled(scale_space_conv2d(x, weight, **settings), base)
    assert (before - after).norm() / after.norm() > 0.1


def test_shifts_are_exact_on_a_circular_border() -> None:
    x, weight = random(1, 2, 3, 12, 16), random(3, 2, 2, 3, 3, seed=1)
    geometry = ConvGeometry(padding="same", padding_mode="circular")
    y = scale_space_conv2d(x, weight, geometry=geometry)
    shifted = scale_space_conv2d(x.roll((1, 3), (3, 4)), weight, geometry=geometry)
    torch.testing.assert_close(shifted, y.roll((1, 3), (3, 4)), rtol=1e-12, atol=1e-12)


def test_derivatives() -> None:
    image, kernel = random(1, 2, 5, 6).requires_grad_(), random(3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, k: scale_space_lift2d(x, [k]), (image, kernel))
    x, bias = random(1, 2, 3, 5, 4).requires_grad_(), random(2, seed=2).requires_grad_()
    for size in (1, 3):
        weight = random(2, 2, 2, size, size, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(scale_space_conv2d, (x, weight, bias))


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: scale_space_lift2d(torch.zeros(3, 8, 8), []), r"an image \(B, C, H, W\), got \(3, 8, 8\)"),
        (
            lambda: scale_space_lift2d(random(1, 1, 8, 8), [torch.ones(4)]),
            r"kernels \(2r \+ 1,\), got \(4,\)",
        ),
        (
            lambda: scale_space_lift2d(random(1, 1, 8, 9), [random(17)], padding_mode="reflect"),
            r"a reflect border of at most 7 pixels for an input of \(8, 9\), got 8",
        ),
        (
            lambda: scale_space_conv2d(random(1, 2, 3, 8, 8), random(1, 3, 1, 3, 3)),
            r"a scale map \(B, 3, S, H, W\), got \(1, 2, 3, 8, 8\)",
        ),
        (lambda: scale_space_conv2d(random(1, 2, 8, 8), random(1, 2, 1, 3, 3)), r"got \(1, 2, 8, 8\)"),
        (lambda: scale_space_conv2d(random(1, 2, 3, 8, 8), random(1, 2, 1, 2, 2)), "odd K, got"),
        (lambda: scale_space_conv2d(random(1, 2, 3, 8, 8), random(1, 2, 3, 3)), r"got \(1, 2, 3, 3\)"),
        (
            lambda: scale_space_conv2d(random(1, 2, 3, 8, 8), random(1, 2, 1, 3, 3), random(2)),
            r"a bias \(1,\), one number an output channel, got \(2,\)",
        ),
        (
            lambda: scale_space_conv2d(
                random(1, 2, 3, 8, 8), random(1, 1, 1, 3, 3), geometry=ConvGeometry(padding=1, groups=2)
            ),
            "output channels divisible by 2 groups, got 1",
        ),
        (
            lambda: scale_space_conv2d(
                random(1, 2, 4, 7, 9),
                random(1, 2, 1, 3, 3),
                geometry=ConvGeometry(padding=1, padding_mode="circular"),
            ),
            r"a circular border of at most 7 pixels for an input of \(7, 9\), got 8 at the largest scale",
        ),
    ],
)
def test_refuses_wrong_shapes(call, text: str) -> None:
    with pytest.raises(ShapeError, match=r"scale_space_\w+: expected .*" + text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: discrete_gaussian(-1.0), "a finite variance of at least 0, got -1.0"),
        (lambda: discrete_gaussian(math.inf), "a finite variance of at least 0, got inf"),
        (lambda: discrete_gaussian(1.0, -1), "a radius of at least 0 pixels, got -1"),
        (
            lambda: scale_space_lift2d(random(1, 1, 8, 8), [], padding_mode="wrap"),
            "padding_mode .* got 'wrap'",
        ),
        (
            lambda: scale_space_conv2d(random(1, 1, 2, 8, 8), random(1, 1, 1, 3, 3), base=1.5),
            "a whole number of at least 2 as base, got 1.5",
        ),
        (
            lambda: scale_space_conv2d(random(1, 1, 2, 8, 8), random(1, 1, 1, 3, 3), geometry=ConvGeometry()),
            "padding='same' or 1, half the filter before its dilation, got 0",
        ),
    ],
)
def test_refuses_wrong_settings(call, text: str) -> None:
    with pytest.raises(SettingError, match="expected .*" + text):
        call()
