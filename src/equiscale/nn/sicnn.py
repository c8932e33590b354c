"""SiCNN: one kernel resized for the column of every scale, and the batch norm of columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from torch import Tensor, nn

from equiscale._typing import ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional import GeometryOptions, multi_column_basis, multi_column_conv2d
from equiscale.functional.checks import check_filled, check_norm_settings, check_tensor, is_whole
from equiscale.nn.steerable import SteerableConv2d
from equiscale.nn.sync_norm import SharesStatistics, normalized
from equiscale.scales import ScaleGrid


@dataclass(frozen=True)
class _Columns:
    """The canonical kernel's pixels as basis functions."""

    kernel_size: int

    @property
    def num_functions(self) -> int:
        return self.kernel_size**2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        return multi_column_basis(self.kernel_size, grid.values)


class _MultiColumn2d(SteerableConv2d):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: Sequence[float],
        bias: bool = False,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        grid = ScaleGrid(scales)
        options: dict[str, Any] = {"padding": "same", **geometry}
        super().__init__(
            in_channels,
            out_channels,
            kernel_size=multi_column_basis(kernel_size, grid.values).shape[-1],
            grid=grid,
            basis=_Columns(kernel_size),
            **options,
        )
        self.geometry.refuse(
            scale_padding="columns do not mix",
            projection="every column is computed alone",
            pooling="every column is computed alone",
        )
        channels = in_channels // self.geometry.groups
        self.largest_kernel_size, self.kernel_size = self.kernel_size, kernel_size
        self._make_parameters((out_channels, channels, kernel_size, kernel_size), bias)

    def _correlate(self, x: Tensor) -> ScaleMap:
        return multi_column_conv2d(
            x, self.weight, self.basis, self.bias, geometry=self.geometry, windows=self.windows
        )

    def extra_repr(self) -> str:
        """Channels, canonical kernel, scales and geometry."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"scales={list(self.grid)}, bias={self.bias is not None}, {self.geometry}"
        )


class MultiColumnLift2d(_MultiColumn2d):
    r"""The first convolution of SiCNN: the image is seen by every column with the kernel of its scale.

    .. math::
        y_{c' s} = b_{c'} + \sum_c \kappa_{c' c s} \star x_c, \quad
        \kappa_{c' c s} = \frac{\| w_{c' c} \|_1}{\| R_s w_{c' c} \|_1} \, R_s w_{c' c}

    R_s resizes the canonical kernel to the scale s; see `functional.multi_column_basis`.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, K, K)``; bias
        ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side of the canonical kernel in pixels; odd. The attribute
            ``largest_kernel_size`` is that of the largest scale's kernel.
        scales: The S scales, increasing.
        bias: Learn a bias b (the published layer has none).
        **geometry: ``stride``, ``padding`` ("same" unless given; a number refers to the largest kernel),
            ``padding_mode``, ``groups`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        ScaleGridError: If the scales are not positive and increasing.
        SettingError: For illegal channels, kernel or geometry, or a scale that leaves nothing of the kernel.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        An image whose pixels are repeated by an odd integer that is also a scale: exact in the middles of
        the repeated pixels. Other factors: resizing to the nearest pixel repeats some pixels of a kernel
        and not others. Smooth kernels bear it (a few percent at 1.5), kernels of noise do not (a half and
        more); ``tests/nn/test_sicnn.py`` measures both.

    Source:
        Xu, Xiao, Zhang, Yang, Zhang, *Scale-Invariant Convolutional Neural Networks*, 2014, section 3;
        resizing and norm follow the public code of Sosnovik et al. 2020. Deviations: a kernel that is zero,
        or of which a scale's resizing reads zeros alone, gives a filter of zeros there with a gradient of
        zero, where the published code divides by 0; the bias is ours.

    Example:
        >>> import torch
        >>> lift = MultiColumnLift2d(3, 8, kernel_size=7, scales=[0.67, 1.0, 1.5])
        >>> lift(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 3, 16, 16])
    """

    def forward(self, x: Tensor) -> ScaleMap:
        """Map an image ``(B, C, H, W)`` to columns ``(B, C', S, H', W')``."""
        check_tensor("MultiColumnLift2d", x)
        if x.ndim != 4:
            raise ShapeError(
                f"MultiColumnLift2d: expected an image (B, {self.in_channels}, H, W), got {tuple(x.shape)}; "
                "use MultiColumnConv2d for a scale map"
            )
        return self._correlate(x)


class MultiColumnConv2d(_MultiColumn2d):
    r"""The inner convolution of SiCNN: every column is correlated with the kernel of its scale.

    .. math::
        y_{c' s} = b_{c'} + \sum_c \kappa_{c' c s} \star x_{c s}, \quad
        \kappa_{c' c s} = \frac{\| w_{c' c} \|_1}{\| R_s w_{c' c} \|_1} \, R_s w_{c' c}

    Published code flattens columns scale-major, ``(B, S·C, H, W)``: there
    ``x.unflatten(1, (S, C)).transpose(1, 2)`` gives ours.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, K, K)``; bias
        ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side of the canonical kernel in pixels; odd. 1 mixes channels alike in all
            columns. The attribute ``largest_kernel_size`` is that of the largest scale's kernel.
        scales: The S scales, increasing.
        bias: Learn a bias b (the published layer has none).
        **geometry: As in `MultiColumnLift2d`: ``stride``, ``padding``, ``padding_mode``, ``groups``.

    Raises:
        ScaleGridError: If the scales are not positive and increasing.
        SettingError: For illegal channels, kernel or geometry, or a scale that leaves nothing of the kernel.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        As `MultiColumnLift2d`; ``tests/nn/test_sicnn.py`` measures it.

    Source:
        Xu et al. 2014, section 3, and the deviations of `MultiColumnLift2d`.

    Example:
        >>> import torch
        >>> conv = MultiColumnConv2d(8, 4, kernel_size=3, scales=[0.67, 1.0, 1.5], stride=2)
        >>> conv(torch.randn(2, 8, 3, 16, 16)).shape
        torch.Size([2, 4, 3, 8, 8])
    """

    def forward(self, x: Tensor) -> ScaleMap:
        """Map columns ``(B, C, S, H, W)`` to columns ``(B, C', S, H', W')``."""
        check_tensor("MultiColumnConv2d", x)
        if x.ndim != 5:
            raise ShapeError(
                f"MultiColumnConv2d: expected a scale map (B, {self.in_channels}, {len(self.grid)}, H, W), "
                f"got {tuple(x.shape)}; use MultiColumnLift2d for an image"
            )
        return self._correlate(x)


class ColumnBatchNorm2d(SharesStatistics, nn.BatchNorm2d):
    r"""Batch norm with a mean, variance, gain and offset for each channel of each column.

    .. math::
        y_{c s} = \gamma_{c s} \frac{x_{c s} - \mu_{c s}}{\sqrt{\sigma_{c s}^2 + \epsilon}} + \beta_{c s}

    Shapes:
        input and output ``(B, C, S, H, W)``; all of the state is ``(C·S,)``, channel-major: entry c·S + s.
        The published vectors are scale-major, s·C + c: ``v.view(S, C).T.reshape(-1)`` gives ours.

    Args:
        num_channels: C.
        num_scales: S.
        eps: ε.
        momentum: Weight of the new statistics in the running ones.

    Raises:
        SettingError: If a count is below 1.
        ShapeError: From the forward pass, if the input is not a scale map of C channels and S scales.

    Exactness:
        Commutes with shifts and scaling of pixels in evaluation; not with shifts of the scale axis, whose
        entries have statistics of their own.

    Source:
        Xu et al. 2014, as in the public code of Sosnovik et al. 2020: BatchNorm2d over C·S channels.

    Example:
        >>> import torch
        >>> ColumnBatchNorm2d(3, 4)(torch.randn(2, 3, 4, 5, 5)).shape
        torch.Size([2, 3, 4, 5, 5])
    """

    def __init__(
        self, num_channels: int, num_scales: int, *, eps: float = 1e-5, momentum: float | None = 0.1
    ) -> None:
        if not (is_whole(num_channels) and is_whole(num_scales)):
            raise SettingError(
                f"expected num_channels and num_scales of at least 1, got {num_channels!r} and {num_scales!r}"
            )
        check_norm_settings(eps, momentum)
        super().__init__(num_channels * num_scales, eps=eps, momentum=momentum)
        self.num_channels, self.num_scales = num_channels, num_scales

    def forward(self, input: Tensor) -> ScaleMap:
        """Normalise ``(B, C, S, H, W)``."""
        check_filled("ColumnBatchNorm2d", input)
        if input.ndim != 5 or input.shape[1:3] != (self.num_channels, self.num_scales):
            raise ShapeError(
                f"ColumnBatchNorm2d: expected a scale map (B, {self.num_channels}, {self.num_scales}, H, W), "
                f"got {tuple(input.shape)}"
            )
        if self.training and self.process_group is None and input[:, 0, 0].numel() == 1:
            raise ShapeError(
                "ColumnBatchNorm2d: expected more than one value a column in training, "
                f"got {tuple(input.shape)}; a variance needs two, use larger batches or eval()"
            )
        flat = normalized(self, input.flatten(1, 2))  # (B, C*S, H, W)
        return flat.view(input.shape)

    def extra_repr(self) -> str:
        """Channels, scales and batch norm's own settings."""
        return f"{self.num_channels}, {self.num_scales}, eps={self.eps}, momentum={self.momentum}"
