"""Patches of the image as the columns of one matrix: for few input channels."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed


def unfolded(convolution: Convolution) -> Iterator[Image]:
    """One matrix product a column of the result, over patches that share their memory."""
    patches: dict[tuple[int, ...], Tensor] = {}
    for scale, window in enumerate(convolution.sides):
        seen = (window,) if convolution.lifts else (window, scale)
        if seen not in patches:
            patches = {seen: _patches(convolution, scale, window)}  # of one window at a time
        yield _product(patches[seen], convolution.filters(scale), convolution)


def _patches(convolution: Convolution, scale: int, window: int) -> Tensor:
    """Every pixel that the filters see from a column of the result: (G, W', k·k·C, H'·B).

    Unfolded in memory along the rows alone; along the columns patches overlap.
    """
    geometry = convolution.geometry
    x, margin = framed(convolution.seen(scale), convolution.margin(window), geometry)
    x = pad(x, [margin] * 4) if margin else x
    batch, channels, stride = x.shape[0], x.shape[1] // geometry.groups, geometry.stride
    rows = x.reshape(batch, geometry.groups, channels, *x.shape[2:]).permute(1, 4, 2, 3, 0)  # (G, W, C, H, B)
    rows = rows.unfold(3, window, stride).permute(0, 1, 5, 2, 3, 4)  # (G, W, k, C, H', B)
    rows = rows.reshape(geometry.groups, x.shape[-1], window * channels, -1, batch).flatten(3)
    columns: Tensor = rows.unfold(1, window, stride)  # (G, W', k·C, H'·B, k)
    return columns.permute(0, 1, 4, 2, 3).flatten(2, 3)


def _product(patches: Tensor, filters: Tensor, convolution: Convolution) -> Image:
    groups, width = patches.shape[:2]
    height, batch = convolution.output_size[0], convolution.x.shape[0]
    parts = []
    for group, kernels in enumerate(filters.chunk(groups)):
        matrix = kernels.permute(3, 2, 1, 0).flatten(0, 2)  # (k·k·C, C'/G), columns first as in the patches
        parts.append(torch.bmm(patches[group].mT, matrix.expand(width, -1, -1)))
    y = parts[0] if groups == 1 else torch.cat(parts, -1)
    if convolution.bias is not None:
        y = y + convolution.bias.to(y.dtype)
    return y.view(width, height, batch, -1).permute(2, 3, 1, 0)
