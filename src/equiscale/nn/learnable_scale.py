"""Scales that are learned with the weights (Basting et al. 2024)."""

import math
import warnings
from typing import Unpack

import torch
from torch import Tensor, nn

from equiscale._typing import BasisTensor
from equiscale.basis import MAX_CONDITION, HermiteBasis, diagnose
from equiscale.errors import BasisError, ScaleGridError, SettingError
from equiscale.functional import ConvGeometry, GeometryOptions, lift_conv2d, sample_hermite, scale_conv2d
from equiscale.functional.checks import is_number, is_whole
from equiscale.nn.steerable import FilterWeights, check_channel_pair
from equiscale.scales import ScaleGrid

_DEFAULT_BASIS = HermiteBasis(3)


class LearnableScales(nn.Module):
    r"""A geometric scale grid whose smallest scale and range are parameters.

    .. math:: s_i = s_0 \, \rho^{i / (S - 1)}, \qquad s_0 = e^a, \quad \rho = e^{|b|}

    with the parameters a (``log_min_scale``) and b (``log_range``). Give one object to several layers and
    they share its two numbers: `parameters` then yields them once, the state dict shows them under each
    layer.

    Shapes:
        output ``(S,)``; ``log_min_scale`` and ``log_range`` are single numbers.

    Args:
        num_scales: S, at least 2.
        min_scale: The initial smallest scale s₀ in pixels.
        scale_range: The initial ratio ρ of the largest to the smallest scale, larger than 1.

    Raises:
        SettingError: For illegal arguments.

    Exactness:
        The scales are positive and in order whatever the parameters are. ρ is reflected at 1: the scales
        are equal at b = 0 alone, where `forward` still has a gradient and `grid` is a ScaleGridError.

    Source:
        Basting, Bruintjes, Wiedemer, Kümmerer, Bethge, van Gemert, *Scale Learning in Scale-Equivariant
        Convolutional Networks*, VISAPP 2024, section 3. Deviation: both parameters are logarithms.

    Example:
        >>> LearnableScales(3, min_scale=1.5, scale_range=4.0).grid
        ScaleGrid([1.5, 3.0, 6.0])
    """

    def __init__(self, num_scales: int, *, min_scale: float, scale_range: float) -> None:
        super().__init__()
        if not is_whole(num_scales, 2):
            raise SettingError(f"expected at least 2 scales, which span a range, got {num_scales!r}")
        if not (is_number(min_scale) and 0 < min_scale < math.inf):
            raise SettingError(f"expected a positive min_scale, got {min_scale}")
        if not (is_number(scale_range) and 1 < scale_range < math.inf):
            raise SettingError(f"expected a scale_range larger than 1, got {scale_range}")
        self.num_scales = num_scales
        self.log_min_scale = nn.Parameter(torch.tensor(math.log(min_scale)))
        self.log_range = nn.Parameter(torch.tensor(math.log(scale_range)))

    def forward(self) -> Tensor:
        """The scales ``(S,)``, smallest first, differentiable in both parameters."""
        steps = torch.linspace(
            0, 1, self.num_scales, dtype=self.log_range.dtype, device=self.log_range.device
        )
        log_range = torch.where(self.log_range < 0, -self.log_range, self.log_range)  # |b| has no slope at 0
        return torch.exp(self.log_min_scale + log_range * steps)

    @property
    def grid(self) -> ScaleGrid:
        """The present scales as plain numbers, for measurements and tables.

        Raises:
            ScaleGridError: If they are no grid: equal, infinite or NaN.
        """
        return ScaleGrid(self._values())

    def _values(self) -> list[float]:
        smallest, log_range = self.log_min_scale.item(), abs(self.log_range.item())
        steps = torch.arange(self.num_scales, dtype=torch.float64, device="cpu") / (self.num_scales - 1)
        values: list[float] = torch.exp(
            smallest + log_range * steps
        ).tolist()  # where math.exp would overflow
        return values

    def extra_repr(self) -> str:
        """Number and present values of the scales, whatever they are."""
        if self.log_range.is_meta:
            return f"{self.num_scales}"
        try:
            return f"{self.num_scales}, grid={self.grid}"
        except ScaleGridError:
            return f"{self.num_scales}, scales={[round(value, 4) for value in self._values()]}"


class _LearnableConv2d(FilterWeights):
    """What the two convolutions share: weights, scales, and the basis sampled at every call."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: LearnableScales,
        basis: HermiteBasis,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__()
        if not isinstance(scales, LearnableScales):
            raise SettingError(f"expected LearnableScales, got {scales!r}; write scales=LearnableScales(...)")
        if not isinstance(basis, HermiteBasis):
            raise SettingError(f"expected a HermiteBasis, the one with a derivative, got {basis!r}")
        self.geometry = ConvGeometry(**geometry)
        check_channel_pair(in_channels, out_channels, self.geometry.groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.family, self.scales = kernel_size, basis, scales
        _check_independent(basis, self.sample_basis().detach(), scales.grid)

    @property
    def grid(self) -> ScaleGrid:
        """The present scales as plain numbers."""
        return self.scales.grid

    def sample_basis(self) -> BasisTensor:
        """The basis functions ``(F, S, K, K)`` at the present scales, differentiable in them."""
        return sample_hermite(self.scales(), self.family.functions(1.0), self.kernel_size)

    def extra_repr(self) -> str:
        """Channels, kernel, basis and geometry."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, basis={self.family}, bias={self.bias is not None}",
            str(self.geometry),
        ]
        return ", ".join(part for part in parts if part)


class LearnableLiftConv2d(_LearnableConv2d):
    r"""Lifting convolution whose scales are learned with its weights.

    .. math:: y_{c' i} = b_{c'} + \sum_{c, f} w_{c' c f} \, (\psi_f(\cdot\,; s_i) \star x_c), \qquad
        s_i = s_0 \, \rho^{i / (S - 1)}

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, F)``; bias
        ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filters on every scale; odd. It stays while the scales
            move: leave room for them to grow.
        scales: s, to be shared by the layers of a network.
        basis: ψ, the Hermite functions of kind A or B.
        bias: Learn a bias b.
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``groups`` as in
            `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the functions are dependent on one of the initial scales (unless allowed).
        SettingError: For illegal channels, kernel, scales or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        As `LiftConv2d` at the present scales, but for functions too narrow for the pixels, which go to
        zero (`equiscale.functional.sample_hermite`), and for the window: all K×K pixels on every scale,
        since the published window in whole pixels has no derivative. The largest scale is then cut nearer to
        its centre than the others, which costs some equivariance where K is small.
        ``tests/nn/test_learnable_scale.py`` measures both.

    Source:
        Basting et al., *Scale Learning in Scale-Equivariant Convolutional Networks*, VISAPP 2024.
        Deviation: the published kernels grow and shrink with the scales; here they keep their size.

    Example:
        >>> scales = LearnableScales(3, min_scale=0.9, scale_range=2.0)
        >>> LearnableLiftConv2d(3, 8, kernel_size=9, scales=scales)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 3, 24, 24])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: LearnableScales,
        basis: HermiteBasis = _DEFAULT_BASIS,
        bias: bool = True,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=kernel_size, scales=scales, basis=basis, **geometry
        )
        self.geometry.refuse(scale_padding="an image has no scale axis to pad")
        self._make_parameters((out_channels, in_channels // self.geometry.groups, basis.num_functions), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Lift an image ``(B, C, H, W)`` to a scale map ``(B, C', S, H', W')``."""
        return lift_conv2d(x, self.weight, self.sample_basis(), self.bias, geometry=self.geometry)


class LearnableScaleConv2d(_LearnableConv2d):
    r"""Scale convolution whose scales are learned with its weights.

    .. math:: y_{c' i} = b_{c'} + \sum_{j < N} \sum_{c, f} w_{c' c j f} \,
        (\psi_f(\cdot\,; s_i) \star x_{c, i + j}), \qquad s_i = s_0 \, \rho^{i / (S - 1)}

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H', W')``; weight ``(C', C / groups, N, F)``;
        bias ``(C',)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filters on every scale; odd.
        scales: s, to be shared by the layers of a network.
        basis: ψ, the Hermite functions of kind A or B.
        scale_size: N, the number of neighbouring scales a filter sees.
        **geometry: ``bias`` (default True), ``stride``, ``padding`` (a number or "same"),
            ``padding_mode``, ``scale_padding``, ``groups`` as in `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the functions are dependent on one of the initial scales (unless allowed).
        SettingError: For illegal channels, kernel, scales, scale size or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        As `LearnableLiftConv2d`.

    Source:
        Basting et al., *Scale Learning in Scale-Equivariant Convolutional Networks*, VISAPP 2024.
        Deviation: the published kernels grow and shrink with the scales; here they keep their size.

    Example:
        >>> scales = LearnableScales(3, min_scale=0.9, scale_range=2.0)
        >>> LearnableScaleConv2d(4, 8, kernel_size=9, scales=scales)(torch.randn(2, 4, 3, 16, 16)).shape
        torch.Size([2, 8, 3, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: LearnableScales,
        basis: HermiteBasis = _DEFAULT_BASIS,
        scale_size: int = 1,
        bias: bool = True,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=kernel_size, scales=scales, basis=basis, **geometry
        )
        if not (is_whole(scale_size) and scale_size <= scales.num_scales):
            raise SettingError(f"expected a scale_size of 1 to {scales.num_scales}, got {scale_size}")
        self.scale_size = scale_size
        channels = in_channels // self.geometry.groups
        self._make_parameters((out_channels, channels, scale_size, basis.num_functions), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, S, H, W)`` to ``(B, C', S, H', W')``."""
        return scale_conv2d(x, self.weight, self.sample_basis(), self.bias, geometry=self.geometry)

    def extra_repr(self) -> str:
        """As the lifting convolution, and the scale size."""
        return f"{super().extra_repr()}, scale_size={self.scale_size}"


def _check_independent(family: HermiteBasis, basis: Tensor, grid: ScaleGrid) -> None:
    if family.degenerate == "allow":
        return
    worst = min(diagnose(basis, grid), key=lambda diagnosis: diagnosis.rank)
    if not worst.degenerate:
        return
    message = (
        f"expected {worst.num_functions} independent functions on every initial scale (condition number "
        f"below {MAX_CONDITION:.0e}), got rank {worst.rank} at scale {worst.scale:g} in {basis.shape[-1]} "
        'pixels; use a larger kernel or other scales, or accept it with degenerate="allow"'
    )
    if family.degenerate == "error":
        raise BasisError(message)
    warnings.warn(message, stacklevel=4)
