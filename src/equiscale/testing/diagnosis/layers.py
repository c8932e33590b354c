"""The layers of a network in the order in which they run, each as a function between features."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from equiscale.errors import EquiscaleError
from equiscale.functional import ConvGeometry, image_max_pool2d, scale_max_pool2d, scale_projection
from equiscale.functional.algorithms import FilterCache
from equiscale.scales import ScaleGrid

Function = Callable[[Tensor], Tensor]

_SEED = 0
# Of the largest value: by so much a layer of single pixels may differ where it sums in other orders.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Lattice:
    """Where the pixels of an output lie on its input.

    Args:
        stride: From one to the next, in pixels of the input.
        offset: The place of the first.
        reach: How far from there the layer looks.
    """

    stride: float = 1
    offset: float = 0.0
    reach: int = 0


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of one layer.

    Args:
        name: In the network; with the number of the call where there are several, and with the maximum
            that a convolution takes in passing.
        kind: What it is.
        function: From its input to its output.
        module: What holds its settings; None for a maximum taken in passing.
        lattice: Where its output lies on its input; None: unknown.
        grid: The scales of its features.
    """

    name: str
    kind: str
    function: Function
    module: nn.Module | None
    lattice: Lattice | None
    grid: ScaleGrid | None

    @property
    def holds_filters(self) -> bool:
        """Whether it has filters on a grid of scales of its own."""
        return grid_of(self.module) is not None and not _learns_nothing(self.module)

    @property
    def pools(self) -> bool:
        """Whether it takes something of windows of pixels, and learns nothing."""
        windows = self.lattice is not None and self.lattice.reach > 0
        return windows and grid_of(self.module) is None and _learns_nothing(self.module)


@dataclass(frozen=True, eq=False)
class Step:
    """A layer with what came in and out of it."""

    layer: Layer
    input: Tensor
    output: Tensor


def grid_of(module: nn.Module | None) -> ScaleGrid | None:
    """The scales that a layer holds."""
    try:
        grid = getattr(module, "grid", None)
    except EquiscaleError:  # scales that are learned may be none
        return None
    return grid if isinstance(grid, ScaleGrid) else None


def is_scale_map(x: Tensor, grid: ScaleGrid | None) -> bool:
    """Whether the tensor has the scales of the grid."""
    return x.ndim == 5 and grid is not None and x.shape[2] == len(grid)


def run(model: Callable[[Tensor], Tensor], x: Tensor, grid: ScaleGrid | None) -> tuple[list[Step], Tensor]:
    """The steps of a forward pass, and the network's output; a maximum taken in passing is a step of its own.

    Args:
        model: The network.
        x: The images.
        grid: The scales of scale maps before any layer that has its own; None: unknown.
    """
    recorder = _Recorder(grid)
    names = {}
    if isinstance(model, nn.Module):
        names = {module: name for name, module in _walk(model, "")}
    with recorder.listening(names):
        output = model(x)
    return recorder.steps, output


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that hold weights or no other modules."""
    if not any(module.children()) or any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}".lstrip("."))


class _Recorder:
    def __init__(self, grid: ScaleGrid | None) -> None:
        self.steps: list[Step] = []
        self.grid = grid
        self.calls: dict[str, int] = {}
        self.inputs: dict[nn.Module, Tensor] = {}
        self.maps: list[Tensor] = []
        self.busy = False

    @contextmanager
    def listening(self, names: dict[nn.Module, str]) -> Iterator[None]:
        handles = []
        for module, name in names.items():
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.busy and len(args) == 1 and _is_features(args[0]):
            self.inputs[module] = args[0].clone()  # the layer may work in place

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            x = self.inputs.pop(module, None)
            if self.busy or x is None or not _is_features(output) or _passes(module):
                return
            self.busy = True
            try:
                self._record(name or type(module).__name__, module, x, output.clone())
            finally:
                self.busy = False

        return record

    def _record(self, name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        name = name if self.calls[name] == 1 else f"{name} ({self.calls[name]})"
        self.grid = grid_of(module) or self.grid
        self._record_flattening(name, x)
        for layer in _parts(name, module, self.grid):
            fold = None if x.ndim != 4 else self._fold(x)
            if fold is not None:
                x, layer = fold.unfold(x), replace(layer, function=fold.around(layer.function))
            y = (
                output
                if layer.module is module and fold is None and not _fused(module)
                else layer.function(x)
            )
            self.steps.append(Step(layer, x, y))
            if is_scale_map(y, self.grid):
                self.maps = [y]
            x = y

    def _record_flattening(self, name: str, x: Tensor) -> None:
        """A function that made one vector of the last features is a layer like ``nn.Flatten``."""
        last = self.steps[-1].output if self.steps else x
        if x.ndim == 2 and last.ndim > 2 and min(last.shape[-2:]) > 1 and _same(x, last.flatten(1)):
            layer = Layer(
                f"before {name}", "Flatten", partial(torch.flatten, start_dim=1), None, None, self.grid
            )
            self.steps.append(Step(layer, last, x))

    def _fold(self, x: Tensor) -> "_Fold | None":
        """How the last scale map became this image, if it did."""
        for known in self.maps:
            for fold in (_Fold("channels", known.shape[2]), _Fold("batch", known.shape[2])):
                folded = fold.fold(known)
                if _same(folded, x):
                    return fold
        return None


@dataclass(frozen=True)
class _Fold:
    axis: str
    num_scales: int

    def fold(self, x: Tensor) -> Tensor:
        """(B, C, S, H, W) -> (B, C*S, H, W) or (B*S, C, H, W)."""
        return x.flatten(1, 2) if self.axis == "channels" else x.transpose(1, 2).flatten(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        """The scale map of what `fold` gave; an image where it cannot be one."""
        if x.ndim != 4 or x.shape[1 if self.axis == "channels" else 0] % self.num_scales:
            return x
        if self.axis == "channels":
            return x.reshape(len(x), -1, self.num_scales, *x.shape[2:])
        return x.reshape(-1, self.num_scales, *x.shape[1:]).transpose(1, 2)

    def around(self, function: Function) -> Function:
        return lambda x: self.unfold(function(self.fold(x)))


def _is_features(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim in (2, 4, 5) and x.is_floating_point()


def _passes(module: nn.Module) -> bool:
    """Whether it hands its input on, in evaluation."""
    return isinstance(module, nn.Identity) or "Dropout" in type(module).__name__


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _fused(module: nn.Module | None) -> ConvGeometry | None:
    """The geometry of a layer that takes maxima in passing."""
    geometry = getattr(module, "geometry", None)
    if isinstance(geometry, ConvGeometry) and (geometry.projection is not None or geometry.pooling > 1):
        return geometry
    return None


def _parts(name: str, module: nn.Module, grid: ScaleGrid | None) -> Iterator[Layer]:
    """The layer, and the maxima that it takes in passing as layers of their own."""
    geometry, kind = _fused(module), type(module).__name__
    if geometry is None:
        yield Layer(name, kind, _on_copies(module), module, lattice_of(module), grid)
        return
    plain = variant(module, geometry=replace(geometry, projection=None, pooling=1))
    yield Layer(name, kind, plain, plain, lattice_of(plain), grid)
    window = geometry.pooling
    if window > 1:
        lattice = Lattice(window, (window - 1) / 2, window // 2)
        yield Layer(f"{name}.pooling", "maximum of pixels", _pool(window), None, lattice, grid)
    if geometry.projection is not None:
        yield Layer(f"{name}.projection", "maximum of scales", _project, None, Lattice(), grid)


def _on_copies(module: nn.Module) -> Function:
    """The layer on a copy of its input: it may work in place."""
    return lambda x: module(x.clone())


def _pool(window: int) -> Function:
    return lambda x: (scale_max_pool2d if x.ndim == 5 else image_max_pool2d)(x, window)


def _project(x: Tensor) -> Tensor:
    return scale_projection(x, "max")


def variant(module: nn.Module, **changes: Any) -> nn.Module:
    """A copy of a layer with other settings, buffers or weights, without hooks; the layer stays as it is."""
    other = copy.copy(module)
    for store in ("_parameters", "_buffers"):
        other.__dict__[store] = dict(module.__dict__[store])
    for store in ("_forward_hooks", "_forward_pre_hooks"):
        other.__dict__[store] = OrderedDict()
    if isinstance(getattr(module, "filter_cache", None), FilterCache):
        other.__dict__["filter_cache"] = FilterCache()
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def lattice_of(module: nn.Module) -> Lattice | None:
    """Where the output of a layer lies on its input, from its settings; None where these do not say."""
    geometry = getattr(module, "geometry", None)
    kernel = _number(getattr(module, "kernel_size", None))
    kernel = _basis_side(module) or kernel
    if isinstance(geometry, ConvGeometry) and kernel is not None:
        return _lattice(kernel, geometry.stride, geometry.margin(kernel), 1)
    stride = _number(getattr(module, "stride", 1))
    if kernel is None:  # a layer without windows
        return None if stride is None else Lattice(stride)
    padding = getattr(module, "padding", 0)
    dilation = _number(getattr(module, "dilation", 1))
    margin = (kernel - 1) * (dilation or 1) // 2 if padding == "same" else _number(padding)
    if margin is None or dilation is None:
        return None
    return _lattice(kernel, kernel if stride is None else stride, margin, dilation)


def _basis_side(module: nn.Module) -> int | None:
    """K of a sampled basis: some layers call the learned part of their kernel its size."""
    basis = getattr(module, "basis", None)
    return basis.shape[-1] if isinstance(basis, Tensor) and basis.ndim >= 3 else None


def _lattice(kernel: int, stride: int, margin: int, dilation: int) -> Lattice:
    extent = (kernel - 1) * dilation
    return Lattice(stride, extent / 2 - margin, -(-extent // 2))


def _number(value: Any) -> int | None:
    """One whole number for both axes."""
    if isinstance(value, tuple | list) and value and all(entry == value[0] for entry in value):
        value = value[0]
    return value if isinstance(value, int) else None


def _learns_nothing(module: nn.Module | None) -> bool:
    return module is None or next(module.parameters(), None) is None


def reach_of(function: Function, x: Tensor, lattice: Lattice) -> int:
    """How many pixels around its own a layer sees: as its settings say, or more if it is seen to.

    Of a layer that sees the whole canvas, such as an instance norm, the settings count.
    """
    if x.ndim < 4:
        return lattice.reach
    row, column = (size // 2 for size in x.shape[-2:])
    touched = x.clone()
    touched[..., row, column] += 1 + x.abs().amax()
    change = (function(touched) - function(x)).abs()
    if change.ndim < 4:
        return lattice.reach
    changed = change.flatten(0, -3).amax(0) > _ROUNDING * change.max()
    places = [
        lattice.stride * line.nonzero()[:, 0] + lattice.offset - center
        for line, center in ((changed.any(1), row), (changed.any(0), column))
    ]
    seen = max(math.floor(float(place.abs().max())) if len(place) else 0 for place in places)
    return lattice.reach if seen >= min(row, column) else max(lattice.reach, seen)


def looks_at_single_pixels(function: Function, x: Tensor) -> bool:
    """Whether pixels (and scales) can be dealt out anew before a layer as well as after it.

    Pixels are dealt with repetition: a layer that sums over all of them, such as an instance norm, fails.
    An output without the scale axis must not depend on the order of the scales.
    """
    y = function(x)
    if x.ndim < 4 or y.ndim < 4 or y.shape[-2:] != x.shape[-2:]:
        return False
    generator = torch.Generator().manual_seed(_SEED)
    count = x.shape[-1] * x.shape[-2]
    pixels = torch.randint(count, (count,), generator=generator).to(x.device)
    dealt, expected = _dealt(x, pixels), _dealt(y, pixels)
    if x.ndim == 5 and y.ndim == 5 and y.shape[2] == x.shape[2]:
        scales = torch.randint(x.shape[2], (x.shape[2],), generator=generator).to(x.device)
        dealt, expected = dealt[:, :, scales], expected[:, :, scales]
    elif x.ndim == 5:
        dealt = dealt.flip(2)
    return _close(function(dealt), expected)


def _dealt(x: Tensor, pixels: Tensor) -> Tensor:
    return x.flatten(-2)[..., pixels].reshape(x.shape)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= _ROUNDING * float(b.abs().max())
