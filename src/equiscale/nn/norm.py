"""Batch norm of scale maps."""

from torch import Tensor, nn

from equiscale.errors import ShapeError


class ScaleBatchNorm2d(nn.BatchNorm3d):
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

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 5 or input.shape[1] != self.num_features:
            raise ShapeError(
                f"ScaleBatchNorm2d: expected a scale map (B, {self.num_features}, S, H, W), "
                f"got {tuple(input.shape)}"
            )
