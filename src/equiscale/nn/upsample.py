"""From a scale map to one with more pixels, as modules."""

from typing import Unpack

from torch import Tensor, nn

from equiscale._typing import ScaleMap
from equiscale.basis import SteerableBasis
from equiscale.functional import GeometryOptions, scale_upsample2d
from equiscale.functional.algorithms import Convolution
from equiscale.functional.upsample import (
    Alignment,
    UpsampleMethod,
    check_transposable,
    check_upsampling,
    transpose_convolve,
)
from equiscale.nn.steerable import DEFAULT_BASIS, SteerableConv2d, check_scale_size
from equiscale.scales import ScaleGrid


class ScaleUpsample2d(nn.Module):
    """More pixels about the true centre on every scale; see `functional.scale_upsample2d`.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C, S, r H, r W)``, of points
        ``(B, C, S, r (H − 1) + 1, r (W − 1) + 1)``.

    Args:
        factor: r, a whole number.
        method: "bilinear", or "nearest", which repeats every pixel and is for areas only.
        alignment: "areas", after pooling, where a pixel stands for r × r pixels; "points", after a stride,
            where pixel i stands at pixel r i.

    Raises:
        SettingError: For an illegal factor or choice.
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        Commutes exactly with shifts of the scale axis, with reflections and transposition, and away from the
        border with shifts, by d pixels before and r d after it. Scaling: up to the error of interpolation,
        about the same centre: ``tests/nn/test_upsample.py`` measures it.

    Source:
        Interpolation as in torch; Sangalli, Blusseau, Velasco-Forero, Angulo, *Scale Equivariant U-Net*,
        BMVC 2022.

    Example:
        >>> import torch
        >>> ScaleUpsample2d(2)(torch.ones(2, 3, 4, 8, 8)).shape
        torch.Size([2, 3, 4, 16, 16])
    """

    def __init__(
        self, factor: int, *, method: UpsampleMethod = "bilinear", alignment: Alignment = "areas"
    ) -> None:
        super().__init__()
        check_upsampling(factor, method, alignment)
        self.factor: int = factor
        self.method: UpsampleMethod = method
        self.alignment: Alignment = alignment

    def forward(self, x: Tensor) -> ScaleMap:
        """Interpolate every scale of ``(B, C, S, H, W)``."""
        return scale_upsample2d(x, self.factor, method=self.method, alignment=self.alignment)

    def extra_repr(self) -> str:
        """Factor, method and alignment."""
        return f"{self.factor}, method={self.method!r}, alignment={self.alignment!r}"


class ScaleConvTranspose2d(SteerableConv2d):
    r"""The transpose of a scale convolution; see `functional.scale_conv_transpose2d`.

    .. math:: y_{c' t} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c c' i f} \,
        \psi_{f, t - i}^{\,T} \, x_{c, t - i}

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``,
        H' = (H − 1)·stride − 2·padding + K + output_padding; weight ``(C, C' / groups, N, F)``; bias
        ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, the family of F functions.
        scale_size: N, the number of neighbouring scales that a filter reaches.
        output_padding: Rows and columns more at the end, 0 to stride − 1.
        **geometry: ``bias`` (default True), ``stride``, ``padding`` (a number or "same"),
            ``scale_padding``, ``groups`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels, scale size, output_padding or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ with A a `ScaleConv2d` from C' to C channels of the same weights, up to
        rounding. Scaling: at stride 1 that of the convolution; at a larger one the smallest filters must
        be nearly as wide as it, or the gaps that they leave do not scale: a Gaussian of width σ ripples by
        :math:`2 e^{-2 (\pi \sigma / \text{stride})^2}`. ``tests/nn/test_upsample.py`` measures it beside
        `ScaleUpsample2d` before a `ScaleConv2d`: smaller an error at stride 2 and σ = 1.5, larger at 0.5.

    Source:
        Transpose of Sosnovik et al. 2020, equation 9; the layer is ours.

    Example:
        >>> import torch
        >>> grid = ScaleGrid.geometric(0.9, 1.41, 3)
        >>> up = ScaleConvTranspose2d(16, 8, kernel_size=7, grid=grid, stride=2, padding="same")
        >>> up(torch.randn(2, 16, 3, 8, 8)).shape
        torch.Size([2, 8, 3, 15, 15])
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
        output_padding: int = 0,
        bias: bool = True,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=kernel_size, grid=grid, basis=basis, **geometry
        )
        check_transposable(self.geometry, output_padding)
        check_scale_size(scale_size, len(grid))
        self.scale_size, self.output_padding = scale_size, output_padding
        channels = out_channels // self.geometry.groups
        self._make_parameters((in_channels, channels, scale_size, basis.num_functions), bias)

    def forward(self, x: Tensor) -> ScaleMap:
        """Map ``(B, C, S, H, W)`` to ``(B, C', S, H', W')``."""
        operands = Convolution(
            x, self.weight, self.basis, self.bias, self.geometry, self.windows, self.filter_cache
        )
        return transpose_convolve(operands, self.output_padding)

    def _own_settings(self) -> str:
        return f"scale_size={self.scale_size}, output_padding={self.output_padding}"
