"""Which algorithm computes a convolution: a forced one, a measured one, or the cheapest by a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from equiscale._typing import Image
from equiscale.errors import SettingError
from equiscale.functional.algorithms.convolution import Convolution
from equiscale.functional.algorithms.cropped import cropped
from equiscale.functional.algorithms.dense import dense
from equiscale.functional.algorithms.fourier import fourier, tiling
from equiscale.functional.algorithms.unfolded import unfolded

AlgorithmName: TypeAlias = Literal["dense", "cropped", "unfolded", "fourier"]

ALGORITHMS: Final[dict[str, Callable[[Convolution], Iterator[Image]]]] = {
    "dense": dense,
    "cropped": cropped,
    "unfolded": unfolded,
    "fourier": fourier,
}

# Operations a second beside those of an ordinary convolution of many channels: of batched products of small
# matrices, of a convolution of few channels, and of products of patches.
_BATCHED: Final = 0.5
_FEW_CHANNELS: Final = 4
_FEW: Final = 0.5
_UNFOLDED: Final = 1.0

_forced: ContextVar[AlgorithmName | None] = ContextVar("forced", default=None)


@contextmanager
def algorithm(name: AlgorithmName) -> Iterator[None]:
    """Compute every lifting and scale convolution inside with one algorithm.

    Args:
        name: "dense" (the published formulation), "cropped" (every scale at its own window), "unfolded"
            (patches as a matrix) or "fourier" (products of transforms).

    Raises:
        SettingError: For an unknown algorithm.

    Example:
        >>> import equiscale
        >>> with equiscale.algorithm("fourier"):
        ...     pass
    """
    if name not in ALGORITHMS:
        raise SettingError(f"expected an algorithm of {', '.join(get_args(AlgorithmName))}, got {name!r}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def maps(convolution: Convolution) -> Iterator[Image]:
    """The result of a convolution, one scale after the other, each (B, C', H', W')."""
    name = _forced.get() or plan(convolution)
    if convolution.cache is not None:
        convolution.cache.algorithm = name
    return ALGORITHMS[name](convolution)


def plan(convolution: Convolution) -> AlgorithmName:
    """The algorithm of least estimated time; always the same for the same shapes.

    Nothing is measured, so that the same training gives the same bits.
    """
    if torch.compiler.is_exporting():
        return "cropped"  # ordinary convolutions, known everywhere
    times = {
        "cropped": _direct_operations(convolution),
        "fourier": _fourier_operations(convolution) / _BATCHED,
    }
    if convolution.weight.shape[1] <= _FEW_CHANNELS:
        times["cropped"] /= _FEW
        times["unfolded"] = _direct_operations(convolution) / _UNFOLDED
    return min(times, key=lambda name: times[name])


def _direct_operations(convolution: Convolution) -> float:
    height, width = convolution.output_size
    fan_out, fan_in, slots, _ = convolution.weight.shape
    pixels = convolution.x.shape[0] * height * width
    return 2.0 * pixels * fan_out * fan_in * slots * sum(side**2 for side in convolution.sides)


def _fourier_operations(convolution: Convolution) -> float:
    return float(tiling(convolution, max(convolution.sides))[1])


def stacked(images: Iterator[Image]) -> Tensor:
    """The scale map of its scales' images, in memory as they are: scale by scale."""
    every = list(images)
    # Along a new first axis of the memory, so that nothing but whole images is moved.
    order = _memory_order(every[0])
    whole = torch.stack([image.permute(order) for image in every])
    back = [1 + order.index(axis) for axis in range(4)]
    return whole.permute(back[0], back[1], 0, back[2], back[3])


def _memory_order(x: Tensor) -> list[int]:
    """The axes from the slowest to the fastest in memory."""
    return sorted(range(x.ndim), key=lambda axis: (-x.stride(axis), axis))
