"""The blocks of a U-Net: their order, how they join maps of odd sizes, and what they refuse."""

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import SettingError, ShapeError
from equiscale.nn import (
    LiftConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleDoubleConv2d,
    ScaleMaxPool2d,
    ScaleUNetDown2d,
    ScaleUNetUp2d,
)

COVERS = {"ScaleDoubleConv2d", "ScaleUNetDown2d", "ScaleUNetUp2d"}

pytestmark = pytest.mark.usefixtures("float64")

OPTIONS = {"kernel_size": 5, "grid": ScaleGrid([0.8, 1.2]), "basis": HermiteBasis(2)}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_block_is_twice_convolution_norm_and_rectifier() -> None:
    block = ScaleDoubleConv2d(3, 4, lifts=True, padding_mode="circular", **OPTIONS)
    kinds = [LiftConv2d, ScaleBatchNorm2d, nn.ReLU, ScaleConv2d, ScaleBatchNorm2d, nn.ReLU]
    assert [type(layer) for layer in block] == kinds
    assert block[0].bias is None
    assert block[3].geometry.padding_mode == "circular"
    y = block(drawn(2, 3, 8, 9))
    assert y.shape == (2, 4, 2, 8, 9)
    assert bool((y >= 0).all())
    assert float(y.detach().sum()) > 0


@pytest.mark.parametrize(("pool", "kind"), [("avg", ScaleAvgPool2d), ("max", ScaleMaxPool2d)])
def test_a_step_down_pools_first(pool, kind) -> None:
    down = ScaleUNetDown2d(3, 4, pool=pool, **OPTIONS).eval()
    x = drawn(2, 3, 2, 8, 11)
    assert isinstance(down[0], kind)
    torch.testing.assert_close(down(x), down[1](kind(2)(x)))
    assert down(x).shape == (2, 4, 2, 4, 5)


@pytest.mark.parametrize("size", [(8, 10), (9, 10), (8, 11), (9, 11), (2, 3)])
def test_a_step_up_joins_maps_pixel_by_pixel(size: tuple[int, int]) -> None:
    """The upsampled channels come first; what pooling left out is the neighbouring row or column."""
    up = ScaleUNetUp2d(3, 4, skip_channels=5, **OPTIONS).eval()
    skip, x = drawn(2, 5, 2, *size), drawn(2, 3, 2, size[0] // 2, size[1] // 2)
    seen: list[Tensor] = []
    up.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert up(x, skip).shape == (2, 4, 2, *size)
    joined, larger = seen[0], up.upsample(x)
    assert torch.equal(joined[:, 3:], skip)
    even = tuple(side // 2 * 2 for side in size)
    assert torch.equal(joined[:, :3, :, : even[0], : even[1]], larger)
    assert torch.equal(joined[:, :3, :, -1, : even[1]], larger[..., -1, :])
    assert torch.equal(joined[:, :3, :, : even[0], -1], larger[..., -1])


def test_a_constant_goes_up_and_down_unchanged_between_the_blocks() -> None:
    down = ScaleUNetDown2d(3, 3, **OPTIONS)
    up = ScaleUNetUp2d(3, 4, skip_channels=3, **OPTIONS)
    x = torch.full((1, 3, 2, 7, 9), 2.5)
    larger = up.upsample(down[0](x))
    torch.testing.assert_close(larger, torch.full((1, 3, 2, 6, 8), 2.5))


def test_both_maps_get_a_gradient_and_survive_a_round_trip() -> None:
    up = ScaleUNetUp2d(3, 4, skip_channels=5, **OPTIONS)
    x, skip = drawn(2, 3, 2, 4, 4).requires_grad_(), drawn(2, 5, 2, 9, 8).requires_grad_()
    up(x, skip).square().sum().backward()
    assert float(x.grad.abs().min()) > 0
    assert float(skip.grad.abs().min()) > 0
    other = ScaleUNetUp2d(3, 4, skip_channels=5, **OPTIONS)
    other.load_state_dict(up.state_dict())
    assert torch.equal(other.eval()(x, skip), up.eval()(x, skip))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("x", "skip", "message"),
    [
        (
            zeros(1, 3, 4, 4),
            zeros(1, 5, 2, 8, 8),
            r"ScaleUNetUp2d: expected a scale map .* got \(1, 3, 4, 4\)",
        ),
        (zeros(1, 3, 2, 4, 4), zeros(1, 5, 8, 8), r"expected a scale map .* got \(1, 5, 8, 8\)"),
        (zeros(1, 4, 2, 4, 4), zeros(1, 5, 2, 8, 8), "3 channels and 5 skipped ones, got 4 and 5"),
        (zeros(1, 3, 2, 4, 4), zeros(1, 6, 2, 8, 8), "3 channels and 5 skipped ones, got 3 and 6"),
        (
            zeros(1, 3, 2, 4, 4),
            zeros(1, 5, 2, 8, 10),
            r"half the skipped one's pixels, rounded down, \(2, 4, 5\), got \(2, 4, 4\)",
        ),
        (zeros(1, 3, 1, 4, 4), zeros(1, 5, 2, 8, 8), r"rounded down, \(2, 4, 4\), got \(1, 4, 4\)"),
    ],
)
def test_maps_that_do_not_fit(x: Tensor, skip: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ScaleUNetUp2d(3, 4, skip_channels=5, **OPTIONS)(x, skip)


def test_settings_that_are_illegal() -> None:
    with pytest.raises(SettingError, match="expected at least 1 skipped channel, got 0"):
        ScaleUNetUp2d(3, 4, skip_channels=0, **OPTIONS)
    with pytest.raises(SettingError, match="expected a pool of avg, max, got 'mean'"):
        ScaleUNetDown2d(3, 4, pool="mean", **OPTIONS)
