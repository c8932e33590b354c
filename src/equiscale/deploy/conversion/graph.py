"""Rewrite the graph of a network so that its features become scale maps."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from equiscale.deploy.conversion.layers import Counterpart, is_spatial, lift, on_scale_map, unfit
from equiscale.deploy.conversion.policy import ConversionPolicy, Filters
from equiscale.deploy.conversion.report import ModuleFate
from equiscale.deploy.tracing import EXAMPLE, drop_unused, evaluate, place
from equiscale.errors import ModelError, ShapeError
from equiscale.nn import ScaleProjection, ScaleWise

# What an operation raises where it has no sense for the axes it is given.
_NO_SENSE = (RuntimeError, TypeError, ValueError, IndexError, ShapeError)

# The head begins where the image is pooled as a whole.
_HEADS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_HEAD_FUNCTIONS = (torch.nn.functional.adaptive_avg_pool2d, torch.nn.functional.adaptive_max_pool2d)

# Operations that leave fewer pixels in a row than this fraction begin a new stage.
_STAGE = 0.75


@dataclass(frozen=True)
class _Value:
    """A node of the new graph, and whether it holds a scale map."""

    node: fx.Node
    is_map: bool = False

    @property
    def example(self) -> Any:
        return self.node.meta[EXAMPLE]


class GraphConverter:
    """Goes once through a traced network, and builds the converted one with the example's values.

    Args:
        traced: From `equiscale.deploy.tracing.trace`.
        policy: Where the scale axis is.
        filters: What convolutions are made of.
    """

    def __init__(self, traced: fx.GraphModule, policy: ConversionPolicy, filters: Filters) -> None:
        self.traced, self.policy, self.filters = traced, policy, filters
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.places: dict[
            str, tuple[nn.Module, bool]
        ] = {}  # name -> what stands there, on a scale map or not
        self.env: dict[fx.Node, _Value] = {}
        self.projected: dict[fx.Node, _Value] = {}
        self.order = {node: index for index, node in enumerate(traced.graph.nodes)}
        self.entered: dict[str, int] = {}  # name in front of which is projected -> place of its first node
        self.fates: list[ModuleFate] = []

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
            del node.meta[EXAMPLE]
        return fx.GraphModule(self.root, self.graph, f"Scale{type(self.traced).__name__}")

    # --- one method for every kind of node ---

    def _placeholder(self, node: fx.Node) -> _Value:
        return self._emit(node.op, node.target, node.args, {}, value=node.meta[EXAMPLE])

    def _get_attr(self, node: fx.Node) -> _Value:
        tensor = deepcopy(node.meta[EXAMPLE])
        place(self.root, str(node.target), tensor)
        return self._emit(node.op, node.target, (), {}, value=tensor)

    def _output(self, node: fx.Node) -> _Value:
        args = self._arguments(node, self._as_image)[0]
        return self._emit(node.op, node.target, args, {}, value=None)

    def _call_module(self, node: fx.Node) -> _Value:
        name, module = str(node.target), self.traced.get_submodule(str(node.target))
        begins = self._enters(node) or self._begins_stage(node) or isinstance(module, _HEADS)
        if begins or not self._on_map(node):
            return self._on_images(node, name, module)
        if len(node.all_input_nodes) > 1 or node.kwargs:
            return self._on_images(node, name, module)
        (value,) = (self.env[used] for used in node.all_input_nodes)
        counterpart = on_scale_map(module, self.filters) or _by_trial(module, value.example)
        if counterpart is None:
            return self._on_images(node, name, module)
        return self._put(node, module, counterpart, view=lambda value: value.node, is_map=True)

    def _call_function(self, node: fx.Node) -> _Value:
        if not self._on_map(node):
            return self._again(node, lambda value: value.node)
        if node.target is getattr:  # the shape that the image would have
            return self._again(node, lambda value: self._slice(value).node)
        if self._begins_stage(node) or node.target in _HEAD_FUNCTIONS:
            return self._again(node, self._as_image)
        return self._freely(node)

    def _call_method(self, node: fx.Node) -> _Value:
        if self._on_map(node) and node.target in ("size", "dim"):
            return self._again(node, lambda value: self._slice(value).node)
        return self._call_function(node)

    # --- modules ---

    def _on_images(self, node: fx.Node, name: str, module: nn.Module) -> _Value:
        counterpart, is_map = Counterpart(deepcopy(module)), False
        if isinstance(module, nn.Conv2d) and is_spatial(module) and self.policy.lifts_at(name):
            reason = unfit(module, self.filters)
            fused = self.policy.project == "layer" and self.policy.projection == "max"
            if reason is None:
                counterpart, is_map = lift(module, self.filters, projected=fused), not fused
            else:
                note = f"stays an ordinary convolution: {reason}"
                counterpart = Counterpart(deepcopy(module), note, equivariant=False)
        value = self._put(node, module, counterpart, view=self._as_image, is_map=is_map)
        return self._image(value) if self.policy.project == "layer" else value

    def _put(
        self,
        node: fx.Node,
        module: nn.Module,
        counterpart: Counterpart,
        *,
        view: "Callable[[_Value], fx.Node]",
        is_map: bool,
    ) -> _Value:
        """A module's counterpart in its place."""
        name = str(node.target)
        args, kwargs = self._arguments(node, view)
        placed, was_map = self.places.get(name, (counterpart.module, is_map))
        if was_map != is_map:
            if any(True for _ in module.parameters()):
                raise ModelError(
                    f"expected {name} to be used on images or on scale maps, got both; give it copies of its "
                    "own, or project in front of it"
                )
            name, placed = f"{name}_on_{'maps' if is_map else 'images'}", counterpart.module
        if name not in self.places:
            place(self.root, name, placed)
            self.places[name] = (placed, is_map)
            self.fates.append(_fate(name, module, counterpart))
        return self._emit("call_module", name, args, kwargs, is_map=is_map)

    # --- functions and methods ---

    def _freely(self, node: fx.Node) -> _Value:
        """A function without a rule, as the example shows what it does.

        It is taken as it is where it does to every scale what it did to images, else scale by scale, and
        where it does not give images, the scale axis is projected in front of it.
        """
        by_scale = self._by_scale(node)
        if by_scale is None:
            return self._again(node, self._as_image)
        try:
            direct = self._again(node, lambda value: self._broadcast(value).node, is_map=True)
        except _NO_SENSE:
            return by_scale
        return direct if _same(direct.example, by_scale.example) else by_scale

    def _by_scale(self, node: fx.Node) -> _Value | None:
        scales = len(self.filters.grid)
        try:
            y = self._again(node, lambda value: self._unrolled(value, scales).node)
        except _NO_SENSE:
            return None
        batch = next(self.env[used] for used in node.all_input_nodes if self.env[used].is_map).example.shape[
            0
        ]
        if not isinstance(y.example, Tensor) or y.example.ndim != 4 or len(y.example) != batch * scales:
            return None
        rolled = self._method("unflatten", y, 0, (-1, scales))
        return _Value(self._method("transpose", rolled, 1, 2).node, is_map=True)

    # --- ways to see a value ---

    def _image(self, value: _Value) -> _Value:
        """What stands for a scale map where an image is wanted: its projection."""
        if not value.is_map:
            return value
        if value.node not in self.projected:
            name = f"projection_{len(self.projected)}"
            place(self.root, name, ScaleProjection(self.policy.projection))
            self.fates.append(ModuleFate(name, "", "ScaleProjection"))
            self.projected[value.node] = self._emit("call_module", name, (value.node,), {})
        return self.projected[value.node]

    def _as_image(self, value: _Value) -> fx.Node:
        return self._image(value).node

    def _slice(self, value: _Value) -> _Value:
        return self._method("select", value, 2, 0) if value.is_map else value

    def _broadcast(self, value: _Value) -> _Value:
        """A scale map, or an image as one that is the same on every scale."""
        return self._method("unsqueeze", value, 2) if _is_image(value) else value

    def _unrolled(self, value: _Value, scales: int) -> _Value:
        """All scales as images of one large batch."""
        if _is_image(value):
            return self._method("repeat_interleave", value, scales, 0)
        if not value.is_map:
            return value
        return self._method("flatten", self._method("transpose", value, 1, 2), 0, 1)

    # --- nodes of the new graph ---

    def _on_map(self, node: fx.Node) -> bool:
        return any(self.env[used].is_map for used in node.all_input_nodes)

    def _arguments(self, node: fx.Node, view: "Callable[[_Value], fx.Node]") -> tuple[Any, Any]:
        return fx.node.map_arg((node.args, node.kwargs), lambda used: view(self.env[used]))

    def _again(self, node: fx.Node, view: "Callable[[_Value], fx.Node]", *, is_map: bool = False) -> _Value:
        args, kwargs = self._arguments(node, view)
        return self._emit(node.op, node.target, args, kwargs, is_map=is_map)

    def _method(self, name: str, value: _Value, *args: Any) -> _Value:
        return self._emit("call_method", name, (value.node, *args), {})

    def _emit(
        self, op: str, target: Any, args: Any, kwargs: Any, *, is_map: bool = False, **known: Any
    ) -> _Value:
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta[EXAMPLE] = known["value"] if known else evaluate(node, self.root)
        return _Value(node, is_map)

    def _enters(self, node: fx.Node) -> bool:
        """Whether a module takes something from outside a name in front of which is projected."""
        name, entries = str(node.target), []
        for pattern in self.policy.entered_by(name):
            entries.append(self.entered.setdefault(pattern, self.order[node]))
        return any(self.order[used] < entry for entry in entries for used in node.all_input_nodes)

    def _begins_stage(self, node: fx.Node) -> bool:
        after = node.meta[EXAMPLE]
        if self.policy.project != "stage" or not isinstance(after, Tensor) or after.ndim != 4:
            return False
        inputs = (used.meta[EXAMPLE] for used in node.all_input_nodes)
        return any(isinstance(x, Tensor) and after.shape[-1] < _STAGE * x.shape[-1] for x in inputs)


def _by_trial(module: nn.Module, x: Tensor) -> Counterpart | None:
    """A module without a rule: as it is, or scale by scale; None where it does not give images."""
    try:
        expected = ScaleWise(module)(x)
    except _NO_SENSE:
        return None
    try:
        if _same(module(x), expected):
            return Counterpart(deepcopy(module))
    except _NO_SENSE:
        pass
    return Counterpart(ScaleWise(deepcopy(module)))


def _same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def _is_image(value: _Value) -> bool:
    return not value.is_map and isinstance(value.example, Tensor) and value.example.ndim == 4


def _fate(name: str, module: nn.Module, counterpart: Counterpart) -> ModuleFate:
    before, after = type(module).__name__, type(counterpart.module).__name__
    changed = after if after != before else ""
    return ModuleFate(name, before, changed, counterpart.note, counterpart.residual, counterpart.equivariant)
