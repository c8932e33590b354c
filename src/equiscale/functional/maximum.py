"""The largest of equally shaped tensors, and which of them it was.

On the CPU the maxima of torch that keep an index visit one value after the other, and so does a choice by
a mask of booleans. Comparisons whose result has the type of their arguments are vectorised, and used here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equiscale.functional.blockwise import applied, blocks, buffers, is_batched, shaped
from equiscale.functional.memory_order import in_order_of


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.needs_input_grad[:2]
        if is_batched(grad):
            rest = grad if ctx.number > 1 else torch.where(ctx.index == 0, grad, 0) if first else None
            return rest, torch.where(ctx.index == ctx.number, grad, 0) if second else None, None, None
        rest = grad if ctx.number > 1 else applied(Choose, grad, ctx.index, 0) if first else None
        return rest, applied(Choose, grad, ctx.index, ctx.number) if second else None, None, None


class Choose(torch.autograd.Function):
    """The values where the index is a number, and zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, number: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.number = number
        out = torch.empty_like(index, dtype=values.dtype)
        choose(values, index, {number: out})
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return applied(Choose, grad, ctx.saved_tensors[0], ctx.number), None, None


@dataclass(frozen=True)
class Parts:
    """The parts of a tensor, as views of one shape.

    Args:
        of: From a tensor to its parts, of which there are at most 256.
        cover: Every element belongs to one part; else some belong to none. None belongs to two.
    """

    of: Callable[[Tensor], Sequence[Tensor]]
    cover: bool = True


class Largest(torch.autograd.Function):
    """The maximum over the parts of a tensor; its gradient goes to the first of equal values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:
        views = parts.of(x)
        best = torch.empty_like(views[0])
        index = torch.empty_like(best, dtype=torch.uint8)
        largest_of(views, best, index)
        ctx.save_for_backward(index)
        ctx.parts, ctx.like = parts, torch.empty_like(x, device="meta")
        return best

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return applied(Spread, grad, ctx.saved_tensors[0], ctx.parts, ctx.like), None


class Spread(torch.autograd.Function):
    """Every value at its place in the part that the index names, and zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, parts: Parts, like: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.parts = parts
        make = torch.empty_like if parts.cover else torch.zeros_like
        out = make(like, dtype=values.dtype, device=values.device)
        choose(values, index, dict(enumerate(parts.of(out))))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return applied(Collect, grad, ctx.saved_tensors[0], ctx.parts), None, None, None


class Collect(torch.autograd.Function):
    """From every place the value of the part that the index names."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, parts: Parts) -> Tensor:
        ctx.save_for_backward(index)
        ctx.parts, ctx.like = parts, torch.empty_like(x, device="meta")
        out = torch.zeros_like(index, dtype=x.dtype)
        for number, part in enumerate(parts.of(x)):
            choose(part, index, {number: out}, add=True)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return applied(Spread, grad, ctx.saved_tensors[0], ctx.parts, ctx.like), None, None


def largest_of(parts: Sequence[Tensor], best: Tensor, index: Tensor) -> None:
    """Write the maxima of ``parts`` to ``best``, and the number of the first that attains it to ``index``.

    ``best`` may be the first of the parts, but no view of another.
    """
    best, index, *parts = in_order_of(best, best, index, *parts)
    winner, larger, copied = buffers(best, 3)
    for block in blocks(best.shape):
        values = best[block]
        _largest_of(
            [part[block] for part in parts], values, index[block], *shaped(values, winner, larger, copied)
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
    larger, copied = buffers(best, 2)
    (numbers,) = buffers(index, 1)
    for block in blocks(best.shape):
        wins, copy, number_block = shaped(best[block], larger, copied, numbers)
        candidate = _dense(part[block], copy)
        number_block.copy_(torch.gt(candidate, best[block], out=wins).mul_(number))
        torch.maximum(index[block], number_block, out=index[block])
        torch.maximum(best[block], candidate, out=best[block])


def choose(values: Tensor, index: Tensor, outs: Mapping[int, Tensor], *, add: bool = False) -> None:
    """Write to each of ``outs`` the values where the index is its number, and zero elsewhere; or add them."""
    index, values, *views = in_order_of(index, index, values, *outs.values())
    copied, chosen, mask = buffers(values, 3)
    (matches,) = buffers(index, 1)
    for block in blocks(index.shape):
        copy, taken, wanted, match = shaped(index[block], copied, chosen, mask, matches)
        given = _dense(values[block], copy)
        for number, view in zip(outs, views, strict=True):
            wanted.copy_(torch.eq(index[block], number, out=match))
            _choose(given, wanted, view[block], taken, add=add)


def _choose(values: Tensor, wanted: Tensor, out: Tensor, taken: Tensor, *, add: bool) -> None:
    direct = not add and _fast(out)
    # The derivative of relu is the one vectorised choice by a mask; a product would make 0 · ∞ of it.
    torch.ops.aten.threshold_backward.grad_input(values, wanted, 0, grad_input=out if direct else taken)
    if add:
        out.add_(taken)
    elif not direct:
        out.copy_(taken)


def _dense(block: Tensor, buffer: Tensor) -> Tensor:
    return block if _fast(block) else buffer.copy_(block)


def _fast(block: Tensor) -> bool:
    """Steps are vectorised along the last axis alone, and only where its elements are neighbours."""
    return block.stride(-1) == 1
