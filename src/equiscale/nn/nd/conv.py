"""The lifting and the scale convolution of signals and volumes."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from equiscale.basis import SteerableBasis, sample_nd
from equiscale.functional import GeometryOptions
from equiscale.functional.algorithms import FilterCache
from equiscale.functional.geometry import ConvGeometry
from equiscale.functional.nd import ConvolutionNd, convolve_nd
from equiscale.nn.steerable import (
    DEFAULT_BASIS,
    FilterWeights,
    check_channels,
    check_family,
    check_scale_size,
)
from equiscale.scales import ScaleGrid


class SteerableConvNd(FilterWeights):
    """Base of the convolutions of signals and volumes with filters of fixed basis functions.

    Holds the weights and the sampled basis, and checks both. The basis is a buffer that follows the
    module's device and dtype and is never part of the state dict. On the CPU the filters are kept while no
    gradient is wanted and the values of the weights stay.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, the family of functions; F of them in the layer's dimension.
        **geometry: As in `equiscale.functional.ConvGeometry`, without ``projection`` and ``pooling``.

    Raises:
        BasisError: If the basis exists in two dimensions only, cannot be sampled, or is degenerate.
        SettingError: For illegal channels or geometry.
    """

    ndim: ClassVar[int]
    basis: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        grid: ScaleGrid,
        basis: SteerableBasis,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__()
        check_family(kernel_size, grid, basis)
        self.geometry = ConvGeometry(**geometry)
        self.geometry.refuse(
            projection="only the layers for images take the maximum over scales in passing",
            pooling="only the layers for images pool in passing",
        )
        self.filter_cache = FilterCache()
        check_channels(in_channels, out_channels, self.geometry.groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.grid, self.family = kernel_size, grid, basis
        sampled = sample_nd(basis, kernel_size, grid, ndim=self.ndim)
        self.windows = _windows(sampled)
        self.register_buffer("basis", sampled.to(torch.get_default_dtype()), persistent=False)

    def _own_settings(self) -> str:
        """What a subclass shows beside the settings that all share."""
        return ""

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        operands = ConvolutionNd(
            x, self.weight, self.basis, self.bias, self.geometry, self.windows, self.filter_cache
        )
        return convolve_nd(name, operands)

    def extra_repr(self) -> str:
        """Channels, kernel, grid, basis and geometry."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, grid={self.grid}, basis={self.family}",
            f"bias={self.bias is not None}",
            str(self.geometry),
            self._own_settings(),
        ]
        return ", ".join(part for part in parts if part)


def _windows(basis: Tensor) -> tuple[int, ...]:
    """The side of the smallest centred window that holds all functions, for every scale."""
    center = basis.shape[-1] // 2
    reaches = ((scale != 0).any(0).nonzero() - center for scale in basis.unbind(1))
    return tuple(2 * int(reach.abs().max()) + 1 if len(reach) else 1 for reach in reaches)


class _LiftConv(SteerableConvNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        grid: ScaleGrid,
        basis: SteerableBasis = DEFAULT_BASIS,
        bias: bool = True,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=kernel_size, grid=grid, basis=basis, **geometry
        )
        self.geometry.refuse(scale_padding="the input has no scale axis to pad")
        self._make_parameters((out_channels, in_channels // self.geometry.groups, len(self.basis)), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Lift ``(B, C, …)`` to a scale map ``(B, C', S, …)``."""
        return self._convolve("lift_conv_nd", x)


class _ScaleConv(SteerableConvNd):
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
        self._make_parameters((out_channels, channels, scale_size, len(self.basis)), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, S, …)`` to ``(B, C', S, …)``."""
        return self._convolve("scale_conv_nd", x)

    def _own_settings(self) -> str:
        return f"scale_size={self.scale_size}"


class LiftConv1d(_LiftConv):
    r"""Lifting convolution of a signal: it is correlated with filters on every scale.

    .. math:: y_{c' s} = b_{c'} + \sum_{c, f} w_{c' c f} \, (\psi_{f s} \star x_c)

    Shapes:
        input ``(B, C, L)``; output ``(B, C', S, L')``; weight ``(C', C / groups, F)``, F = e with most
        families of effective size e; bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, a family with ``sample_nd``: Hermite, B-splines, Gaussian derivatives or DISCO.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``groups`` as in
            `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis exists in two dimensions only, cannot be sampled, or is degenerate.
        SettingError: For illegal channels or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. A signal stretched by the grid's step a shifts the
        scale axis by one up to the error of sampling: ``tests/nn/test_nd.py`` measures it.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, equation 8, in
        one dimension; the extension is ours.

    Example:
        >>> lift = LiftConv1d(3, 8, kernel_size=9, grid=ScaleGrid.geometric(0.9, 1.41, 3), padding="same")
        >>> lift(torch.randn(2, 3, 40)).shape
        torch.Size([2, 8, 3, 40])
    """

    ndim = 1


class ScaleConv1d(_ScaleConv):
    r"""Scale convolution of the scale map of a signal, with filters that may span several scales.

    .. math:: y_{c' s} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c' c i f} \, (\psi_{f s} \star x_{c, s + i})

    Shapes:
        input ``(B, C, S, L)``; output ``(B, C', S, L')``; weight
        ``(C', C / groups, N, F)``; bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, a family with ``sample_nd``: Hermite, B-splines, Gaussian derivatives or DISCO.
        scale_size: N, the number of neighbouring scales a filter sees; N > 1: inter-scale interaction.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``scale_padding``,
            ``groups`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis exists in two dimensions only, cannot be sampled, or is degenerate.
        SettingError: For illegal channels, scale size or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. Scaling by the grid's step: up to the error of
        sampling, and for N > 1 of the open end of the scale axis: ``tests/nn/test_nd.py`` measures it.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, equation 9, in
        one dimension; the extension is ours.

    Example:
        >>> conv = ScaleConv1d(8, 16, kernel_size=9, grid=ScaleGrid.geometric(0.9, 1.41, 3), padding="same")
        >>> conv(torch.randn(2, 8, 3, 40)).shape
        torch.Size([2, 16, 3, 40])
    """

    ndim = 1


class LiftConv3d(_LiftConv):
    r"""Lifting convolution of a volume: it is correlated with filters on every scale.

    .. math:: y_{c' s} = b_{c'} + \sum_{c, f} w_{c' c f} \, (\psi_{f s} \star x_c)

    Shapes:
        input ``(B, C, D, H, W)``; output ``(B, C', S, D', H', W')``; weight ``(C', C / groups, F)``,
        F = e³ with most families of effective size e; bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, a family with ``sample_nd``: Hermite, B-splines, Gaussian derivatives or DISCO.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``groups`` as in
            `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis exists in two dimensions only, cannot be sampled, or is degenerate.
        SettingError: For illegal channels or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. A volume scaled by the grid's step a shifts the
        scale axis by one up to the error of sampling: ``tests/nn/test_nd.py`` measures it.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, equation 8, in
        three dimensions; the extension is ours.

    Example:
        >>> lift = LiftConv3d(2, 4, kernel_size=7, grid=ScaleGrid.geometric(0.9, 1.41, 2), padding="same")
        >>> lift(torch.randn(1, 2, 9, 9, 9)).shape
        torch.Size([1, 4, 2, 9, 9, 9])
    """

    ndim = 3


class ScaleConv3d(_ScaleConv):
    r"""Scale convolution of the scale map of a volume, with filters that may span several scales.

    .. math:: y_{c' s} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c' c i f} \, (\psi_{f s} \star x_{c, s + i})

    Shapes:
        input ``(B, C, S, D, H, W)``; output ``(B, C', S, D', H', W')``; weight
        ``(C', C / groups, N, F)``; bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, a family with ``sample_nd``: Hermite, B-splines, Gaussian derivatives or DISCO.
        scale_size: N, the number of neighbouring scales a filter sees; N > 1: inter-scale interaction.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``scale_padding``,
            ``groups`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis exists in two dimensions only, cannot be sampled, or is degenerate.
        SettingError: For illegal channels, scale size or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. Scaling by the grid's step: up to the error of
        sampling, and for N > 1 of the open end of the scale axis: ``tests/nn/test_nd.py`` measures it.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, equation 9, in
        three dimensions; the extension is ours.

    Example:
        >>> conv = ScaleConv3d(4, 4, kernel_size=7, grid=ScaleGrid.geometric(0.9, 1.41, 2), padding="same")
        >>> conv(torch.randn(1, 4, 2, 9, 9, 9)).shape
        torch.Size([1, 4, 2, 9, 9, 9])
    """

    ndim = 3
