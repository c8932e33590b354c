"""Rewrite the graph of a network so that its features become scale maps."""

import operator
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from equiscale.deploy.conversion.layers import Counterpart, is_spatial, lift, on_scale_map, unfit
from equiscale.deploy.conversion.policy import ConversionPolicy, Filters
from equiscale.deploy.conversion.report import ModuleFate
from equiscale.deploy.tracing import EXAMPLE, MODE, drop_unused, evaluate, place
from equiscale.errors import ModelError, ShapeError
from equiscale.nn import ScaleProjection, ScaleWise

# What an operation raises where it has no sense for the axes it is given.
_NO_SENSE = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, ShapeError)

_OF_IMAGE = "of_image"  # the key of whether a value is made from the image, not from weights alone

# The head begins where the image is pooled as a whole.
_HEADS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_HEAD_FUNCTIONS = (torch.nn.functional.adaptive_avg_pool2d, torch.nn.functional.adaptive_max_pool2d)

# Operations that leave fewer rows and columns than this fraction begin a new stage.
_STAGE = 0.75

# Functions that are told the mode: as layers they follow it.
_DROPOUTS: dict[Any, type[nn.Module]] = {
    torch.nn.functional.dropout: nn.Dropout,
    torch.nn.functional.dropout2d: nn.Dropout2d,
    torch.nn.functional.alpha_dropout: nn.AlphaDropout,
}

_CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d, torch.nn.functional.conv2d)
_AS_A_FUNCTION = "written as a function; as an nn.Conv2d it would be converted"


@dataclass(frozen=True)
class _Value:
    """A node of the new graph, and whether it holds a scale map; or several of them."""

    node: fx.Node
    is_map: bool = False
    parts: "tuple[_Value, ...]" = ()

    @property
    def example(self) -> Any:
        return self.node.meta[EXAMPLE]


_View = Callable[[_Value], _Value]


class GraphConverter:
    """Goes once through a traced network, and builds the converted one with the example's values.

    What a function does is found by trial: on every scale by itself it must do what it did to images. The
    trials see random pixels and weights, since zeros and ones would hide what it does.

    Args:
        traced: From `equiscale.deploy.tracing.trace`, in evaluation mode.
        policy: Where the scale axis is.
        filters: What convolutions are made of.
    """

    def __init__(self, traced: fx.GraphModule, policy: ConversionPolicy, filters: Filters) -> None:
        self.traced, self.policy, self.filters = traced, policy, filters
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.places: dict[
            str, tuple[nn.Module, bool]
        ] = {}  # name -> what stands there, behind a scale map or not
        self.env: dict[fx.Node, _Value] = {}
        self.projected: dict[fx.Node, _Value] = {}
        self.order = {node: index for index, node in enumerate(traced.graph.nodes)}
        self.entered: dict[str, int] = {}  # name in front of which is projected -> place of its first node
        self.fates: list[ModuleFate] = []
        self.called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def convert(self) -> fx.GraphModule:
        """The converted network.

        Raises:
            ModelError: If a module with weights is used on images and on scale maps.
        """
        for node in self.traced.graph.nodes:
            self.env[node] = getattr(self, f"_{node.op}")(node)
        drop_unused(self.graph)
        for node in self.graph.nodes:
            node.meta.clear()
        for name, kind in self.traced.meta.get(MODE, {}).items():
            self.fates.append(
                ModuleFate(name, kind, note="decides by its mode: here always as in evaluation")
            )
        return fx.GraphModule(self.root, self.graph, f"Scale{type(self.traced).__name__}")

    # --- one method for every kind of node ---

    def _placeholder(self, node: fx.Node) -> _Value:
        return self._emit(node.op, node.target, node.args, {}, value=self._random(node.meta[EXAMPLE]))

    def _get_attr(self, node: fx.Node) -> _Value:
        tensor, name = deepcopy(node.meta[EXAMPLE]), str(node.target)
        if any(name.startswith(f"{called}.") for called in self.called):
            name = f"{name.replace('.', '_')}_itself"  # the converted module has other weights
        place(self.root, name, tensor)
        value = self._random(tensor) if isinstance(tensor, nn.Parameter) else tensor
        return self._emit(node.op, name, (), {}, value=value)

    def _output(self, node: fx.Node) -> _Value:
        args = self._arguments(node, lambda value: self._image(value, "in front of the output"))[0]
        return self._emit(node.op, node.target, args, {}, value=None)

    def _call_module(self, node: fx.Node) -> _Value:
        name, module = str(node.target), self.traced.get_submodule(str(node.target))
        begins = self._begins_stage(node) or isinstance(module, _HEADS)
        if begins or not self._on_map(node):
            return self._on_images(node, name, module)
        inputs = [self._input(node, used) for used in node.all_input_nodes]
        value, *others = sorted(inputs, key=lambda value: not value.is_map)
        if value.parts or any(isinstance(other.example, Tensor) for other in others):
            return self._on_images(node, name, module)
        if others or node.kwargs:
            return self._with_settings(node, module) or self._on_images(node, name, module)
        counterpart = on_scale_map(module, self.filters) or _by_trial(module, value.example)
        if counterpart is None:
            return self._on_images(node, name, module)
        return self._put(node, module, counterpart, view=lambda value: value, is_map=True)

    def _call_function(self, node: fx.Node) -> _Value:
        if node.meta.get(MODE) and node.target in _DROPOUTS:
            return self._dropout(node)
        if node.target in (operator.getitem, getattr) and self._input(node, node.all_input_nodes[0]).parts:
            return self._part(node)
        if not self._on_map(node):
            return self._function_of_images(node)
        if not isinstance(node.meta[EXAMPLE], Tensor) and node.target is getattr:
            return self._again(node, self._slice)  # the shape that the image would have
        if self._begins_stage(node) or node.target in _HEAD_FUNCTIONS:
            return self._again(node, self._as_image(node))
        return self._freely(node)

    def _call_method(self, node: fx.Node) -> _Value:
        if self._on_map(node) and node.target in ("size", "dim", "ndimension", "numel"):
            return self._again(node, self._slice)
        return self._call_function(node)

    # --- modules ---

    def _on_images(self, node: fx.Node, name: str, module: nn.Module) -> _Value:
        counterpart, is_map = Counterpart(deepcopy(module)), False
        if isinstance(module, nn.ConvTranspose2d):
            counterpart = Counterpart(deepcopy(module), "stays as it was", equivariant=False)
        if isinstance(module, nn.Conv2d) and is_spatial(module):
            reason = unfit(module, self.filters)
            if not self.policy.lifts_at(name):
                reason = "not among those that may lift"
            fused = self.policy.project == "layer" and self.policy.projection == "max"
            if reason is None:
                counterpart, is_map = lift(module, self.filters, projected=fused), not fused
            else:
                note = f"stays an ordinary convolution: {reason}"
                counterpart = Counterpart(deepcopy(module), note, equivariant=False)
        value = self._put(node, module, counterpart, view=self._as_image(node), is_map=is_map)
        return self._image(value, f"behind {name}") if self.policy.project == "layer" else value

    def _with_settings(self, node: fx.Node, module: nn.Module) -> _Value | None:
        """A module that is told more than its image, scale by scale."""
        wise = ScaleWise(deepcopy(module))
        known = on_scale_map(module, self.filters) or Counterpart(wise)
        counterpart = Counterpart(wise, known.note, equivariant=known.equivariant)
        if not (node.args and isinstance(node.args[0], fx.Node) and self._input(node, node.args[0]).is_map):
            return None
        try:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda used: self._input(node, used).example
            )
            wise(*args, **kwargs)
        except _NO_SENSE:
            return None
        return self._put(node, module, counterpart, view=lambda value: value, is_map=True)

    def _put(
        self, node: fx.Node, module: nn.Module, counterpart: Counterpart, *, view: _View, is_map: bool
    ) -> _Value:
        """A module's counterpart in its place."""
        name = str(node.target)
        args, kwargs = self._arguments(node, view)
        on_map = any(view(self._input(node, used)).is_map for used in node.all_input_nodes)
        placed, was_on_map = self.places.get(name, (counterpart.module, on_map))
        if was_on_map != on_map:
            if any(True for _ in module.parameters()):
                raise ModelError(
                    f"expected {name} to be used on images or on scale maps, got both; give it copies of its "
                    "own, or project in front of it"
                )
            name, placed = f"{name}_on_{'maps' if on_map else 'images'}", counterpart.module
        if name not in self.places:
            place(self.root, name, placed)
            self.places[name] = (placed, on_map)
            self.fates.append(_fate(name, module, counterpart))
        return self._emit("call_module", name, args, kwargs, is_map=is_map)

    # --- functions and methods ---

    def _function_of_images(self, node: fx.Node) -> _Value:
        if node.target in _CONVOLUTIONS and self._is_spatial(node):
            note = f"stays an ordinary convolution: {_AS_A_FUNCTION}"
            self.fates.append(ModuleFate(_called(node), _word(node), note=note, equivariant=False))
        return self._again(node, lambda value: value)

    def _freely(self, node: fx.Node) -> _Value:
        """A function without a rule, as trials show what it does.

        It is taken as it is where it does to every scale what it does to images, else scale by scale, and
        where it does not give images, the scale axis is projected in front of it.
        """
        expected = self._expected(node)
        ways = (self._direct, self._by_scale, self._one_by_one) if expected is not None else ()
        for way in ways:
            value = _tried(partial(way, node))
            if value is not None and _same(value.example, expected):
                self._tell(node, "" if way == self._direct else "scale by scale")
                return _unpacked(value, self._item)
        return self._again(node, self._as_image(node))

    def _expected(self, node: fx.Node) -> Any:
        """What a function gives on every scale by itself: an image, or several, on each; or None."""
        scales = range(len(self.filters.grid))
        results = _tried(lambda: [self._on_scale(node, scale) for scale in scales])
        first = results[0] if results else None
        if isinstance(first, Tensor):
            return torch.stack(results, 2) if all(_are_images(y) for y in results) else None
        if isinstance(first, tuple | list) and first:
            columns = list(zip(*results, strict=True))
            if all(_are_images(y) for column in columns for y in column):
                return tuple(torch.stack(column, 2) for column in columns)
        return None

    def _on_scale(self, node: fx.Node, scale: int) -> Any:
        def of_scale(value: _Value) -> Any:
            if value.parts:
                return tuple(of_scale(part) for part in value.parts)
            return value.example.select(2, scale) if value.is_map else value.example

        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda used: _cloned(of_scale(self._input(node, used)))
        )
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _direct(self, node: fx.Node) -> _Value:
        return self._again(node, self._broadcast, is_map=True)

    def _by_scale(self, node: fx.Node) -> _Value:
        scales = len(self.filters.grid)
        y = _unpacked(self._again(node, lambda value: self._unrolled(value, scales)), self._item)
        if not y.parts:
            return self._rolled(y, scales)
        return self._tuple(self._rolled(part, scales) for part in y.parts)

    def _one_by_one(self, node: fx.Node) -> _Value:
        scales = range(len(self.filters.grid))
        results = [
            _unpacked(self._again(node, partial(self._slice, scale=scale)), self._item) for scale in scales
        ]
        if not results[0].parts:
            return self._stacked(results)
        return self._tuple(self._stacked(column) for column in zip(*(y.parts for y in results), strict=True))

    def _dropout(self, node: fx.Node) -> _Value:
        """A function that is told the mode as a layer that follows it."""
        given = {"input": None, "p": 0.5} | dict(zip(("input", "p"), node.args, strict=False)) | node.kwargs
        module: nn.Module = _DROPOUTS[node.target](given["p"])
        input = self._input(node, given["input"])  # type: ignore[arg-type]
        counterpart = on_scale_map(module, self.filters) if input.is_map else None
        placed = (counterpart or Counterpart(module)).module.eval()
        place(self.root, node.name, placed)
        self.fates.append(ModuleFate(_called(node), _word(node), type(placed).__name__))
        return self._emit("call_module", node.name, (input.node,), {}, is_map=input.is_map)

    def _part(self, node: fx.Node) -> _Value:
        """One of several scale maps, by its place or its name."""
        whole = node.all_input_nodes[0]
        parts = self._input(node, whole).parts
        if isinstance(node.meta[EXAMPLE], Tensor):
            places = (i for i, x in enumerate(whole.meta[EXAMPLE]) if x is node.meta[EXAMPLE])
            return parts[next(places)]
        return self._tuple(parts[node.args[1]])  # type: ignore[index, arg-type]

    def _tell(self, node: fx.Node, how: str) -> None:
        if node.target in _CONVOLUTIONS and self._is_spatial(node):
            note = f"the same filter on every scale: {_AS_A_FUNCTION}"
            self.fates.append(ModuleFate(_called(node), _word(node), how, note, equivariant=False))
        elif how:
            self.fates.append(ModuleFate(_called(node), _word(node), how))

    def _is_spatial(self, node: fx.Node) -> bool:
        tensors = [used.meta[EXAMPLE] for used in node.all_input_nodes]
        return any(max(x.shape[-2:]) > 1 for x in tensors[1:2] if isinstance(x, Tensor) and x.ndim == 4)

    # --- ways to see a value ---

    def _image(self, value: _Value, where: str) -> _Value:
        """What stands for a scale map where an image is wanted: its projection."""
        if value.parts:
            return self._tuple(self._image(part, where) for part in value.parts)
        if not value.is_map:
            return value
        if value.node not in self.projected:
            name = f"projection_{len(self.projected)}"
            place(self.root, name, ScaleProjection(self.policy.projection))
            self.fates.append(ModuleFate(name, "", "ScaleProjection", where))
            self.projected[value.node] = self._emit("call_module", name, (value.node,), {})
        return self.projected[value.node]

    def _as_image(self, node: fx.Node) -> _View:
        return lambda value: self._image(value, f"in front of {_called(node)}")

    def _slice(self, value: _Value, scale: int = 0) -> _Value:
        if value.parts:
            return self._tuple(self._slice(part, scale) for part in value.parts)
        return self._method("select", value, 2, scale) if value.is_map else value

    def _broadcast(self, value: _Value) -> _Value:
        """A scale map, or an image as one that is the same on every scale."""
        return self._method("unsqueeze", value, 2) if _is_image(value) else value

    def _unrolled(self, value: _Value, scales: int) -> _Value:
        """All scales as images of one large batch."""
        if value.parts:
            return self._tuple(self._unrolled(part, scales) for part in value.parts)
        if _is_image(value) and value.node.meta[_OF_IMAGE]:
            return self._method("repeat_interleave", value, scales, 0)
        if not value.is_map:
            return value
        return self._method("flatten", self._method("transpose", value, 1, 2), 0, 1)

    def _rolled(self, value: _Value, scales: int) -> _Value:
        rolled = self._method("unflatten", value, 0, (-1, scales))
        return _Value(self._method("transpose", rolled, 1, 2).node, is_map=True)

    def _stacked(self, values: Any) -> _Value:
        nodes = [value.node for value in values]
        return self._emit("call_function", torch.stack, (nodes, 2), {}, is_map=True)

    def _tuple(self, values: Iterator[_Value] | tuple[_Value, ...]) -> _Value:
        parts = tuple(values)
        node = self._emit("call_function", tuple, ([part.node for part in parts],), {}).node
        return _Value(node, any(part.is_map for part in parts), parts)

    def _item(self, value: _Value, index: int) -> _Value:
        return self._emit("call_function", operator.getitem, (value.node, index), {}, is_map=value.is_map)

    # --- nodes of the new graph ---

    def _input(self, node: fx.Node, used: fx.Node) -> _Value:
        """What a node uses, projected where it comes into a name in front of which is projected."""
        value = self.env[used]
        owner = _owner(node)
        entries = [self.entered.setdefault(name, self.order[node]) for name in self.policy.entered_by(owner)]
        if any(self.order[used] < entry for entry in entries):
            return self._image(value, f"in front of {_called(node)}")
        return value

    def _on_map(self, node: fx.Node) -> bool:
        return any(self._input(node, used).is_map for used in node.all_input_nodes)

    def _arguments(self, node: fx.Node, view: _View) -> tuple[Any, Any]:
        return fx.node.map_arg((node.args, node.kwargs), lambda used: view(self._input(node, used)).node)

    def _again(self, node: fx.Node, view: _View, *, is_map: bool = False) -> _Value:
        args, kwargs = self._arguments(node, view)
        return self._emit(node.op, node.target, args, kwargs, is_map=is_map)

    def _method(self, name: str, value: _Value, *args: Any) -> _Value:
        return self._emit("call_method", name, (value.node, *args), {})

    def _emit(
        self, op: str, target: Any, args: Any, kwargs: Any, *, is_map: bool = False, **known: Any
    ) -> _Value:
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta[EXAMPLE] = known["value"] if known else evaluate(node, self.root, keep=True)
        used = any(other.meta[_OF_IMAGE] for other in node.all_input_nodes)
        node.meta[_OF_IMAGE] = used or op == "placeholder"
        return _Value(node, is_map)

    def _random(self, like: Any) -> Any:
        if not (isinstance(like, Tensor) and like.is_floating_point()):
            return like
        return (0.5 + torch.rand(like.shape, generator=self.generator)).to(like)

    def _begins_stage(self, node: fx.Node) -> bool:
        after = node.meta[EXAMPLE]
        if self.policy.project != "stage" or not isinstance(after, Tensor) or after.ndim != 4:
            return False
        inputs = (used.meta[EXAMPLE] for used in node.all_input_nodes)
        return any(_is_smaller(after, x) for x in inputs if isinstance(x, Tensor) and x.ndim == 4)


def _unpacked(value: _Value, item: Callable[[_Value, int], _Value]) -> _Value:
    """A tuple of tensors as its parts."""
    if value.parts or not isinstance(value.example, tuple | list):
        return value
    parts = tuple(item(value, index) for index in range(len(value.example)))
    return _Value(value.node, value.is_map, parts)


def _tried(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except _NO_SENSE:
        return None


def _by_trial(module: nn.Module, x: Tensor) -> Counterpart | None:
    """A module without a rule: as it is, or scale by scale; None where it does not give images."""
    expected = _tried(lambda: ScaleWise(module)(x.clone()))
    if expected is None:
        return None
    direct = _tried(lambda: module(x.clone()))
    return Counterpart(deepcopy(module) if _same(direct, expected) else ScaleWise(deepcopy(module)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype):
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    rounding = torch.finfo(a.dtype).eps ** 0.5
    return torch.allclose(a, b, rtol=rounding, atol=rounding, equal_nan=True)


def _cloned(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda x: x.clone() if isinstance(x, Tensor) else x)


def _are_images(y: Any) -> bool:
    return isinstance(y, Tensor) and y.ndim == 4


def _is_image(value: _Value) -> bool:
    return not value.is_map and isinstance(value.example, Tensor) and value.example.ndim == 4


def _is_smaller(after: Tensor, before: Tensor) -> bool:
    return all(a < _STAGE * b for a, b in zip(after.shape[-2:], before.shape[-2:], strict=True))


def _owner(node: fx.Node) -> str:
    """The name of the module in which a node is computed."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _called(node: fx.Node) -> str:
    """The name of a module, or of a function behind that of its module."""
    if node.op in ("call_module", "output"):
        return str(node.target)
    return f"{_owner(node)}.{_word(node)}".removeprefix(".")


def _word(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _fate(name: str, module: nn.Module, counterpart: Counterpart) -> ModuleFate:
    before, after = type(module).__name__, type(counterpart.module).__name__
    changed = after if after != before else ""
    return ModuleFate(name, before, changed, counterpart.note, counterpart.residual, counterpart.equivariant)
