"""Deep scale-spaces (DSS): a lift by blurring, and dilated correlation of its scales."""

import math
from typing import Literal, TypeAlias, Unpack, get_args

import torch
from torch import Tensor, nn

from equiscale._typing import PaddingMode, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_odd, check_tensor, is_number, is_whole
from equiscale.functional.deep_scale_space import (
    check_base,
    check_padding,
    discrete_gaussian,
    scale_space_conv2d,
    scale_space_lift2d,
)
from equiscale.functional.geometry import ConvGeometry, GeometryOptions
from equiscale.nn.steerable import check_channel_pair
from equiscale.scales import ScaleGrid

ScaleSpaceInit: TypeAlias = Literal["he", "delta"]

# Noise of the "delta" initialisation.
_DELTA_NOISE = 0.01


class ScaleSpaceLift2d(nn.Module):
    r"""From an image to its scale-space: blurred more and more by the discrete Gaussian, never shrunk.

    .. math:: y_{c s} = T(t_s)^\top \star T(t_s) \star x_c, \qquad
        t_s = \sigma_0^2 (\beta^{2 s} - 1), \quad s = 0, \dots, S - 1

    An image whose own blur is σ₀ has on scale s the blur σ₀ β^s. There is nothing to learn.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C, S, H, W)``.

    Args:
        num_scales: S; the first is the image itself.
        base: β, the ratio of neighbouring scales, larger than 1.
        zero_scale: σ₀, the standard deviation in pixels of the blur that the image has already.
        padding_mode: What lies beyond the border; published: "zeros".

    Raises:
        SettingError: For an illegal setting.
        ShapeError: From the forward pass, if the input is not an image, or is smaller than the border
            that the padding mode needs.

    Exactness:
        Under the semigroup of blurring and subsampling, :math:`(A x)(p) = (T(t_1) \star x)(\beta p)`, the
        image's own scale is exact and the others are as good as the discrete Gaussian is to the coarser
        grid: ``tests/nn/test_deep_scale_space.py`` measures it. Plain enlarging does not blur, and keeps
        an error of its own there.

    Source:
        Worrall, Welling, *Deep Scale-spaces: Equivariance Over Scale*, NeurIPS 2019; the defaults are
        those of the published MNIST-scale networks (STL-10: zero_scale 0.5).

    Example:
        >>> ScaleSpaceLift2d(3)(torch.randn(2, 1, 28, 30)).shape
        torch.Size([2, 1, 3, 28, 30])
    """

    kernels: Tensor

    def __init__(
        self,
        num_scales: int,
        *,
        base: float = 2,
        zero_scale: float = 0.25,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        _check_num_scales(num_scales)
        numbers = is_number(base) and is_number(zero_scale)
        if not (numbers and 1 < base < math.inf and 0 < zero_scale < math.inf):
            raise SettingError(
                f"expected a base larger than 1 and a positive zero_scale, got {base!r} and {zero_scale!r}"
            )
        ConvGeometry(padding_mode=padding_mode)
        self.num_scales, self.base, self.zero_scale = num_scales, base, zero_scale
        self.padding_mode: PaddingMode = padding_mode
        kernels = [discrete_gaussian(variance) for variance in self.variances]
        self.lengths = [len(kernel) for kernel in kernels]
        joined = torch.cat([torch.empty(0, dtype=torch.float64), *kernels])
        self.register_buffer("kernels", joined.to(torch.get_default_dtype()), persistent=False)

    @property
    def variances(self) -> tuple[float, ...]:
        """t of every scale but the first, in pixels²."""
        return tuple(self.zero_scale**2 * (self.base ** (2 * s) - 1) for s in range(1, self.num_scales))

    @property
    def grid(self) -> ScaleGrid:
        """The blur of every scale, as standard deviations in pixels."""
        return ScaleGrid.geometric(self.zero_scale, self.base, self.num_scales)

    def forward(self, x: Tensor) -> ScaleMap:
        """Lift an image ``(B, C, H, W)`` to a scale map ``(B, C, S, H, W)``."""
        kernels = torch.split(self.kernels, self.lengths)
        return scale_space_lift2d(x, kernels, padding_mode=self.padding_mode)

    def extra_repr(self) -> str:
        """Scales, base, zero scale and padding mode."""
        return (
            f"{self.num_scales}, base={self.base}, zero_scale={self.zero_scale}, "
            f"padding_mode={self.padding_mode!r}"
        )


class ScaleSpaceConv2d(nn.Module):
    r"""Scale correlation: one filter for all scales, dilated with the scale, that may span N scales.

    .. math:: y_{c' s}(p) = b_{c'} + \sum_{i < N} \sum_{c, q} w_{c' c i}(q) \,
        x_{c, s + i}(p + \beta^s q), \qquad s = 0, \dots, S - 1

    The input may have more than S scales: those beyond are left out, as if they were not there. The
    published networks so drop N // 2 scales after a layer of scale size N, whose last scales are
    incomplete.

    Shapes:
        input ``(B, C, S or more, H, W)``; output ``(B, C', S, H', W')`` with H' = (H − 1) // stride + 1;
        weight ``(C', C / groups, N, K, K)`` (published name: weights); bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, before dilation; odd.
        num_scales: S.
        scale_size: N, the number of neighbouring scales a filter sees.
        base: β, the ratio of neighbouring scales, a whole number.
        bias: Learn a bias b; published: no.
        **geometry: ``stride``, ``padding`` ("same", the default, or its equal, half the kernel),
            ``padding_mode``, ``scale_padding``, ``groups`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        SettingError: For illegal channels, scales, base or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Exact under the semigroup of subsampling, :math:`(A x)_s(p) = x_{s + 1}(\beta p)`, on the scales
        that remain: ``tests/functional/test_deep_scale_space.py``. After the lift, enlarging the image by
        β is approximate: ``tests/nn/test_deep_scale_space.py``.

    Source:
        Worrall, Welling, *Deep Scale-spaces: Equivariance Over Scale*, NeurIPS 2019.
        Deviation: ``scale_padding="replicate"`` and ``groups`` are ours.

    Example:
        >>> conv = ScaleSpaceConv2d(8, 16, kernel_size=3, num_scales=4, scale_size=2)
        >>> conv(torch.randn(2, 8, 4, 32, 32)).shape
        torch.Size([2, 16, 4, 32, 32])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        num_scales: int,
        scale_size: int = 1,
        base: int = 2,
        bias: bool = False,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__()
        geometry.setdefault("padding", "same")
        self.geometry = ConvGeometry(**geometry)
        self.geometry.refuse(
            projection="the layer gives the scale map; put a ScaleProjection behind it",
            pooling="the layer gives all pixels; put a ScaleMaxPool2d behind it",
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.num_scales, self.scale_size = kernel_size, num_scales, scale_size
        self.base = base
        self._check_settings()
        channels = in_channels // self.geometry.groups
        self.weight = nn.Parameter(torch.empty(out_channels, channels, scale_size, kernel_size, kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    @property
    def grid(self) -> ScaleGrid:
        """The dilations."""
        return ScaleGrid.geometric(1, self.base, self.num_scales)

    def reset_parameters(
        self, generator: torch.Generator | None = None, *, init: ScaleSpaceInit = "he"
    ) -> None:
        """Weights as published: by default normal with variance 2 / (C·N·K²) ("he"), and bias one.

        "delta", which the published STL-10 network uses, makes a layer that at first hands its channels
        through: U(−0.01, 0.01), and gcd(C, C') / C' at the central pixel of all N slots between channels
        of the same of gcd(C, C') blocks. Its bias is zero (the published one is left undefined).

        Args:
            generator: Source of randomness; None: torch's default, as in torch.nn.
            init: "he" or "delta".

        Raises:
            SettingError: For another word.
        """
        if init not in get_args(ScaleSpaceInit):
            raise SettingError(f"expected an init of {', '.join(get_args(ScaleSpaceInit))}, got {init!r}")
        if init == "he":
            deviation = math.sqrt(2 / self.weight[0].numel())
            nn.init.normal_(self.weight, 0, deviation, generator=generator)
        else:
            self._reset_to_delta(generator)
        if self.bias is not None:
            nn.init.constant_(self.bias, 1.0 if init == "he" else 0.0)

    @torch.no_grad()
    def _reset_to_delta(self, generator: torch.Generator | None) -> None:
        nn.init.uniform_(self.weight, -_DELTA_NOISE, _DELTA_NOISE, generator=generator)
        inputs, outputs = self.weight.shape[1], self.out_channels // self.geometry.groups
        blocks, center = math.gcd(inputs, outputs), self.kernel_size // 2
        of_input = torch.arange(inputs) * blocks // inputs
        of_output = torch.arange(self.out_channels) % outputs * blocks // outputs
        same = (of_output[:, None] == of_input).to(self.weight.device)
        self.weight[:, :, :, center, center] = torch.where(
            same[:, :, None], blocks / outputs, self.weight[:, :, :, center, center]
        )

    def forward(self, x: Tensor) -> ScaleMap:
        """Map ``(B, C, S or more, H, W)`` to ``(B, C', S, H', W')``."""
        check_tensor("ScaleSpaceConv2d", x)
        if x.ndim != 5 or x.shape[1] != self.in_channels or x.shape[2] < self.num_scales:
            raise ShapeError(
                f"ScaleSpaceConv2d: expected a scale map (B, {self.in_channels}, {self.num_scales} or more, "
                f"H, W), got {tuple(x.shape)}"
            )
        x = x[:, :, : self.num_scales]
        return scale_space_conv2d(x, self.weight, self.bias, base=self.base, geometry=self.geometry)

    def extra_repr(self) -> str:
        """Channels, kernel, scales, base and geometry."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"num_scales={self.num_scales}, scale_size={self.scale_size}, base={self.base}, "
            f"bias={self.bias is not None}, {self.geometry}"
        )

    def _check_settings(self) -> None:
        check_channel_pair(self.in_channels, self.out_channels, self.geometry.groups)
        _check_num_scales(self.num_scales)
        check_base(self.base)
        check_odd("kernel_size", self.kernel_size)
        if not (is_whole(self.scale_size) and self.scale_size <= self.num_scales):
            raise SettingError(
                f"expected a scale_size of 1 to {self.num_scales}, the scales, got {self.scale_size!r}"
            )
        check_padding(self.geometry, self.kernel_size)


def _check_num_scales(num_scales: int) -> None:
    if not is_whole(num_scales):
        raise SettingError(f"expected num_scales of at least 1, got {num_scales!r}")
