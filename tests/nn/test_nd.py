"""Layers of signals and volumes: how equivariant they are to scaling, measured on analytic blobs.

A blob is a wave under a Gaussian, rendered at any scale from its formula: nothing is interpolated.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.basis import (
    BSplineBasis,
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    SteerableBasis,
)
from equiscale.errors import BasisError
from equiscale.nn import (
    LiftConv1d,
    LiftConv3d,
    ScaleAvgPool1d,
    ScaleAvgPool3d,
    ScaleBatchNorm1d,
    ScaleBatchNorm3d,
    ScaleConv1d,
    ScaleConv3d,
    ScaleDropout1d,
    ScaleDropout3d,
    ScaleMaxPool1d,
    ScaleMaxPool3d,
    ScaleProjection1d,
    ScaleProjection3d,
)

COVERS = {
    "LiftConv1d",
    "LiftConv3d",
    "ScaleAvgPool1d",
    "ScaleAvgPool3d",
    "ScaleBatchNorm1d",
    "ScaleBatchNorm3d",
    "ScaleConv1d",
    "ScaleConv3d",
    "ScaleDropout1d",
    "ScaleDropout3d",
    "ScaleMaxPool1d",
    "ScaleMaxPool3d",
    "ScaleProjection1d",
    "ScaleProjection3d",
}

pytestmark = pytest.mark.usefixtures("float64")

STEP = 2**0.5
SIZES = {1: 101, 3: 25}
GRIDS = {1: ScaleGrid.geometric(1.5, STEP, 4), 3: ScaleGrid.geometric(1.0, STEP, 2)}
KERNELS = {1: 27, 3: 11}
LIFTS = {1: LiftConv1d, 3: LiftConv3d}
CONVS = {1: ScaleConv1d, 3: ScaleConv3d}
DIMENSIONS = pytest.mark.parametrize("ndim", [1, 3])


def blob(ndim: int, *, scale: float = 1.0, spacing: float = 1.0, size: int | None = None) -> Tensor:
    """A wave under a Gaussian about the centre, ``(1, 2, …)``; every axis of its own width and frequency."""
    size = size or SIZES[ndim]
    x = (torch.arange(size) - (size - 1) / 2) * spacing / scale
    result = torch.ones(2, *[1] * ndim)
    for axis in range(ndim):
        along = x.view([-1 if other == axis else 1 for other in range(ndim)])
        width, frequency = (3.0, 0.35) if ndim == 1 else (2.0 + 0.2 * axis, 0.5 - 0.1 * axis)
        waves = torch.stack([torch.cos(frequency * along), torch.sin(frequency * along + 0.5)])
        result = result * waves * torch.exp(-(along**2) / (2 * width**2))
    return result[None]


def options(ndim: int, basis: SteerableBasis = HermiteBasis(3)) -> dict:  # noqa: B008
    return {"kernel_size": KERNELS[ndim], "grid": GRIDS[ndim], "basis": basis, "padding": "same"}


def seeded(*layers: nn.Module) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        if hasattr(layer, "reset_parameters") and hasattr(layer, "grid"):
            layer.reset_parameters(generator)
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def scaling_error(network: nn.Module, ndim: int) -> float:
    """The relative error of one scale up for an object larger by the step, over all scales but one."""
    y, larger = network(blob(ndim)), network(blob(ndim, scale=STEP))
    expected, actual = resampled(y, ndim)[:, :, :-1], larger[:, :, 1:]
    return float((actual - expected).norm() / expected.norm())


def resampled(y: Tensor, ndim: int) -> Tensor:
    """A scale map enlarged about the centre by the step, by trigonometric interpolation: exact for blobs."""
    for axis in range(3, 3 + ndim):
        size = y.shape[axis]
        center = (size - 1) / 2
        source = (torch.arange(size) - center) / STEP + center
        difference = source[:, None] - torch.arange(size)
        weights = torch.sin(math.pi * difference) / (size * torch.sin(math.pi * difference / size))
        weights[difference.abs() < 1e-9] = 1.0
        y = (y.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return y


def test_the_measurement_itself_is_exact() -> None:
    """The blob, enlarged from its pixels, is the blob rendered larger: odd sizes, and zero at the border."""
    for ndim in (1, 3):
        repeated = blob(ndim)[:, :, None].expand(-1, -1, 2, *[-1] * ndim)
        error = (resampled(repeated, ndim)[:, :, 0] - blob(ndim, scale=STEP)).norm() / blob(ndim).norm()
        assert float(error) < {1: 1e-9, 3: 1e-2}[ndim]


BASES = {
    "hermite-a": (HermiteBasis(3), {1: 1.7e-3, 3: 3.6e-3}),
    "hermite-b": (HermiteBasis(3, kind="B", max_order=2, mult=1.4), {1: 1.7e-3, 3: 5e-2}),
    "bspline": (BSplineBasis(3), {1: 6.9e-3, 3: 3e-2}),
    "gaussian-derivative": (GaussianDerivativeBasis(3, radius=None), {1: 1.8e-3, 3: 3.4e-3}),
    "disco": (DiscoBasis(3), {1: 3e-3, 3: 1.1e-2}),
}


@pytest.mark.parametrize(("basis", "errors"), BASES.values(), ids=BASES)
@DIMENSIONS
def test_lifting(ndim: int, basis: SteerableBasis, errors: dict[int, float]) -> None:
    error = scaling_error(seeded(LIFTS[ndim](2, 3, **options(ndim, basis))), ndim)
    assert errors[ndim] / 2 < error < 2 * errors[ndim], error


@DIMENSIONS
def test_two_layers_with_norm_and_rectifier(ndim: int) -> None:
    norm = {1: ScaleBatchNorm1d, 3: ScaleBatchNorm3d}[ndim](3)
    norm.running_mean.copy_(torch.linspace(-0.1, 0.1, 3))
    settings = {**options(ndim), "padding_mode": "replicate"}  # the norm makes a background that is not zero
    network = seeded(LIFTS[ndim](2, 3, **settings), norm, nn.ReLU(), CONVS[ndim](3, 2, **settings))
    error = scaling_error(network, ndim)
    assert 1e-3 < error < {1: 7e-3, 3: 1.8e-2}[ndim], error


def test_inter_scale_filters_but_for_the_open_end() -> None:
    network = seeded(LiftConv1d(2, 3, **options(1)), nn.ReLU(), ScaleConv1d(3, 2, scale_size=2, **options(1)))
    with torch.no_grad():
        y, larger = resampled(network(blob(1)), 1), network(blob(1, scale=STEP))
    closed, end = (float((larger[:, :, s + 1] - y[:, :, s]).norm() / y[:, :, s].norm()) for s in (1, 2))
    assert 1e-4 < closed < 0.05
    assert end > 0.2  # the largest scale sees zeros above itself, the scale below it does not


class ScalesReversed:
    """The negative control: a basis that shrinks where it should grow."""

    num_functions = 9

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        return HermiteBasis(3).sample(kernel_size, grid).flip(1)

    def sample_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> Tensor:
        return HermiteBasis(3).sample_nd(kernel_size, grid, ndim).flip(1)


class NormalisedOnEveryScale(ScalesReversed):
    """Each scale by itself: the amplitudes of the scales no longer belong together."""

    def sample_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> Tensor:
        basis = HermiteBasis(3).sample_nd(kernel_size, grid, ndim)
        return basis / basis.flatten(2).norm(dim=2).view(*basis.shape[:2], *[1] * ndim)


@pytest.mark.parametrize("basis", [ScalesReversed(), NormalisedOnEveryScale()])
@DIMENSIONS
def test_bases_that_are_not_equivariant_are_found_out(ndim: int, basis) -> None:
    assert scaling_error(seeded(LIFTS[ndim](2, 3, **options(ndim, basis))), ndim) > 0.14


@DIMENSIONS
def test_disco_is_exact_for_whole_factors(ndim: int) -> None:
    """Every second pixel of the object twice as large, seen twice as large, is the object itself."""
    grid, size = ScaleGrid([1.0, 2.0]), {1: 41, 3: 13}[ndim]
    settings = {"kernel_size": 5, "grid": grid, "basis": DiscoBasis(3), "padding": "same"}
    network = seeded(LIFTS[ndim](2, 3, **settings), nn.ReLU(), CONVS[ndim](3, 2, **settings)).eval()
    with torch.no_grad():
        small = network(blob(ndim, spacing=2.0, size=size))
        large = network(blob(ndim, size=2 * size - 1))
    apart = large[:, :, 1][(..., *[slice(None, None, 2)] * ndim)]
    torch.testing.assert_close(apart, small[:, :, 0], rtol=0, atol=1e-12)
    assert not torch.allclose(large[:, :, 0][(..., *[slice(None, None, 2)] * ndim)], small[:, :, 0])


# --- companions ---


@pytest.mark.parametrize(
    ("ndim", "norm"), [(1, ScaleBatchNorm1d), (3, ScaleBatchNorm3d)], ids=["signals", "volumes"]
)
def test_norm_uses_one_mean_and_variance_a_channel(ndim: int, norm) -> None:
    x = torch.randn(4, 3, 2, *[5] * ndim) * torch.tensor([1.0, 2, 3]).view(-1, 1, *[1] * ndim) + 5
    y = norm(3)(x)
    over = [0, *range(2, x.ndim)]
    expected = (x - x.mean(over, keepdim=True)) / (x.var(over, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(ScaleDropout1d(0.5), (40, 10, 3, 7)), (ScaleDropout3d(0.5), (40, 10, 3, 2, 3, 4))],
)
def test_dropout_in_training_drops_channels_and_in_evaluation_nothing(layer: nn.Module, shape) -> None:
    x = torch.ones(shape)
    torch.manual_seed(0)
    channels = layer.train()(x).flatten(2)
    assert set(channels.unique().tolist()) == {0.0, 2.0}
    assert bool((channels == channels[..., :1]).all())
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ScaleMaxPool1d(2), 4.0),
        (ScaleAvgPool1d(2), 3.5),
        (ScaleMaxPool3d(2), 8.0),
        (ScaleAvgPool3d(2), 4.5),
        (ScaleProjection1d(), None),
        (ScaleProjection3d("mean"), None),
    ],
)
def test_pooling_and_projection_by_hand(layer: nn.Module, expected: float | None) -> None:
    ndim = layer.ndim
    if expected is not None:
        x = (
            torch.arange(1.0, 1 + 2**ndim).view(1, 1, 1, *[2] * ndim)
            if ndim == 3
            else torch.tensor([[[[3.0, 4.0]]]])
        )
        assert layer(x).item() == expected
        return
    x = torch.tensor([1.0, 5.0, 3.0]).view(1, 1, 3, *[1] * ndim)
    assert layer(x).item() == (5.0 if layer.mode == "max" else 3.0)
    assert layer(x).shape == (1, 1, *[1] * ndim)


# --- the layers' own promises ---


@DIMENSIONS
def test_families_of_the_plane_are_refused(ndim: int) -> None:
    with pytest.raises(
        BasisError, match=f"expected a basis that exists in {ndim} dimensions, got FourierBessel"
    ):
        LIFTS[ndim](2, 3, **options(ndim, FourierBesselBasis(3)))


@DIMENSIONS
def test_filters_are_kept_until_weights_change(ndim: int) -> None:
    lift = LIFTS[ndim](2, 3, **options(ndim))
    x = blob(ndim, size=11)
    with torch.no_grad():
        first = lift(x)
        kept = dict(lift.filter_cache.kept)
        assert len(kept) == len(GRIDS[ndim])
        assert torch.equal(lift(x), first)
        assert all(lift.filter_cache.kept[key] is value for key, value in kept.items())
        lift.weight.mul_(2)
        lift.bias.zero_()
        torch.testing.assert_close(lift(x), 2 * first)
    lift(x).sum().backward()
    assert lift.weight.grad is not None


def test_smaller_scales_have_smaller_windows() -> None:
    lift = LiftConv3d(2, 3, **options(3))
    assert lift.windows == (7, 11)
    assert "basis=HermiteBasis" in repr(lift)
