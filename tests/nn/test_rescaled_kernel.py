"""Scales shift with the image as far as interpolated kernels allow: measured for each interpolation."""

import pytest
import torch
from torch import nn

from equiscale import functional as F
from equiscale.nn import RescaledKernelConv2d, RescaledKernelLift2d, ScalePool
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"RescaledKernelLift2d", "RescaledKernelConv2d", "ScalePool"}

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(2, 2, size=(49, 53), generator=generator)


def seeded(layer: nn.Module) -> nn.Module:
    layer.reset_parameters(torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize("layer", [RescaledKernelLift2d, RescaledKernelConv2d])
@pytest.mark.parametrize("border", ["padded", "blank"])
def test_are_their_functions(layer, border, generator: torch.Generator) -> None:
    sizes = [3, 5, 7]
    module = layer(4, 6, kernel_sizes=sizes, interpolation="area", border=border)
    with torch.no_grad():
        module.bias.copy_(torch.arange(6.0))
    x = torch.randn(2, 4, *[3] * (layer is RescaledKernelConv2d), 9, 8, generator=generator)
    operands = (x, module.weight, F.rescaled_kernel_basis(sizes, "area"), module.bias)
    if border == "blank":
        expected = F.rescaled_kernel_valid_conv2d(*operands, windows=sizes)
    else:
        expected = F.rescaled_kernel_conv2d(*operands)
    torch.testing.assert_close(module(x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("interpolation", "lower", "upper"),
    [("nearest", 0.3, 0.8), ("bilinear", 0.05, 0.2), ("bicubic", 8e-3, 3e-2), ("area", 1e-2, 4e-2)],
)
def test_scales_shift_with_the_image(
    interpolation, lower: float, upper: float, image: BandLimitedImage
) -> None:
    lift = seeded(
        RescaledKernelLift2d(2, 4, kernel_sizes=[9, 13, 19], interpolation=interpolation, padding="same")
    )
    step = lift.grid.step
    report = equivariance_error(lift, image, [1 / step, step], margin=14)
    assert lower < min(report.errors) <= report.worst < upper, str(report)


@pytest.mark.parametrize("interpolation", ["nearest", "area"])
def test_three_times_the_size_repeats_every_pixel(interpolation, image: BandLimitedImage) -> None:
    lift = seeded(
        RescaledKernelLift2d(2, 4, kernel_sizes=[5, 15], interpolation=interpolation, padding="same")
    )
    report = equivariance_error(lift, image, [3.0], margin=14)
    assert 2e-3 < report.worst < 1e-2, str(report)


def test_a_kernel_that_is_not_rescaled_is_found_out(image: BandLimitedImage) -> None:
    options = {"kernel_sizes": [9, 13, 19], "interpolation": "bicubic", "padding": "same"}
    lift = seeded(RescaledKernelLift2d(2, 4, **options))
    lift.basis = lift.basis[:, :1].expand(-1, 3, -1, -1)
    step = lift.grid.step
    report = equivariance_error(lift, image, [1 / step, step], margin=14)
    assert min(report.errors) > 0.2, str(report)


def test_the_smallest_kernel_is_an_ordinary_convolution(generator: torch.Generator) -> None:
    lift = RescaledKernelLift2d(4, 6, kernel_sizes=[3, 5], border="blank")
    plain = nn.Conv2d(4, 6, 3)
    lift.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 7, 8, generator=generator)
    torch.testing.assert_close(lift(x)[:, :, 0], plain(x), rtol=1e-12, atol=1e-12)


def test_published_stage_covers_the_image_with_kernels(generator: torch.Generator) -> None:
    """Kernels of 7, 9, … up to the image, without padding, pooled over scales."""
    lift = RescaledKernelLift2d(1, 2, kernel_sizes=range(7, 24, 2), border="blank")
    for kind in ("pixel", "slice", "energy"):
        y = nn.Sequential(lift, ScalePool(kind))(torch.randn(2, 1, 23, 24, generator=generator))
        assert y.shape == (2, 2, 17, 18)


@pytest.mark.parametrize("kind", ["pixel", "slice", "energy"])
def test_pool_is_its_function(kind, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 5, 6, generator=generator)
    assert torch.equal(ScalePool(kind)(x), F.scale_pool(x, kind))
    assert torch.equal(ScalePool()(x), F.scale_pool(x, "pixel"))
