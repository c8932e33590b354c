"""What stands between the convolutions of signals and of volumes, scale by scale."""

from typing import ClassVar, Protocol, get_args

from torch import Tensor, nn

from equiscale._typing import Projection
from equiscale.errors import SettingError, ShapeError
from equiscale.functional import scale_avg_pool_nd, scale_dropout_nd, scale_max_pool_nd, scale_projection_nd
from equiscale.functional.checks import check_filled, check_probability
from equiscale.functional.nd import AXES, check_scale_map_nd
from equiscale.functional.pool import check_window
from equiscale.nn.norm import CheckedNorm
from equiscale.nn.sync_norm import normalized


class _Pooling(Protocol):
    def __call__(self, x: Tensor, kernel_size: int, *, stride: int | None, padding: int) -> Tensor: ...


class _OfScaleMaps(nn.Module):
    """A layer for scale maps of one number of dimensions."""

    ndim: ClassVar[int]

    def _check(self, x: Tensor) -> None:
        check_scale_map_nd(type(self).__name__, x, self.ndim)


class _Pool(_OfScaleMaps):
    pooling: ClassVar[_Pooling]

    def __init__(self, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        check_window(kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Pool every scale."""
        self._check(x)
        return type(self).pooling(x, self.kernel_size, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """Kernel, stride and padding."""
        return f"{self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class _Project(_OfScaleMaps):
    def __init__(self, mode: Projection = "max") -> None:
        super().__init__()
        if mode not in get_args(Projection):
            raise SettingError(f"expected a projection of {', '.join(get_args(Projection))}, got {mode!r}")
        self.mode: Projection = mode

    def forward(self, x: Tensor) -> Tensor:
        """Reduce the scale axis."""
        self._check(x)
        return scale_projection_nd(x, self.mode)

    def extra_repr(self) -> str:
        """The mode."""
        return repr(self.mode)


class _Dropout(_OfScaleMaps):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels in training, the identity in evaluation."""
        self._check(x)
        return scale_dropout_nd(x, self.p, training=self.training)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class _Norm(CheckedNorm, nn.BatchNorm3d):
    ndim: ClassVar[int]

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the scale map; in training by the statistics of the batch."""
        check_filled(type(self).__name__, input)
        if input.ndim != self.ndim + 3 or input.shape[1] != self.num_features:
            raise ShapeError(
                f"{type(self).__name__}: expected a scale map "
                f"(B, {self.num_features}, S, {AXES[self.ndim]}), got {tuple(input.shape)}"
            )
        self.check_values(input)
        flat = input.flatten(3)[..., None]  # (B, C, S, L·…, 1)
        return normalized(self, flat).reshape(input.shape)


class ScaleBatchNorm1d(_Norm):
    r"""Batch norm of the scale maps of signals, one mean and variance a channel.

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Shapes:
        input and output ``(B, C, S, L)``.

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
        Ioffe, Szegedy 2015, as in torch.nn; state dict keys are the same.

    Example:
        >>> import torch
        >>> ScaleBatchNorm1d(3)(torch.randn(2, 3, 4, 8)).shape
        torch.Size([2, 3, 4, 8])
    """

    ndim = 1


class ScaleMaxPool1d(_Pool):
    """Maximum over windows on every scale of a signal's scale map; see `functional.scale_max_pool_nd`.

    Shapes:
        input ``(B, C, S, L)``; output the same axes, each but the first three
        L' = (L + 2·padding − k) // stride + 1.

    Args:
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels of −∞ added on each side, at most k / 2.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a scale map of a signal.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ScaleMaxPool1d(2)(torch.ones(2, 3, 4, 8)).shape
        torch.Size([2, 3, 4, 4])
    """

    ndim = 1
    pooling = staticmethod(scale_max_pool_nd)


class ScaleAvgPool1d(_Pool):
    """Mean over windows on every scale of a signal's scale map; arguments as `ScaleMaxPool1d`.

    Shapes:
        input ``(B, C, S, L)``; output the same axes.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a scale map of a signal.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ScaleAvgPool1d(2)(torch.ones(2, 3, 4, 8)).shape
        torch.Size([2, 3, 4, 4])
    """

    ndim = 1
    pooling = staticmethod(scale_avg_pool_nd)


class ScaleProjection1d(_Project):
    """From the scale map of a signal to a signal, by reducing the scale axis.

    Shapes:
        input ``(B, C, S, L)``; output ``(B, C, L)``.

    Args:
        mode: "max", "mean", "logsumexp" or "argmax-scale" (the index of the strongest scale).

    Raises:
        SettingError: For an unknown mode.
        ShapeError: From the forward pass, if the input is not a scale map of a signal.

    Exactness:
        Invariant to permutations of the scale axis, "max" bit for bit and the sums up to rounding.

    Source:
        Sosnovik et al. 2020, section 4.3 (max).

    Example:
        >>> import torch
        >>> ScaleProjection1d("mean")(torch.ones(2, 3, 4, 8)).shape
        torch.Size([2, 3, 8])
    """

    ndim = 1


class ScaleDropout1d(_Dropout):
    """Drop whole channels of a signal's scale map; see `functional.scale_dropout_nd`.

    Shapes:
        input and output ``(B, C, S, L)``.

    Args:
        p: The probability of dropping a channel.

    Raises:
        SettingError: If p is not in [0, 1).
        ShapeError: From the forward pass, if the input is not a scale map of a signal.

    Exactness:
        For a given mask it commutes with scaling and with shifts along the scale axis.

    Example:
        >>> import torch
        >>> ScaleDropout1d(0.3).eval()(torch.ones(2, 3, 4, 8)).mean().item()
        1.0
    """

    ndim = 1


class ScaleBatchNorm3d(_Norm):
    r"""Batch norm of the scale maps of volumes, one mean and variance a channel.

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Shapes:
        input and output ``(B, C, S, D, H, W)``.

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
        Ioffe, Szegedy 2015, as in torch.nn; state dict keys are the same.

    Example:
        >>> import torch
        >>> ScaleBatchNorm3d(3)(torch.randn(2, 3, 4, 8, 8, 8)).shape
        torch.Size([2, 3, 4, 8, 8, 8])
    """

    ndim = 3


class ScaleMaxPool3d(_Pool):
    """Maximum over windows on every scale of a volume's scale map; see `functional.scale_max_pool_nd`.

    Shapes:
        input ``(B, C, S, D, H, W)``; output the same axes, each but the first three
        L' = (L + 2·padding − k) // stride + 1.

    Args:
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels of −∞ added on each side, at most k / 2.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a scale map of a volume.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ScaleMaxPool3d(2)(torch.ones(2, 3, 4, 8, 8, 8)).shape
        torch.Size([2, 3, 4, 4, 4, 4])
    """

    ndim = 3
    pooling = staticmethod(scale_max_pool_nd)


class ScaleAvgPool3d(_Pool):
    """Mean over windows on every scale of a volume's scale map; arguments as `ScaleMaxPool3d`.

    Shapes:
        input ``(B, C, S, D, H, W)``; output the same axes.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a scale map of a volume.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> import torch
        >>> ScaleAvgPool3d(2)(torch.ones(2, 3, 4, 8, 8, 8)).shape
        torch.Size([2, 3, 4, 4, 4, 4])
    """

    ndim = 3
    pooling = staticmethod(scale_avg_pool_nd)


class ScaleProjection3d(_Project):
    """From the scale map of a volume to a volume, by reducing the scale axis.

    Shapes:
        input ``(B, C, S, D, H, W)``; output ``(B, C, D, H, W)``.

    Args:
        mode: "max", "mean", "logsumexp" or "argmax-scale" (the index of the strongest scale).

    Raises:
        SettingError: For an unknown mode.
        ShapeError: From the forward pass, if the input is not a scale map of a volume.

    Exactness:
        Invariant to permutations of the scale axis, "max" bit for bit and the sums up to rounding.

    Source:
        Sosnovik et al. 2020, section 4.3 (max).

    Example:
        >>> import torch
        >>> ScaleProjection3d("mean")(torch.ones(2, 3, 4, 8, 8, 8)).shape
        torch.Size([2, 3, 8, 8, 8])
    """

    ndim = 3


class ScaleDropout3d(_Dropout):
    """Drop whole channels of a volume's scale map; see `functional.scale_dropout_nd`.

    Shapes:
        input and output ``(B, C, S, D, H, W)``.

    Args:
        p: The probability of dropping a channel.

    Raises:
        SettingError: If p is not in [0, 1).
        ShapeError: From the forward pass, if the input is not a scale map of a volume.

    Exactness:
        For a given mask it commutes with scaling and with shifts along the scale axis.

    Example:
        >>> import torch
        >>> ScaleDropout3d(0.3).eval()(torch.ones(2, 3, 4, 8, 8, 8)).mean().item()
        1.0
    """

    ndim = 3
