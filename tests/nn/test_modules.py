"""The modules without parameters are their functions."""

import pytest
import torch

from equiscale import functional as F
from equiscale.nn import (
    ScaleAvgPool2d,
    ScaleChannelDropout,
    ScaleDropout2d,
    ScaleMaxPool2d,
    ScaleProjection,
)

COVERS = {"ScaleAvgPool2d", "ScaleMaxPool2d", "ScaleProjection", "ScaleDropout2d", "ScaleChannelDropout"}


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 4, 7, 9, generator=generator)


@pytest.mark.parametrize(
    ("layer", "function"),
    [(ScaleMaxPool2d, F.scale_max_pool2d), (ScaleAvgPool2d, F.scale_avg_pool2d)],
)
@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 2, "padding": 1}])
def test_pools_are_their_functions(layer, function, options: dict, x: torch.Tensor) -> None:
    assert torch.equal(layer(3, **options)(x), function(x, 3, **options))


@pytest.mark.parametrize("mode", ["max", "mean", "logsumexp", "argmax-scale"])
def test_projection_is_its_function(mode, x: torch.Tensor) -> None:
    assert torch.equal(ScaleProjection(mode)(x), F.scale_projection(x, mode))
    assert torch.equal(ScaleProjection()(x), x.amax(2))


@pytest.mark.parametrize(
    ("layer", "dropped_axes"), [(ScaleDropout2d, (2, 3, 4)), (ScaleChannelDropout, (1, 3, 4))]
)
def test_dropouts_drop_in_training_only_and_as_much_as_told(layer, dropped_axes: tuple[int, ...]) -> None:
    ones = torch.ones(100, 6, 6, 2, 2)
    assert torch.equal(layer(0.8).eval()(ones), ones)
    y = layer(0.8).train()(ones)
    whole = y.amax(dropped_axes, keepdim=True).expand_as(y)
    assert torch.equal(y, whole)
    assert 0.7 < (y == 0).float().mean().item() < 0.9  # 600 draws: six standard deviations
    assert y.max().item() == pytest.approx(5.0)
