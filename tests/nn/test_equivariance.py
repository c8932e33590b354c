"""How equivariant are the layers to scaling? Measured, with bounds on both sides.

A bound from below is as important as one from above: an error of zero would mean that nothing was
compared. What remains inside is the truncation of the filters' windows: 3.2 standard deviations here.
"""

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.nn import (
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleMaxPool2d,
    ScaleProjection,
)
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"LiftConv2d", "ScaleConv2d", "ScaleProjection", "HermiteBasis"}

pytestmark = pytest.mark.usefixtures("float64")

STEP = 2**0.5
GRID = ScaleGrid.geometric(1.5, STEP, 3)
A = HermiteBasis(3)
B = HermiteBasis(3, kind="B", max_order=2, mult=1.4)
OPTIONS = {"kernel_size": 19, "grid": GRID, "padding": "same"}
BY_ONE, BY_TWO = [1 / STEP, STEP], [0.5, 2.0]
SIZE = (49, 53)
MARGIN = 14  # of half the filter, 9, and what the finite windows still reach


def seeded(*layers: nn.Module) -> nn.Sequential:
    network, generator = nn.Sequential(*layers), torch.Generator().manual_seed(1)
    for layer in network:
        if isinstance(layer, LiftConv2d | ScaleConv2d):
            layer.reset_parameters(generator)
    return network


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(2, 2, size=SIZE, generator=generator)


@pytest.fixture
def scale_map(generator: torch.Generator) -> Tensor:
    images = BandLimitedImage.random(2, 2 * len(GRID), size=SIZE, generator=generator)
    return images.render().unflatten(1, (2, len(GRID)))


@pytest.mark.parametrize(("basis", "lower", "upper"), [(A, 6e-3, 1.6e-2), (B, 3e-3, 8e-3)], ids="AB")
def test_lifting(basis: HermiteBasis, lower: float, upper: float, image: BandLimitedImage) -> None:
    lift = seeded(LiftConv2d(2, 4, basis=basis, **OPTIONS))
    report = equivariance_error(lift, image, [*BY_TWO, *BY_ONE], margin=MARGIN)
    assert lower < report.worst < upper, str(report)
    by_two, by_one = report.errors[:2], report.errors[2:]
    assert max(by_one) < min(by_two)  # the windows of near scales are cut at nearly the same place


@pytest.mark.parametrize(("basis", "lower", "upper"), [(A, 6e-3, 2e-2), (B, 4e-3, 1.4e-2)], ids="AB")
def test_scale_convolution(basis: HermiteBasis, lower: float, upper: float, scale_map: Tensor) -> None:
    conv = seeded(ScaleConv2d(2, 4, basis=basis, **OPTIONS))
    report = equivariance_error(conv, scale_map, [*BY_TWO, *BY_ONE], margin=MARGIN)
    assert lower < report.worst < upper, str(report)


@pytest.mark.parametrize("scale_padding", ["zeros", "replicate"])
@pytest.mark.parametrize("basis", [A, B], ids="AB")
def test_inter_scale_convolution_but_for_the_open_end(
    basis: HermiteBasis, scale_padding, scale_map: Tensor
) -> None:
    conv = seeded(ScaleConv2d(2, 4, basis=basis, scale_size=2, scale_padding=scale_padding, **OPTIONS))
    inside = equivariance_error(conv, scale_map, BY_ONE, margin=MARGIN, scale_margin=1)
    assert 1e-3 < inside.worst < 5e-3, str(inside)
    with_end = equivariance_error(conv, scale_map, BY_ONE, margin=MARGIN)
    assert with_end.errors[0] == inside.errors[0]  # shrinking: the end depends on scales from outside
    assert 0.3 < with_end.errors[1] < 1.5, str(with_end)


def test_two_layers_with_everything_between(image: BandLimitedImage) -> None:
    norm = ScaleBatchNorm2d(4)
    norm.running_mean.copy_(torch.linspace(-0.2, 0.2, 4))
    network = seeded(
        LiftConv2d(2, 4, **OPTIONS),
        norm,
        nn.ReLU(),
        PointwiseScaleConv2d(4, 4),
        ScaleConv2d(4, 4, scale_size=2, **OPTIONS),
    )
    inside = equivariance_error(network, image, BY_ONE, margin=MARGIN, scale_margin=1)
    assert 2e-3 < inside.worst < 2e-2, str(inside)
    open_end = equivariance_error(network, image, BY_ONE, margin=MARGIN)
    assert 10 * inside.worst < open_end.worst < 1, str(open_end)


def test_two_layers_with_projection(image: BandLimitedImage) -> None:
    """The maximum sees features come onto the axis and leave it: with three scales that is the error."""
    layers = [LiftConv2d(2, 4, **OPTIONS), nn.ReLU(), ScaleConv2d(4, 4, **OPTIONS)]
    before = equivariance_error(seeded(*layers), image, BY_ONE, margin=MARGIN)
    assert 2e-3 < before.worst < 2e-2, str(before)
    after = equivariance_error(seeded(*layers, ScaleProjection()), image, BY_ONE, margin=MARGIN)
    assert 0.1 < after.worst < 0.5, str(after)
    none = equivariance_error(seeded(*layers, ScaleProjection()), image, [1.0], margin=MARGIN)
    assert none.errors == (0.0,)


@pytest.mark.parametrize(("size", "centred"), [(48, "pool"), (49, "stride")])
def test_pooling_is_centred_on_even_sizes_and_strides_on_odd_ones(
    size: int, centred: str, generator: torch.Generator
) -> None:
    image = BandLimitedImage.random(2, 2, size=(size, size), generator=generator)
    networks = {
        "pool": seeded(LiftConv2d(2, 4, **OPTIONS), ScaleAvgPool2d(2)),
        "stride": seeded(LiftConv2d(2, 4, stride=2, **OPTIONS)),
    }
    errors = {
        name: equivariance_error(network, image, BY_ONE, margin=MARGIN).worst
        for name, network in networks.items()
    }
    assert 3e-3 < errors.pop(centred) < 2e-2
    assert all(0.04 < error < 0.1 for error in errors.values()), errors


def test_maximum_pooling_jumps_from_pixel_to_pixel(image: BandLimitedImage) -> None:
    network = seeded(LiftConv2d(2, 4, **OPTIONS), ScaleMaxPool2d(2))
    report = equivariance_error(network, image, BY_ONE, margin=MARGIN)
    assert 0.02 < report.worst < 0.15, str(report)


def test_larger_windows_cut_less(image: BandLimitedImage) -> None:
    errors = []
    for kernel_size in (13, 19, 27):
        options = {**OPTIONS, "kernel_size": kernel_size, "basis": HermiteBasis(3, degenerate="allow")}
        errors.append(
            equivariance_error(seeded(LiftConv2d(2, 4, **options)), image, BY_ONE, margin=MARGIN).worst
        )
    assert 3e-2 < errors[0] < 0.2
    assert 3e-3 < errors[1] < 1e-2
    assert 1e-4 < errors[2] < 1e-3


class NormalisedOnEveryScale:
    """The mistake of normalising each scale by itself: the relation between scales is lost."""

    num_functions = A.num_functions

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        basis = A.sample(kernel_size, grid)
        return basis / basis.square().sum((2, 3), keepdim=True).sqrt()


class ScalesReversed(NormalisedOnEveryScale):
    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        return A.sample(kernel_size, grid).flip(1)


def plain_convolution(image_channels: int) -> nn.Module:
    """Filters of one size, stacked as if they were scales."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(image_channels, 4 * len(GRID), 5, padding=2)
    return nn.Sequential(convolution, nn.Unflatten(1, (4, len(GRID))))


@pytest.mark.parametrize(
    ("network", "error"),
    [
        (lambda: seeded(LiftConv2d(2, 4, basis=NormalisedOnEveryScale(), **OPTIONS)), 0.2),
        (lambda: seeded(LiftConv2d(2, 4, basis=ScalesReversed(), **OPTIONS)), 0.2),
        (lambda: plain_convolution(2), 0.5),
    ],
    ids=["normalised on every scale", "scales reversed", "plain convolution"],
)
def test_networks_that_are_not_equivariant_are_found_out(
    network, error: float, image: BandLimitedImage
) -> None:
    report = equivariance_error(network(), image, BY_ONE, grid=GRID, margin=MARGIN)
    assert min(report.errors) > error, str(report)
