"""The modules that make more pixels: what they share with the functions, and how equivariant they are."""

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.functional import scale_upsample2d
from equiscale.nn import (
    LiftConv2d,
    ScaleAvgPool2d,
    ScaleConv2d,
    ScaleConvTranspose2d,
    ScaleUpsample2d,
)
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"ScaleConvTranspose2d", "ScaleUpsample2d"}

pytestmark = pytest.mark.usefixtures("float64")

STEP = 2**0.5
GRID = ScaleGrid.geometric(1.5, STEP, 3)
OPTIONS = {"kernel_size": 19, "grid": GRID, "basis": HermiteBasis(3), "padding": "same"}


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(2, 2, size=(48, 52), generator=generator)


def seeded(*layers: nn.Module) -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters(generator)
    return nn.Sequential(*layers).eval()


def worst(network: nn.Module, image: BandLimitedImage) -> float:
    return equivariance_error(network, image, [1 / STEP, STEP], margin=14).worst


@pytest.mark.parametrize("settings", [{}, {"method": "nearest"}, {"alignment": "points"}])
def test_interpolation_is_that_of_the_function(settings: dict, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 2, 5, 6, generator=generator)
    assert torch.equal(ScaleUpsample2d(3, **settings)(x), scale_upsample2d(x, 3, **settings))


def test_pooling_and_interpolation_keep_equivariance(image: BandLimitedImage) -> None:
    alone = worst(seeded(LiftConv2d(2, 3, **OPTIONS)), image)
    pooled = worst(seeded(LiftConv2d(2, 3, **OPTIONS), ScaleAvgPool2d(2), ScaleUpsample2d(2)), image)
    assert 2 * alone < pooled < 0.08, (alone, pooled)
    shifted = seeded(LiftConv2d(2, 3, **OPTIONS), ScaleAvgPool2d(2), ScaleUpsample2d(2, alignment="points"))
    assert worst(shifted, image) < 2 * pooled  # about the same centre too, but with other sizes
    nearest = seeded(LiftConv2d(2, 3, **OPTIONS), ScaleAvgPool2d(2), ScaleUpsample2d(2, method="nearest"))
    assert worst(nearest, image) > 2 * pooled


class OffCentre(nn.Module):
    """The control: every pixel repeated and then smoothed to one side, half a pixel off."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        return (y + y.roll(1, 3) + y.roll(1, 4) + y.roll((1, 1), (3, 4))) / 4


def test_another_centre_is_found_out(image: BandLimitedImage) -> None:
    centred = worst(seeded(LiftConv2d(2, 3, **OPTIONS), ScaleAvgPool2d(2), ScaleUpsample2d(2)), image)
    off = worst(seeded(LiftConv2d(2, 3, **OPTIONS), ScaleAvgPool2d(2), OffCentre()), image)
    assert off > 1.3 * centred, (off, centred)


@pytest.mark.parametrize("narrow", [False, True])
def test_transposed_convolutions_with_narrow_filters_have_ripples(
    narrow: bool, generator: torch.Generator
) -> None:
    """A filter as wide as the stride interpolates better than a line does; one of half of it leaves gaps."""
    image = BandLimitedImage.random(2, 2, size=(49, 49), generator=generator)
    grid, kernel_size = (ScaleGrid.geometric(0.5, STEP, 3), 9) if narrow else (GRID, 19)
    options = {**OPTIONS, "grid": grid, "kernel_size": kernel_size, "basis": HermiteBasis(2)}
    lift = LiftConv2d(2, 3, stride=2, **OPTIONS)
    transposed = worst(seeded(lift, ScaleConvTranspose2d(3, 2, stride=2, **options)), image)
    points = ScaleUpsample2d(2, alignment="points")
    interpolated = worst(seeded(lift, points, ScaleConv2d(3, 2, **options)), image)
    if narrow:
        assert 0.02 < interpolated < 0.1
        assert transposed > 0.4
    else:
        assert 1e-3 < transposed < interpolated < 0.05, (transposed, interpolated)


def test_the_layer_is_the_adjoint_of_a_scale_convolution_with_its_weights(generator: torch.Generator) -> None:
    settings = {"kernel_size": 7, "grid": ScaleGrid([0.8, 1.2]), "basis": HermiteBasis(2), "scale_size": 2}
    settings |= {"stride": 2, "padding": "same", "bias": False, "groups": 2}
    there, back = ScaleConv2d(4, 6, **settings), ScaleConvTranspose2d(6, 4, **settings, output_padding=1)
    back.load_state_dict(there.state_dict())
    x = torch.randn(2, 4, 2, 8, 10, generator=generator)
    y = torch.randn(2, 6, 2, 4, 5, generator=generator)
    torch.testing.assert_close((there(x) * y).sum(), (x * back(y)).sum())
    back.weight.data.mul_(2)
    torch.testing.assert_close(2 * (there(x) * y).sum(), (x * back(y)).sum())
