"""The operations on signals, images and volumes against loops, and against those of images."""

import itertools

import numpy as np
import pytest
import torch

from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    lift_conv2d,
    lift_conv_nd,
    scale_avg_pool2d,
    scale_avg_pool_nd,
    scale_conv2d,
    scale_conv_nd,
    scale_dropout_nd,
    scale_max_pool2d,
    scale_max_pool_nd,
    scale_projection,
    scale_projection_nd,
    support_windows,
)
from tests.functional.reference import Array

COVERS = {
    "lift_conv_nd",
    "scale_avg_pool_nd",
    "scale_conv_nd",
    "scale_dropout_nd",
    "scale_max_pool_nd",
    "scale_projection_nd",
}

MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
SIZES = {1: (9,), 2: (6, 7), 3: (5, 4, 6)}
DIMENSIONS = pytest.mark.parametrize("ndim", [1, 2, 3])
SCALES = 3


def slow_conv(x: Array, weight: Array, basis: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """y[b,o,s,p] = bias[o] + sum over i, c, f, q of weight[o,c,i,f] basis[f,s,q] x[b,c,s+i,stride p+q]."""
    ndim, size, margin = basis.ndim - 2, basis.shape[-1], geometry.margin(basis.shape[-1])
    borders = [(0, 0)] * 3 + [(margin, margin)] * ndim
    x = np.pad(x, borders, mode=MODES[geometry.padding_mode])
    places = [(side - size) // geometry.stride + 1 for side in x.shape[3:]]
    y = np.zeros((len(x), len(weight), basis.shape[1], *places))
    for b, o, s, *place in np.ndindex(*y.shape):
        first = o // (len(weight) // geometry.groups) * weight.shape[1]
        window = tuple(slice(p * geometry.stride, p * geometry.stride + size) for p in place)
        total = 0.0 if bias is None else bias[o]
        for c, i in np.ndindex(*weight.shape[1:3]):
            inside = s + i < basis.shape[1]
            if inside or geometry.scale_padding == "replicate":
                seen = x[(b, first + c, min(s + i, basis.shape[1] - 1), *window)]
                total += sum(weight[o, c, i, f] * np.sum(basis[f, s] * seen) for f in range(len(basis)))
        y[(b, o, s, *place)] = total
    return y


def operands(ndim: int, *, slots: int, groups: int = 1, size: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(ndim)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = drawn(2, 2 * groups, SCALES, *SIZES[ndim])
    return x, drawn(2 * groups, 2, slots, 2), drawn(2, SCALES, *[size] * ndim), drawn(2 * groups)


GEOMETRIES = [
    ConvGeometry(),
    ConvGeometry(padding="same", stride=2),
    ConvGeometry(padding=2, groups=2),
    *(ConvGeometry(padding="same", padding_mode=mode) for mode in ("circular", "reflect", "replicate")),
]
EVERY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


@DIMENSIONS
@EVERY_GEOMETRY
def test_lift_equals_the_loops(ndim: int, geometry: ConvGeometry) -> None:
    x, weight, basis, bias = operands(ndim, slots=1, groups=geometry.groups)
    signal = x[:, :, 0]
    actual = lift_conv_nd(signal, weight[:, :, 0], basis, bias, geometry=geometry)
    repeated = signal[:, :, None].expand(x.shape)
    expected = slow_conv(*(t.numpy() for t in (repeated, weight, basis, bias)), geometry)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=1e-12)


@DIMENSIONS
@EVERY_GEOMETRY
@pytest.mark.parametrize("scale_padding", ["zeros", "replicate"])
def test_scale_convolution_equals_the_loops(ndim: int, geometry: ConvGeometry, scale_padding) -> None:
    geometry = ConvGeometry(**{**vars(geometry), "scale_padding": scale_padding})
    x, weight, basis, bias = operands(ndim, slots=2, groups=geometry.groups)
    actual = scale_conv_nd(x, weight, basis, bias, geometry=geometry)
    expected = slow_conv(*(t.numpy() for t in (x, weight, basis, bias)), geometry)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale_padding", ["zeros", "replicate"])
@pytest.mark.parametrize("padding", [0, "same"])
def test_two_dimensions_are_those_of_images(scale_padding, padding) -> None:
    basis = HermiteBasis(2).sample(7, ScaleGrid([0.8, 1.2, 1.8]))
    x = torch.randn(2, 3, 3, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    geometry = ConvGeometry(padding=padding, scale_padding=scale_padding, stride=2)
    torch.testing.assert_close(
        scale_conv_nd(x, weight, basis, geometry=geometry), scale_conv2d(x, weight, basis, geometry=geometry)
    )
    images = x[:, :, 0], weight[:, :, 0], basis
    torch.testing.assert_close(
        lift_conv_nd(*images, geometry=geometry), lift_conv2d(*images, geometry=geometry)
    )


@DIMENSIONS
@pytest.mark.parametrize("geometry", [ConvGeometry(), *GEOMETRIES[3:]], ids=str)
def test_smaller_windows_change_nothing_where_the_basis_is_zero(ndim: int, geometry: ConvGeometry) -> None:
    """Without padding the smaller windows see a cropped input; with it less is padded."""
    x, weight, basis, bias = operands(ndim, slots=2)
    basis[:, 0] = 0
    basis[(slice(None), 0, *[1] * ndim)] = 1.5
    whole = scale_conv_nd(x, weight, basis, bias, geometry=geometry)
    cut = scale_conv_nd(x, weight, basis, bias, geometry=geometry, windows=(1, 3, 3))
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)
    wrong = scale_conv_nd(x, weight, basis, bias, geometry=geometry, windows=(1, 1, 3))
    assert not torch.allclose(wrong, whole)


def test_circular_shifts_are_exact_along_every_axis() -> None:
    x, weight, basis, bias = operands(3, slots=2)
    geometry = ConvGeometry(padding="same", padding_mode="circular")
    y = scale_conv_nd(x, weight, basis, bias, geometry=geometry)
    shifted = scale_conv_nd(x.roll((1, -2, 3), (3, 4, 5)), weight, basis, bias, geometry=geometry)
    torch.testing.assert_close(shifted, y.roll((1, -2, 3), (3, 4, 5)), rtol=0, atol=1e-13)
    assert not torch.allclose(shifted, y)


@DIMENSIONS
def test_gradients_are_those_of_finite_differences(ndim: int) -> None:
    x, weight, basis, bias = (t.requires_grad_() for t in operands(ndim, slots=2))
    geometry = ConvGeometry(padding="same", scale_padding="replicate", stride=2)
    small = x[:1, :, :, *[slice(0, 4)] * ndim].detach().requires_grad_()

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return scale_conv_nd(*tensors, geometry=geometry)

    assert torch.autograd.gradcheck(function, (small, weight, basis, bias), fast_mode=True)


# --- companions ---


@pytest.mark.parametrize(
    ("general", "images"),
    [
        (
            lambda x: scale_max_pool_nd(x, 3, stride=2, padding=1),
            lambda x: scale_max_pool2d(x, 3, stride=2, padding=1),
        ),
        (lambda x: scale_avg_pool_nd(x, 2), lambda x: scale_avg_pool2d(x, 2)),
        *(
            (lambda x, m=mode: scale_projection_nd(x, m), lambda x, m=mode: scale_projection(x, m))
            for mode in ("max", "mean", "logsumexp", "argmax-scale")
        ),
    ],
)
def test_companions_in_two_dimensions_are_those_of_images(general, images) -> None:
    x = torch.randn(2, 3, 4, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(general(x), images(x))
    layout = x.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(general(layout), images(x))


@DIMENSIONS
@pytest.mark.parametrize(("stride", "padding"), [(None, 0), (2, 1)])
def test_pooling_equals_the_loops(ndim: int, stride: int | None, padding: int) -> None:
    x, step = operands(ndim, slots=1)[0], stride or 3
    actual = {
        "max": scale_max_pool_nd(x, 3, stride=stride, padding=padding),
        "mean": scale_avg_pool_nd(x, 3, stride=stride, padding=padding),
    }
    borders = [(0, 0)] * 3 + [(padding, padding)] * ndim
    for name, filling, reduce in (("max", -np.inf, np.max), ("mean", 0.0, np.mean)):
        padded = np.pad(x.numpy(), borders, constant_values=filling)
        for place in itertools.product(*(range(side) for side in actual[name].shape[3:])):
            window = tuple(slice(p * step, p * step + 3) for p in place)
            expected = reduce(padded[(..., *window)], axis=tuple(range(-ndim, 0)))
            got = actual[name][(..., *place)].numpy()
            np.testing.assert_allclose(got, expected, atol=1e-12)
        assert tuple((side - 3) // step + 1 for side in padded.shape[3:]) == actual[name].shape[3:]


@DIMENSIONS
def test_projection_reduces_the_scales_alone(ndim: int) -> None:
    x = operands(ndim, slots=1)[0]
    assert torch.equal(scale_projection_nd(x), torch.from_numpy(x.numpy().max(2)))
    assert torch.equal(scale_projection_nd(x, "argmax-scale"), torch.from_numpy(x.numpy().argmax(2)))


@DIMENSIONS
def test_dropout_drops_whole_channels_and_keeps_the_mean(ndim: int) -> None:
    x = torch.ones(40, 10, 2, *SIZES[ndim], dtype=torch.float64)
    y = scale_dropout_nd(x, 0.25, generator=torch.Generator().manual_seed(0))
    channels = y.flatten(2)
    assert bool((channels == channels[..., :1]).all())
    assert set(channels[..., 0].unique().tolist()) == {0.0, 1 / 0.75}
    assert 0.9 < float(y.mean()) < 1.1
    assert scale_dropout_nd(x, 0.25, training=False) is not None
    assert torch.equal(scale_dropout_nd(x, 0.25, training=False), x)


# --- refusals ---


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lift_conv_nd(zeros(2, 3, 9, 9), zeros(4, 3, 2), zeros(2, 3, 5)),
            r"lift_conv_nd: expected an input \(B, 3, L\), got \(2, 3, 9, 9\)",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 2, 9), zeros(4, 3, 2), zeros(2, 3, 5)),
            r"expected an input \(B, 3, L\), got \(2, 2, 9\)",
        ),
        (
            lambda: scale_conv_nd(zeros(2, 3, 2, 9, 9, 9), zeros(4, 3, 1, 2), zeros(2, 3, 5, 5, 5)),
            r"scale_conv_nd: expected an input \(B, 3, 3, D, H, W\), got \(2, 3, 2, 9, 9, 9\)",
        ),
        (
            lambda: scale_conv_nd(zeros(2, 3, 3, 9), zeros(4, 3, 2), zeros(2, 3, 5)),
            r"expected weights \(C', C, N, F\) with F=2 as in the basis, got \(4, 3, 2\)",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9), zeros(4, 3, 5), zeros(2, 3, 5)),
            r"expected weights \(C', C, F\) with F=2 as in the basis, got \(4, 3, 5\)",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9), zeros(4, 3, 2), zeros(2, 3, 4)),
            r"expected a basis \(F, S, K\), \(F, S, K, K\) or .* with odd K, got \(2, 3, 4\)",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9, 9), zeros(4, 3, 2), zeros(2, 3, 5, 3)),
            r"expected a basis .* with odd K, got \(2, 3, 5, 3\)",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9), zeros(4, 3, 2), zeros(2, 3, 5), zeros(3)),
            r"expected a bias \(4,\), one number an output channel, got \(3,\)",
        ),
        (
            lambda: lift_conv_nd(
                zeros(2, 6, 9), zeros(3, 3, 2), zeros(2, 3, 5), geometry=ConvGeometry(groups=2)
            ),
            "expected output channels divisible by 2 groups, got 3",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9, 4, 9), zeros(4, 3, 2), zeros(2, 3, 5, 5, 5)),
            r"at least the kernel's 5 pixels, got \(9, 4, 9\) with padding 0; use padding='same'",
        ),
        (
            lambda: lift_conv_nd(
                zeros(2, 3, 2),
                zeros(4, 3, 2),
                zeros(2, 3, 5),
                geometry=ConvGeometry(padding="same", padding_mode="reflect"),
            ),
            r"a reflect padding of at most 1 pixels for an input of \(2,\), got 2",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9), zeros(4, 3, 2), zeros(2, 3, 5), windows=(5, 5)),
            r"expected 3 odd windows of at most 5 pixels, got \[5, 5\]",
        ),
        (
            lambda: lift_conv_nd(zeros(2, 3, 9), zeros(4, 3, 2), zeros(2, 3, 5), windows=(5, 4, 5)),
            r"expected 3 odd windows of at most 5 pixels, got \[5, 4, 5\]",
        ),
        (
            lambda: scale_max_pool_nd(zeros(2, 3, 9), 2),
            r"scale_max_pool_nd: expected a scale map \(B, C, S, L\) or",
        ),
        (
            lambda: scale_avg_pool_nd(zeros(2, 3, 2, 3, 1), 2),
            r"window's 2 pixels, got \(3, 1\) with padding 0",
        ),
        (
            lambda: scale_projection_nd(zeros(2, 3, 9)),
            r"scale_projection_nd: expected a scale map .* got \(2, 3, 9\)",
        ),
        (
            lambda: scale_dropout_nd(zeros(2, 3, 9)),
            r"scale_dropout_nd: expected a scale map .* got \(2, 3, 9\)",
        ),
    ],
)
def test_shapes_that_do_not_fit(call, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (
                lambda option=option: lift_conv_nd(
                    zeros(2, 3, 9), zeros(4, 3, 2), zeros(2, 3, 5), geometry=ConvGeometry(**option)
                ),
                rf"expected no {next(iter(option))}, since only the layers for images .*, got",
            )
            for option in ({"projection": "max"}, {"pooling": 2})
        ),
        (
            lambda: scale_max_pool_nd(zeros(2, 3, 2, 9), 0),
            "scale_max_pool_nd: expected kernel_size and stride",
        ),
        (lambda: scale_dropout_nd(zeros(2, 3, 2, 9), 1.0), "a probability p with 0 <= p < 1, got 1.0"),
        (lambda: scale_projection_nd(zeros(2, 3, 2, 9), "min"), "a projection of max, .*, got 'min'"),
    ],
)
def test_settings_that_are_illegal(call, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()


def test_windows_of_images_are_those_of_the_support() -> None:
    """What the two-dimensional function finds holds in the general convolution."""
    basis = HermiteBasis(2).sample(9, ScaleGrid([1.0, 2.0]))
    windows = support_windows(basis)
    assert windows == (5, 9)
    x, weight = torch.randn(1, 2, 12, 12).double(), torch.randn(3, 2, 4).double()
    whole, cut = lift_conv_nd(x, weight, basis), lift_conv_nd(x, weight, basis, windows=windows)
    torch.testing.assert_close(cut, whole)
