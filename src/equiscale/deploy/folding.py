"""Fold a network into plain convolutions: nothing of equiscale is left in the result."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from equiscale.deploy.plain import plain_graph
from equiscale.deploy.tracing import EXAMPLE, drop_unused, evaluate, evaluation, place, trace
from equiscale.errors import ModelError
from equiscale.functional import ConvGeometry, support_windows
from equiscale.nn import (
    ImageBatchNorm2d,
    ImageMaxPool2d,
    LearnableLiftConv2d,
    LearnableScaleConv2d,
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleChannelDropout,
    ScaleConv2d,
    ScaleDropout2d,
    ScaleMaxPool2d,
    ScaleProjection,
    ScaleWise,
    ValueDropout,
)

_STEERABLE = (LiftConv2d, ScaleConv2d, LearnableLiftConv2d, LearnableScaleConv2d)
_MAP_NORMS = (ScaleBatchNorm2d, nn.BatchNorm3d)
_IMAGE_NORMS = (ImageBatchNorm2d, nn.BatchNorm2d)
_NOTHING = (ScaleDropout2d, ScaleChannelDropout, ValueDropout, nn.modules.dropout._DropoutNd, nn.Identity)

# One convolution for each scale, at the filter's own window, where that saves this part of the work.
_WORTH = 0.8

# By how much larger the images are on which it is tried whether a network takes other sizes, axis by axis.
_LARGER = (16, 32)


def fold(model: nn.Module, example: Tensor | None = None, *, batch_norm: bool = False) -> fx.GraphModule:
    r"""A network for inference made of torch's own modules alone.

    Filters are synthesised once. A scale map ``(B, C, S, H, W)`` lies as an image ``(B, S·C, H, W)``, so that
    a lifting convolution is an ordinary convolution, a scale convolution a grouped one (or, where that is
    less work, one for each scale at its own window), its batch norm an ordinary batch norm, and a maximum
    over scales that follows a convolution is taken from its results one by one. Layers of methods without a
    rule become graphs of torch's operations with their filters as constants.

    Shapes:
        input and output as of the model.

    Args:
        model: A network of one input; it is not changed, nor its state dict.
        example: An input; None: of the ``example_shape`` of the registered models.
        batch_norm: Also fold batch norms into the convolutions in front of them, where nothing stands in
            between.

    Returns:
        The folded network, in evaluation mode and without gradients. `torch.export.save` or ``to_folder``
        write it so that it is read without equiscale.

    Raises:
        ModelError: If the network cannot be traced, or holds a layer that torch cannot export.

    Exactness:
        Outputs agree to 1e-5 of the largest, for batches of any size (``tests/deploy/test_folding.py``);
        for images of any size where the model takes them.

    Example:
        >>> from equiscale import ScaleGrid
        >>> lift = LiftConv2d(1, 4, kernel_size=7, grid=ScaleGrid([1.0, 2.0]), projection="max")
        >>> folded = fold(nn.Sequential(lift, nn.ReLU()), torch.zeros(2, 1, 16, 16))
        >>> sorted({type(module).__name__ for module in folded.modules()})
        ['Conv2d', 'FoldedSequential', 'Module', 'ReLU']
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    example = checked_example(model, example)
    traced = trace(nn.Sequential(model) if _is_layer(model) else model, example)
    with evaluation(model), torch.no_grad():
        free = takes_other_sizes(model, example)
        folded = _Folder(traced.eval(), batch_norm=batch_norm, free_sizes=free).fold()
    _check_plain(folded)
    return folded.eval().requires_grad_(False)


def _is_layer(model: nn.Module) -> bool:
    """Whether a network is one layer, which is taken as a whole."""
    holds_others = isinstance(model, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return type(model).__module__.startswith("equiscale.nn") and not holds_others


def _foreign(network: nn.Module) -> list[str]:
    """The modules in it that are not torch's own."""
    kinds = {type(module) for module in network.modules() if not isinstance(module, fx.GraphModule)}
    return sorted(kind.__name__ for kind in kinds if not kind.__module__.startswith("torch."))


def _check_plain(folded: fx.GraphModule) -> None:
    foreign = _foreign(folded)
    if foreign:
        raise ModelError(
            f"expected modules of torch and equiscale alone, got {', '.join(foreign)}; export it instead"
        )


def example_input(model: nn.Module, batch: int = 2) -> Tensor:
    """Random images of the shape for which a registered model is made.

    Raises:
        ModelError: If the model does not say for which.
    """
    shape = getattr(model, "example_shape", None)
    if shape is None:
        raise ModelError(
            f"expected an example, since {type(model).__name__} has no example_shape (C, H, W); give an input"
        )
    generator = torch.Generator().manual_seed(0)
    like = next(iter(model.parameters()), torch.empty(()))
    return torch.randn(batch, *shape, generator=generator).to(like)


def checked_example(model: nn.Module, example: Tensor | None) -> Tensor:
    """The example or else one of a registered model; of one image it makes two.

    Raises:
        ModelError: If there is none, or it is not a batch.
    """
    if example is None:
        return example_input(model)
    if not isinstance(example, Tensor) or example.ndim < 2 or len(example) < 1:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ModelError(f"expected a batch of inputs as example, got {got}; give a tensor (B, C, H, W)")
    return torch.cat([example, example]) if len(example) == 1 else example


def takes_other_sizes(model: nn.Module, example: Tensor) -> bool:
    """Whether a network in evaluation computes something for larger images too."""
    try:
        for axis, larger in zip((-2, -1) if example.ndim > 3 else (-1,), _LARGER, strict=False):
            shape = list(example.shape)
            shape[axis] += larger
            model(example.new_zeros(shape))
    except Exception:  # noqa: BLE001 (networks refuse in many ways)
        return False
    return example.ndim > 2


@dataclass(frozen=True)
class _Value:
    """A node of the new graph; ``scales`` where it is a scale map that lies as an image (B, S·C, H, W)."""

    node: fx.Node
    scales: int | None = None

    @property
    def example(self) -> Any:
        return self.node.meta[EXAMPLE]


class _Folder:
    def __init__(self, traced: fx.GraphModule, *, batch_norm: bool, free_sizes: bool) -> None:
        self.traced, self.batch_norm, self.free_sizes = traced, batch_norm, free_sizes
        self.graph, self.root = fx.Graph(), nn.Module()
        self.env: dict[fx.Node, _Value] = {}
        self.placed: dict[str, nn.Module | Tensor] = {}
        self.copies: dict[nn.Module, nn.Module] = {}  # of modules without a rule
        self.absorbed: set[fx.Node] = set()  # batch norms that are part of the convolution in front

    @torch.no_grad()
    def fold(self) -> fx.GraphModule:
        for node in self.traced.graph.nodes:
            self.env[node] = self._folded(node)
        drop_unused(self.graph)
        for node in self.graph.nodes:
            del node.meta[EXAMPLE]
        return fx.GraphModule(self.root, self.graph, f"Folded{type(self.traced).__name__}")

    def _folded(self, node: fx.Node) -> _Value:
        if node.op == "call_module":
            return self._module(node)
        if node.op == "get_attr":
            return self._emit("get_attr", self._keep(str(node.target), _copied(node.meta[EXAMPLE])), (), {})
        if node.op in ("call_function", "call_method"):
            return self._freely(node, node.target, node.target)
        return self._again(node, node.target, lambda value: self._plain(value).node)

    def _module(self, node: fx.Node) -> _Value:
        module = self.traced.get_submodule(str(node.target))
        if node in self.absorbed or isinstance(module, _NOTHING):
            return self.env[node.all_input_nodes[0]]
        rule = _rule(node, module)
        if rule is not None:
            return rule(self, node, module)
        if type(module).__module__.startswith("equiscale."):
            return self._as_graph(node, module)
        if module not in self.copies:
            self.copies[module] = deepcopy(module)
        return self._freely(node, self._keep(str(node.target), self.copies[module]), self.copies[module])

    def _as_graph(self, node: fx.Node, layer: nn.Module) -> _Value:
        """A layer without a rule, as a graph of torch's operations."""
        values = {used: self._plain(self.env[used]) for used in node.all_input_nodes}
        call = _Call(layer, node, tuple(values))
        examples = tuple(value.example for value in values.values())
        graph = plain_graph(call, *examples, name=type(layer).__name__, free_sizes=self.free_sizes)
        nodes = tuple(value.node for value in values.values())
        return self._emit("call_module", self._keep(str(node.target), graph), nodes, {})

    def _freely(self, node: fx.Node, target: Any, function: Any) -> _Value:
        """An operation, on packed scale maps as they lie where that does the same."""
        packed = [self.env[used] for used in node.all_input_nodes if self.env[used].scales is not None]
        scales = packed[0].scales if packed else None
        if scales is not None and all(value.scales == scales for value in packed):
            values = {used: self.env[used] for used in node.all_input_nodes}
            if _commutes(node, function, values, scales):
                return _Value(self._again(node, target, lambda value: value.node).node, scales)
        return self._again(node, target, lambda value: self._plain(value).node)

    # --- convolutions ---

    def steerable(self, node: fx.Node, layer: Any) -> _Value:
        """Lifting and scale convolutions, with fixed or learnable scales."""
        geometry: ConvGeometry = layer.geometry
        filters, bias = _filters(layer)
        filters, bias = self._absorb(node, filters, bias)
        filters = filters.to(layer.weight)
        value = self.env[node.all_input_nodes[0]]
        value = self._packed(value) if filters.ndim == 6 else self._plain(value)
        results = self._convolutions(node, filters, bias, value, geometry)
        if geometry.projection == "max":
            y = results[0]
            for other in results[1:]:
                y = self._call(torch.maximum, y, other)
        else:
            joined = results[0] if len(results) == 1 else self._call(torch.cat, [r.node for r in results], 1)
            y = _Value(joined.node, filters.shape[-3])
        if geometry.pooling > 1:
            pooled = self._place(f"{node.target}_pooling", nn.MaxPool2d(geometry.pooling), y)
            y = _Value(pooled.node, y.scales)
        return y

    def _convolutions(
        self, node: fx.Node, filters: Tensor, bias: Tensor | None, value: _Value, geometry: ConvGeometry
    ) -> list[_Value]:
        """The results on every scale, as one node for each or as one for all."""
        scales, largest = filters.shape[-3], filters.shape[-1]
        windows = _windows(filters)
        inter = filters.ndim == 6 and filters.shape[2] > 1
        saved = sum(window**2 for window in windows) / (scales * largest**2)
        alike = filters.ndim == 6 or geometry.groups == 1  # else groups would come before scales
        if alike and not inter and saved > _WORTH and geometry.projection is None:
            conv = _all_scales(filters, bias, geometry)
            return [self._place(str(node.target), conv, value)]
        return [
            self._scale(f"{node.target}.scale_{s}", s, windows[s], (filters, bias), value, geometry)
            for s in range(scales)
        ]

    def _scale(
        self,
        name: str,
        s: int,
        window: int,
        weights: tuple[Tensor, Tensor | None],
        value: _Value,
        geometry: ConvGeometry,
    ) -> _Value:
        filters, bias = weights
        scales, largest = filters.shape[-3], filters.shape[-1]
        cut = (largest - window) // 2
        own = filters[..., s, cut : largest - cut, cut : largest - cut]
        padding = geometry.margin(largest) - cut
        if padding < 0:  # a filter narrower than the border that is not there
            own, padding = filters[..., s, :, :], geometry.margin(largest)
        if filters.ndim == 6:
            own, value = self._slots(own, s, scales, value, geometry)
        return self._place(name, _conv(own, bias, geometry, padding), value)

    def _slots(
        self, own: Tensor, s: int, scales: int, value: _Value, geometry: ConvGeometry
    ) -> tuple[Tensor, _Value]:
        """Filters over the scales s, s + 1, … as one filter over their channels, and these channels."""
        own = _within(own, scales - s, replicate=geometry.scale_padding == "replicate")
        outputs, per_group, slots = own.shape[:3]
        channels = per_group * geometry.groups
        if geometry.groups == 1 or slots == 1:
            part = self._call(torch.narrow, value, 1, s * channels, slots * channels)
        else:  # all slots of a group beside each other
            order = torch.arange(s * channels, (s + slots) * channels).view(slots, geometry.groups, per_group)
            order = order.transpose(0, 1).flatten().to(own.device)
            index = self._emit("get_attr", self._keep(f"order_{s}", order), (), {})
            part = self._call(torch.index_select, value, 1, index.node)
        merged = own.transpose(1, 2).flatten(1, 2)  # (C', N*C, w, w), slot by slot
        return merged.reshape(outputs, slots * per_group, *own.shape[3:]), part

    def _absorb(self, node: fx.Node, filters: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The batch norm behind a convolution as part of its filters, where that was asked for."""
        norm = self._norm_behind(node, _MAP_NORMS)
        layer: Any = self.traced.get_submodule(str(node.target))
        if norm is None or layer.geometry.projection is not None or layer.geometry.pooling > 1:
            return filters, bias
        self.absorbed.add(next(iter(node.users)))
        scale, shift = _affine(norm)
        own = torch.zeros_like(shift) if bias is None else bias
        return filters * scale.view(-1, *[1] * (filters.ndim - 1)).to(filters), own * scale + shift

    def _norm_behind(self, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> Any:
        users = list(node.users)
        if not self.batch_norm or len(users) != 1 or users[0].op != "call_module":
            return None
        norm = self.traced.get_submodule(str(users[0].target))
        fits = type(norm) in kinds and norm.running_mean is not None
        return norm if fits else None

    def image_conv(self, node: fx.Node, conv: nn.Conv2d) -> _Value:
        """An ordinary convolution."""
        norm, value = self._norm_behind(node, _IMAGE_NORMS), self._plain(self.env[node.all_input_nodes[0]])
        folded = deepcopy(conv)
        if norm is not None:
            self.absorbed.add(next(iter(node.users)))
            folded = fuse_conv_bn_eval(folded, norm)
        return self._place(str(node.target), folded, value)

    def pointwise(self, node: fx.Node, layer: PointwiseScaleConv2d) -> _Value:
        """A 1×1 scale convolution, one group for each scale."""
        value = self._packed(self.env[node.all_input_nodes[0]])
        scales = value.scales or 1
        weight: Tensor = layer.weight
        bias: Tensor | None = layer.bias
        norm = self._norm_behind(node, _MAP_NORMS)
        if norm is not None:
            self.absorbed.add(next(iter(node.users)))
            scale, shift = _affine(norm)
            weight = (weight * scale.view(-1, 1, 1, 1)).to(layer.weight)
            bias = (torch.zeros_like(shift) if bias is None else bias) * scale + shift
        geometry = ConvGeometry(stride=layer.stride, groups=layer.groups * scales)
        repeated = None if bias is None else bias.repeat(scales)
        y = self._place(str(node.target), _conv(weight.repeat(scales, 1, 1, 1), repeated, geometry, 0), value)
        return _Value(y.node, scales)

    # --- the other layers ---

    def scale_norm(self, node: fx.Node, norm: ScaleBatchNorm2d) -> _Value:
        """The batch norm of a scale map, its numbers repeated for every scale."""
        value = self._packed(self.env[node.all_input_nodes[0]])
        return _Value(self._place(str(node.target), _norm(norm, value.scales or 1), value).node, value.scales)

    def image_norm(self, node: fx.Node, norm: ImageBatchNorm2d) -> _Value:
        """The batch norm of images."""
        value = self._plain(self.env[node.all_input_nodes[0]])
        return self._place(str(node.target), _norm(norm, 1), value)

    def pool(self, node: fx.Node, pool: Any) -> _Value:
        """Maximum and mean over windows."""
        kind = nn.AvgPool2d if isinstance(pool, ScaleAvgPool2d) else nn.MaxPool2d
        value = self.env[node.all_input_nodes[0]]
        value = self._plain(value) if isinstance(pool, ImageMaxPool2d) else self._packed(value)
        plain = kind(pool.kernel_size, stride=pool.stride or pool.kernel_size, padding=pool.padding)
        return _Value(self._place(str(node.target), plain, value).node, value.scales)

    def project(self, node: fx.Node, layer: ScaleProjection) -> _Value:
        """The scale axis, reduced."""
        value = self._plain(self.env[node.all_input_nodes[0]])
        if layer.mode == "max":
            return self._call(torch.amax, value, 2)
        if layer.mode == "mean":
            return self._call(torch.mean, value, 2)
        return self._call(torch.logsumexp if layer.mode == "logsumexp" else torch.argmax, value, 2)

    def scale_wise(self, node: fx.Node, layer: ScaleWise) -> _Value:
        """A module of images, on all scales as one batch."""
        value = self._plain(self.env[node.all_input_nodes[0]])
        scales = value.example.shape[2]
        images = self._method("flatten", self._method("transpose", value, 1, 2), 0, 1)
        inner: nn.Module = deepcopy(layer.module)
        if _foreign(inner):
            inner = fold(inner, images.example, batch_norm=self.batch_norm)
        y = self._place(str(node.target), inner, images)
        return self._method("transpose", self._method("unflatten", y, 0, (-1, scales)), 1, 2)

    # --- how a scale map lies ---

    def _packed(self, value: _Value) -> _Value:
        """A scale map as an image (B, S·C, H, W)."""
        if value.scales is not None:
            return value
        scales = value.example.shape[2]
        packed = self._method("flatten", self._method("transpose", value, 1, 2), 1, 2)
        return _Value(packed.node, scales)

    def _plain(self, value: _Value) -> _Value:
        """A scale map as (B, C, S, H, W)."""
        if value.scales is None:
            return value
        channels = value.example.shape[1] // value.scales
        apart = self._method("unflatten", value, 1, (value.scales, channels))
        return self._method("transpose", apart, 1, 2)

    # --- nodes of the new graph ---

    def _again(self, node: fx.Node, target: Any, view: "Callable[[_Value], fx.Node]") -> _Value:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: view(self.env[used]))
        return self._emit(node.op, target, args, kwargs, like=node)

    def _place(self, name: str, module: nn.Module, value: _Value) -> _Value:
        return self._emit("call_module", self._keep(name, module), (value.node,), {})

    def _keep(self, name: str, thing: nn.Module | Tensor) -> str:
        """Set a module or tensor under this name, or, where that is taken by another, under a new one."""
        name = name if name.split(".")[0].isidentifier() else f"layer_{name}"
        flat = name.replace(".", "_")
        for free in chain((name,), (f"{flat}_{number}" for number in count(2))):
            if free in self.placed and _alike(self.placed[free], thing):
                return free
            if not any(
                f"{other}.".startswith(f"{free}.") or f"{free}.".startswith(f"{other}.")
                for other in self.placed
            ):
                break
        place(self.root, free, thing)
        self.placed[free] = thing
        return free

    def _call(self, function: Callable[..., Any], value: Any, *args: Any) -> _Value:
        first = value.node if isinstance(value, _Value) else value
        rest = tuple(arg.node if isinstance(arg, _Value) else arg for arg in args)
        return self._emit("call_function", function, (first, *rest), {})

    def _method(self, name: str, value: _Value, *args: Any) -> _Value:
        return self._emit("call_method", name, (value.node, *args), {})

    def _emit(self, op: str, target: Any, args: Any, kwargs: Any, *, like: fx.Node | None = None) -> _Value:
        node = self.graph.create_node(op, target, args, kwargs)
        given = like is not None and op == "placeholder"
        node.meta[EXAMPLE] = like.meta[EXAMPLE] if given else evaluate(node, self.root)  # type: ignore[union-attr]
        return _Value(node)


_RULES: tuple[tuple[Any, Callable[[_Folder, fx.Node, Any], _Value]], ...] = (
    (_STEERABLE, _Folder.steerable),
    (PointwiseScaleConv2d, _Folder.pointwise),
    (ScaleBatchNorm2d, _Folder.scale_norm),
    (ImageBatchNorm2d, _Folder.image_norm),
    ((ScaleMaxPool2d, ScaleAvgPool2d, ImageMaxPool2d), _Folder.pool),
    (ScaleProjection, _Folder.project),
    (ScaleWise, _Folder.scale_wise),
    (nn.Conv2d, _Folder.image_conv),
)


def _rule(node: fx.Node, module: nn.Module) -> Callable[[_Folder, fx.Node, Any], _Value] | None:
    """How a layer is folded; None if there is no rule for it, or for the way it is called."""
    only_input = len(node.args) + len(node.kwargs) == len(node.all_input_nodes) == 1
    of_the_batch = isinstance(module, ScaleBatchNorm2d) and module.running_mean is None
    if not only_input or of_the_batch:
        return None
    return next((rule for kinds, rule in _RULES if isinstance(module, kinds)), None)


class _Call(nn.Module):
    """A layer and how it is called, as a function of tensors alone."""

    def __init__(self, layer: nn.Module, node: fx.Node, inputs: tuple[fx.Node, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.call, self.inputs = (node.args, node.kwargs), inputs

    def forward(self, *tensors: Tensor) -> Any:
        given = dict(zip(self.inputs, tensors, strict=True))
        args, kwargs = fx.node.map_arg(self.call, given.__getitem__)
        return self.layer(*args, **kwargs)


# --- what may be done to a scale map as it lies ---


def _commutes(node: fx.Node, function: Any, values: dict[fx.Node, _Value], scales: int) -> bool:
    """Whether an operation does to an image (B, S·C, H, W) what it does to the scale map.

    It is tried with random numbers, since maps of an example may be alike where others are not.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {used: _random_like(value.example, generator) for used, value in values.items()}
    apart = {used: _apart(x, scales) if values[used].scales else x for used, x in drawn.items()}
    try:
        expected = _applied(node, function, apart)
        got = _apart(_applied(node, function, drawn), scales)
    except Exception:  # noqa: BLE001 (it may make no sense for an image)
        return False
    return _same(got, expected)


def _random_like(example: Any, generator: torch.Generator) -> Any:
    if not isinstance(example, Tensor):
        return example
    drawn = torch.rand(example.shape, generator=generator) - 0.5
    if example.dtype == torch.bool:
        return (drawn > 0).to(example.device)
    return drawn.to(example) if example.is_floating_point() else example.clone()


def _apart(x: Tensor, scales: int) -> Tensor:
    """(B, S·C, H, W) as (B, C, S, H, W), in memory of its own."""
    batch, _, *pixels = x.shape
    return x.reshape(batch, scales, -1, *pixels).transpose(1, 2).clone()


def _applied(node: fx.Node, function: Any, values: dict[fx.Node, Any]) -> Any:
    own = {used: x.clone() if isinstance(x, Tensor) else x for used, x in values.items()}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), own.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], function)(*args[1:], **kwargs)
    return function(*args, **kwargs)


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype):
        return False
    rounding = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    return torch.allclose(a, b, rtol=16 * rounding, atol=16 * rounding, equal_nan=True)


def _alike(a: nn.Module | Tensor, b: nn.Module | Tensor) -> bool:
    """Whether one may stand for the other."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b) or isinstance(a, Tensor | fx.GraphModule) or repr(a) != repr(b):
        return False
    ours, theirs = a.state_dict(), b.state_dict()  # type: ignore[union-attr]
    return ours.keys() == theirs.keys() and all(_alike(ours[key], theirs[key]) for key in ours)


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


# --- filters and norms ---


def _filters(layer: Any) -> tuple[Tensor, Tensor | None]:
    """κ in float64, ``(C', C / groups[, N], S, K, K)``, and the bias."""
    learnable = isinstance(layer, LearnableLiftConv2d | LearnableScaleConv2d)
    basis = (layer.sample_basis() if learnable else layer.basis).double()  # (F, S, K, K)
    filters = (layer.weight.double() @ basis.flatten(1)).view(*layer.weight.shape[:-1], *basis.shape[1:])
    return filters.detach(), None if layer.bias is None else layer.bias.detach().double()


def _windows(filters: Tensor) -> tuple[int, ...]:
    return support_windows(filters.flatten(0, -4))


def _all_scales(filters: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> nn.Conv2d:
    """One convolution for all scales: of an image, or one group for each."""
    scales = filters.shape[-3]
    if filters.ndim == 6:
        weight = filters[:, :, 0].movedim(2, 0).flatten(0, 1)  # (S*C', C/g, K, K)
        groups = geometry.groups * scales
    else:
        weight, groups = filters.movedim(2, 0).flatten(0, 1), 1
    repeated = None if bias is None else bias.repeat(scales)
    margin = geometry.margin(filters.shape[-1])
    same = ConvGeometry(stride=geometry.stride, padding_mode=geometry.padding_mode, groups=groups)
    return _conv(weight, repeated, same, margin)


def _conv(weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, padding: int) -> nn.Conv2d:
    conv = nn.Conv2d(
        weight.shape[1] * geometry.groups,
        weight.shape[0],
        weight.shape[-1],
        stride=geometry.stride,
        padding=padding,
        padding_mode=geometry.padding_mode,
        groups=geometry.groups,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    conv.weight.copy_(weight)
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
    return conv


def _within(own: Tensor, available: int, *, replicate: bool) -> Tensor:
    """The slots (C', C, N, w, w) that see a scale of the axis; those beyond it see nothing or the largest."""
    if own.shape[2] <= available:
        return own
    kept = own[:, :, :available].clone()
    if replicate:
        kept[:, :, -1] += own[:, :, available:].sum(2)
    return kept


def _norm(norm: Any, scales: int) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(
        norm.num_features * scales,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    state = norm.state_dict().items()
    plain.to(next(iter(norm.parameters()), next(iter(norm.buffers()), torch.empty(()))))
    plain.load_state_dict({name: t.repeat(scales) if t.ndim == 1 else t for name, t in state})
    return plain.eval()


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation, as factor and summand, in float64."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return factor, shift + norm.bias.double() if norm.affine else shift
