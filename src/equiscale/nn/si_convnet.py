"""SI-ConvNet: a convolution whose input is rescaled, with the maximum over scales."""

import math
from collections.abc import Sequence
from typing import Unpack, get_args

import torch
from torch import Tensor, nn

from equiscale._typing import Image
from equiscale.errors import SettingError
from equiscale.functional import ConvGeometry, GeometryOptions, locally_scale_invariant_conv2d
from equiscale.functional.checks import is_odd
from equiscale.functional.si_convnet import Resampling
from equiscale.nn.steerable import check_channels
from equiscale.scales import ScaleGrid


class LocallyScaleInvariantConv2d(nn.Module):
    r"""The convolution of SI-ConvNet: one kernel answers at several scales, and the largest answer stays.

    .. math:: y_{c'} = \max_s \, T_{1 / s} \Big( b_{c'} + \sum_c w_{c' c} \star T_s x_c \Big)

    T_s enlarges by s on a canvas of the same size; see `functional.locally_scale_invariant_conv2d`.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', H', W')``, as of an ordinary convolution; weight
        ``(C', C / groups, K, K)``; bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side of the kernel in pixels; odd.
        scales: s, increasing, by which the image is enlarged.
        bias: Learn a bias b.
        resampling: T: "published", or "centred", which scales by s exactly about the true centre.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``groups`` as in
            `equiscale.functional.ConvGeometry`.

    Raises:
        ScaleGridError: If the scales are not positive and increasing.
        SettingError: For illegal channels, kernel, resampling or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        With the scale 1 alone it is the ordinary convolution bit for bit. Scaling the image by a ratio
        of its scales scales the output up to resampling twice and the scales at the ends:
        ``tests/nn/test_si_convnet.py`` measures it. "published" does not come back to where it started
        (0.3 is in truth 7/27 on 28 pixels, and its way back 92/27); "centred" does.

    Source:
        Kanazawa, Sharma, Jacobs, *Locally Scale-Invariant Convolutional Neural Networks*, 2014,
        section 3. Resampling, zeros and bias follow the public code of Sosnovik et al. 2020;
        "centred" is ours.

    Example:
        >>> conv = LocallyScaleInvariantConv2d(3, 8, kernel_size=3, scales=[0.5, 1, 2], padding="same")
        >>> conv(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: Sequence[float],
        bias: bool = True,
        resampling: Resampling = "published",
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__()
        self.geometry, self.scales = ConvGeometry(**geometry), ScaleGrid(scales)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.resampling = kernel_size, resampling
        self._check()
        channels = in_channels // self.geometry.groups
        self.weight = nn.Parameter(torch.empty(out_channels, channels, kernel_size, kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def _check(self) -> None:
        check_channels(self.in_channels, self.out_channels, self.geometry.groups)
        if not is_odd(self.kernel_size):
            raise SettingError(f"expected an odd kernel_size of at least 1, got {self.kernel_size!r}")
        if self.resampling not in get_args(Resampling):
            raise SettingError(
                f"expected a resampling of {', '.join(get_args(Resampling))}, got {self.resampling!r}"
            )
        self.geometry.refuse(
            scale_padding="an image has no scale axis to pad",
            projection="the layer projects anyway",
            pooling="the layer gives all pixels; put an ImageMaxPool2d behind it",
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from U(−b, b) with b = 1/√fan_in as published; bias zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Image:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return locally_scale_invariant_conv2d(
            x,
            self.weight,
            self.scales.values,
            self.bias,
            geometry=self.geometry,
            resampling=self.resampling,
        )

    def extra_repr(self) -> str:
        """Channels, kernel, scales, resampling and geometry."""
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"scales={list(self.scales)}, resampling={self.resampling!r}, bias={self.bias is not None}",
            str(self.geometry),
        ]
        return ", ".join(part for part in parts if part)
