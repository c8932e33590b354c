"""Scale projections: from a scale map to an image."""

from collections.abc import Iterable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from equiscale._typing import Projection
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.blockwise import applied, by_blocks, transformed
from equiscale.functional.checks import check_filled
from equiscale.functional.maximum import Keep, Largest, Parts

_LAST_NUMBER = 255  # of a byte


def scale_projection(x: Tensor, mode: Projection = "max") -> Tensor:
    r"""Reduce the scale axis.

    .. math:: y_c = \max_s x_{c s}, \quad \tfrac{1}{S} \sum_s x_{c s}, \quad
        \log \sum_s e^{x_{c s}} \quad\text{or}\quad \arg\max_s x_{c s}

    Shapes:
        x: ``(B, C, S, H, W)``; result: ``(B, C, H, W)``.

    Args:
        x: The scale map.
        mode: "max", "mean", "logsumexp", or "argmax-scale" for the index of the strongest scale
            (int64, no gradient).

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: For an unknown mode.

    Exactness:
        Invariant to permutations of the scale axis, "max" bit for bit and the sums up to rounding;
        "argmax-scale" is equivariant where one scale is strongest (of equal ones it takes the first).
        A scaled image also shifts features out of and into the axis: there the result changes.

    Source:
        Sosnovik et al. 2020, section 4.3 (max).

    Example:
        >>> import torch
        >>> scale_projection(torch.tensor([1.0, 3.0]).view(1, 1, 2, 1, 1)).item()
        3.0
    """
    check_scale_map("scale_projection", x)
    if mode == "max":
        return largest(x, 2)
    if mode == "mean":
        return x.mean(2)
    if mode == "logsumexp":
        return x.logsumexp(2)
    if mode == "argmax-scale":
        return x.argmax(2)
    raise SettingError(f"expected a projection of {', '.join(get_args(Projection))}, got {mode!r}")


def largest(x: Tensor, dim: int) -> Tensor:
    """The maximum along an axis; its gradient goes to the first of equal values."""
    tracked = torch.is_grad_enabled() and (x.requires_grad or transformed(x))
    if not (by_blocks(x) and 1 < x.shape[dim] <= _LAST_NUMBER + 1):
        return x.max(dim).values if tracked else x.amax(dim)  # amax without the indices: a tenth of the time
    if not tracked:
        return fold_max(x.unbind(dim))
    return applied(Largest, x, Parts(partial(torch.unbind, dim=dim)))


def fold_max(ys: Iterable[Tensor]) -> Tensor:
    """The maximum of equally shaped tensors, which are asked for one by one and not kept.

    Its gradient goes to the first of equal values; for it one byte is kept of every element of the result.
    What is not a number stays so.

    Raises:
        SettingError: If there is no tensor, or more than 256 where a gradient is wanted.
    """
    best, number = None, 0
    index: list[Tensor] = []
    for y in ys:
        best, number = y if best is None else _larger(best, y, number, index), number + 1
        del y  # not held while the next one is made
    if best is None:
        raise SettingError("fold_max: expected at least one tensor, got none")
    return best


def _larger(best: Tensor, y: Tensor, number: int, index: list[Tensor]) -> Tensor:
    if not by_blocks(best):
        return torch.where((y > best) | y.isnan(), y, best)
    if not (torch.is_grad_enabled() and (best.requires_grad or y.requires_grad)):
        return torch.maximum(best, y, out=best if number > 1 else None)  # the first is the caller's
    if number > _LAST_NUMBER:
        raise SettingError("expected at most 256 scales for a maximum with a gradient, got more; use fewer")
    if not index:
        index.append(torch.zeros_like(best, dtype=torch.uint8))
    return applied(Keep, best, y, index[0], number)


def check_scale_map(name: str, x: Tensor) -> None:
    """Raise a ShapeError unless x has the five axes of a scale map."""
    check_filled(name, x)
    if x.ndim != 5:
        raise ShapeError(f"{name}: expected a scale map (B, C, S, H, W), got {tuple(x.shape)}")
