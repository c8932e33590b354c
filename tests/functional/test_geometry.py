"""Padding "same" means half the kernel; pooling is that behind the convolution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    image_max_pool2d,
    lift_conv2d,
    scale_conv2d,
    scale_max_pool2d,
    synthesize_filters,
)
from equiscale.nn import (
    LearnableLiftConv2d,
    LearnableScales,
    LiftConv2d,
    LocallyScaleInvariantConv2d,
    MultiColumnConv2d,
    RescaledKernelLift2d,
    ScaleConv2d,
    ScaleSpaceConv2d,
)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_same_is_half_the_kernel_whatever_the_stride(stride: int) -> None:
    x, weight, basis = torch.randn(1, 2, 11, 8), torch.randn(3, 2, 4), torch.randn(4, 2, 5, 5)
    same = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding="same"))
    half = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding=2))
    assert torch.equal(same, half)
    assert same.shape[-2:] == (-(-11 // stride), -(-8 // stride))


@pytest.mark.parametrize("padding", [3, 4, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (6, 5)])
def test_filters_larger_than_the_map_lose_nothing(size: tuple[int, int], stride: int, padding: int) -> None:
    """Only the part of a filter that meets pixels is computed."""
    x, weight, basis = torch.randn(2, 2, *size), torch.randn(3, 2, 4), torch.randn(4, 1, 9, 9)
    x, weight, basis = x.double(), weight.double(), basis.double()
    whole = torch.nn.functional.conv2d(
        x, synthesize_filters(weight, basis)[:, :, 0], stride=stride, padding=padding
    )
    actual = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding=padding))
    torch.testing.assert_close(actual[:, :, 0], whole)


GRID = ScaleGrid([1.0, 1.5])
STEERABLE: dict[str, Any] = {"kernel_size": 7, "grid": GRID, "basis": HermiteBasis(2), "padding": "same"}


@pytest.mark.parametrize("pooling", [1, 2, 3])
@pytest.mark.parametrize("projection", [None, "max"])
def test_pooling_is_that_behind_the_convolution(projection: Any, pooling: int) -> None:
    """Sizes are rounded down; a bias may be added before or after."""
    lifted = torch.randn(2, 2, 9, 11), torch.randn(3, 2, 4), torch.randn(4, 2, 5, 5), torch.randn(3)
    mapped = torch.randn(2, 2, 2, 9, 11), torch.randn(3, 2, 1, 4), *lifted[2:]
    pool = scale_max_pool2d if projection is None else image_max_pool2d
    for function, operands in ((lift_conv2d, lifted), (scale_conv2d, mapped)):
        whole = function(*operands, geometry=ConvGeometry(padding="same", projection=projection))
        geometry = ConvGeometry(padding="same", projection=projection, pooling=pooling)
        pooled = function(*operands, geometry=geometry)
        assert pooled.shape[-2:] == (9 // pooling, 11 // pooling)
        torch.testing.assert_close(pooled, pool(whole, pooling))


LAYERS: list[tuple[Callable[..., nn.Module], tuple[int, ...]]] = [
    (lambda **options: LiftConv2d(4, 6, **STEERABLE, **options), (2, 4, 8, 9)),
    (lambda **options: ScaleConv2d(4, 6, **STEERABLE, **options), (2, 4, 2, 8, 9)),
    (
        lambda **options: LearnableLiftConv2d(
            4,
            6,
            kernel_size=7,
            scales=LearnableScales(2, min_scale=1.0, scale_range=1.5),
            basis=HermiteBasis(2),
            padding="same",
            **options,
        ),
        (2, 4, 8, 9),
    ),
    (lambda **options: RescaledKernelLift2d(4, 6, kernel_sizes=[3, 5], **options), (2, 4, 8, 9)),
]


@pytest.mark.parametrize(("build", "shape"), LAYERS, ids=["lift", "conv", "learnable", "rescaled"])
def test_layers_pool(build: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    plain, pooling = build(), build(pooling=2)
    pooling.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(pooling(x), scale_max_pool2d(plain(x), 2))


def test_pooling_needs_as_many_results() -> None:
    x, weight, basis = torch.randn(1, 2, 5, 9), torch.randn(3, 2, 4), torch.randn(4, 2, 5, 5)
    with pytest.raises(ShapeError, match=r"at least 2 results in a row to pool, got 1 from \(5, 9\) pixels"):
        lift_conv2d(x, weight, basis, geometry=ConvGeometry(pooling=2))


REFUSING: list[Callable[[], Tensor | nn.Module]] = [
    lambda: MultiColumnConv2d(4, 6, kernel_size=7, scales=[1.0, 1.5], pooling=2),
    lambda: ScaleSpaceConv2d(4, 6, kernel_size=3, num_scales=3, pooling=2),
    lambda: LocallyScaleInvariantConv2d(4, 6, scales=[0.5, 1.0], kernel_size=3, pooling=2),
]


@pytest.mark.parametrize("build", REFUSING)
def test_layers_that_do_not_pool_say_so(build: Callable[[], object]) -> None:
    with pytest.raises(SettingError, match="expected no pooling, since"):
        build()
