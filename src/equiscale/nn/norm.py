"""Batch norm of scale maps and of images, fast however they lie in memory."""

from typing import Any

from torch import Tensor, nn

from equiscale._typing import Image, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.blockwise import is_eager
from equiscale.functional.checks import check_filled, check_norm_settings, is_whole
from equiscale.functional.memory_order import channels_view, is_usual
from equiscale.nn.sync_norm import SharesStatistics, normalized


class CheckedNorm(SharesStatistics):
    """Stands before one of torch's batch norms, and refuses what that takes or stumbles over.

    Args:
        num_features: C.
        eps: ε.
        momentum: Weight of the new statistics in the running ones; None: all batches count the same.
        *args: What else torch's batch norm takes, in its order.
        **options: The same by name.

    Raises:
        SettingError: For an illegal setting.
    """

    num_features: int
    training: bool
    running_mean: Tensor | None

    # Not by name alone, and not listed: what is written for torch's own runs, and newer versions take more.
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *args: Any, **options: Any
    ) -> None:
        if not is_whole(num_features):
            raise SettingError(f"expected num_features of at least 1, got {num_features!r}")
        check_norm_settings(eps, momentum)
        super().__init__(num_features, eps, momentum, *args, **options)  # type: ignore[call-arg]

    def check_values(self, x: Tensor) -> None:
        """Raise a ShapeError where one value a channel is all that a variance would be taken of."""
        of_batch = self.training or self.running_mean is None
        shared = self.training and self.process_group is not None  # only all together know how many there are
        if of_batch and not shared and x.numel() == self.num_features:
            raise ShapeError(
                f"{type(self).__name__}: expected more than one value a channel in training, "
                f"got {tuple(x.shape)}; a variance needs two, use larger batches or eval()"
            )


class ScaleBatchNorm2d(CheckedNorm, nn.BatchNorm3d):
    r"""Batch norm with one mean and variance a channel, shared by all scales and pixels.

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Shapes:
        input and output ``(B, C, S, H, W)``.

    Args:
        num_features: C.
        eps: ε.
        momentum: Weight of the new statistics in the running ones; None: all batches count the same.
        *args: What else torch's batch norm takes, in its order: ``affine``, ``track_running_stats``, …
        **options: The same by name.

    Raises:
        SettingError: For an illegal setting.
        ShapeError: From the forward pass, if the input is not a scale map of C channels, or its statistics
            would be those of one value a channel.

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
        check_filled("ScaleBatchNorm2d", input)
        self._check_input_dim(input)
        self.check_values(input)
        return _by_channels(self, input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 5 or input.shape[1] != self.num_features:
            raise ShapeError(
                f"ScaleBatchNorm2d: expected a scale map (B, {self.num_features}, S, H, W), "
                f"got {tuple(input.shape)}"
            )


class ImageBatchNorm2d(CheckedNorm, nn.BatchNorm2d):
    r"""torch's batch norm of images, as fast however the axes lie in memory.

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Shapes:
        input and output ``(B, C, H, W)``.

    Args:
        num_features: C.
        eps: ε.
        momentum: Weight of the new statistics in the running ones; None: all batches count the same.
        *args: What else torch's batch norm takes, in its order: ``affine``, ``track_running_stats``, …
        **options: The same by name.

    Raises:
        SettingError: For an illegal setting.
        ShapeError: From the forward pass, if the input is not an image of C channels, or its statistics
            would be those of one value a channel.

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
        check_filled("ImageBatchNorm2d", input)
        self._check_input_dim(input)
        self.check_values(input)
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
