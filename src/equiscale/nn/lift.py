"""The lifting convolution: from an image to a scale map."""

from typing import Unpack

from torch import Tensor

from equiscale.basis import SteerableBasis
from equiscale.functional import GeometryOptions
from equiscale.nn.steerable import DEFAULT_BASIS, SteerableConv2d
from equiscale.scales import ScaleGrid


class LiftConv2d(SteerableConv2d):
    r"""Lifting convolution (the papers' convTH): an image is correlated with filters on every scale.

    .. math:: y_{c' s} = b_{c'} + \sum_{c, f} w_{c' c f} \, (\psi_{f s} \star x_c)

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, F)``; bias
        ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, the family of F functions.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``groups``,
            ``projection``, ``pooling`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. An image scaled by the grid's step a shifts the
        scale axis by one up to the error of sampling: ``tests/nn/test_equivariance.py`` measures it.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, equation 8.

    Example:
        >>> import torch
        >>> lift = LiftConv2d(3, 8, kernel_size=7, grid=ScaleGrid.geometric(0.9, 1.41, 3), padding="same")
        >>> lift(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 3, 32, 32])
    """

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
        self.geometry.refuse(scale_padding="an image has no scale axis to pad")
        channels = in_channels // self.geometry.groups
        self._make_parameters((out_channels, channels, basis.num_functions), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Lift an image ``(B, C, H, W)`` to a scale map ``(B, C', S, H', W')`` or its maxima."""
        return self._convolve("lift_conv2d", x)
