"""Dropout of channels, of scales and of single values."""

from torch import Tensor, nn

from equiscale._typing import ScaleMap
from equiscale.functional import scale_channel_dropout, scale_dropout2d, value_dropout
from equiscale.functional.checks import check_probability


class _ScaleDropout(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("", p)
        self.p = p

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class ScaleDropout2d(_ScaleDropout):
    """Drop whole channels on all scales and pixels together; see `functional.scale_dropout2d`.

    Shapes:
        input and output ``(B, C, S, H, W)``.

    Args:
        p: The probability of dropping a channel.

    Raises:
        SettingError: If p is not in [0, 1).
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        For a given mask it commutes with scaling and with shifts along the scale axis.

    Example:
        >>> import torch
        >>> ScaleDropout2d(0.3).eval()(torch.ones(1, 2, 3, 4, 4)).mean().item()
        1.0
    """

    def forward(self, x: Tensor) -> ScaleMap:
        """Drop channels in training, the identity in evaluation."""
        return scale_dropout2d(x, self.p, training=self.training)


class ScaleChannelDropout(_ScaleDropout):
    """Drop whole scales for all channels together; see `functional.scale_channel_dropout`.

    Shapes:
        input and output ``(B, C, S, H, W)``.

    Args:
        p: The probability of dropping a scale.

    Raises:
        SettingError: If p is not in [0, 1).
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        Breaks the shift along the scale axis on purpose, in training only.

    Source:
        Jansson, Lindeberg, *Scale-invariant scale-channel networks*, 2021.

    Example:
        >>> import torch
        >>> ScaleChannelDropout(0.3).eval()(torch.ones(1, 2, 3, 4, 4)).mean().item()
        1.0
    """

    def forward(self, x: Tensor) -> ScaleMap:
        """Drop scales in training, the identity in evaluation."""
        return scale_channel_dropout(x, self.p, training=self.training)


class ValueDropout(nn.Dropout):
    """Drop single values, many times as fast as torch on the CPU; see `functional.value_dropout`.

    Shapes:
        input and output of any one shape.

    Args:
        p: The probability of dropping a value; on the CPU rounded to a multiple of 2⁻¹⁶.

    Raises:
        SettingError: If p is not in [0, 1).

    Exactness:
        Breaks every symmetry, in training only.

    Source:
        Srivastava et al. 2014, as in torch.nn.

    Example:
        >>> import torch
        >>> ValueDropout(0.3).eval()(torch.ones(2, 3)).mean().item()
        1.0
    """

    def __init__(self, p: float = 0.5) -> None:
        check_probability("", p)
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:
        """Drop values in training, the identity in evaluation."""
        return value_dropout(input, self.p, training=self.training)
