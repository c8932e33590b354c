"""The counterpart of every module of an ordinary network."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equiscale.deploy.conversion.policy import Filters
from equiscale.deploy.conversion.pretrained import project_filters
from equiscale.errors import EquiscaleError
from equiscale.nn import (
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleDropout2d,
    ScaleMaxPool2d,
    ScaleWise,
    SteerableConv2d,
)


@dataclass(frozen=True)
class Counterpart:
    """What stands in a module's place.

    Args:
        module: The new module.
        note: What is not as one would wish, or nothing.
        residual: Of the projection of its filters onto the basis, where they were projected.
        equivariant: Whether it commutes with scaling, up to sampling.
    """

    module: nn.Module
    note: str = ""
    residual: float | None = None
    equivariant: bool = True


def is_spatial(conv: nn.Conv2d) -> bool:
    """Whether a convolution sees more than one pixel."""
    return max(conv.kernel_size) > 1


def unfit(conv: nn.Conv2d, filters: Filters) -> str | None:
    """Why a convolution has no steerable counterpart, or None."""
    if conv.kernel_size[0] != conv.kernel_size[1] or conv.kernel_size[0] % 2 == 0:
        return f"a kernel of {conv.kernel_size[0]}×{conv.kernel_size[1]} is not square and odd"
    if max(conv.dilation) > 1:
        return f"dilation {conv.dilation[0]}"
    if conv.stride[0] != conv.stride[1]:
        return f"stride {conv.stride}"
    if isinstance(conv.padding, tuple) and len(set(conv.padding)) > 1:
        return f"padding {conv.padding}"
    if isinstance(conv, nn.LazyConv2d):
        return "a lazy layer has no weights yet"
    if not is_spatial(conv):
        return None
    try:
        filters.family(conv.kernel_size[0]).sample(filters.kernel_size(conv.kernel_size[0]), filters.grid)
    except EquiscaleError as error:
        return str(error)
    return None


def lift(conv: nn.Conv2d, filters: Filters, *, projected: bool) -> Counterpart:
    """A convolution of images as a lifting convolution; ``projected`` for its maximum over scales."""
    options = _options(conv, filters) | ({"projection": "max"} if projected else {})
    return _with_filters(LiftConv2d(conv.in_channels, conv.out_channels, **options), conv, filters)


def on_scale_map(module: nn.Module, filters: Filters) -> Counterpart | None:
    """The counterpart of a module that will see scale maps, or None for one without a rule."""
    for kind, rule in _RULES.items():
        if isinstance(module, kind):
            return rule(module, filters)
    return None


def _conv(conv: nn.Conv2d, filters: Filters) -> Counterpart:
    if not is_spatial(conv) and unfit(conv, filters) is None and _margin(conv, 1) == 0:
        return _pointwise(conv)
    reason = unfit(conv, filters)
    if reason is not None:
        note = f"the same filter on every scale, since {reason}"
        return Counterpart(ScaleWise(deepcopy(conv)), note, equivariant=False)
    layer = ScaleConv2d(conv.in_channels, conv.out_channels, **_options(conv, filters))
    return _with_filters(layer, conv, filters)


def _pointwise(conv: nn.Conv2d) -> Counterpart:
    layer = PointwiseScaleConv2d(
        conv.in_channels,
        conv.out_channels,
        stride=conv.stride[0],
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    layer.to(conv.weight)
    _carry_over(layer, weight=conv.weight, bias=conv.bias)
    return Counterpart(layer)


@torch.no_grad()
def _carry_over(layer: nn.Module, **tensors: Tensor | None) -> None:
    """Values, and whether they learn."""
    for name, tensor in tensors.items():
        if tensor is not None:
            own = layer.get_parameter(name)
            own.copy_(tensor.view(own.shape)).requires_grad_(tensor.requires_grad)


def _options(conv: nn.Conv2d, filters: Filters) -> dict[str, Any]:
    side = conv.kernel_size[0]
    kernel_size = filters.kernel_size(side)
    return {
        "kernel_size": kernel_size,
        "grid": filters.grid,
        "basis": filters.family(side),
        "bias": conv.bias is not None,
        "stride": conv.stride[0],
        "padding": _margin(conv, kernel_size),
        "padding_mode": conv.padding_mode,
        "groups": conv.groups,
    }


def _margin(conv: nn.Conv2d, kernel_size: int) -> int:
    """The padding that keeps the output's size with a larger kernel."""
    side = conv.kernel_size[0]
    own = {"same": side // 2, "valid": 0}[conv.padding] if isinstance(conv.padding, str) else conv.padding[0]
    return own + (kernel_size - side) // 2


@torch.no_grad()
def _with_filters(layer: SteerableConv2d, conv: nn.Conv2d, filters: Filters) -> Counterpart:
    layer.to(conv.weight)
    if not filters.pretrained:
        return Counterpart(layer)
    weight, residual = project_filters(conv.weight, layer.basis, scale=filters.reference)
    _carry_over(layer, weight=weight.requires_grad_(conv.weight.requires_grad), bias=conv.bias)
    return Counterpart(layer, residual=residual)


def _batch_norm(norm: nn.BatchNorm2d, _: Filters) -> Counterpart:
    layer = ScaleBatchNorm2d(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    _placed(layer, norm).load_state_dict(norm.state_dict())
    _carry_over(layer, weight=norm.weight, bias=norm.bias)
    return Counterpart(layer)


def _max_pool(pool: nn.MaxPool2d, _: Filters) -> Counterpart | None:
    if pool.return_indices:
        return None
    if not _is_one(pool.dilation) or pool.ceil_mode or not _is_square(pool):
        return Counterpart(ScaleWise(deepcopy(pool)))
    kernel, stride, padding = (_one(size) for size in (pool.kernel_size, pool.stride, pool.padding))
    return Counterpart(ScaleMaxPool2d(kernel, stride=stride, padding=padding))


def _avg_pool(pool: nn.AvgPool2d, _: Filters) -> Counterpart:
    plain = pool.count_include_pad and pool.divisor_override is None and not pool.ceil_mode
    if not plain or not _is_square(pool):
        return Counterpart(ScaleWise(deepcopy(pool)))
    kernel, stride, padding = (_one(size) for size in (pool.kernel_size, pool.stride, pool.padding))
    return Counterpart(ScaleAvgPool2d(kernel, stride=stride, padding=padding))


def _dropout(dropout: nn.Dropout2d, _: Filters) -> Counterpart:
    return Counterpart(ScaleDropout2d(dropout.p) if dropout.p < 1 else ScaleWise(deepcopy(dropout)))


def _transposed(conv: nn.ConvTranspose2d, _: Filters) -> Counterpart:
    tiles = conv.kernel_size == conv.stride
    note = "the same filter on every scale" + ("" if tiles else ", which overlap: not equivariant")
    return Counterpart(ScaleWise(deepcopy(conv)), note, equivariant=False)


def _placed(layer: nn.Module, like: nn.Module) -> nn.Module:
    """On the device and in the dtype of another, and in its mode."""
    tensor = next((tensor for tensor in (*like.parameters(), *like.buffers())), None)
    if isinstance(tensor, Tensor):
        layer.to(tensor.device)
        layer.to(tensor.dtype if tensor.is_floating_point() else None)
    return layer.train(like.training)


def _one(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _is_one(size: int | tuple[int, ...]) -> bool:
    return size in (1, (1, 1))


def _is_square(pool: nn.MaxPool2d | nn.AvgPool2d) -> bool:
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    return all(isinstance(size, int) or len(set(size)) == 1 for size in sizes)


_RULES: dict[type[nn.Module], Callable[[Any, Filters], Counterpart | None]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _transposed,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.Dropout2d: _dropout,
}
