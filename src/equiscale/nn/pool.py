"""Spatial pooling of scale maps, scale by scale, and of images."""

from typing import ClassVar, Protocol

from torch import Tensor, nn

from equiscale._typing import Image, ScaleMap
from equiscale.functional import image_max_pool2d, scale_avg_pool2d, scale_max_pool2d
from equiscale.functional.pool import check_window


class _Pooling(Protocol):
    def __call__(self, x: Tensor, kernel_size: int, *, stride: int | None, padding: int) -> ScaleMap: ...


class _ScalePool2d(nn.Module):
    pooling: ClassVar[_Pooling]

    def __init__(self, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        check_window(kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> ScaleMap:
        """Pool every scale of ``(B, C, S, H, W)``."""
        return type(self).pooling(x, self.kernel_size, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """Kernel, stride and padding."""
        return f"{self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class ScaleMaxPool2d(_ScalePool2d):
    """Maximum over windows of pixels on every scale; see `functional.scale_max_pool2d`.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C, S, H', W')``, H' = (H + 2·padding − k) // stride + 1.

    Args:
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels of −∞ added on each side, at most k / 2.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ScaleMaxPool2d(2)(torch.ones(2, 3, 4, 8, 8)).shape
        torch.Size([2, 3, 4, 4, 4])
    """

    pooling = staticmethod(scale_max_pool2d)


class ScaleAvgPool2d(_ScalePool2d):
    """Mean over windows of pixels on every scale; arguments as `ScaleMaxPool2d`, padding is zeros.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C, S, H', W')``.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ScaleAvgPool2d(2)(torch.ones(2, 3, 4, 8, 8)).shape
        torch.Size([2, 3, 4, 4, 4])
    """

    pooling = staticmethod(scale_avg_pool2d)


class ImageMaxPool2d(nn.MaxPool2d):
    """torch's maximum over windows of pixels, fast however the axes lie in memory.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C, H', W')``, H' = (H + 2·padding − k) // stride + 1.

    Args:
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels of −∞ added on each side, at most k / 2.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not an image.

    Exactness:
        Commutes with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ImageMaxPool2d(2)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 3, 4, 4])
    """

    kernel_size: int
    stride: int
    padding: int

    def __init__(self, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> None:
        check_window(kernel_size, stride, padding)
        super().__init__(kernel_size, stride, padding)

    def forward(self, input: Tensor) -> Image:
        """Pool ``(B, C, H, W)``."""
        return image_max_pool2d(input, self.kernel_size, stride=self.stride, padding=self.padding)
