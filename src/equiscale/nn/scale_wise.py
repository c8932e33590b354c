"""Any module of images, applied to a scale map scale by scale."""

from typing import Any

from torch import Tensor, nn

from equiscale._typing import ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.project import check_scale_map


class ScaleWise(nn.Module):
    r"""Apply a module of images to every scale of a scale map, with the same weights.

    .. math:: y_s = \Phi(x_s)

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``, where the module maps images
        ``(B, C, H, W)`` to images ``(B, C', H', W')``.

    Args:
        module: Φ.

    Raises:
        ShapeError: From the forward pass, if the input is not a scale map or the module does not give
            images.

    Exactness:
        Commutes with shifts along the scale axis, bit for bit. It is scale-equivariant as far as the
        module is, at each scale by itself: pooling and upsampling are up to sampling; a convolution with
        more than one pixel is not (``tests/nn/test_scale_wise.py``).

    Example:
        >>> import torch
        >>> ScaleWise(nn.Upsample(scale_factor=2))(torch.zeros(2, 3, 4, 5, 5)).shape
        torch.Size([2, 3, 4, 10, 10])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not callable(module):
            raise SettingError(f"expected a module of images, got {module!r}")
        self.module = module

    def forward(self, x: Tensor, *args: Any, **options: Any) -> ScaleMap:
        """Map ``(B, C, S, H, W)`` to ``(B, C', S, H', W')``; what else is given, the module is given."""
        check_scale_map("ScaleWise", x)
        images = x.transpose(1, 2).flatten(0, 1)  # (B*S, C, H, W)
        y = self.module(images, *args, **options)
        if not isinstance(y, Tensor) or y.ndim != 4 or y.shape[0] != images.shape[0]:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(
                f"ScaleWise: expected {type(self.module).__name__} to map images (B, C, H, W) to images, got "
                f"{got} from {tuple(images.shape)}; project the scale map first"
            )
        return y.reshape(x.shape[0], x.shape[2], *y.shape[1:]).transpose(1, 2)  # (B, C', S, H', W')
