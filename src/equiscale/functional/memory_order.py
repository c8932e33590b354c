"""Tensors seen as they lie in memory: what torch computes fast in two orders is fast in all of them.

Every result has its axes in memory as its input has them.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Restore = Callable[[Tensor], Tensor]


def in_order_of(reference: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Views whose axes stand as those of ``reference`` lie in memory, the innermost last."""
    order = memory_order(reference)
    return [tensor.permute(order) for tensor in tensors]


def laid_as(reference: Tensor, x: Tensor) -> Tensor:
    """The same values, with the axes in memory as those of ``reference``; no copy where they are."""
    order = memory_order(reference)
    return _unpermuted(x.permute(order).contiguous(), order)


def empty_in_order_of(reference: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of another shape, of the reference's type and place, with its axes in memory as there."""
    order = memory_order(reference)
    return _unpermuted(reference.new_empty([shape[axis] for axis in order]), order)


def channels_view(x: Tensor) -> tuple[Tensor, Restore] | None:
    """A dense tensor ``(B, C, …)`` as ``(N, C, 1, …, L)``, contiguous or channels last; and the way back.

    What treats all values of a channel alike may be done to the view. None if the tensor has gaps.
    """
    order = memory_order(x)
    dense = x.permute(order)
    if not dense.is_contiguous() or x.numel() == 0:
        return None
    before, after = dense.shape[: order.index(1)], dense.shape[order.index(1) + 1 :]
    ones = (1,) * (x.ndim - 3)
    outer, inner = math.prod(before), math.prod(after)

    def restore(y: Tensor) -> Tensor:
        flat = y.movedim(1, -1) if inner == 1 else y
        return _unpermuted(flat.reshape(dense.shape), order)

    if inner == 1:
        return dense.view(1, outer, *ones, x.shape[1]).movedim(-1, 1), restore
    return dense.view(outer, x.shape[1], *ones, inner), restore


def is_usual(x: Tensor) -> bool:
    """Whether the axes are contiguous, or contiguous with the channels last: the orders that torch knows."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def planes_view(x: Tensor) -> tuple[Tensor, Restore] | None:
    """A dense tensor ``(…, H, W)`` as ``(N, C, H, W)`` or ``(N, C, W, H)``, contiguous or channels last.

    What treats all planes, and rows and columns, alike may be done to the view; ``restore`` then takes a
    result of other heights and widths back. None if the tensor has gaps, or axes between rows and columns.
    """
    order = memory_order(x)
    dense, first = x.permute(order), min(order.index(x.ndim - 2), order.index(x.ndim - 1))
    adjacent = {order[first], order[first + 1]} == {x.ndim - 2, x.ndim - 1}
    if not dense.is_contiguous() or not adjacent or x.numel() == 0:
        return None
    before, after = dense.shape[:first], dense.shape[first + 2 :]

    def restore(y: Tensor) -> Tensor:
        return _unpermuted(y.movedim(1, -1).reshape(*before, *y.shape[2:], *after), order)

    sides, inner = dense.shape[first : first + 2], math.prod(after)
    if inner == 1:
        return dense.view(-1, 1, *sides), restore
    return dense.view(-1, *sides, inner).movedim(-1, 1), restore


def memory_order(x: Tensor) -> list[int]:
    """The axes from the slowest to the fastest in memory, of equal ones the first first."""
    strides = x.stride()
    return sorted(range(x.ndim), key=lambda axis: -strides[axis])


def _unpermuted(x: Tensor, order: list[int]) -> Tensor:
    return x.permute([order.index(axis) for axis in range(x.ndim)])
