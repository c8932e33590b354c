"""The published formulation: all scales at the largest window, in one grouped convolution."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed
from equiscale.functional.filters import synthesize_filters


def dense(convolution: Convolution) -> Iterator[Image]:
    """One convolution for an image; for a scale map a grouped one, between two permuted copies."""
    maps = _lift(convolution) if convolution.lifts else _convolve(convolution)
    if convolution.bias is not None:
        maps = maps + convolution.bias.view(1, -1, 1, 1, 1).to(maps.dtype)
    return iter(maps.unbind(2))


def _lift(convolution: Convolution) -> Tensor:
    geometry, weight = convolution.geometry, convolution.weight[:, :, 0]
    filters = synthesize_filters(weight, convolution.basis)  # (C', C, S, K, K)
    stacked = filters.transpose(1, 2).flatten(0, 1)  # (C'·S, C, K, K)
    x, margin = framed(convolution.x, convolution.margin(convolution.kernel_size), geometry)
    y = conv2d(x, stacked, None, geometry.stride, margin, groups=geometry.groups)
    return y.view(len(x), len(weight), convolution.num_scales, *y.shape[2:])


def _convolve(convolution: Convolution) -> Tensor:
    geometry, weight, scales = convolution.geometry, convolution.weight, convolution.num_scales
    filters = synthesize_filters(weight, convolution.basis)  # (C', C, N, S, K, K)
    stacked = filters.movedim(3, 0).flatten(2, 3).flatten(0, 1)  # (S·C', C·N, K, K)
    seen = _neighbours(convolution).permute(0, 3, 1, 2, 4, 5).flatten(1, 3)  # (B, S·C·N, H, W)
    x, margin = framed(seen, convolution.margin(convolution.kernel_size), geometry)
    y = conv2d(x, stacked, None, geometry.stride, margin, groups=scales * geometry.groups)
    return y.view(len(x), scales, len(weight), *y.shape[2:]).transpose(1, 2).contiguous()


def _neighbours(convolution: Convolution) -> Tensor:
    """The scales that every scale sees, zeros beyond the largest: (B, C, N, S, H, W)."""
    x, above = convolution.x, convolution.weight.shape[2] - 1
    if convolution.geometry.scale_padding == "replicate":
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, above, -1, -1)], 2)
    else:
        x = pad(x, [0, 0, 0, 0, 0, above])
    return torch.stack([x[:, :, slot : slot + convolution.num_scales] for slot in range(above + 1)], 2)
