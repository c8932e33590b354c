"""Spatial pooling of scale maps, scale by scale."""

from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from equiscale._typing import ScaleMap
from equiscale.functional.project import check_scale_map


def scale_max_pool2d(x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> ScaleMap:
    """Maximum over windows of pixels, separately on every scale.

    Shapes:
        x: ``(B, C, S, H, W)``; result: ``(B, C, S, H', W')``, H' = (H + 2·padding − k) // stride + 1.

    Args:
        x: The scale map.
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels of −∞ added on each side, at most k / 2.

    Raises:
        ShapeError: If x is not a scale map.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> scale_max_pool2d(torch.zeros(1, 2, 3, 8, 8), 2).shape
        torch.Size([1, 2, 3, 4, 4])
    """
    check_scale_map("scale_max_pool2d", x)
    pooled = max_pool2d(x.flatten(1, 2), kernel_size, stride, padding)  # (B, C*S, H', W')
    return pooled.view(*x.shape[:3], *pooled.shape[2:])


def scale_avg_pool2d(x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> ScaleMap:
    """Mean over windows of pixels, separately on every scale; arguments as `scale_max_pool2d`.

    Shapes:
        x: ``(B, C, S, H, W)``; result: ``(B, C, S, H', W')``.

    Raises:
        ShapeError: If x is not a scale map.

    Example:
        >>> import torch
        >>> scale_avg_pool2d(torch.ones(1, 2, 3, 8, 8), 2).mean().item()
        1.0
    """
    check_scale_map("scale_avg_pool2d", x)
    pooled = avg_pool2d(x.flatten(1, 2), kernel_size, stride, padding)  # (B, C*S, H', W')
    return pooled.view(*x.shape[:3], *pooled.shape[2:])
