"""The published formulation of a network: every scale at the largest window, filters made anew each time."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad

from equiscale.functional import ConvGeometry, synthesize_filters
from equiscale.nn import LiftConv2d, ScaleProjection, SteerableConv2d


def has_published_form(network: nn.Module) -> bool:
    """Whether a network has steerable convolutions, all of the kind that the published ones are."""
    layers = [module for module in network.modules() if isinstance(module, SteerableConv2d)]
    return bool(layers) and all(_is_published(layer.geometry) for layer in layers)


def as_published(network: nn.Module) -> nn.Module:
    """A copy of a network, with the same weights, that convolves and projects as published.

    It takes no part in whatever makes the layers themselves fast: a yardstick must not move with what it
    measures.
    """
    return _replaced(deepcopy(network))


class PublishedConv2d(nn.Module):
    """A lifting or a scale convolution as the papers' equations stand, in ordinary convolutions.

    An image is convolved with the filters of all scales as one stack of output channels; a scale map, whose
    scales lie side by side as groups of channels, with one group a scale, and between two permuted copies.
    Maxima over scales and windows are taken of the whole scale map.

    Args:
        layer: Whose weights and basis are used.
    """

    def __init__(self, layer: SteerableConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result."""
        y = self._lift(x) if isinstance(self.layer, LiftConv2d) else self._convolve(x)
        if self.layer.bias is not None:
            y = y + self.layer.bias.view(1, -1, 1, 1, 1)
        geometry = self.layer.geometry
        y = y if geometry.projection is None else y.max(2).values
        pooled = y if geometry.pooling == 1 else max_pool2d(y.flatten(0, -4), geometry.pooling)
        return pooled.view(*y.shape[:-2], *pooled.shape[-2:])

    def _lift(self, x: Tensor) -> Tensor:
        filters = synthesize_filters(self.layer.weight, self.layer.basis)  # (C', C, S, K, K)
        stacked = filters.transpose(1, 2).flatten(0, 1)  # (C'*S, C, K, K)
        y = self._conv(x, stacked, 1)
        return y.view(len(x), self.layer.out_channels, len(self.layer.grid), *y.shape[2:])

    def _convolve(self, x: Tensor) -> Tensor:
        filters = synthesize_filters(self.layer.weight, self.layer.basis)  # (C', C, N, S, K, K)
        stacked = filters.permute(3, 0, 1, 2, 4, 5).flatten(0, 1)  # (S*C', C, N, K, K)
        scales, slots = len(self.layer.grid), stacked.shape[2]
        if slots > 1:
            x = pad(x, [0, 0, 0, 0, 0, slots - 1])
        y = torch.zeros((), dtype=x.dtype, device=x.device)
        for slot in range(slots):
            seen = x[:, :, slot : slot + scales].transpose(1, 2).flatten(1, 2)  # (B, S*C, H, W)
            part = self._conv(seen, stacked[:, :, slot], scales)
            y = part if slots == 1 else y + part
        return y.view(len(x), scales, self.layer.out_channels, *y.shape[2:]).transpose(1, 2).contiguous()

    def _conv(self, x: Tensor, filters: Tensor, groups: int) -> Tensor:
        geometry = self.layer.geometry
        return conv2d(x, filters, None, geometry.stride, geometry.margin(filters.shape[-1]), groups=groups)


class PublishedProjection(nn.Module):
    """The maximum over scales, as torch computes it."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, S, H, W)`` to ``(B, C, H, W)``."""
        return x.max(2).values


def _replaced(module: nn.Module) -> nn.Module:
    if isinstance(module, SteerableConv2d):
        return PublishedConv2d(module)
    if isinstance(module, ScaleProjection) and module.mode == "max":
        return PublishedProjection()
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


def _is_published(geometry: ConvGeometry) -> bool:
    return (geometry.groups, geometry.padding_mode, geometry.scale_padding) == (1, "zeros", "zeros")
