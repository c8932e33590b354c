"""A pyramid around a detector of one size of blob: how invariant does it get?"""

import pytest
import torch
from torch import nn

from equiscale import functional as F
from equiscale.nn import InputPyramid
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.nn.scale_signals import STEP, blob_filter, blobs

COVERS = {"InputPyramid"}

pytestmark = pytest.mark.usefixtures("float64")

BY_ONE = [1 / STEP, STEP]
FACTORS = [STEP**i for i in range(-4, 3)]


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return blobs(size=(65, 71), widths=(2.8, 3.8), generator=generator)


def detector() -> nn.Module:
    convolution = nn.Conv2d(1, 2, 9, padding=4, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.stack([blob_filter(9, 1.2), blob_filter(9, 1.8)])[:, None])
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("pool", "canvas", "lower", "upper"),
    [
        ("max", "same", 1e-3, 1e-2),
        ("max", "resized", 1e-2, 6e-2),
        ("mean", "same", 0.05, 0.15),
        ("mean", "resized", 0.05, 0.2),
    ],
)
def test_is_more_invariant_than_the_module_alone(
    pool, canvas, lower: float, upper: float, image: BandLimitedImage
) -> None:
    """The maximum is in the middle of the copies; the mean also loses one at the end."""
    alone = equivariance_error(detector(), image, BY_ONE)
    assert min(alone.errors) > 0.3, str(alone)
    pyramid = InputPyramid(detector(), FACTORS, pool=pool, canvas=canvas)
    report = equivariance_error(pyramid, image, BY_ONE)
    assert lower < report.worst < upper, str(report)


def test_factors_that_do_not_reach_the_blobs_do_not_help(image: BandLimitedImage) -> None:
    """The control: the largest answer sits at the end of the factors, and leaves."""
    pyramid = InputPyramid(detector(), [STEP**i for i in range(4)])
    report = equivariance_error(pyramid, image, BY_ONE)
    assert min(report.errors) > 0.15, str(report)


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("canvas", ["same", "resized"])
def test_is_its_function(pool, canvas, generator: torch.Generator) -> None:
    module, x = detector(), torch.randn(2, 1, 12, 15, generator=generator)
    pyramid = InputPyramid(module, FACTORS, pool=pool, canvas=canvas, method="bilinear")
    expected = F.input_pyramid(module, x, FACTORS, pool=pool, canvas=canvas, method="bilinear")
    assert torch.equal(pyramid(x), expected)


def test_factor_one_alone_is_the_module(generator: torch.Generator) -> None:
    module, x = detector(), torch.randn(2, 1, 12, 15, generator=generator)
    assert torch.equal(InputPyramid(module, [1.0])(x), module(x))


def test_shares_the_weights_and_prefixes_their_keys() -> None:
    module = detector()
    pyramid = InputPyramid(module, FACTORS)
    assert list(pyramid.state_dict()) == [f"module.{key}" for key in module.state_dict()]
    assert [id(p) for p in pyramid.parameters()] == [id(p) for p in module.parameters()]
    pyramid.module.load_state_dict(detector().state_dict())


def test_batch_norm_sees_all_copies_together(generator: torch.Generator) -> None:
    norm, x = nn.BatchNorm2d(1, momentum=1.0), torch.randn(4, 1, 12, 15, generator=generator)
    InputPyramid(norm, [0.5, 1.0])(x)
    together = torch.cat([F.rescale(x, 0.5), x])
    torch.testing.assert_close(norm.running_mean[0], together.mean(), rtol=1e-12, atol=1e-12)
