"""Spatial pooling of scale maps, scale by scale."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from equiscale._typing import Image, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.blockwise import applied, by_blocks
from equiscale.functional.checks import check_filled, is_whole
from equiscale.functional.maximum import Largest, Parts
from equiscale.functional.memory_order import laid_as, planes_view
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
        ShapeError: If x is not a scale map, or smaller with its padding than the window.
        SettingError: If kernel_size, stride or padding are illegal.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> scale_max_pool2d(torch.zeros(1, 2, 3, 8, 8), 2).shape
        torch.Size([1, 2, 3, 4, 4])
    """
    check_scale_map("scale_max_pool2d", x)
    check_pooling("scale_max_pool2d", x, kernel_size, stride, padding)
    return _max_pool(x, kernel_size, stride or kernel_size, padding)


def image_max_pool2d(x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> Image:
    """Maximum over windows of pixels of an image; arguments as `scale_max_pool2d`.

    Shapes:
        x: ``(B, C, H, W)``; result: ``(B, C, H', W')``.

    Raises:
        ShapeError: If x is not an image, or smaller with its padding than the window.
        SettingError: If kernel_size, stride or padding are illegal.

    Example:
        >>> import torch
        >>> image_max_pool2d(torch.zeros(1, 2, 8, 8), 2).shape
        torch.Size([1, 2, 4, 4])
    """
    check_filled("image_max_pool2d", x)
    if x.ndim != 4:
        raise ShapeError(f"image_max_pool2d: expected an image (B, C, H, W), got {tuple(x.shape)}")
    check_pooling("image_max_pool2d", x, kernel_size, stride, padding)
    return _max_pool(x, kernel_size, stride or kernel_size, padding)


def scale_avg_pool2d(x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> ScaleMap:
    """Mean over windows of pixels, separately on every scale; arguments as `scale_max_pool2d`.

    Shapes:
        x: ``(B, C, S, H, W)``; result: ``(B, C, S, H', W')``.

    Raises:
        ShapeError: If x is not a scale map, or smaller with its padding than the window.
        SettingError: If kernel_size, stride or padding are illegal.

    Example:
        >>> import torch
        >>> scale_avg_pool2d(torch.ones(1, 2, 3, 8, 8), 2).mean().item()
        1.0
    """
    check_scale_map("scale_avg_pool2d", x)
    check_pooling("scale_avg_pool2d", x, kernel_size, stride, padding)
    seen = planes_view(x) if by_blocks(x) and not x.is_contiguous() else None
    if seen is not None:
        view, restore = seen
        return restore(avg_pool2d(view, kernel_size, stride, padding))
    pooled = avg_pool2d(x.flatten(1, 2), kernel_size, stride, padding)  # (B, C*S, H', W')
    return pooled.view(*x.shape[:3], *pooled.shape[2:])


def check_pooling(name: str, x: Tensor, kernel_size: int, stride: int | None, padding: int) -> None:
    """Raise a SettingError for an illegal window, a ShapeError for one that does not fit the pixels."""
    check_window(kernel_size, stride, padding, f"{name}: ")
    if min(x.shape[-2:]) + 2 * padding < kernel_size:
        raise ShapeError(
            f"{name}: expected a padded input of at least the window's {kernel_size} pixels, got "
            f"{tuple(x.shape[-2:])} with padding {padding}; use a smaller window"
        )


def check_window(kernel_size: int, stride: int | None, padding: int, prefix: str = "") -> None:
    """Raise a SettingError unless a pooling has legal sizes; the message begins with ``prefix``."""
    if not is_whole(kernel_size) or not (stride is None or is_whole(stride)):
        raise SettingError(
            f"{prefix}expected kernel_size and stride of at least 1, got {kernel_size!r} and {stride!r}"
        )
    if not (is_whole(padding, 0) and padding <= kernel_size // 2):
        raise SettingError(
            f"{prefix}expected a padding of 0 to {kernel_size // 2}, half the kernel, got {padding!r}"
        )


# Fewer channels than fill a vector are not worth a copy with the channels last.
_CHANNELS_OF_A_VECTOR = 16


def _max_pool(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """The maximum of windows along the last two axes, by the fastest way for how x lies in memory."""
    window = (kernel_size, stride, padding)
    tracked = torch.is_grad_enabled() and x.requires_grad
    if not by_blocks(x):
        return _plainly(x, window)
    if window == (2, 2, 0):
        if not tracked:
            return _halve(x)
        if not _channels_last(x):
            return _halve_tracked(x)
    if not tracked or x.shape[1] < _CHANNELS_OF_A_VECTOR:
        return _plainly(x, window)
    if x.is_contiguous() and stride >= kernel_size:
        y = applied(PooledMaximum, x.flatten(0, -4), window)
        return y.view(*x.shape[:-2], *y.shape[-2:])
    last = x.movedim(1, -1).contiguous()  # (B, …, H, W, C)
    y = applied(PooledMaximum, last.flatten(0, -4).movedim(-1, 1), window).movedim(1, -1)
    return laid_as(x, y.reshape(*last.shape[:-3], *y.shape[-3:]).movedim(-1, 1))


def _plainly(x: Tensor, window: tuple[int, int, int]) -> Tensor:
    pooled = max_pool2d(x.flatten(0, -4), *window)
    return pooled.view(*x.shape[:-2], *pooled.shape[-2:])


def _channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous() and x.shape[1] >= _CHANNELS_OF_A_VECTOR


class PooledMaximum(torch.autograd.Function):
    """torch's own maximum over windows, which is fast with the channels last, without keeping its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int, int]) -> Tensor:
        y: Tensor
        y, index = torch.ops.aten.max_pool2d_with_indices(x, *([size, size] for size in window))
        ctx.save_for_backward(index)
        ctx.window, ctx.like = window, torch.empty_like(x, device="meta")
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        sizes = ([size, size] for size in ctx.window)
        unread = torch.empty_like(ctx.like, device=grad.device)  # asked for its shape and order alone
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        spread: Tensor = backward(grad, unread, *sizes, [1, 1], False, index)
        return spread, None


def _halve_tracked(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return applied(Largest, x, Parts(_quarters, cover=height % 2 == width % 2 == 0))


def _quarters(x: Tensor) -> list[Tensor]:
    """The four pixels of all 2×2 windows, each a tensor of half the height and width."""
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    return [x[..., row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]


def _halve(x: Tensor) -> Tensor:
    """Maxima of 2×2 pixels, an eighth of the time of torch's own pooling, which keeps indices."""
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    rows = torch.maximum(x[..., :height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])
