"""The largest of equally shaped tensors and which of them it was, in blocks that stay in the cache.

On the CPU the maxima of torch that keep an index visit one value after the other, and so does a choice by
a mask of booleans. Comparisons whose result has the type of their arguments are vectorised, and used here.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Elements a step works on: a handful of such float32 buffers fit into a second-level cache of 1 to 2 MB.
_BLOCK = 1 << 17

Block = tuple[int | slice, ...]


def by_blocks(x: Tensor) -> bool:
    """Whether these functions are the fast ones for x: elsewhere torch's own are, or can be traced."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and x.is_floating_point() and not traced and not _transformed(x)


def _transformed(x: Tensor) -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad.unpack_dual(x).tangent is not None


class Keep(torch.autograd.Function):
    """The larger of ``best`` and one more tensor, of equal values the first.

    From the second tensor on, ``best`` and the index of the winners are updated in place: the backward pass
    of every step finds in the finished index what its own tensor is to get, and hands the rest on.
    """

    @staticmethod
    def forward(ctx: Any, best: Tensor, part: Tensor, index: Tensor, number: int) -> Tensor:
        # Not saved_tensors, which may not change any more: later steps write to the index.
        ctx.index, ctx.number = index, number
        if number == 1:
            y = torch.empty_like(best)
            largest_of([best, part], y, index)
            return y
        ctx.mark_dirty(best)
        keep_larger(best, part, index, number)
        return best

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        first, second = ctx.needs_input_grad[:2]
        rest = grad if ctx.number > 1 else Choose.apply(grad, ctx.index, 0) if first else None
        return rest, Choose.apply(grad, ctx.index, ctx.number) if second else None, None, None


class Choose(torch.autograd.Function):
    """The values where the index is a number, and zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, number: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.number = number
        out = torch.empty_like(index, dtype=values.dtype)
        choose(values, index, number, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        chosen: Tensor = Choose.apply(grad, ctx.saved_tensors[0], ctx.number)
        return chosen, None, None


def largest_of(parts: Sequence[Tensor], best: Tensor, index: Tensor) -> None:
    """Write the maxima of ``parts`` to ``best``, and the number of the first that attains it to ``index``.

    ``best`` may be the first of the parts, but no view of another.
    """
    best, index, *parts = in_order_of(best, best, index, *parts)
    winner, larger, copied = _buffers(best, 3)
    for block in blocks(best.shape):
        values = best[block]
        _largest_of(
            [part[block] for part in parts], values, index[block], *_like(values, winner, larger, copied)
        )


def _largest_of(
    parts: list[Tensor], best: Tensor, index: Tensor, winner: Tensor, larger: Tensor, copied: Tensor
) -> None:
    before = _dense(parts[0], best)
    for number, part in enumerate(parts[1:], 1):
        candidate = _dense(part, copied)
        if number == 1:
            torch.gt(candidate, before, out=winner)
        else:
            torch.maximum(winner, torch.gt(candidate, before, out=larger).mul_(number), out=winner)
        before = torch.maximum(before, candidate, out=best)
    index.copy_(winner)


def keep_larger(best: Tensor, part: Tensor, index: Tensor, number: int) -> None:
    """Where ``part`` exceeds ``best``, write it there and ``number`` to the index, which holds lower ones."""
    best, part, index = in_order_of(best, best, part, index)
    larger, copied = _buffers(best, 2)
    (numbers,) = _buffers(index, 1)
    for block in blocks(best.shape):
        wins, copy, number_block = _like(best[block], larger, copied, numbers)
        candidate = _dense(part[block], copy)
        number_block.copy_(torch.gt(candidate, best[block], out=wins).mul_(number))
        torch.maximum(index[block], number_block, out=index[block])
        torch.maximum(best[block], candidate, out=best[block])


def choose(values: Tensor, index: Tensor, number: int, out: Tensor, *, add: bool = False) -> None:
    """Write ``values`` to ``out`` where the index is ``number``, and zero elsewhere; or add them to it."""
    index, out, values = in_order_of(index, index, out, values)
    chosen, mask = _buffers(out, 2)
    (matches,) = _buffers(index, 1)
    for block in blocks(index.shape):
        taken, wanted, match = _like(index[block], chosen, mask, matches)
        wanted.copy_(torch.eq(index[block], number, out=match))
        # The derivative of relu is the one vectorised choice by a mask; a product would make 0 · ∞ of it.
        torch.ops.aten.threshold_backward.grad_input(values[block], wanted, 0, grad_input=taken)
        out[block].add_(taken) if add else out[block].copy_(taken)


def in_order_of(reference: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Views whose axes stand as those of ``reference`` lie in memory, the innermost last."""
    order = sorted(range(reference.ndim), key=lambda axis: -reference.stride(axis))
    return [tensor.permute(order) for tensor in tensors]


def blocks(shape: Sequence[int], size: int = _BLOCK) -> Iterator[Block]:
    """Indices of consecutive pieces of at most ``size`` elements, or single ones of the last axis."""
    axis = next((a for a in range(len(shape)) if math.prod(shape[a + 1 :]) <= size), len(shape) - 1)
    step = max(1, size // max(1, math.prod(shape[axis + 1 :])))
    for outer in product(*(range(n) for n in shape[:axis])):
        for start in range(0, shape[axis], step):
            yield (*outer, slice(start, start + step))


def _buffers(like: Tensor, count: int) -> list[Tensor]:
    return list(like.new_empty(count, min(like.numel(), _BLOCK)).unbind())


def _like(block: Tensor, *buffers: Tensor) -> list[Tensor]:
    return [buffer[: block.numel()].view(block.shape) for buffer in buffers]


def _dense(block: Tensor, buffer: Tensor) -> Tensor:
    return block if block.is_contiguous() else buffer.copy_(block)
