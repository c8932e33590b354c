"""The table of the property tests: how every public layer, function and basis is used legally.

A case draws settings, the shapes of the tensors, and says the shape of the result that is documented for
them. What is illegal is made from the same table in `tests/properties/illegal.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from equiscale import basis, functional
from equiscale import nn as layers
from equiscale.nn import nd
from equiscale.scales import ScaleGrid

Shape: TypeAlias = tuple[int, ...]
Draw: TypeAlias = st.DrawFn

# No layer, function or basis of its own: what there is to say of it.
EXEMPT = {
    "GeometryOptions": "a dictionary's type; its fields are those of ConvGeometry",
    "SteerableBasis": "a protocol",
    "BasisEntry": "a record that the registry makes",
    "ScaleDiagnosis": "a record that diagnose makes",
    "MAX_CONDITION": "a constant",
    "list_bases": "takes nothing",
    "SteerableConv2d": "the base of layers, without a forward pass",
    "SteerableConvNd": "the base of layers, without a forward pass",
}

# Beyond it the squares of float32 overflow, which are what the operation is made of.
SQUARES = 1e18


@dataclass(frozen=True)
class Use:
    """One legal call: the shapes of its tensors by name, all else by name, and the result's shape."""

    tensors: dict[str, Shape]
    settings: dict[str, Any]
    output: Shape


@dataclass(frozen=True)
class Case:
    """A public name and how it is used.

    Args:
        thing: The layer, function or basis.
        uses: Its legal uses.
        largest: The largest magnitude of an input for which the mathematics itself stays in float32.
        dtype: Of the result; None: that of the first tensor.
        call: From settings to a function of tensors; None: a layer is built, a function is called.
        domains: Tensor -> from any values to those it may have, where not all are legal.
    """

    thing: Any
    uses: Callable[[Draw], Use]
    largest: float = 1e30
    dtype: torch.dtype | None = None
    call: Callable[[Mapping[str, Any]], Callable[..., Any]] | None = None
    domains: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    @property
    def is_layer(self) -> bool:
        return isinstance(self.thing, type) and issubclass(self.thing, nn.Module)

    def bind(self, settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
        """A function of the tensors, in their order."""
        if self.call is not None:
            return self.call(settings)
        if self.is_layer:
            return self.thing(**settings).to(dtype)
        kept = {name: in_dtype(value, dtype) for name, value in settings.items()}
        return partial(self.thing, **kept)

    def run(self, bound: Callable[..., Any], tensors: Mapping[str, Any]) -> Any:
        return bound(*tensors.values()) if self.is_layer else bound(**tensors)


CASES: dict[str, Case] = {}


def case(thing: Any, **options: Any) -> Callable[[Callable[[Draw], Use]], Callable[[Draw], Use]]:
    def register(uses: Callable[[Draw], Use]) -> Callable[[Draw], Use]:
        CASES[thing.__name__] = Case(thing, uses, **options)
        return uses

    return register


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Settings that are lists of tensors follow the dtype of the operands."""
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [part.to(dtype) for part in value]
    return value


@st.composite
def uses(draw: Draw, case: Case) -> Use:
    return case.uses(draw)


# --- what the draws share ---


def whole(draw: Draw, low: int, high: int) -> int:
    return draw(st.integers(low, high))


def one(draw: Draw, *choices: Any) -> Any:
    return draw(st.sampled_from(choices))


def batch(draw: Draw) -> int:
    return whole(draw, 1, 3)


def sides(draw: Draw, least: int = 1, ndim: int = 2, room: int = 4) -> Shape:
    """The smallest legal size and a few more, the axes apart."""
    least = max(least, 1)
    return tuple(whole(draw, least, least + room) for _ in range(ndim))


def moved(size: int, kernel_size: int, stride: int, margin: int) -> int:
    return (size + 2 * margin - kernel_size) // stride + 1


def grid(draw: Draw, kernel_size: int) -> ScaleGrid:
    """Scales whose smallest window holds three pixels where the largest holds more."""
    return ScaleGrid.geometric(0.8, 1.2, whole(draw, 1, 3 if kernel_size == 3 else 4))


def family(kernel_size: int) -> basis.HermiteBasis:
    return basis.HermiteBasis(1 if kernel_size == 1 else 2, degenerate="allow")


@dataclass(frozen=True)
class Moved:
    """The geometry of a convolution, the pixels it is given, and those that come out."""

    options: dict[str, Any]
    given: Shape
    result: Shape


def geometry(draw: Draw, kernel_size: int, *, ndim: int = 2, pools: bool = True, **fixed: Any) -> Moved:
    stride, padding = whole(draw, 1, 2), one(draw, "same", 0, 1)
    mode = one(draw, "zeros", "circular", "reflect", "replicate")
    options = {"stride": stride, "padding": padding, "padding_mode": mode, **fixed}
    stride, padding, mode = options["stride"], options["padding"], options["padding_mode"]
    margin = kernel_size // 2 if padding == "same" else padding
    pooling = whole(draw, 1, 2) if pools else 1
    least = max(
        kernel_size - 2 * margin + stride * (pooling - 1),
        {"circular": margin, "reflect": margin + 1}.get(mode, 1),
    )
    given = sides(draw, least, ndim)
    result = tuple(moved(size, kernel_size, stride, margin) // pooling for size in given)
    return Moved(options | ({"pooling": pooling} if pools else {}), given, result)


def channels(draw: Draw) -> tuple[int, int, int]:
    groups = whole(draw, 1, 2)
    return groups * whole(draw, 1, 2), groups * whole(draw, 1, 2), groups


def projected(draw: Draw, output: Shape) -> tuple[dict[str, Any], Shape]:
    """Perhaps with the maximum over scales, axis 2."""
    mode = one(draw, None, "max")
    return {"projection": mode}, output if mode is None else (*output[:2], *output[3:])


def scale_map(draw: Draw, least: int = 1, ndim: int = 2) -> Shape:
    return (batch(draw), whole(draw, 1, 4), whole(draw, 1, 4), *sides(draw, least, ndim))


def window(draw: Draw) -> tuple[dict[str, Any], Callable[[int], int], int]:
    """A pooling window, from pixels to windows, and the smallest input."""
    size = whole(draw, 1, 3)
    stride, padding = one(draw, None, 1, 2, 3), whole(draw, 0, size // 2)
    settings = {"kernel_size": size, "stride": stride, "padding": padding}
    return settings, lambda n: moved(n, size, stride or size, padding), size - 2 * padding


# --- steerable convolutions ---


def layer_settings(
    draw: Draw, *, ndim: int = 2, pools: bool = True, **fixed: Any
) -> tuple[dict, Moved, ScaleGrid]:
    kernel_size = one(draw, 1, 3, 5)
    scales, place = grid(draw, kernel_size), geometry(draw, kernel_size, ndim=ndim, pools=pools, **fixed)
    fan_in, fan_out, groups = channels(draw)
    settings = {
        "in_channels": fan_in,
        "out_channels": fan_out,
        "kernel_size": kernel_size,
        "grid": scales,
        "basis": family(kernel_size),
        "bias": draw(st.booleans()),
        "groups": groups,
        **place.options,
    }
    return settings, place, scales


def lifting(draw: Draw, *, ndim: int = 2) -> Use:
    settings, place, scales = layer_settings(draw, ndim=ndim, pools=ndim == 2)
    output = (b := batch(draw), settings["out_channels"], len(scales), *place.result)
    extra, output = projected(draw, output) if ndim == 2 else ({}, output)
    return Use({"x": (b, settings["in_channels"], *place.given)}, settings | extra, output)


def scale_convolving(draw: Draw, *, ndim: int = 2) -> Use:
    settings, place, scales = layer_settings(draw, ndim=ndim, pools=ndim == 2)
    output = (b := batch(draw), settings["out_channels"], len(scales), *place.result)
    extra, output = projected(draw, output) if ndim == 2 else ({}, output)
    extra |= {"scale_size": whole(draw, 1, len(scales)), "scale_padding": one(draw, "zeros", "replicate")}
    x = (b, settings["in_channels"], len(scales), *place.given)
    return Use({"x": x}, settings | extra, output)


for _ndim, _lift, _scale in ((1, nd.LiftConv1d, nd.ScaleConv1d), (3, nd.LiftConv3d, nd.ScaleConv3d)):
    case(_lift)(partial(lifting, ndim=_ndim))
    case(_scale)(partial(scale_convolving, ndim=_ndim))
case(layers.LiftConv2d)(lifting)
case(layers.ScaleConv2d)(scale_convolving)


def conv_operands(draw: Draw, *, lifts: bool, ndim: int = 2) -> Use:
    kernel_size, num_scales, functions = one(draw, 1, 3, 5), whole(draw, 1, 4), whole(draw, 1, 3)
    place = geometry(draw, kernel_size, ndim=ndim, pools=ndim == 2)
    fan_in, fan_out, groups = channels(draw)
    output = (b := batch(draw), fan_out, num_scales, *place.result)
    extra, output = projected(draw, output) if ndim == 2 else ({}, output)
    slots = () if lifts else (whole(draw, 1, num_scales + 1),)
    if not lifts:
        extra["scale_padding"] = one(draw, "zeros", "replicate")
    scales = () if lifts else (num_scales,)
    tensors = {
        "x": (b, fan_in, *scales, *place.given),
        "weight": (fan_out, fan_in // groups, *slots, functions),
        "basis": (functions, num_scales, *[kernel_size] * ndim),
        "bias": (fan_out,),
    }
    windows = one(draw, None, [kernel_size] * num_scales)
    made = functional.ConvGeometry(**place.options, **extra, groups=groups)
    return Use(tensors, {"geometry": made, "windows": windows}, output)


case(functional.lift_conv2d)(partial(conv_operands, lifts=True))
case(functional.scale_conv2d)(partial(conv_operands, lifts=False))


@case(functional.lift_conv_nd)
def _(draw: Draw) -> Use:
    return conv_operands(draw, lifts=True, ndim=one(draw, 1, 3))


@case(functional.scale_conv_nd)
def _(draw: Draw) -> Use:
    return conv_operands(draw, lifts=False, ndim=one(draw, 1, 3))


@case(layers.PointwiseScaleConv2d)
def _(draw: Draw) -> Use:
    fan_in, fan_out, groups = channels(draw)
    b, _, s, *size = scale_map(draw)
    stride = whole(draw, 1, 3)
    settings = {"in_channels": fan_in, "out_channels": fan_out, "stride": stride, "groups": groups}
    return Use({"x": (b, fan_in, s, *size)}, settings, (b, fan_out, s, *(-(-n // stride) for n in size)))


@case(functional.pointwise_scale_conv2d)
def _(draw: Draw) -> Use:
    fan_in, fan_out, groups = channels(draw)
    b, _, s, *size = scale_map(draw)
    stride = whole(draw, 1, 3)
    tensors = {"x": (b, fan_in, s, *size), "weight": (fan_out, fan_in // groups, 1, 1), "bias": (fan_out,)}
    output = (b, fan_out, s, *(-(-n // stride) for n in size))
    return Use(tensors, {"stride": stride, "groups": groups}, output)


def spread(size: int, kernel_size: int, stride: int, margin: int, extra: int) -> int:
    return (size - 1) * stride - 2 * margin + kernel_size + extra


def transposing(draw: Draw, kernel_size: int) -> tuple[dict[str, Any], int, Shape, Shape]:
    stride, padding = whole(draw, 1, 3), one(draw, "same", 0, 1) if kernel_size > 1 else 0
    margin = kernel_size // 2 if padding == "same" else padding
    extra, given = whole(draw, 0, stride - 1), sides(draw)
    result = tuple(spread(size, kernel_size, stride, margin, extra) for size in given)
    return {"stride": stride, "padding": padding}, extra, given, result


@case(layers.ScaleConvTranspose2d)
def _(draw: Draw) -> Use:
    kernel_size = one(draw, 1, 3, 5)
    scales, (options, extra, given, result) = grid(draw, kernel_size), transposing(draw, kernel_size)
    fan_in, fan_out, groups = channels(draw)
    settings = {
        "in_channels": fan_in,
        "out_channels": fan_out,
        "kernel_size": kernel_size,
        "grid": scales,
        "basis": family(kernel_size),
        "groups": groups,
        "scale_size": whole(draw, 1, len(scales)),
        "output_padding": extra,
        **options,
    }
    b, s = batch(draw), len(scales)
    return Use({"x": (b, fan_in, s, *given)}, settings, (b, fan_out, s, *result))


@case(functional.scale_conv_transpose2d)
def _(draw: Draw) -> Use:
    kernel_size, b, s, functions = one(draw, 1, 3, 5), batch(draw), whole(draw, 1, 4), whole(draw, 1, 3)
    options, extra, given, result = transposing(draw, kernel_size)
    fan_in, fan_out, groups = channels(draw)
    tensors = {
        "x": (b, fan_in, s, *given),
        "weight": (fan_in, fan_out // groups, whole(draw, 1, s), functions),
        "basis": (functions, s, kernel_size, kernel_size),
        "bias": (fan_out,),
    }
    made = functional.ConvGeometry(**options, groups=groups)
    return Use(tensors, {"geometry": made, "output_padding": extra}, (b, fan_out, s, *result))


@case(functional.synthesize_filters)
def _(draw: Draw) -> Use:
    f, s, k = whole(draw, 1, 4), whole(draw, 1, 3), one(draw, 1, 3, 5)
    front = tuple(whole(draw, 1, 3) for _ in range(whole(draw, 0, 3)))
    return Use({"weight": (*front, f), "basis": (f, s, k, k)}, {}, (*front, s, k, k))


@case(functional.support_windows, dtype=torch.int64)
def _(draw: Draw) -> Use:
    f, s, k = whole(draw, 1, 4), whole(draw, 1, 3), one(draw, 1, 3, 5)
    return Use({"basis": (f, s, k, k)}, {}, (s,))


# --- learned scales ---


@case(layers.LearnableScales)
def _(draw: Draw) -> Use:
    s = whole(draw, 2, 4)
    settings = {"num_scales": s, "min_scale": one(draw, 0.3, 1.0), "scale_range": one(draw, 1.01, 3.0)}
    return Use({}, settings, (s,))


def learnable(draw: Draw, *, lifts: bool) -> Use:
    kernel_size, s = one(draw, 3, 5), whole(draw, 2, 4)
    place = geometry(draw, kernel_size)
    fan_in, fan_out, groups = channels(draw)
    scales = layers.LearnableScales(s, min_scale=0.8, scale_range=1.7)
    settings = {
        "in_channels": fan_in,
        "out_channels": fan_out,
        "kernel_size": kernel_size,
        "scales": scales,
        "basis": family(kernel_size),
        "groups": groups,
        **place.options,
    }
    extra, output = projected(draw, (b := batch(draw), fan_out, s, *place.result))
    if not lifts:
        extra["scale_size"] = whole(draw, 1, s)
    return Use({"x": (b, fan_in, *(() if lifts else (s,)), *place.given)}, settings | extra, output)


case(layers.LearnableLiftConv2d)(partial(learnable, lifts=True))
case(layers.LearnableScaleConv2d)(partial(learnable, lifts=False))


def ascending(values: Tensor) -> Tensor:
    return values.abs().clamp(1e-3, 1e3).cumsum(0)


@case(functional.sample_hermite, domains={"scales": ascending})
def _(draw: Draw) -> Use:
    s, k = whole(draw, 1, 4), one(draw, 1, 3, 5)
    functions = [(q, y, x) for q in (1.0, 0.5) for y in range(2) for x in range(3)][: whole(draw, 1, 12)]
    return Use({"scales": (s,)}, {"functions": functions, "kernel_size": k}, (len(functions), s, k, k))


# --- projections, pools, dropout, norms ---


def projecting(draw: Draw, name: str = "mode", *, ndim: int | None = 2) -> Use:
    shape = scale_map(draw, ndim=one(draw, 1, 2, 3) if ndim is None else ndim)
    return Use({"x": shape}, {name: one(draw, "max", "mean", "logsumexp")}, (*shape[:2], *shape[3:]))


case(layers.ScaleProjection)(projecting)
case(functional.scale_projection)(projecting)
case(functional.scale_projection_nd)(partial(projecting, ndim=None))
case(nd.ScaleProjection1d)(partial(projecting, ndim=1))
case(nd.ScaleProjection3d)(partial(projecting, ndim=3))


@case(layers.ScalePool)
@case(functional.scale_pool)
def _(draw: Draw) -> Use:
    shape = scale_map(draw)
    return Use({"x": shape}, {"kind": one(draw, "pixel", "slice", "energy")}, (*shape[:2], *shape[3:]))


def pooling(draw: Draw, *, front: Callable[[Draw], Shape], ndim: int | None = 2) -> Use:
    settings, pooled, least = window(draw)
    given = sides(draw, least, one(draw, 1, 2, 3) if ndim is None else ndim)
    start = front(draw)
    return Use({"x": (*start, *given)}, settings, (*start, *map(pooled, given)))


def of_map(draw: Draw) -> Shape:
    return batch(draw), whole(draw, 1, 4), whole(draw, 1, 4)


def of_many_channels(draw: Draw) -> Shape:
    return batch(draw), one(draw, 1, 3, 16), whole(draw, 1, 4)


def of_image(draw: Draw) -> Shape:
    return batch(draw), one(draw, 1, 3, 16)


def of_field(draw: Draw) -> Shape:
    return batch(draw), whole(draw, 1, 4), 2


for _layer in (layers.ScaleMaxPool2d, layers.ScaleAvgPool2d):
    case(_layer)(partial(pooling, front=of_many_channels))
for _function in (functional.scale_max_pool2d, functional.scale_avg_pool2d):
    case(_function)(partial(pooling, front=of_many_channels))
for _function in (functional.scale_max_pool_nd, functional.scale_avg_pool_nd):
    case(_function)(partial(pooling, front=of_map, ndim=None))
for _ndim, _pools in (
    (1, (nd.ScaleMaxPool1d, nd.ScaleAvgPool1d)),
    (3, (nd.ScaleMaxPool3d, nd.ScaleAvgPool3d)),
):
    for _layer in _pools:
        case(_layer)(partial(pooling, front=of_map, ndim=_ndim))
case(layers.ImageMaxPool2d)(partial(pooling, front=of_image))
case(functional.image_max_pool2d)(partial(pooling, front=of_image))
case(layers.VectorFieldMaxPool2d)(partial(pooling, front=of_field))
case(functional.vector_field_max_pool2d)(partial(pooling, front=of_field))


def dropping(draw: Draw, *, shape: Callable[[Draw], Shape], **extra: Any) -> Use:
    given = shape(draw)
    settings = {"p": one(draw, 0.0, 0.3, 0.999)} | {name: draw(how) for name, how in extra.items()}
    return Use({"x": given}, settings, given)


def any_map(draw: Draw) -> Shape:
    return scale_map(draw, ndim=whole(draw, 1, 3))


def any_shape(draw: Draw) -> Shape:
    return tuple(whole(draw, 1, 3) for _ in range(whole(draw, 0, 6)))


def field_shape(draw: Draw) -> Shape:
    return (*of_field(draw), *sides(draw))


TRAINING = st.booleans()
for _layer in (layers.ScaleDropout2d, layers.ScaleChannelDropout):
    case(_layer)(partial(dropping, shape=scale_map))
for _function in (functional.scale_dropout2d, functional.scale_channel_dropout):
    case(_function)(partial(dropping, shape=scale_map, training=TRAINING))
case(functional.scale_dropout_nd)(partial(dropping, shape=any_map, training=TRAINING))
case(nd.ScaleDropout1d)(partial(dropping, shape=partial(scale_map, ndim=1)))
case(nd.ScaleDropout3d)(partial(dropping, shape=partial(scale_map, ndim=3)))
case(layers.ValueDropout)(partial(dropping, shape=any_shape))
case(functional.value_dropout)(partial(dropping, shape=any_shape, training=TRAINING))
case(layers.VectorFieldDropout)(partial(dropping, shape=field_shape))
case(layers.VectorFieldDropout2d)(partial(dropping, shape=field_shape))
case(functional.vector_field_dropout)(
    partial(dropping, shape=field_shape, training=TRAINING, whole_channels=st.booleans())
)


def norming(draw: Draw, *, shape: Callable[[Draw], Shape], name: str = "num_features") -> Use:
    given = shape(draw)
    given = (max(given[0], 2), *given[1:])  # a variance needs two values
    return Use({"x": given}, {name: given[1], "eps": one(draw, 1e-5, 1e-3)}, given)


# A variance is made of squares.
case(layers.ScaleBatchNorm2d, largest=SQUARES)(partial(norming, shape=scale_map))
case(layers.ImageBatchNorm2d, largest=SQUARES)(
    partial(norming, shape=lambda draw: (*of_image(draw), *sides(draw)))
)
case(nd.ScaleBatchNorm1d, largest=SQUARES)(partial(norming, shape=partial(scale_map, ndim=1)))
case(nd.ScaleBatchNorm3d, largest=SQUARES)(partial(norming, shape=partial(scale_map, ndim=3)))
case(layers.VectorFieldBatchNorm2d, largest=SQUARES)(partial(norming, shape=field_shape))


@case(layers.ColumnBatchNorm2d, largest=SQUARES)
def _(draw: Draw) -> Use:
    given = scale_map(draw)
    given = (max(given[0], 2), *given[1:])
    return Use({"x": given}, {"num_channels": given[1], "num_scales": given[2]}, given)


@case(functional.vector_field_batch_norm2d, domains={"variance": torch.abs})
def _(draw: Draw) -> Use:
    given = field_shape(draw)
    return Use({"x": given, "variance": given[1:2], "weight": given[1:2]}, {"eps": 1e-5}, given)


@case(layers.VectorFieldMagnitude)
@case(functional.vector_field_magnitude)
def _(draw: Draw) -> Use:
    given = field_shape(draw)
    return Use({"x": given}, {}, (*given[:2], *given[3:]))


@case(functional.vector_field_variance, largest=SQUARES)
def _(draw: Draw) -> Use:
    given = field_shape(draw)
    return Use({"x": given}, {}, given[1:2])


# --- resizing ---


@case(layers.ScaleUpsample2d)
@case(functional.scale_upsample2d)
def _(draw: Draw) -> Use:
    shape, factor = scale_map(draw), whole(draw, 1, 3)
    method, alignment = one(draw, ("bilinear", "areas"), ("bilinear", "points"), ("nearest", "areas"))
    grown = [factor * n if alignment == "areas" else factor * (n - 1) + 1 for n in shape[3:]]
    settings = {"factor": factor, "method": method, "alignment": alignment}
    return Use({"x": shape}, settings, (*shape[:3], *grown))


@case(functional.rescale)
def _(draw: Draw) -> Use:
    front = tuple(whole(draw, 1, 3) for _ in range(whole(draw, 0, 4)))
    shape = (*front, *sides(draw))
    factor = one(draw, 1, 1.0, 0.3, 2.7, 1e-6, 1e6)
    return Use({"x": shape}, {"factor": factor, "method": one(draw, "bicubic", "bilinear")}, shape)


PYRAMID = {"pool": ("max", "mean"), "canvas": ("same", "resized"), "method": ("bicubic", "bilinear")}


def pyramid(draw: Draw, name: str) -> Use:
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    settings = {key: one(draw, *choices) for key, choices in PYRAMID.items()}
    factors = one(draw, [1.0], [0.3, 1.0, 2.7], [0.5])
    b = batch(draw)
    return Use({"x": (b, 2, *sides(draw))}, settings | {name: module, "factors": factors}, (b, 3))


case(layers.InputPyramid)(partial(pyramid, name="module"))


@case(functional.input_pyramid, call=lambda settings: _of_pyramid(**settings))
def _(draw: Draw) -> Use:
    return pyramid(draw, name="function")


def _of_pyramid(function: nn.Module, **settings: Any) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        like = x if isinstance(x, Tensor) and x.is_floating_point() else torch.zeros(())
        module = function.to(like.dtype) if isinstance(function, nn.Module) else function
        return functional.input_pyramid(module, x, **settings)

    return run


# --- blocks ---


@case(layers.ScaleWise)
def _(draw: Draw) -> Use:
    b, _, s, *size = scale_map(draw)
    return Use({"x": (b, 2, s, *size)}, {"module": nn.Conv2d(2, 3, 3, padding=1)}, (b, 3, s, *size))


def block(draw: Draw) -> tuple[dict[str, Any], int]:
    kernel_size = one(draw, 1, 3)
    scales = grid(draw, kernel_size)
    settings = {"kernel_size": kernel_size, "grid": scales, "basis": family(kernel_size)}
    return settings | {"in_channels": whole(draw, 1, 2), "out_channels": whole(draw, 1, 3)}, len(scales)


@case(layers.ScaleDoubleConv2d, largest=SQUARES)  # it normalises twice
def _(draw: Draw) -> Use:
    settings, s = block(draw)
    given, b, lifts = sides(draw, 2), batch(draw), draw(st.booleans())
    x = (b, settings["in_channels"], *(() if lifts else (s,)), *given)
    return Use({"x": x}, settings | {"lifts": lifts}, (b, settings["out_channels"], s, *given))


@case(layers.ScaleUNetDown2d, largest=SQUARES)
def _(draw: Draw) -> Use:
    settings, s = block(draw)
    given, b = sides(draw, 4), batch(draw)
    settings["pool"] = one(draw, "avg", "max")
    output = (b, settings["out_channels"], s, *(n // 2 for n in given))
    return Use({"x": (b, settings["in_channels"], s, *given)}, settings, output)


@case(layers.ScaleUNetUp2d, largest=SQUARES)
def _(draw: Draw) -> Use:
    settings, s = block(draw)
    given, b, skipped = sides(draw, 2), batch(draw), whole(draw, 1, 3)
    tensors = {
        "x": (b, settings["in_channels"], s, *(n // 2 for n in given)),
        "skip": (b, skipped, s, *given),
    }
    return Use(tensors, settings | {"skip_channels": skipped}, (b, settings["out_channels"], s, *given))


# --- SI-ConvNet, SiCNN, rescaled kernels ---

SCALES = ([1.0], [0.5, 1.0], [0.7, 1.0, 1.9])


@case(layers.LocallyScaleInvariantConv2d)
def _(draw: Draw) -> Use:
    kernel_size, (fan_in, fan_out, groups) = one(draw, 1, 3), channels(draw)
    stride, b, given = whole(draw, 1, 2), batch(draw), sides(draw, 4)
    settings = {
        "in_channels": fan_in,
        "out_channels": fan_out,
        "kernel_size": kernel_size,
        "groups": groups,
        "scales": one(draw, *SCALES),
        "resampling": one(draw, "published", "centred"),
        "stride": stride,
        "padding": "same",
        "padding_mode": one(draw, "zeros", "circular", "reflect"),
    }
    return Use({"x": (b, fan_in, *given)}, settings, (b, fan_out, *(-(-n // stride) for n in given)))


@case(functional.locally_scale_invariant_conv2d)
def _(draw: Draw) -> Use:
    kernel_size, (fan_in, fan_out, groups) = one(draw, 1, 3), channels(draw)
    b, given = batch(draw), sides(draw, 4)
    tensors = {
        "x": (b, fan_in, *given),
        "weight": (fan_out, fan_in // groups, kernel_size, kernel_size),
        "bias": (fan_out,),
    }
    settings = {
        "scales": one(draw, *SCALES),
        "geometry": functional.ConvGeometry(padding="same", groups=groups),
        "resampling": one(draw, "published", "centred"),
    }
    return Use(tensors, settings, (b, fan_out, *given))


@case(functional.multi_column_basis, dtype=torch.float64)
def _(draw: Draw) -> Use:
    kernel_size, scales = one(draw, 3, 5), one(draw, *SCALES)
    largest = max(scales)
    k = kernel_size + 2 * max(math.ceil((math.floor(kernel_size * largest) - kernel_size) / 2), 0)
    return Use({}, {"kernel_size": kernel_size, "scales": scales}, (kernel_size**2, len(scales), k, k))


def columns(draw: Draw, *, lifts: bool) -> Use:
    kernel_size, scales = one(draw, 1, 3), one(draw, *SCALES)
    (fan_in, fan_out, groups), b, given = channels(draw), batch(draw), sides(draw)
    stride = whole(draw, 1, 2)
    settings = {
        "in_channels": fan_in,
        "out_channels": fan_out,
        "kernel_size": kernel_size,
        "scales": scales,
        "bias": draw(st.booleans()),
        "groups": groups,
        "stride": stride,
    }
    output = (b, fan_out, len(scales), *(-(-n // stride) for n in given))
    return Use({"x": (b, fan_in, *(() if lifts else (len(scales),)), *given)}, settings, output)


case(layers.MultiColumnLift2d)(partial(columns, lifts=True))
case(layers.MultiColumnConv2d)(partial(columns, lifts=False))


@case(functional.multi_column_conv2d)
def _(draw: Draw) -> Use:
    kernel_size, s, k = one(draw, 1, 3), whole(draw, 1, 3), one(draw, 3, 5)
    (fan_in, fan_out, groups), b, given = channels(draw), batch(draw), sides(draw)
    tensors = {
        "x": (b, fan_in, *one(draw, (), (s,)), *given),
        "weight": (fan_out, fan_in // groups, kernel_size, kernel_size),
        "basis": (kernel_size**2, s, k, k),
        "bias": (fan_out,),
    }
    made = functional.ConvGeometry(padding="same", groups=groups)
    return Use(tensors, {"geometry": made}, (b, fan_out, s, *given))


KERNELS = ([1], [3], [1, 3], [3, 5], [1, 3, 7])
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")


@case(functional.rescaled_kernel_basis, dtype=torch.float64)
def _(draw: Draw) -> Use:
    sizes = one(draw, *KERNELS)
    settings = {"kernel_sizes": sizes, "interpolation": one(draw, *INTERPOLATIONS)}
    return Use({}, settings, (sizes[0] ** 2, len(sizes), sizes[-1], sizes[-1]))


def resized(draw: Draw, *, lifts: bool) -> Use:
    sizes, (fan_in, fan_out, groups) = one(draw, *KERNELS), channels(draw)
    settings = {
        "in_channels": fan_in,
        "out_channels": fan_out,
        "kernel_sizes": sizes,
        "interpolation": one(draw, *INTERPOLATIONS),
        "bias": draw(st.booleans()),
    }
    b, s = batch(draw), len(sizes)
    if draw(st.booleans()):
        place = geometry(draw, sizes[-1])
        extra, output = projected(draw, (b, fan_out, s, *place.result))
        settings |= {"groups": groups, **place.options, **extra}
    else:
        settings["border"] = "blank"
        given = sides(draw, sizes[-1])
        place = Moved({}, given, tuple(n - sizes[0] + 1 for n in given))
        output = (b, fan_out, s, *place.result)
    return Use({"x": (b, fan_in, *(() if lifts else (s,)), *place.given)}, settings, output)


case(layers.RescaledKernelLift2d)(partial(resized, lifts=True))
case(layers.RescaledKernelConv2d)(partial(resized, lifts=False))


@case(functional.rescaled_kernel_conv2d)
def _(draw: Draw) -> Use:
    sizes, (fan_in, fan_out, groups) = one(draw, *KERNELS), channels(draw)
    place, b, s = geometry(draw, sizes[-1], pools=False), batch(draw), len(sizes)
    tensors = {
        "x": (b, fan_in, *one(draw, (), (s,)), *place.given),
        "weight": (fan_out, fan_in // groups, sizes[0], sizes[0]),
        "basis": (sizes[0] ** 2, s, sizes[-1], sizes[-1]),
        "bias": (fan_out,),
    }
    made = functional.ConvGeometry(**place.options, groups=groups)
    return Use(tensors, {"geometry": made, "windows": one(draw, None, sizes)}, (b, fan_out, s, *place.result))


@case(functional.rescaled_kernel_valid_conv2d)
def _(draw: Draw) -> Use:
    sizes, (fan_in, fan_out, _) = one(draw, *KERNELS), channels(draw)
    given, b, s = sides(draw, sizes[-1]), batch(draw), len(sizes)
    tensors = {
        "x": (b, fan_in, *one(draw, (), (s,)), *given),
        "weight": (fan_out, fan_in, sizes[0], sizes[0]),
        "basis": (sizes[0] ** 2, s, sizes[-1], sizes[-1]),
        "bias": (fan_out,),
    }
    return Use(tensors, {"windows": sizes}, (b, fan_out, s, *(n - sizes[0] + 1 for n in given)))


# --- SS-CNN ---


@case(functional.steer_in_scale)
def _(draw: Draw) -> Use:
    n, j, k, s = whole(draw, 1, 2), whole(draw, 1, 3), one(draw, 1, 3, 5), whole(draw, 1, 3)
    settings = {
        "frequencies": [1.0, 2.0][:n],
        "ratios": [0.5, 1.0, 2.0][:s],
        "windows": [one(draw, *range(1, k + 1, 2)) for _ in range(s)],
    }
    return Use({"real": (n, j, k, k), "imag": (n, j, k, k)}, settings, (2 * n * j, s, k, k))


@case(functional.scale_steered_conv2d)
def _(draw: Draw) -> Use:
    n, j, k, s = whole(draw, 1, 2), whole(draw, 1, 3), one(draw, 1, 3, 5), whole(draw, 1, 3)
    place, b, (fan_in, fan_out, groups) = geometry(draw, k), batch(draw), channels(draw)
    weight = (n, fan_out, fan_in // groups, j)
    tensors = {
        "x": (b, fan_in, *place.given),
        "mult_real": weight,
        "mult_imag": weight,
        "basis": (2 * n * j, s, k, k),
    }
    made = functional.ConvGeometry(**place.options, groups=groups)
    return Use(tensors, {"geometry": made, "windows": None}, (b, fan_out, *place.result))


@case(layers.ScaleSteeredConv2d)
def _(draw: Draw) -> Use:
    sizes = one(draw, (3,), (3, 5), (1, 3))
    steering = layers.ScaleSteering(kernel_sizes=sizes, base_size=3, orders=(1.0,), angles=(0.0, 1.0))
    place, b, (fan_in, fan_out, groups) = geometry(draw, sizes[-1]), batch(draw), channels(draw)
    settings = {"in_channels": fan_in, "out_channels": fan_out, "steering": steering, "groups": groups}
    return Use({"x": (b, fan_in, *place.given)}, settings | place.options, (b, fan_out, *place.result))


# --- vector fields ---


def angles(draw: Draw) -> functional.ScaleAngles:
    return functional.ScaleAngles(whole(draw, 1, 3), whole(draw, 0, 2))


def vectors(draw: Draw, *, lifts: bool, layer: bool) -> Use:
    kernel_size, scales, b = one(draw, 1, 3), angles(draw), batch(draw)
    fan_in, fan_out, given = whole(draw, 1, 3), whole(draw, 1, 3), sides(draw, 1)
    pair = () if lifts else (2,)
    settings: dict[str, Any] = {"scales": scales, "padding": "same"}
    if not lifts:
        settings["turn"] = one(draw, "equivariant", "published")
    tensors: dict[str, Shape] = {"x": (b, fan_in, *pair, *given)}
    if layer:
        settings |= {"in_channels": fan_in, "out_channels": fan_out, "kernel_size": kernel_size}
    else:
        tensors["weight"] = (fan_out, fan_in, *pair, kernel_size, kernel_size)
    return Use(tensors, settings, (b, fan_out, 2, *given))


case(layers.VectorFieldLift2d)(partial(vectors, lifts=True, layer=True))
case(layers.VectorFieldConv2d)(partial(vectors, lifts=False, layer=True))
case(functional.vector_field_lift2d)(partial(vectors, lifts=True, layer=False))
case(functional.vector_field_conv2d)(partial(vectors, lifts=False, layer=False))


# --- deep scale-spaces ---


@case(functional.discrete_gaussian, dtype=torch.float64)
def _(draw: Draw) -> Use:
    radius = one(draw, None, 0, 1, 5)
    variance = one(draw, 0.0, 1e-30, 0.3, 4.0, 1e4)
    r = 4 * math.ceil(math.sqrt(variance)) if radius is None else radius
    return Use({}, {"variance": variance, "radius": radius}, (2 * r + 1,))


GAUSSIANS = [functional.discrete_gaussian(0.5, radius) for radius in range(3)]


@case(functional.scale_space_lift2d)
def _(draw: Draw) -> Use:
    kernels = GAUSSIANS[: whole(draw, 0, 3)]
    b, c, given = batch(draw), whole(draw, 1, 4), sides(draw, 3)
    mode = one(draw, "zeros", "circular", "reflect", "replicate")
    settings = {"kernels": kernels, "padding_mode": mode}
    return Use({"x": (b, c, *given)}, settings, (b, c, 1 + len(kernels), *given))


@case(layers.ScaleSpaceLift2d)
def _(draw: Draw) -> Use:
    b, c, given, s = batch(draw), whole(draw, 1, 4), sides(draw), whole(draw, 1, 3)
    return Use({"x": (b, c, *given)}, {"num_scales": s, "base": one(draw, 2, 1.5)}, (b, c, s, *given))


def dilated(draw: Draw, *, layer: bool) -> Use:
    kernel_size, s, stride = one(draw, 1, 3), whole(draw, 1, 3), whole(draw, 1, 2)
    (fan_in, fan_out, groups), b, given = channels(draw), batch(draw), sides(draw)
    n = whole(draw, 1, s)
    options = {"stride": stride, "padding": "same", "groups": groups}
    options |= {
        "padding_mode": one(draw, "zeros", "replicate"),
        "scale_padding": one(draw, "zeros", "replicate"),
    }
    tensors, settings = {"x": (b, fan_in, s, *given)}, {"base": 2}
    output = (b, fan_out, s, *((size - 1) // stride + 1 for size in given))
    if layer:
        settings |= {"in_channels": fan_in, "out_channels": fan_out, "kernel_size": kernel_size}
        settings |= {"num_scales": s, "scale_size": n, "bias": draw(st.booleans()), **options}
    else:
        tensors |= {"weight": (fan_out, fan_in // groups, n, kernel_size, kernel_size), "bias": (fan_out,)}
        settings |= {"geometry": functional.ConvGeometry(**options)}
    return Use(tensors, settings, output)


case(layers.ScaleSpaceConv2d)(partial(dilated, layer=True))
case(functional.scale_space_conv2d)(partial(dilated, layer=False))


# --- bases ---


def sampled(thing: Any) -> Callable[[Mapping[str, Any]], Callable[[], Tensor]]:
    def call(settings: Mapping[str, Any]) -> Callable[[], Tensor]:
        own = dict(settings)
        place = own.pop("kernel_size"), own.pop("grid")
        made = thing(**own)
        return lambda: made.sample(*place)

    return call


def sampling(draw: Draw, settings: Mapping[str, Any], functions: int, kernel_size: int | None = None) -> Use:
    k = kernel_size or one(draw, 9, 11)
    scales = ScaleGrid.geometric(one(draw, 1.0, 1.3), one(draw, 1.1, 1.4), whole(draw, 1, 4))
    place = {"kernel_size": k, "grid": scales, "degenerate": "allow"}
    return Use({}, {**settings, **place}, (functions, len(scales), k, k))


def of_basis(thing: Any) -> Any:
    return case(thing, dtype=torch.float64, call=sampled(thing))


@of_basis(basis.HermiteBasis)
def _(draw: Draw) -> Use:
    e = whole(draw, 1, 4)
    settings = {"effective_size": e, "kind": one(draw, "A", "B"), "max_order": whole(draw, 0, 4), "mult": 1.2}
    return sampling(draw, settings, e**2)


@of_basis(basis.BSplineBasis)
def _(draw: Draw) -> Use:
    e = whole(draw, 1, 3)
    spreads = (0.9, 1.0, 2.0) if e % 2 else (1.0, 2.0)  # narrower steps fall between the pixels
    settings = {"effective_size": e, "degree": whole(draw, 0, 4), "spread": one(draw, *spreads)}
    return sampling(draw, settings, e**2)


@of_basis(basis.FourierBesselBasis)
def _(draw: Draw) -> Use:
    e = whole(draw, 1, 3)
    radius = 5.0 if e == 2 else one(draw, None, 2.0, 5.0)  # e / 2 is one pixel, in which three of four vanish
    return sampling(draw, {"effective_size": e, "radius": radius}, e**2)


@of_basis(basis.LogRadialBasis)
def _(draw: Draw) -> Use:
    e = whole(draw, 1, 3)
    settings = {"rotations": one(draw, None, 1, 4), "angular_width": one(draw, None, 0.5)}
    return sampling(draw, {"effective_size": e, **settings}, e**2)


@of_basis(basis.GaussianDerivativeBasis)
def _(draw: Draw) -> Use:
    e = whole(draw, 1, 3)
    order = one(draw, None, 0, 1)
    functions = sum(1 for n in range(e) for m in range(e) if order is None or n + m <= order)
    settings = {"effective_size": e, "max_order": order, "radius": one(draw, None, 1.0)}
    return sampling(draw, settings, functions)


@of_basis(basis.DiscoBasis)
def _(draw: Draw) -> Use:
    e = one(draw, 1, 3)
    settings = {
        "effective_size": e,
        "kind": one(draw, "A", "B", "pixel"),
        "sigma": one(draw, None, 0.8),
        "max_order": 4,
        "mult": 1.5,
        "correlation": one(draw, 0.0, 0.95),
    }
    return sampling(draw, settings, e**2, kernel_size=11)


@case(basis.sample_nd, dtype=torch.float64)
def _(draw: Draw) -> Use:
    n, k, scales = whole(draw, 1, 3), one(draw, 5, 7), ScaleGrid.geometric(1.0, 1.2, whole(draw, 1, 3))
    settings = {"basis": basis.HermiteBasis(2), "kernel_size": k, "grid": scales, "ndim": n}
    return Use({}, settings, (2**n, len(scales), *[k] * n))


@case(basis.rescaling_error, dtype=torch.float64)
def _(draw: Draw) -> Use:
    f, k, scales = whole(draw, 1, 3), one(draw, 1, 3, 5), ScaleGrid.geometric(1.0, 1.4, whole(draw, 1, 3))
    s = len(scales)
    return Use({"basis": (f, s, k, k)}, {"grid": scales, "correlation": one(draw, 0.0, 0.9)}, (s, s))


@case(basis.diagnose, call=lambda settings: partial(_conditions, **settings), dtype=torch.float64)
def _(draw: Draw) -> Use:
    f, k, scales = whole(draw, 1, 3), one(draw, 3, 5), ScaleGrid.geometric(1.0, 1.4, whole(draw, 1, 3))
    return Use({"basis": (f, len(scales), k, k)}, {"grid": scales}, (len(scales),))


def _conditions(basis_: Tensor | None = None, **arguments: Any) -> Tensor:
    found = basis.diagnose(**arguments)
    assert all(0 <= one_scale.rank <= one_scale.num_functions for one_scale in found)
    assert not any(math.isnan(one_scale.condition) for one_scale in found)
    return torch.tensor([float(one_scale.rank) for one_scale in found], dtype=torch.float64)


# --- records of settings, and the registry ---


def recording(thing: Any) -> Callable[[Mapping[str, Any]], Callable[[], Tensor]]:
    def call(settings: Mapping[str, Any]) -> Callable[[], Tensor]:
        thing(**settings)
        return lambda: torch.zeros(())

    return call


@case(functional.ConvGeometry, call=recording(functional.ConvGeometry), dtype=torch.float32)
def _(draw: Draw) -> Use:
    settings = geometry(draw, 3).options
    choices = {"scale_padding": one(draw, "zeros", "replicate"), "projection": one(draw, None, "max")}
    return Use({}, {**settings, **choices, "groups": whole(draw, 1, 3)}, ())


@case(functional.ScaleAngles, call=recording(functional.ScaleAngles), dtype=torch.float32)
def _(draw: Draw) -> Use:
    settings = {"num_small": whole(draw, 1, 9), "num_big": whole(draw, 0, 9)}
    return Use({}, {**settings, "base": one(draw, 1.01, 3.0), "angle_range": one(draw, 0.1, 6.0)}, ())


@case(layers.ScaleSteering, call=recording(layers.ScaleSteering), dtype=torch.float32)
def _(draw: Draw) -> Use:
    settings = {
        "kernel_sizes": one(draw, (3,), (5, 7)),
        "base_size": 5,
        "orders": (0.5, 1.0),
        "angles": (0.0,),
    }
    return Use({}, {**settings, "angular_width": 0.2, "phase": 0.1}, ())


NAMES = basis.list_bases()


@case(basis.basis_entry, call=recording(basis.basis_entry), dtype=torch.float32)
def _(draw: Draw) -> Use:
    return Use({}, {"name": one(draw, *NAMES)}, ())
