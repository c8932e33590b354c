"""Which algorithm computes a convolution: a forced one, a measured one, or the cheapest by a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from equiscale._typing import Image
from equiscale.errors import SettingError
from equiscale.functional.algorithms.blocked import Blocked, in_blocks
from equiscale.functional.algorithms.choices import facts, fastest_measured
from equiscale.functional.algorithms.convolution import Convolution, stacked
from equiscale.functional.algorithms.cropped import cropped
from equiscale.functional.algorithms.dense import dense
from equiscale.functional.algorithms.dilated import dilated, dilations
from equiscale.functional.algorithms.fourier import fourier, tiling
from equiscale.functional.algorithms.fourier_blocked import BlockedFourier
from equiscale.functional.algorithms.projected import projected, projected_operations
from equiscale.functional.algorithms.unfolded import unfolded
from equiscale.functional.algorithms.unfolded_blocked import BlockedUnfolded
from equiscale.functional.blockwise import is_eager
from equiscale.functional.pool import image_max_pool2d, scale_max_pool2d
from equiscale.functional.project import fold_max

AlgorithmName: TypeAlias = Literal["dense", "cropped", "unfolded", "fourier", "projected", "dilated"]

ALGORITHMS: Final[dict[str, Callable[[Convolution], Iterator[Image]]]] = {
    "dense": dense,
    "cropped": cropped,
    "unfolded": unfolded,
    "fourier": fourier,
    "projected": projected,
    "dilated": dilated,
}

# Those that also compute a whole result at once, in blocks.
BLOCKED: Final[dict[str, type[Blocked]]] = {"unfolded": BlockedUnfolded, "fourier": BlockedFourier}

# Operations a second beside those of an ordinary convolution of many channels: of batched products of small
# matrices, of a convolution of few channels, of products of patches, of filters with gaps, and of products
# with features, which are slower with less than so many channels.
_BATCHED: Final = 0.65
_FEW_CHANNELS: Final = 4
_FEW: Final = 0.5
_UNFOLDED: Final = 1.0
_DILATED: Final = 0.7
_PROJECTED: Final = 0.65
_FULL_CHANNELS: Final = 40

_MANY_SHAPES: Final = 1000


@dataclass(frozen=True)
class _Setting:
    """An algorithm that is forced, or None; and whether what was measured counts."""

    forced: str | None = None
    measured: bool = True


_PLANNED: Final = _Setting()
_setting: ContextVar[_Setting] = ContextVar("setting", default=_PLANNED)
# A compiler cannot follow a context variable. It sees the last setting of any thread that still holds, and
# compiles anew when that changes.
_seen_by_compilers: Final = [_PLANNED]
_observer: ContextVar[Callable[[Convolution], None] | None] = ContextVar("observer", default=None)


@contextmanager
def algorithm(name: AlgorithmName) -> Iterator[None]:
    """Compute every lifting and scale convolution inside with one algorithm.

    Args:
        name: "dense" (the published formulation), "cropped" (every scale at its own window), "unfolded"
            (patches as a matrix), "fourier" (products of transforms), "projected" (the basis first, the
            weights after) or "dilated" (without the zeros between the pixels of a coarser grid).

    Raises:
        SettingError: For an unknown algorithm.

    Example:
        >>> import equiscale
        >>> with equiscale.algorithm("fourier"):
        ...     pass
    """
    if name not in ALGORITHMS:
        raise SettingError(f"expected an algorithm of {', '.join(get_args(AlgorithmName))}, got {name!r}")
    with _changed(forced=name):
        yield


@contextmanager
def unmeasured() -> Iterator[None]:
    """Choose inside as if nothing had ever been measured, so that results depend on no file.

    Example:
        >>> with unmeasured():
        ...     pass
    """
    with _changed(measured=False):
        yield


@contextmanager
def _changed(**fields: Any) -> Iterator[None]:
    setting = replace(_setting.get(), **fields)
    token = _setting.set(setting)
    _seen_by_compilers.append(setting)
    try:
        yield
    finally:
        _setting.reset(token)
        # Threads may leave in another order than they came.
        del _seen_by_compilers[max(i for i, seen in enumerate(_seen_by_compilers) if seen is setting)]


@contextmanager
def observed(observer: Callable[[Convolution], None]) -> Iterator[None]:
    """Show every convolution inside to an observer before it is computed."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def compute(convolution: Convolution, name: str | None = None) -> Tensor:
    """The result of a convolution, by the algorithm of this name or else the planned one.

    The scale map ``(B, C', S, H', W')``, or its maximum over scales where the geometry says so.
    """
    name = name or chosen(convolution)
    blocked = BLOCKED.get(name)
    if blocked is not None and blocked.fits(convolution):
        return in_blocks(convolution, blocked, partial(_composed, name=name))
    return _composed(convolution, name)


def _composed(convolution: Convolution, name: str) -> Tensor:
    """Of the images of single scales."""
    geometry = convolution.geometry
    if geometry.projection is None:
        y = stacked(list(ALGORITHMS[name](convolution)))
        return y if geometry.pooling == 1 else scale_max_pool2d(y, geometry.pooling)
    y = fold_max(ALGORITHMS[name](replace(convolution, bias=None)))
    if geometry.pooling > 1:
        y = image_max_pool2d(y, geometry.pooling)
    if convolution.bias is None:
        return y
    bias = convolution.bias.to(y.dtype).view(-1, 1, 1)  # the same on every scale
    fresh = convolution.num_scales > 1 and not convolution.transformed
    return y.add_(bias) if fresh else y + bias


def chosen(convolution: Convolution) -> str:
    """The name of the algorithm that a convolution is computed by."""
    if not torch.compiler.is_compiling() and (observer := _observer.get()) is not None:
        observer(convolution)
    setting = _seen_by_compilers[-1] if torch.compiler.is_compiling() else _setting.get()
    name = setting.forced or plan(convolution, measured=setting.measured)
    if setting.forced and convolution.x.shape[0] == 0:
        name = "cropped"  # not all are made for no images
    if convolution.cache is not None:
        convolution.cache.algorithm = name
    return name


def plan(convolution: Convolution, *, measured: bool = True) -> str:
    """The algorithm that `equiscale.autotune` found to be the fastest, or else that of least estimated time.

    Nothing is measured here, so that the same shapes and the same choices give the same bits.
    """
    if torch.compiler.is_exporting():
        return "cropped"  # ordinary convolutions, known everywhere
    choice = fastest_measured(convolution) if measured else None
    return choice if choice in ALGORITHMS else _estimated(convolution)


def _estimated(convolution: Convolution) -> str:
    """The estimate, made once by a layer for each shape: it takes longer than a small kernel of a GPU."""
    cache = convolution.cache
    if cache is None or not is_eager(convolution.x):
        return estimate(convolution)
    key = (*facts(convolution), convolution.x.device)
    if key not in cache.estimates:
        if len(cache.estimates) >= _MANY_SHAPES:
            cache.estimates.clear()
        cache.estimates[key] = estimate(convolution)
    return cache.estimates[key]


def estimate(convolution: Convolution) -> str:
    """The algorithm of least estimated time; always the same for the same shapes."""
    times = {
        "cropped": _direct_operations(convolution),
        "fourier": _fourier_operations(convolution) / _BATCHED,
    }
    if convolution.weight.shape[1] <= _FEW_CHANNELS:
        times["cropped"] /= _FEW
        times["unfolded"] = _direct_operations(convolution) / _UNFOLDED
    if _has_kept_basis(convolution):
        times |= _of_basis(convolution)
    best = "cropped"
    for name, seconds in times.items():  # not min(key=…), which no compiler follows with free sizes
        best = name if seconds < times[best] else best
    return best


def _has_kept_basis(convolution: Convolution) -> bool:
    """Whether to look at the values of the basis: on a CPU, in a layer, where that is done once."""
    return (
        convolution.cache is not None
        and convolution.x.device.type == "cpu"
        and not convolution.basis.requires_grad
        and is_eager(convolution.x)
    )


def _of_basis(convolution: Convolution) -> dict[str, float]:
    """Estimates that depend on the values of the basis."""
    rate = _PROJECTED * min(1.0, convolution.weight.shape[1] / _FULL_CHANNELS)
    times = {"projected": projected_operations(convolution) / rate}
    steps = dilations(convolution)
    if max(steps) > 1:
        compact = [(side - 1) // step + 1 for side, step in zip(convolution.sides, steps, strict=True)]
        times["dilated"] = _direct_operations(convolution, compact) / _DILATED
    return times


def _direct_operations(convolution: Convolution, sides: Sequence[int] | None = None) -> float:
    height, width = convolution.output_size
    fan_out, fan_in, slots, _ = convolution.weight.shape
    pixels = convolution.x.shape[0] * height * width
    return 2.0 * pixels * fan_out * fan_in * slots * sum(side**2 for side in sides or convolution.sides)


def _fourier_operations(convolution: Convolution) -> float:
    return float(tiling(convolution, max(convolution.sides))[1])
