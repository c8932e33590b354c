"""Scale convolutions: from a scale map to a scale map."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from equiscale._typing import ScaleMap
from equiscale.basis import SteerableBasis
from equiscale.errors import SettingError
from equiscale.functional import GeometryOptions, pointwise_scale_conv2d
from equiscale.functional.checks import is_whole
from equiscale.nn.steerable import DEFAULT_BASIS, SteerableConv2d, check_channel_pair, check_scale_size
from equiscale.scales import ScaleGrid


class ScaleConv2d(SteerableConv2d):
    r"""Scale convolution (the papers' convHH) with filters that may span several scales.

    .. math:: y_{c' s} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c' c i f} \, (\psi_{f s} \star x_{c, s + i})

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, N, F)``;
        bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, the family of F functions.
        scale_size: N, the number of neighbouring scales a filter sees; N > 1: inter-scale interaction.
        **geometry: ``bias`` (default True), ``stride``, ``padding`` (a number or "same"),
            ``padding_mode``, ``scale_padding``, ``groups``, ``projection``, ``pooling`` as in
            `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels, scale size or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. Scaling by the grid's step: up to the error of
        sampling, and for N > 1 of the open end of the scale axis:
        ``tests/nn/test_equivariance.py`` measures both.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, equation 9.
        Deviation: ``scale_padding="replicate"`` is ours.

    Example:
        >>> conv = ScaleConv2d(8, 16, kernel_size=7, grid=ScaleGrid.geometric(0.9, 1.41, 3), padding="same")
        >>> conv(torch.randn(2, 8, 3, 32, 32)).shape
        torch.Size([2, 16, 3, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        grid: ScaleGrid,
        basis: SteerableBasis = DEFAULT_BASIS,
        scale_size: int = 1,
        bias: bool = True,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=kernel_size, grid=grid, basis=basis, **geometry
        )
        check_scale_size(scale_size, len(grid))
        channels = in_channels // self.geometry.groups
        self.scale_size = scale_size
        self._make_parameters((out_channels, channels, scale_size, basis.num_functions), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, S, H, W)`` to ``(B, C', S, H', W')``, or to its maxima."""
        return self._convolve("scale_conv2d", x)

    def _own_settings(self) -> str:
        return f"scale_size={self.scale_size}"


class PointwiseScaleConv2d(nn.Module):
    r"""The 1×1 scale convolution: mixes channels in the same way at every scale and pixel.

    .. math:: y_{c' s} = b_{c'} + \sum_c w_{c' c} \, x_{c s}

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, 1, 1)``;
        bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        stride: Step in pixels.
        groups: Groups of channels that do not see each other.
        bias: Learn a bias b.

    Raises:
        SettingError: For illegal channels, stride or groups.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        At stride 1 commutes exactly with every permutation of pixels and of scales, shifts among
        them; without a bias with every linear operation on pixels, up to rounding.

    Source:
        Sosnovik et al. 2020. Deviation: the published layer accepts a bias and never adds it.

    Example:
        >>> PointwiseScaleConv2d(3, 5)(torch.randn(2, 3, 4, 8, 8)).shape
        torch.Size([2, 5, 4, 8, 8])
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        if not (is_whole(stride) and is_whole(groups)):
            raise SettingError(f"expected stride and groups of at least 1, got {stride!r} and {groups!r}")
        check_channel_pair(in_channels, out_channels, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, 1, 1))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from U(−b, b) with b = 1/√fan_in; bias zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> ScaleMap:
        """Map ``(B, C, S, H, W)`` to ``(B, C', S, H', W')``."""
        return pointwise_scale_conv2d(x, self.weight, self.bias, stride=self.stride, groups=self.groups)

    def extra_repr(self) -> str:
        """Channels, stride and groups."""
        return (
            f"{self.in_channels}, {self.out_channels}, stride={self.stride}, groups={self.groups}, "
            f"bias={self.bias is not None}"
        )
