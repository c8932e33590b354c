"""Dropout that respects the scale axis."""

import torch
from torch import Tensor

from equiscale._typing import ScaleMap
from equiscale.errors import SettingError
from equiscale.functional.project import check_scale_map


def scale_dropout2d(
    x: Tensor, p: float = 0.5, *, training: bool = True, generator: torch.Generator | None = None
) -> ScaleMap:
    r"""Drop whole channels, on all scales and pixels together.

    .. math:: y_{b c} = \tfrac{m_{b c}}{1 - p} \, x_{b c}, \quad m \sim \text{Bernoulli}(1 - p)

    Shapes:
        x: ``(B, C, S, H, W)``; result: the same.

    Args:
        x: The scale map.
        p: The probability of dropping a channel.
        training: False: the identity.
        generator: Source of randomness on x's device; None: torch's default, as in torch.nn.

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: If p is not in [0, 1).

    Exactness:
        For a given mask it commutes with scaling and with shifts along the scale axis.

    Example:
        >>> scale_dropout2d(torch.ones(1, 2, 3, 4, 4), 0.5, training=False).sum().item()
        96.0
    """
    return _drop(x, p, axes=(0, 1), generator=generator) if _active("scale_dropout2d", x, p, training) else x


def scale_channel_dropout(
    x: Tensor, p: float = 0.5, *, training: bool = True, generator: torch.Generator | None = None
) -> ScaleMap:
    r"""Drop whole scales, for all channels and pixels together.

    .. math:: y_{b s} = \tfrac{m_{b s}}{1 - p} \, x_{b s}, \quad m \sim \text{Bernoulli}(1 - p)

    Shapes:
        x: ``(B, C, S, H, W)``; result: the same.

    Args:
        x: The scale map.
        p: The probability of dropping a scale.
        training: False: the identity.
        generator: Source of randomness on x's device; None: torch's default, as in torch.nn.

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: If p is not in [0, 1).

    Source:
        Jansson, Lindeberg, *Scale-invariant scale-channel networks*, 2021.

    Example:
        >>> scale_channel_dropout(torch.ones(1, 2, 3, 4, 4), 0.5, training=False).sum().item()
        96.0
    """
    active = _active("scale_channel_dropout", x, p, training)
    return _drop(x, p, axes=(0, 2), generator=generator) if active else x


def _active(name: str, x: Tensor, p: float, training: bool) -> bool:
    check_scale_map(name, x)
    if not 0 <= p < 1:
        raise SettingError(f"{name}: expected a probability p with 0 <= p < 1, got {p}")
    return training and p > 0


def _drop(x: Tensor, p: float, *, axes: tuple[int, int], generator: torch.Generator | None) -> ScaleMap:
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - p, generator=generator)
    return x * (kept / (1 - p))
