"""Filters that lie on a coarser grid of pixels, without the zeros between: for integer scales."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed
from equiscale.functional.blockwise import is_eager
from equiscale.functional.filters import synthesize_filters


def dilated(convolution: Convolution) -> Iterator[Image]:
    """One ordinary convolution a scale, dilated where its functions are."""
    geometry = convolution.geometry
    for scale, (window, step) in enumerate(zip(convolution.sides, dilations(convolution), strict=True)):
        on_grid = window // 2 // step * step * 2 + 1
        x, margin = framed(convolution.seen(scale), convolution.margin(on_grid), geometry)
        filters = _filters(convolution, scale, step)
        yield conv2d(x, filters, convolution.bias, geometry.stride, margin, step, geometry.groups)


def dilations(convolution: Convolution) -> tuple[int, ...]:
    """Of every scale the largest step of a grid through the centre that holds all its functions; or 1.

    A gradient of the basis is wanted off the grid too, and a trace must not depend on values: there 1.
    """
    basis = convolution.basis
    plain = is_eager(convolution.x) and not convolution.transformed and type(basis) is Tensor
    if not plain or (torch.is_grad_enabled() and basis.requires_grad):
        return (1,) * convolution.num_scales

    def build() -> Tensor:
        windows = (convolution.window_basis(scale) for scale in range(convolution.num_scales))
        return torch.tensor([_dilation((window != 0).any(0)) for window in windows])

    return tuple(convolution.kept_of_basis(("dilations", convolution.sides), build).tolist())


def _dilation(occupied: Tensor) -> int:
    center = occupied.shape[-1] // 2
    offsets = (occupied.nonzero() - center).flatten().tolist()
    # Where nothing but the centre is occupied, every step holds it: the window then is a pixel.
    return math.gcd(*offsets) or center + 1


def _filters(convolution: Convolution, scale: int, step: int) -> Tensor:
    """The filters of one scale on their grid, the slots behind the channels: (C', C·n, k, k)."""
    count = len(convolution.slots(scale))
    first = convolution.sides[scale] // 2 % step

    def build() -> Tensor:
        functions = convolution.window_basis(scale)[:, None, first::step, first::step]
        return synthesize_filters(convolution.weight[:, :, :count], functions).squeeze(-3).flatten(1, 2)

    return convolution.kept(("dilated filters", scale, convolution.sides[scale], step), build)
