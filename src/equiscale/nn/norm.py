"""Batch norm of scale maps and of images, fast however they lie in memory."""

from torch import Tensor, nn

from equiscale._typing import Image, ScaleMap
from equiscale.errors import ShapeError
from equiscale.functional.blockwise import is_eager
from equiscale.functional.memory_order import channels_view, is_usual
from equiscale.nn.sync_norm import SharesStatistics, normalized


class ScaleBatchNorm2d(SharesStatistics, nn.BatchNorm3d):
    r"""Batch norm with one mean and variance a channel, shared by all scales and pixels.

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Shapes:
        input and output ``(B, C, S, H, W)``.

    Args:
        num_features: C.
        eps: ε.
        momentum: Weight of the new statistics in the running ones.

    Raises:
        ShapeError: From the forward pass, if the input is not a scale map of C channels.

    Exactness:
        Commutes with shifts along the scale axis in evaluation; in training the statistics of the
        batch depend on what the axis holds.

    Source:
        Sosnovik et al. 2020 (their networks use BatchNorm3d); state dict keys are the same.

    Example:
        >>> import torch
        >>> ScaleBatchNorm2d(3)(torch.randn(2, 3, 4, 5, 5)).shape
        torch.Size([2, 3, 4, 5, 5])
    """

    def forward(self, input: Tensor) -> ScaleMap:
        """Normalise ``(B, C, S, H, W)``; in training by the statistics of the batch."""
        self._check_input_dim(input)
        return _by_channels(self, input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 5 or input.shape[1] != self.num_features:
            raise ShapeError(
                f"ScaleBatchNorm2d: expected a scale map (B, {self.num_features}, S, H, W), "
                f"got {tuple(input.shape)}"
            )


class ImageBatchNorm2d(SharesStatistics, nn.BatchNorm2d):
    r"""torch's batch norm of images, as fast however the axes lie in memory.

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Shapes:
        input and output ``(B, C, H, W)``.

    Args:
        num_features: C.
        eps: ε.
        momentum: Weight of the new statistics in the running ones.

    Raises:
        ShapeError: From the forward pass, if the input is not an image of C channels.

    Exactness:
        Commutes with permutations of the pixels, in training up to rounding.

    Source:
        Ioffe, Szegedy 2015, as in torch.nn; state dict keys are the same.

    Example:
        >>> import torch
        >>> ImageBatchNorm2d(3)(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 3, 5, 5])
    """

    def forward(self, input: Tensor) -> Image:
        """Normalise ``(B, C, H, W)``; in training by the statistics of the batch."""
        self._check_input_dim(input)
        return _by_channels(self, input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 4 or input.shape[1] != self.num_features:
            raise ShapeError(
                f"ImageBatchNorm2d: expected an image (B, {self.num_features}, H, W), "
                f"got {tuple(input.shape)}"
            )


def _by_channels(layer: nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor) -> Tensor:
    """Apply batch norm to x in an order that torch knows: it would copy others, and lose the order."""
    seen = None if not is_eager(x) or is_usual(x) else channels_view(x)
    if seen is None:
        return normalized(layer, x)
    view, restore = seen
    return restore(normalized(layer, view))
