"""A whole convolution in blocks, with a gradient of its own.

Between the operands and the result only one block is held at a time, but for the transforms of an image that
several scales see. The backward pass keeps the operands and, of a maximum, a byte an element: what else it
needs is made again, block by block.
All images lie in memory as ``(W, H, B, C)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from equiscale.functional.algorithms.convolution import Convolution, result_dtype, working_dtype
from equiscale.functional.blockwise import applied, by_blocks, derived, is_batched
from equiscale.functional.maximum import choose, keep_larger

_ALL: Final = slice(None)

_MOST_CANDIDATES: Final = 256  # numbers of a byte

Gradients: TypeAlias = tuple[Tensor | None, Tensor | None]  # of x and of the weights


@dataclass(frozen=True)
class Blocked(ABC):
    """One algorithm in blocks.

    Args:
        convolution: What to compute; a bias is not added.
        keeps: Whether filters may be kept until the weights change.
    """

    convolution: Convolution
    keeps: bool

    @classmethod
    def fits(cls, convolution: Convolution) -> bool:
        """Whether this algorithm computes such a convolution in blocks.

        Here: whether nothing but values and gradients of x and of the weights are asked for, on a CPU, and
        nothing but zeros lie around the image.
        """
        x, weight = convolution.x, convolution.weight
        plain = all(type(operand) in (Tensor, torch.nn.Parameter) for operand in (x, weight))
        framed = (
            convolution.geometry.padding_mode != "zeros" or convolution.margin(min(convolution.sides)) < 0
        )
        wants_basis = torch.is_grad_enabled() and convolution.basis.requires_grad
        possible = plain and by_blocks(x) and _candidates(convolution) <= _MOST_CANDIDATES
        return possible and not (framed or wants_basis or convolution.transformed)

    @cached_property
    def images(self) -> Tensor:
        """The image, or those of all scales: (1 or S, W, H, B, C)."""
        x = self.convolution.x
        return to_memory(x.detach().to(working_dtype(x))).contiguous()

    @abstractmethod
    def forward(self, result: "Result") -> None:
        """Put the pixels of every scale into the result."""

    @abstractmethod
    def backward(self, grad: "Result", wanted: tuple[bool, bool]) -> Gradients:
        """What is wanted of the gradients: of x as `images`, and of the weights."""


class Result:
    """A result that is put together, with its maxima over scales and windows taken in passing; or a gradient.

    Args:
        convolution: Whose result it is.
        values: ``(S, W', H', B, C')``, or ``(1, W', H', B, C')`` of a maximum over scales.
        index: Of maxima which of their values it was, or None if no gradient asks for it.
    """

    def __init__(self, convolution: Convolution, values: Tensor, index: Tensor | None) -> None:
        self.values, self.index = values, index
        self._dtype = working_dtype(convolution.x)
        self._geometry, self._size = convolution.geometry, convolution.output_size
        self._buffer: Tensor | None = None

    @classmethod
    def empty(cls, convolution: Convolution, *, tracked: bool) -> "Result":
        """Memory for a result, with the index of its maxima if its gradient will be asked for."""
        geometry, x = convolution.geometry, convolution.x
        height, width = (side // geometry.pooling for side in convolution.output_size)
        scales = convolution.num_scales if geometry.projection is None else 1
        size = scales, width, height, x.shape[0], convolution.weight.shape[0]
        index = x.new_zeros(size, dtype=torch.uint8) if tracked and _candidates(convolution) > 1 else None
        return cls(convolution, x.new_empty(size, dtype=result_dtype(x)), index)

    def room(self, scale: int) -> Tensor:
        """Memory for the pixels of one scale, (W', H', B, C'), until the next asks for it."""
        if self.values.dtype == self._dtype and self._geometry.pooling == 1 and scale < len(self.values):
            return self.values[scale]
        if self._buffer is None:
            height, width = self._size
            size = width, height, *self.values.shape[3:]
            self._buffer = torch.empty(size, dtype=self._dtype)
        return self._buffer

    def put(self, scale: int, pixels: Tensor, rows: slice = _ALL) -> None:
        """Take pixels of one scale; the scales of a maximum come one after the other."""
        here, index = self._at(scale, rows)
        for number, part in self._candidates(scale, pixels):
            if number == 0:
                if part.data_ptr() != here.data_ptr():
                    here.copy_(part)
            elif index is None:
                torch.maximum(here, part.to(here.dtype), out=here)
            else:
                keep_larger(here, part.to(here.dtype), index, number)

    def of(self, scale: int, rows: slice = _ALL) -> Tensor:
        """Of a gradient, what the pixels of one scale get: (W', H', B, C'), contiguous."""
        given, index = self._at(scale, rows)
        if index is None:
            return given.to(self._dtype).contiguous()
        height, width = self._size
        size = width, len(range(height)[rows]), *given.shape[2:]
        covered = all(side % self._geometry.pooling == 0 for side in size[:2])
        spread = (torch.empty if covered else torch.zeros)(size, dtype=given.dtype)
        choose(given, index, dict(self._candidates(scale, spread)))
        return spread.to(self._dtype)

    def _at(self, scale: int, rows: slice) -> tuple[Tensor, Tensor | None]:
        """The values, and their index, that some rows of one scale's pixels belong to."""
        place, side = min(scale, len(self.values) - 1), self._geometry.pooling
        pooled = rows if rows == _ALL else slice(rows.start // side, rows.stop // side)
        return self.values[place][:, pooled], None if self.index is None else self.index[place][:, pooled]

    def _candidates(self, scale: int, pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The pixels at each place of their windows, with the number that they have in the index."""
        side = self._geometry.pooling
        width, height = (size // side * side for size in pixels.shape[:2])
        first = 0 if self._geometry.projection is None else scale * side**2
        for place, (row, column) in enumerate(product(range(side), repeat=2)):
            yield first + place, pixels[column:width:side, row:height:side]


def _candidates(convolution: Convolution) -> int:
    """How many values there are to choose from in a maximum."""
    scales = 1 if convolution.geometry.projection is None else convolution.num_scales
    return scales * convolution.geometry.pooling**2


def to_memory(x: Tensor) -> Tensor:
    """An image (B, C, H, W) or a scale map (B, C, S, H, W) as (1 or S, W, H, B, C)."""
    return x.permute(3, 2, 0, 1)[None] if x.ndim == 4 else x.permute(2, 4, 3, 0, 1)


def from_memory(x: Tensor, ndim: int) -> Tensor:
    """The image or scale map."""
    return x.squeeze(0).permute(2, 3, 1, 0) if ndim == 4 else x.permute(3, 4, 0, 2, 1)


def in_blocks(
    convolution: Convolution, algorithm: type[Blocked], composed: Callable[[Convolution], Tensor]
) -> Tensor:
    """The whole convolution.

    Args:
        convolution: Operands that the algorithm fits.
        algorithm: How to compute it.
        composed: The same result of operations that can be differentiated any number of times.
    """
    x, weight, bias = convolution.x, convolution.weight, convolution.bias
    convolution = replace(convolution, bias=None)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        values = applied(_Whole, x, weight, convolution, algorithm, composed)
    else:
        values = _forward(algorithm(convolution, keeps=True), Result.empty(convolution, tracked=False))
    if bias is not None:
        values.add_(bias.to(values.dtype))  # the same on every scale
    return from_memory(values, 5 if convolution.geometry.projection is None else 4)


def _forward(blocked: Blocked, result: Result) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        blocked.forward(result)
    return result.values


class _Whole(torch.autograd.Function):
    """From an image or scale map and the weights to the values of a `Result`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        convolution: Convolution,
        algorithm: type[Blocked],
        composed: Callable[[Convolution], Tensor],
    ) -> Tensor:
        result = Result.empty(convolution, tracked=True)
        values = _forward(algorithm(convolution, keeps=False), result)
        ctx.save_for_backward(x, weight, convolution.basis, result.index)
        none = x.new_empty(0)  # in place of what is saved, which can be freed
        ctx.how = replace(convolution, x=none, weight=none, basis=none), algorithm, composed
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, basis, index = ctx.saved_tensors
        bare, algorithm, composed = ctx.how
        convolution = replace(bare, x=x, weight=weight, basis=basis)
        wanted = ctx.needs_input_grad[:2]

        def compute(x: Tensor, weight: Tensor) -> Tensor:
            return to_memory(composed(replace(convolution, x=x, weight=weight)))

        with torch.autocast("cpu", enabled=False):  # where the caller's reaches around backward
            if torch.is_grad_enabled() or is_batched(grad):  # the gradient's own gradient is wanted, or many
                return *derived((x, weight), compute, grad, wanted), None, None, None
            of_x, of_weight = algorithm(convolution, keeps=False).backward(
                Result(convolution, grad, index), wanted
            )
        of_x = None if of_x is None else from_memory(of_x, x.ndim).to(x.dtype)
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        return of_x, of_weight, None, None, None
