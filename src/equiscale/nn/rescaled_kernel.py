"""Convolutions with one kernel interpolated to many sizes, and their pooling over scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, Unpack, get_args

from torch import Tensor, nn

from equiscale._typing import Image
from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    GeometryOptions,
    rescaled_kernel_basis,
    rescaled_kernel_conv2d,
    rescaled_kernel_valid_conv2d,
    scale_pool,
)
from equiscale.functional.checks import check_tensor
from equiscale.functional.rescaled_kernel import Interpolation, ScalePooling
from equiscale.nn.steerable import SteerableConv2d
from equiscale.scales import ScaleGrid

Border: TypeAlias = Literal["padded", "blank"]


@dataclass(frozen=True)
class _Resized:
    """The smallest kernel's pixels as basis functions."""

    kernel_sizes: tuple[int, ...]
    interpolation: Interpolation

    @property
    def num_functions(self) -> int:
        return self.kernel_sizes[0] ** 2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        return rescaled_kernel_basis(self.kernel_sizes, self.interpolation)


class _RescaledKernel2d(SteerableConv2d):
    family: _Resized

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_sizes: Sequence[int],
        interpolation: Interpolation = "bilinear",
        border: Border = "padded",
        bias: bool = True,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        rescaled_kernel_basis(kernel_sizes, interpolation)  # refuses illegal sizes before they are used
        sizes = tuple(kernel_sizes)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size=sizes[-1],
            grid=ScaleGrid([size / sizes[0] for size in sizes]),
            basis=_Resized(sizes, interpolation),
            **geometry,
        )
        self.border = border
        self._check_border()
        channels = in_channels // self.geometry.groups
        self._make_parameters((out_channels, channels, sizes[0], sizes[0]), bias)

    def _check_border(self) -> None:
        if self.border not in get_args(Border):
            raise SettingError(f"expected a border of {', '.join(get_args(Border))}, got {self.border!r}")
        if self.border == "blank" and self.geometry != ConvGeometry():
            raise SettingError(
                f"expected neither stride, padding nor groups with border='blank', got {self.geometry}"
            )
        self.geometry.refuse(scale_padding="scales do not mix")

    def _correlate(self, x: Tensor) -> Tensor:
        sizes = self.family.kernel_sizes
        if self.border == "blank":
            return rescaled_kernel_valid_conv2d(x, self.weight, self.basis, self.bias, windows=sizes)
        return rescaled_kernel_conv2d(
            x, self.weight, self.basis, self.bias, geometry=self.geometry, windows=sizes
        )

    def extra_repr(self) -> str:
        """Channels, kernels, interpolation, border and geometry."""
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_sizes={list(self.family.kernel_sizes)}",
            f"interpolation={self.family.interpolation!r}, border={self.border!r}",
            f"bias={self.bias is not None}",
            str(self.geometry),
        ]
        return ", ".join(part for part in parts if part)


class RescaledKernelLift2d(_RescaledKernel2d):
    r"""Lifting with one kernel interpolated to many sizes: an image is seen by all of them.

    .. math:: y_{c' s} = b_{c'} + \sum_c \big( \tfrac{K_0^2}{K_s^2} \, I_s w_{c' c} \big) \star x_c

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, K_0, K_0)``; bias
        ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_sizes: K_s, the sides of the S kernels in pixels; odd and increasing. The first is learned.
        interpolation: I: "nearest", "bilinear", "bicubic" or "area".
        border: "padded": as all layers here, by ``padding``; "blank": as published without padding,
            H' = H − K_0 + 1, with zeros where a larger kernel leaves the image.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number, for the largest kernel, or "same"),
            ``padding_mode``, ``groups`` as in `equiscale.functional.ConvGeometry`; none with
            ``border="blank"``.

    Raises:
        SettingError: For illegal channels, sizes, interpolation, border or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        With "nearest" or "area", an image whose pixels are repeated by an odd ratio of kernel sizes:
        exact in the middles of the repeated pixels. Other factors that are ratios of sizes: up to
        interpolation; ``tests/nn/test_rescaled_kernel.py`` measures both.

    Source:
        Altstidl et al., *Just a Matter of Scale? Reevaluating Scale Equivariance in Convolutional Neural
        Networks*, 2022, section III (sizes K_0 + 2 s). Deviations: "nearest" is centred; any odd sizes,
        stride, padding and groups.

    Example:
        >>> import torch
        >>> lift = RescaledKernelLift2d(3, 8, kernel_sizes=[3, 5, 7], padding="same")
        >>> lift(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 3, 16, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map an image ``(B, C, H, W)`` to a scale map ``(B, C', S, H', W')``."""
        check_tensor("RescaledKernelLift2d", x)
        if x.ndim != 4:
            raise ShapeError(
                f"RescaledKernelLift2d: expected an image (B, {self.in_channels}, H, W), "
                f"got {tuple(x.shape)}; use RescaledKernelConv2d for a scale map"
            )
        return self._correlate(x)


class RescaledKernelConv2d(_RescaledKernel2d):
    r"""Each scale of a scale map is correlated with the kernel interpolated to its size.

    .. math:: y_{c' s} = b_{c'} + \sum_c \big( \tfrac{K_0^2}{K_s^2} \, I_s w_{c' c} \big) \star x_{c s}

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, K_0, K_0)``;
        bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_sizes: K_s, as in `RescaledKernelLift2d`, like ``interpolation``, ``border`` and ``bias``.
        **geometry: ``stride``, ``padding``, ``padding_mode``, ``groups``, as there.

    Raises:
        SettingError: For illegal channels, sizes, interpolation, border or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        As `RescaledKernelLift2d`; ``tests/nn/test_rescaled_kernel.py`` measures it.

    Source:
        Altstidl et al. 2022 pool the scales away after each lifting convolution; keeping the axis is ours.

    Example:
        >>> import torch
        >>> conv = RescaledKernelConv2d(8, 4, kernel_sizes=[3, 5, 7], padding="same")
        >>> conv(torch.randn(2, 8, 3, 16, 16)).shape
        torch.Size([2, 4, 3, 16, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map a scale map ``(B, C, S, H, W)`` to ``(B, C', S, H', W')``."""
        check_tensor("RescaledKernelConv2d", x)
        if x.ndim != 5 or x.shape[1:3] != (self.in_channels, len(self.grid)):
            raise ShapeError(
                "RescaledKernelConv2d: expected a scale map "
                f"(B, {self.in_channels}, {len(self.grid)}, H, W), got {tuple(x.shape)}"
            )
        return self._correlate(x)


class ScalePool(nn.Module):
    """The strongest scale of each pixel, or of the whole channel; see `functional.scale_pool`.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C, H, W)``.

    Args:
        kind: "pixel", "slice" (the scale that holds the largest value) or "energy" (the largest sum).

    Raises:
        SettingError: For an unknown kind.
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        Invariant to permutations of the scale axis bit for bit, where one scale is strongest.

    Source:
        Altstidl et al. 2022, section III.

    Example:
        >>> import torch
        >>> ScalePool("slice")(torch.ones(2, 3, 4, 5, 5)).shape
        torch.Size([2, 3, 5, 5])
    """

    def __init__(self, kind: ScalePooling = "pixel") -> None:
        super().__init__()
        if kind not in get_args(ScalePooling):
            raise SettingError(f"expected a pooling of {', '.join(get_args(ScalePooling))}, got {kind!r}")
        self.kind = kind

    def forward(self, x: Tensor) -> Image:
        """Reduce the scale axis."""
        return scale_pool(x, self.kind)

    def extra_repr(self) -> str:
        """The kind."""
        return repr(self.kind)
