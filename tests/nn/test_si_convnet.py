"""How far does SI-ConvNet follow the scale of its input? Measured, beside a plain convolution."""

import pytest
import torch

from equiscale import functional as F
from equiscale.nn import LocallyScaleInvariantConv2d
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.nn.scale_signals import STEP, blob_filter, blobs

COVERS = {"LocallyScaleInvariantConv2d"}

pytestmark = pytest.mark.usefixtures("float64")

BY_ONE = [1 / STEP, STEP]
SCALES = [STEP**i for i in range(-6, 1)]
MARGIN = 16


def detector(scales: list[float], **options) -> LocallyScaleInvariantConv2d:
    layer = LocallyScaleInvariantConv2d(1, 1, kernel_size=7, scales=scales, padding="same", **options)
    with torch.no_grad():
        layer.weight[0, 0] = blob_filter(7, sigma=1.3)
        layer.bias.zero_()
    return layer


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return blobs(size=(65, 71), widths=(3.0, 4.5), generator=generator)


@pytest.mark.parametrize("resampling", ["published", "centred"])
def test_is_its_function(resampling, generator: torch.Generator) -> None:
    layer = LocallyScaleInvariantConv2d(
        4, 6, kernel_size=3, scales=[0.5, 1.0, 2.0], stride=2, padding=1, groups=2, resampling=resampling
    )
    x = torch.randn(2, 4, 9, 8, generator=generator)
    expected = F.locally_scale_invariant_conv2d(
        x, layer.weight, [0.5, 1.0, 2.0], layer.bias,
        geometry=F.ConvGeometry(stride=2, padding=1, groups=2), resampling=resampling,
    )  # fmt: skip
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("resampling", ["published", "centred"])
def test_answers_to_blobs_scale_with_them_better_than_a_plain_convolution(
    resampling, image: BandLimitedImage
) -> None:
    """What remains comes from resampling there and back, and from the scales at the ends."""
    ours = equivariance_error(detector(SCALES, resampling=resampling), image, BY_ONE, margin=MARGIN)
    plain = equivariance_error(detector([1.0]), image, BY_ONE, margin=MARGIN)
    assert 0.1 < min(ours.errors) <= ours.worst < 0.3, str(ours)
    assert min(plain.errors) > 0.4, str(plain)


def test_scales_that_do_not_reach_the_blobs_do_not_help(image: BandLimitedImage) -> None:
    """The control: enlarging alone moves the blobs away from the filter."""
    report = equivariance_error(detector([STEP**i for i in range(7)]), image, BY_ONE, margin=MARGIN)
    assert report.worst > 0.4, str(report)


def test_settings_of_the_published_networks() -> None:
    mnist = [0.3, 0.45, 0.67, 1.0, 1.49, 2.23, 3.33]
    for size in (7, 14, 28, 56):
        layer = LocallyScaleInvariantConv2d(1, 2, kernel_size=7, padding=3, scales=mnist)
        assert layer(torch.zeros(1, 1, size, size)).shape == (1, 2, size, size)
    for size, stride in ((96, 2), (48, 2), (24, 1)):
        layer = LocallyScaleInvariantConv2d(
            1, 2, kernel_size=3, padding=1, stride=stride, bias=False, scales=[0.5, 1.0, 2.0]
        )
        assert layer(torch.zeros(1, 1, size, size)).shape == (1, 2, size // stride, size // stride)


def test_weights_of_an_ordinary_convolution_load() -> None:
    layer = LocallyScaleInvariantConv2d(4, 6, kernel_size=3, scales=[1.0])
    plain = torch.nn.Conv2d(4, 6, 3)
    layer.load_state_dict(plain.state_dict())
    x = torch.ones(1, 4, 5, 6)
    assert torch.equal(layer(x), plain(x))


def test_computes_in_reduced_precision(generator: torch.Generator) -> None:
    layer = detector(SCALES).float()
    x = torch.randn(2, 1, 24, 25, dtype=torch.float32, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = layer(x)
    assert reduced.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.float(), layer(x), rtol=0.05, atol=0.03)
