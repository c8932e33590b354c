"""Fold a network into plain convolutions: nothing of equiscale is left in the result."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from equiscale.deploy.plain import plain_graph
from equiscale.deploy.tracing import EXAMPLE, drop_unused, evaluate, place, trace
from equiscale.errors import ModelError, ShapeError
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
_NOTHING = (ScaleDropout2d, ScaleChannelDropout, ValueDropout, nn.modules.dropout._DropoutNd, nn.Identity)

# One convolution for each scale, at the filter's own window, where that saves this part of the work.
_WORTH = 0.8
_NO_SENSE = (RuntimeError, TypeError, ValueError, IndexError, ShapeError)


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
        example: An input with a batch of at least 2; None: the ``example_shape`` of the registered models.
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
        >>> sorted({type(module).__name__ for module in folded.modules()} - {"Sequential"})
        ['Conv2d', 'Module', 'ReLU']
    """
    traced = trace(model, example_input(model) if example is None else example)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        folded = _Folder(traced.eval(), batch_norm=batch_norm).fold()
    finally:
        for module, mode in modes.items():
            module.training = mode
    _check_plain(folded)
    return folded.eval().requires_grad_(False)


def _check_plain(folded: fx.GraphModule) -> None:
    kinds = {type(module) for module in folded.modules() if not isinstance(module, fx.GraphModule)}
    foreign = sorted(kind.__name__ for kind in kinds if not kind.__module__.startswith("torch."))
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


@dataclass(frozen=True)
class _Value:
    """A node of the new graph; ``scales`` where it is a scale map that lies as an image (B, S·C, H, W)."""

    node: fx.Node
    scales: int | None = None

    @property
    def example(self) -> Any:
        return self.node.meta[EXAMPLE]


class _Folder:
    def __init__(self, traced: fx.GraphModule, *, batch_norm: bool) -> None:
        self.traced, self.batch_norm = traced, batch_norm
        self.graph, self.root = fx.Graph(), nn.Module()
        self.env: dict[fx.Node, _Value] = {}
        self.shared: set[str] = set()  # names of modules without a rule, which may be used several times
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
            place(self.root, str(node.target), deepcopy(node.meta[EXAMPLE]))
        if node.op in ("call_function", "call_method") and self._packed_inputs(node):
            return self._freely(node, lambda view: self._again(node, view))
        return self._again(node, lambda value: self._plain(value).node)

    def _module(self, node: fx.Node) -> _Value:
        module = self.traced.get_submodule(str(node.target))
        if node in self.absorbed or isinstance(module, _NOTHING):
            return self.env[node.all_input_nodes[0]]
        for kinds, rule in _RULES:
            if isinstance(module, kinds) and len(node.all_input_nodes) == 1:
                return rule(self, node, module)
        name = str(node.target)
        if type(module).__module__.startswith("equiscale."):
            value = self._plain(self.env[node.all_input_nodes[0]])
            return self._place(name, plain_graph(module, value.example), value)
        if name not in self.shared:
            place(self.root, name, deepcopy(module))
            self.shared.add(name)
        if self._packed_inputs(node):
            return self._freely(node, lambda view: self._again(node, view))
        return self._again(node, lambda value: value.node)

    def _freely(self, node: fx.Node, apply: "Callable[[Callable[[_Value], fx.Node]], _Value]") -> _Value:
        """An operation on packed scale maps: on them as they lie where that does the same."""
        expected = apply(lambda value: self._plain(value).node)
        scales = self._packed_inputs(node)[0].scales
        if not (isinstance(expected.example, Tensor) and expected.example.ndim == 5):
            return expected
        if any(value.scales != scales for value in self._packed_inputs(node)):
            return expected
        try:
            direct = _Value(apply(lambda value: value.node).node, scales)
            same = _same(self._plain(direct).example, expected.example)
        except _NO_SENSE:
            return expected
        return direct if same else expected

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
            pooled = self._place(f"{node.target}.pooling", nn.MaxPool2d(geometry.pooling), y)
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
            place(self.root, f"order_{value.node.name}_{s}", order.transpose(0, 1).flatten())
            index = self._emit("get_attr", f"order_{value.node.name}_{s}", (), {})
            part = self._call(torch.index_select, value, 1, index.node)
        merged = own.transpose(1, 2).flatten(1, 2)  # (C', N*C, w, w), slot by slot
        return merged.reshape(outputs, slots * per_group, *own.shape[3:]), part

    def _absorb(self, node: fx.Node, filters: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The batch norm behind a convolution as part of its filters, where that was asked for."""
        norm = self._norm_behind(node)
        layer: Any = self.traced.get_submodule(str(node.target))
        if norm is None or layer.geometry.projection is not None or layer.geometry.pooling > 1:
            return filters, bias
        self.absorbed.add(next(iter(node.users)))
        scale, shift = _affine(norm)
        own = torch.zeros_like(shift) if bias is None else bias
        return filters * scale.view(-1, *[1] * (filters.ndim - 1)).to(filters), own * scale + shift

    def _norm_behind(self, node: fx.Node) -> Any:
        users = list(node.users)
        if not self.batch_norm or len(users) != 1 or users[0].op != "call_module":
            return None
        norm = self.traced.get_submodule(str(users[0].target))
        fits = isinstance(norm, nn.BatchNorm2d | ScaleBatchNorm2d) and norm.running_mean is not None
        return norm if fits else None

    def image_conv(self, node: fx.Node, conv: nn.Conv2d) -> _Value:
        """An ordinary convolution."""
        norm, value = self._norm_behind(node), self._plain(self.env[node.all_input_nodes[0]])
        folded = deepcopy(conv)
        if isinstance(norm, nn.BatchNorm2d):
            self.absorbed.add(next(iter(node.users)))
            folded = fuse_conv_bn_eval(folded, norm)
        return self._place(str(node.target), folded, value)

    def pointwise(self, node: fx.Node, layer: PointwiseScaleConv2d) -> _Value:
        """A 1×1 scale convolution, one group for each scale."""
        value = self._packed(self.env[node.all_input_nodes[0]])
        scales = value.scales or 1
        weight: Tensor = layer.weight
        bias: Tensor | None = layer.bias
        norm = self._norm_behind(node)
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
        y = self._place(str(node.target), deepcopy(layer.module), images)
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

    def _packed_inputs(self, node: fx.Node) -> list[_Value]:
        return [self.env[used] for used in node.all_input_nodes if self.env[used].scales is not None]

    def _again(self, node: fx.Node, view: "Callable[[_Value], fx.Node]") -> _Value:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: view(self.env[used]))
        return self._emit(node.op, node.target, args, kwargs, like=node)

    def _place(self, name: str, module: nn.Module, value: _Value) -> _Value:
        place(self.root, name, module)
        return self._emit("call_module", name, (value.node,), {})

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


def _same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)
