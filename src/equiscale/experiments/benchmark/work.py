"""What one step does: the arithmetic and the traffic of every operation of torch in it."""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from equiscale.experiments.benchmark.record import Peaks, Work


class Operation(NamedTuple):
    """Floating-point operations, and bytes read and written."""

    flops: int
    bytes: int


def operations(step: Callable[[], object]) -> list[Operation]:
    """Run a step, and count.

    Convolutions and matrix products are counted, forward and backward, a multiplication and an addition as
    two operations; zeros around the images of a convolution take none, as nothing has to be computed with
    them, unless an operation of its own put them there. Everything counts its operands and results once, as
    if caches held all within one operation and nothing between two. What is computed outside torch's
    operations is not seen.

    Example:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> operations(lambda: a @ b)
        [Operation(flops=48, bytes=104)]
    """
    found: list[Operation] = []
    with _Counter(found):
        step()
    return found


def summary(found: Iterable[Operation], peaks: Peaks) -> Work:
    """All operations of a step, and the time they would take at the machine's measured speed.

    Each operation takes as long as its arithmetic at the peak, or its traffic at the bandwidth, whichever
    is longer: a roofline an operation. It is what a step of this arithmetic can be expected to take, and
    not what it must: operands that another operation left in the cache, or an algorithm with fewer
    multiplications, make less of it.
    """
    every = list(found)
    return Work(
        flops=sum(operation.flops for operation in every),
        bytes=sum(operation.bytes for operation in every),
        bound_seconds=sum(
            max(operation.flops / peaks.flops, operation.bytes / peaks.bandwidth) for operation in every
        ),
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[Operation]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not (func.is_view or func.overloadpacket in _NOTHING_IS_MOVED):
            count = _FORMULAS.get(func.overloadpacket)
            flops = int(count(*args, **kwargs, out_val=result)) if count else 0
            touched = _touched(func, args, kwargs, result)
            if flops or touched:
                self.found.append(Operation(flops, touched))
        return result


_aten = torch.ops.aten
_NOTHING_IS_MOVED = {
    _aten.detach,
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
    _aten._unsafe_view,
    _aten._reshape_alias,
    _aten.lift_fresh,
}


def _convolution(x: Tensor, weight: Tensor, *args: Any, out_val: Tensor) -> int:
    return _on_pixels(x, weight, out_val, args[1:5])


def _gradients_of_convolution(
    grad_output: Tensor, x: Tensor, weight: Tensor, *args: Any, out_val: object
) -> int:
    """As much as forward for each of both gradients that is wanted."""
    *_, output_mask = args
    return int(sum(output_mask[:2])) * _on_pixels(x, weight, grad_output, args[1:5])


def _on_pixels(x: Tensor, weight: Tensor, result: Tensor, movement: Sequence[Any]) -> int:
    """A multiplication and an addition for every tap of a filter that meets a pixel.

    A transposed convolution scatters into its result as an ordinary one gathers from its image.
    """
    *by_axis, transposed = movement  # stride, padding and dilation
    image, places = (result, x) if transposed else (x, result)
    shapes = (image.shape[2:], places.shape[2:], weight.shape[2:])
    taps = (_taps(*axis) for axis in zip(*shapes, *map(cycle, by_axis), strict=False))
    return 2 * len(x) * prod(weight.shape[:2]) * prod(taps)


def _taps(pixels: int, places: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How often a tap meets a pixel on one axis, over all places of the filter."""
    firsts = range(-padding, places * stride - padding, stride)
    return sum(0 <= first + tap * dilation < pixels for first in firsts for tap in range(kernel))


# Instead of torch's own, which count zeros around the image as pixels, and the gradient of grouped
# filters once for each group.
_FORMULAS = {
    **flop_registry,
    _aten.convolution: _convolution,
    _aten.convolution_backward: _gradients_of_convolution,
}


# Which write into a tensor without reading it.
_OVERWRITES = {_aten.copy_, _aten.zero_, _aten.fill_, _aten.bernoulli_, _aten.uniform_, _aten.normal_}


def _touched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes of operands that are read, and of results and operands that are written."""
    schema = func._schema
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    touched = 0
    for argument in schema.arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        read = not (written and (argument.is_out or func.overloadpacket in _OVERWRITES))
        touched += (written + read) * _bytes(given.get(argument.name))
    results = result if isinstance(result, tuple) and len(schema.returns) > 1 else (result,)
    new = (value for value, kind in zip(results, schema.returns, strict=False) if kind.alias_info is None)
    return touched + sum(map(_bytes, new))


def _bytes(value: Any) -> int:
    """Of a tensor, or of all in a list; of an expanded one what there is of it in memory."""
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if not isinstance(value, Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
