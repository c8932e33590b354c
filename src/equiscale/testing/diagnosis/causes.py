"""What one layer adds to the error, taken apart: one cause after the other is removed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from equiscale.basis.sampling import SampledFamily, published_window
from equiscale.errors import EquiscaleError
from equiscale.functional import support_windows, synthesize_filters
from equiscale.testing.diagnosis.commutator import Conditions, Features, Pair, Scaling, commutator
from equiscale.testing.diagnosis.layers import (
    Function,
    Lattice,
    Layer,
    Step,
    looks_at_single_pixels,
    reach_of,
    variant,
)

Cause = Literal["interpolation", "scale axis", "border", "stride", "pooling", "kernel", "filters", "module"]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

# The output is read from so many times as many pixels along each axis: bicubic errors fall with the cube.
_FINE: Final = 3

# A kernel so much larger is taken for one that cuts nothing; where the needed size is looked for, it is
# only sampled, and may be larger still.
_UNCUT: Final = 1.8
_SEARCHED: Final = 4.0

# What a kernel may cut off of its filters, of their norm.
_CUT: Final = 0.01

# An error so small is not taken apart further.
_NEGLIGIBLE: Final = 1e-3

# The cosine of two functions from which on they count as the same one, cut in two places.
_SAME: Final = 0.99


@dataclass(frozen=True)
class OwnError:
    """What one layer adds at one factor.

    Args:
        error: The relative error, as measured.
        causes: Parts of it, which add up to it.
    """

    error: float
    causes: dict[Cause, float]


@dataclass(frozen=True, eq=False)
class _Experiment:
    """One rung of the ladder: a cause, and the comparison in which it is removed."""

    removes: Cause
    pair: Pair
    conditions: Conditions


def own_error(step: Step, features: Features, scaling: Scaling) -> OwnError | None:
    r"""The error of one layer on its own, and its causes.

    With :math:`E_0` the error as measured and :math:`E_i` the error after i causes are removed, a cause has
    the share :math:`(E_{i-1}^2 - E_i^2) / E_0^2`: independent errors add in squares. What is never removed
    is the filters' where they are sampled on a grid of scales, and else the module's itself.

    Returns:
        None where nothing can be compared: too few pixels, or an output that is zero.
    """
    if features.plain.ndim == 2:
        return OwnError(0.0, dict.fromkeys(CAUSES, 0.0))
    layer = _with_lattice(step)
    first = commutator(_plain(layer), features, scaling, Conditions())
    if first is None:
        return None
    energies: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    left = first**2
    for experiment in _ladder(layer, features, scaling):
        if left <= _NEGLIGIBLE**2:
            break
        error = _tried(experiment, features, scaling)
        if error is not None and error**2 < left:
            energies[experiment.removes] += left - error**2
            left = error**2
    energies[_rest(layer, features.plain)] += left
    return OwnError(first, {cause: _share(energy, first) for cause, energy in energies.items()})


def _share(energy: float, error: float) -> float:
    return energy / error if error else 0.0


def _tried(experiment: _Experiment, features: Features, scaling: Scaling) -> float | None:
    """The error, or None for a layer that cannot be run so, for example on a larger canvas."""
    try:
        return commutator(experiment.pair, features, scaling, experiment.conditions)
    except (EquiscaleError, RuntimeError, ValueError, IndexError):
        return None


def _ladder(layer: Layer, features: Features, scaling: Scaling) -> Iterator[_Experiment]:
    if not _has_pixels(layer.function(features.plain)):
        return
    mixes = _mixes_scales(layer, features.plain)
    if looks_at_single_pixels(layer.function, features.plain) and not mixes:
        return
    conditions, pair = Conditions(fine=_FINE), _plain(layer)
    yield _Experiment("interpolation", pair, conditions)
    if mixes:
        pair = without_axis_ends(layer, layer.function, features.plain, scaling)
        yield _Experiment("scale axis", pair, conditions)
    if layer.lattice is None:
        return
    if layer.lattice.reach:
        conditions = replace(conditions, enlarged=True)
        yield _Experiment("border", pair, conditions)
    if layer.lattice.stride > 1:
        conditions = replace(conditions, aligned=True)
        yield _Experiment("stride", pair, conditions)
    if layer.pools:
        yield _Experiment("pooling", _subsampling(layer.lattice), conditions)
    uncut = larger_kernel(layer)
    if uncut is not None:
        lattice = replace(layer.lattice, reach=layer.lattice.reach + uncut.extra)
        pair = without_axis_ends(replace(layer, module=uncut.module), uncut.module, features.plain, scaling)
        yield _Experiment("kernel", replace(pair, lattice=lattice), conditions)


def _has_pixels(y: Tensor) -> bool:
    return y.ndim > 2 and min(y.shape[-2:]) > 1


def _plain(layer: Layer) -> Pair:
    return Pair(layer.function, layer.function, layer.lattice)


def _with_lattice(step: Step) -> Layer:
    """The layer with a lattice that is right about how far it sees, and whether it enlarges its input.

    A layer that enlarges has no stride to read off: its pixels lie evenly about the centre.
    """
    layer, before, after = step.layer, step.input.shape[-2], step.output.shape[-2]
    if step.output.ndim < 4 or layer.lattice is None:
        return layer
    if after > before and layer.lattice.reach == 0:
        return replace(layer, lattice=Lattice(before / after, (before / after - 1) / 2))
    if layer.pools:
        return layer
    reach = reach_of(layer.function, step.input, layer.lattice)
    return replace(layer, lattice=replace(layer.lattice, reach=reach))


def _rest(layer: Layer, x: Tensor) -> Cause:
    if layer.holds_filters:
        return "filters"
    local = looks_at_single_pixels(layer.function, x)
    return "interpolation" if local or layer.pools else "module"


# --- the ends of the scale axis ---


def _mixes_scales(layer: Layer, x: Tensor) -> bool:
    if x.ndim != 5:
        return False
    return layer.function(x[:1]).ndim == 4 or getattr(layer.module, "scale_size", 1) > 1


def without_axis_ends(layer: Layer, function: Function, x: Tensor, scaling: Scaling) -> Pair:
    """The layer on what is on the axis before scaling and after it.

    A layer that reduces the axis gets these scales alone; filters over several scales keep the slots that are
    on the axis on both sides.
    """
    if not _mixes_scales(layer, x):
        return Pair(function, function, layer.lattice)
    first, last = scaling.common(x.shape[2])
    if function(x[:1]).ndim == 4:
        return Pair(
            lambda y: function(y[:, :, first:last]),
            lambda y: function(y[:, :, first - scaling.shift : last - scaling.shift]),
            layer.lattice,
        )
    module = layer.module
    if module is None or not _has_slots(module):
        return Pair(function, function, layer.lattice)
    slots = [_fewer_slots(module, count) for count in range(1, module.scale_size + 1)]  # type: ignore[operator]
    return Pair(
        partial(_by_scale, slots, max(-scaling.shift, 0)),
        partial(_by_scale, slots, max(scaling.shift, 0)),
        layer.lattice,
    )


def _by_scale(slots: list[nn.Module], ahead: int, x: Tensor) -> Tensor:
    """Scale s from the layer with the slots that stay on the axis ``ahead`` scales further up too."""
    num_scales = x.shape[2]
    counts = [min(len(slots), max(1, num_scales - s - ahead)) for s in range(num_scales)]
    outputs = {count: slots[count - 1](x) for count in sorted(set(counts))}
    return torch.stack([outputs[count][:, :, s] for s, count in enumerate(counts)], dim=2)


def _has_slots(module: nn.Module) -> bool:
    weight, count = getattr(module, "weight", None), getattr(module, "scale_size", None)
    return isinstance(weight, Tensor) and weight.ndim > 3 and weight.shape[2] == count


def _fewer_slots(module: nn.Module, count: int) -> nn.Module:
    """The layer with the weights (C', C, N, ...) of the first slots only."""
    weight: Tensor = module.weight.detach().clone()  # type: ignore[operator]
    weight[:, :, count:] = 0
    return variant(module, weight=nn.Parameter(weight, requires_grad=False))


# --- pooling ---


def _subsampling(lattice: Lattice) -> Pair:
    """One pixel of every window, the one in its middle or before it, in place of its maximum or mean."""
    first, stride = math.floor(lattice.offset), int(lattice.stride)
    first = first % stride

    def pick(x: Tensor) -> Tensor:
        return x[..., first::stride, first::stride]

    return Pair(pick, pick, Lattice(stride, first, 0))


# --- kernels ---


@dataclass(frozen=True, eq=False)
class LargerKernel:
    """A layer with the same filters in a larger window.

    Args:
        module: The layer.
        extra: By how many pixels it sees further.
    """

    module: nn.Module
    extra: int


def larger_kernel(layer: Layer, ratio: float = _UNCUT) -> LargerKernel | None:
    """The layer with filters that are cut so much later; None where its family has no such filters."""
    module = layer.module
    if not isinstance(module, nn.Module) or not isinstance(getattr(module, "family", None), SampledFamily):
        return None
    basis, kernel_size = getattr(module, "basis", None), _kernel_size(module)
    geometry = getattr(module, "geometry", None)
    if not isinstance(basis, Tensor) or basis.shape[-1] != kernel_size or geometry is None:
        return None
    larger = int(kernel_size * ratio) // 2 * 2 + 1
    sampled = _sampled(module, larger)
    extra = (larger - kernel_size) // 2
    if sampled is None or not _agree(basis.double().cpu(), sampled[..., extra:-extra, extra:-extra]):
        return None
    padding = geometry.padding if geometry.padding == "same" else geometry.padding + extra
    changed = variant(
        module,
        basis=sampled.to(basis),
        windows=support_windows(sampled),
        kernel_size=larger,
        geometry=replace(geometry, padding=padding),
    )
    return LargerKernel(changed, extra)


def needed_kernel(layer: Layer) -> tuple[int, float] | None:
    """The smallest kernel that cuts at most 1 % of the layer's filters, and the scale that is cut most now.

    None where the family has no larger kernels, or none up to four times this one is enough.
    """
    uncut, module = larger_kernel(layer, _SEARCHED), layer.module
    if uncut is None or module is None or layer.grid is None:
        return None
    weight: Tensor = module.weight.detach().double().cpu()  # type: ignore[operator]
    basis: Tensor = uncut.module.basis  # type: ignore[assignment]
    filters = synthesize_filters(weight, basis.double().cpu())
    start, stop = _kernel_size(module), filters.shape[-1]
    for size in range(start, stop, 2):
        if max(_cut(filters, size, layer)) <= _CUT:
            break
    else:
        return None
    cuts = _cut(filters, start, layer)
    return size, layer.grid[cuts.index(max(cuts))]


def _cut(filters: Tensor, kernel_size: int, layer: Layer) -> list[float]:
    """For each scale, what a kernel cuts off of the filters' norm."""
    if layer.grid is None:
        return [0.0]
    cuts = []
    for index, scale in enumerate(layer.grid):
        margin = (filters.shape[-1] - published_window(kernel_size, scale, layer.grid.max)) // 2
        of_scale = filters[..., index, :, :]
        kept = of_scale[..., margin : filters.shape[-1] - margin, margin : filters.shape[-1] - margin]
        whole = float(of_scale.square().sum())
        cuts.append(math.sqrt(max(0.0, 1 - float(kept.square().sum()) / whole)) if whole else 0.0)
    return cuts


def _kernel_size(module: nn.Module) -> int:
    size: int = module.kernel_size  # type: ignore[assignment]
    return size


def _sampled(module: nn.Module, kernel_size: int) -> Tensor | None:
    family: SampledFamily = module.family  # type: ignore[assignment]
    try:
        return replace(family, degenerate="allow").sample(kernel_size, module.grid)  # type: ignore[type-var, arg-type]
    except EquiscaleError:
        return None


def _agree(basis: Tensor, center: Tensor) -> bool:
    """Whether every function on the largest scale is that of the larger kernel, but for a factor."""
    a, b = basis[:, -1].flatten(1), center[:, -1].flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)
    return bool((cosine > _SAME).all())
