"""The modules without parameters are their functions."""

import pytest
import torch

from equiscale import functional as F
from equiscale.nn import (
    ImageMaxPool2d,
    ScaleAvgPool2d,
    ScaleChannelDropout,
    ScaleDropout2d,
    ScaleMaxPool2d,
    ScaleProjection,
    ValueDropout,
)

COVERS = {
    *("ScaleAvgPool2d", "ScaleMaxPool2d", "ImageMaxPool2d", "ScaleProjection"),
    *("ScaleDropout2d", "ScaleChannelDropout", "ValueDropout"),
}


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


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 2, "padding": 1}])
def test_pooling_of_images_is_its_function_and_torchs_layer(options: dict, x: torch.Tensor) -> None:
    layer = ImageMaxPool2d(3, **options)
    assert isinstance(layer, torch.nn.MaxPool2d)
    assert torch.equal(layer(x[:, :, 0]), F.image_max_pool2d(x[:, :, 0], 3, **options))
    assert torch.equal(layer(x[:, :, 0]), torch.nn.MaxPool2d(3, **options)(x[:, :, 0]))


def test_dropout_of_values_is_its_function_in_training_only() -> None:
    ones, layer = torch.ones(100, 60), ValueDropout(0.8)
    assert isinstance(layer, torch.nn.Dropout)
    assert layer.eval()(ones) is ones
    torch.manual_seed(0)
    y = layer.train()(ones)
    torch.manual_seed(0)
    assert torch.equal(y, F.value_dropout(ones, 0.8))
    assert 0.77 < (y == 0).float().mean().item() < 0.83
    assert y.max().item() == pytest.approx(5.0, rel=1e-4)
