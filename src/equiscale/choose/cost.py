"""What a scale convolution costs beside the plain convolution with as many weights."""

import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from equiscale.functional.algorithms import Convolution
from equiscale.functional.algorithms.dilated import dilations
from equiscale.functional.algorithms.fourier import tiling
from equiscale.functional.algorithms.planner import plan
from equiscale.functional.algorithms.projected import projected_operations
from equiscale.nn import ScaleConv2d

CHANNELS: Final = 32
_BATCH: Final = 32
_TIMED_BATCH: Final = 4
_REPEATS: Final = 3


def relative_operations(layer: ScaleConv2d, size: tuple[int, int]) -> float:
    r"""Multiply-adds of a forward pass, as a multiple of those of a plain convolution.

    .. math:: \frac{\text{operations of the planned algorithm}}{2 \, B \, H \, W \, C \, C' \, e^2}

    Args:
        layer: A scale convolution with F = e² functions.
        size: (H, W), of 32 images.

    Returns:
        The multiple; always the same for the same layer and size.

    Example:
        >>> from equiscale import ScaleGrid
        >>> layer = ScaleConv2d(32, 32, kernel_size=7, grid=ScaleGrid([0.9, 1.27, 1.79]), padding="same")
        >>> 3 < relative_operations(layer, (28, 28)) < 9.3
        True
    """
    x = torch.zeros(1).expand(_BATCH, layer.in_channels, len(layer.grid), *size)  # takes no memory
    convolution = Convolution(
        x, layer.weight, layer.basis, layer.bias, layer.geometry, layer.windows, layer.filter_cache
    )
    plain = _direct(convolution, [1]) * layer.basis.shape[0]
    return operations_of(convolution, plan(convolution, measured=False)) / plain


def operations_of(convolution: Convolution, algorithm: str) -> float:
    """Operations of the forward pass by one algorithm; a multiplication and an addition are two."""
    if algorithm == "fourier":
        return float(tiling(convolution, max(convolution.sides))[1])
    if algorithm == "projected":
        return projected_operations(convolution)
    steps = dilations(convolution) if algorithm == "dilated" else (1,) * convolution.num_scales
    return _direct(
        convolution, [(side - 1) // step + 1 for side, step in zip(convolution.sides, steps, strict=True)]
    )


def _direct(convolution: Convolution, sides: list[int]) -> float:
    height, width = convolution.output_size
    fan_out, fan_in, slots, _ = convolution.weight.shape
    pairs = fan_out * fan_in * slots
    return 2.0 * len(convolution.x) * height * width * pairs * float(sum(k**2 for k in sides))


def relative_time(layer: ScaleConv2d, size: tuple[int, int]) -> float:
    """Seconds of a forward and a backward pass, as a multiple of those of a plain convolution: measured."""
    side = round(layer.basis.shape[0] ** 0.5)
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, side, padding=side // 2)
    image = torch.zeros(_TIMED_BATCH, layer.in_channels, *size, requires_grad=True)
    scale_map = torch.zeros(_TIMED_BATCH, layer.in_channels, len(layer.grid), *size, requires_grad=True)
    steps = [_pass(layer, scale_map), _pass(plain, image)]
    seconds = [[_seconds(step) for step in steps] for _ in range(_REPEATS + 1)]
    ours, theirs = (min(times) for times in zip(*seconds[1:], strict=True))
    return float(ours / theirs)


def _pass(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: layer(x).sum().backward()


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
