"""Patches of the image as the columns of one matrix, some rows of the result after the other."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from equiscale.functional.algorithms.blocked import Blocked, Gradients, Result
from equiscale.functional.algorithms.convolution import Convolution, result_dtype, working_dtype

# Bytes of a block's patches and results.
_BLOCK: Final = 1 << 23


class BlockedUnfolded(Blocked):
    """The algorithm of `unfolded` for an image that needs no gradient, as that of a network's first layer."""

    @classmethod
    def fits(cls, convolution: Convolution) -> bool:
        """Whether the weights alone may need a gradient, and all is of one type."""
        x, weight = convolution.x, convolution.weight
        tracked = torch.is_grad_enabled() and x.requires_grad
        uniform = weight.dtype == x.dtype == result_dtype(x) == working_dtype(x)
        return super().fits(convolution) and convolution.lifts and uniform and not tracked

    def forward(self, result: Result) -> None:
        """A product a column of the result, over patches that share their memory."""
        matrices = [self._matrix(scale) for scale in range(self.convolution.num_scales)]
        for rows in self._blocks():
            for scale, patches in self._patches(rows):
                by_group = [
                    torch.bmm(seen.mT, matrix.expand(len(seen), -1, -1))  # (W', rows·B, C' / G)
                    for seen, matrix in zip(patches, matrices[scale], strict=True)
                ]
                pixels = by_group[0] if len(by_group) == 1 else torch.cat(by_group, -1)
                result.put(
                    scale, pixels.view(len(pixels), -1, len(self.convolution.x), pixels.shape[-1]), rows
                )

    def backward(self, grad: Result, wanted: tuple[bool, bool]) -> Gradients:
        """The gradient of the filters, and from it that of the weights."""
        fan_out, fan_in = self.convolution.weight.shape[:2]
        groups = self.convolution.geometry.groups
        of_matrices = [
            grad.values.new_zeros(groups, side**2 * fan_in, fan_out // groups)
            for side in self.convolution.sides
        ]
        for rows in self._blocks():
            for scale, patches in self._patches(rows):
                by_group = grad.of(scale, rows).flatten(1, 2).chunk(len(patches), -1)
                for seen, given, of_matrix in zip(patches, by_group, of_matrices[scale], strict=True):
                    of_matrix += torch.bmm(seen, given).sum(0)
        of_weight = torch.stack([self._of_weight(scale, part) for scale, part in enumerate(of_matrices)])
        return None, of_weight.sum(0)[:, :, None]

    def _blocks(self) -> Iterator[slice]:
        convolution = self.convolution
        height, width = convolution.output_size
        patches = self._padded.shape[0] * max(convolution.sides) * self._padded.shape[-1]
        row = (patches + width * len(convolution.weight)) * len(convolution.x) * self._padded.element_size()
        side = convolution.geometry.pooling
        step = max(1, _BLOCK // max(1, row * side)) * side
        for start in range(0, height // side * side, step):
            yield slice(start, min(start + step, height))

    @cached_property
    def _padded(self) -> Tensor:
        """With the zeros that the largest window sees: (W, H, B, C)."""
        margin = self.convolution.margin(max(self.convolution.sides))
        return pad(self.images[0], [0, 0, 0, 0, *[margin] * 4])

    def _patches(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """For every scale all that it sees from some rows of the result: (G, W', k·k·C / G, rows·B)."""
        largest, last = max(self.convolution.sides), 0
        for scale, window in enumerate(self.convolution.sides):
            if window != last:
                unseen = (largest - window) // 2
                kept = slice(unseen, -unseen or None)
                patches, last = self._unfolded(self._padded[kept, kept], window, rows), window
            yield scale, patches

    def _unfolded(self, x: Tensor, window: int, rows: slice) -> Tensor:
        """Unfolded in memory along the rows alone; along the columns patches overlap."""
        geometry = self.convolution.geometry
        by_group = x.reshape(*x.shape[:3], geometry.groups, -1).permute(3, 0, 4, 1, 2)  # (G, W, C / G, H, B)
        seen = by_group.unfold(3, window, geometry.stride)[:, :, :, rows]
        seen = seen.permute(0, 1, 5, 2, 3, 4).flatten(2, 3).flatten(3).contiguous()  # (G, W, k·C / G, rows·B)
        columns: Tensor = seen.unfold(1, window, geometry.stride)  # (G, W', k·C / G, rows·B, k)
        return columns.permute(0, 1, 4, 2, 3).flatten(2, 3)

    def _matrix(self, scale: int) -> Tensor:
        """The filters of one scale, columns first as in the patches: (G, k·k·C / G, C' / G)."""
        convolution = self.convolution if self.keeps else replace(self.convolution, cache=None)
        filters = convolution.filters(scale)
        by_group = filters.view(convolution.geometry.groups, -1, *filters.shape[1:])
        return by_group.permute(0, 4, 3, 2, 1).flatten(1, 3)

    def _of_weight(self, scale: int, of_matrix: Tensor) -> Tensor:
        """The gradient of `_matrix` as that of the weights: (C', C / G, F)."""
        window, fan_in = self.convolution.sides[scale], self.convolution.weight.shape[1]
        by_group = of_matrix.view(len(of_matrix), window, window, fan_in, -1)
        of_filters = by_group.permute(0, 4, 3, 2, 1).flatten(0, 1)  # (C', C / G, k, k)
        return of_filters.flatten(2) @ self.convolution.window_basis(scale).flatten(1).T
