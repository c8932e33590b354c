"""Work on a tensor in blocks that stay in the cache, where torch would read and write it several times."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Elements a step works on, a thread: a handful of such float32 buffers fit into a second-level cache.
_BLOCK = 1 << 16

Block = tuple[int | slice, ...]


def by_blocks(x: Tensor) -> bool:
    """Whether work in blocks is the fast one for x; on other devices and compiled torch's own is."""
    return x.device.type == "cpu" and x.is_floating_point() and is_eager(x)


def is_eager(x: Tensor) -> bool:
    """Whether x is computed here and now: its place in memory is known, and nothing records operations."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not (torch.compiler.is_compiling() or tracing or transformed(x))


def transformed(x: Tensor) -> bool:
    """Whether x is within torch.func or has a forward derivative, and may hide that it needs a gradient."""
    dual = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return torch._C._are_functorch_transforms_active() or dual.tangent is not None


def is_batched(grad: Tensor) -> bool:
    """Whether a backward pass runs for several gradients at once, where nothing may be written in place."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(grad)
    return batched


def derived(
    operands: Sequence[Tensor], compute: Callable[..., Tensor], grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients that are wanted of a result of torch's own operations, with a graph of their own.

    In a backward pass, where the operands are those that were saved.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: one operand may itself depend on another, and that path is not this function's.
        aliases = [operand.view_as(operand) for operand in operands]
        y = compute(*aliases)
    inputs = [alias for alias, needed in zip(aliases, wanted, strict=True) if needed]
    grads = iter(torch.autograd.grad(y, inputs, grad.to(y.dtype), create_graph=create_graph))
    return tuple(next(grads) if needed else None for needed in wanted)


def blocks(shape: Sequence[int]) -> Iterator[Block]:
    """Indices of consecutive pieces of at most as many elements as a step works on."""
    size, last = _block_size(), len(shape) - 1
    if last < 0:
        yield ()
        return
    axis = next((a for a in range(last) if math.prod(shape[a + 1 :]) <= size), last)
    step = max(1, size // max(1, math.prod(shape[axis + 1 :])))
    for outer in product(*(range(n) for n in shape[:axis])):
        for start in range(0, shape[axis], step):
            yield (*outer, slice(start, start + step))


def _block_size() -> int:
    return _BLOCK * torch.get_num_threads()


def buffers(like: Tensor, count: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Room for the largest block of a tensor, several times."""
    size = min(like.numel(), _block_size())
    return list(torch.empty(count, size, dtype=dtype or like.dtype, device=like.device).unbind())


def shaped(block: Tensor, *buffers: Tensor) -> list[Tensor]:
    """The part of each buffer that this block needs, in its shape."""
    return [buffer[: block.numel()].view(block.shape) for buffer in buffers]


def applied(function: Any, *arguments: Any) -> Tensor:
    """The tensor that an autograd function, which torch does not type, makes of its arguments."""
    y: Tensor = function.apply(*arguments)
    return y
