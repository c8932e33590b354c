"""What the lifting and the scale convolution share: steerable filters with learned weights."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from equiscale.basis import HermiteBasis, SteerableBasis
from equiscale.errors import BasisError, SettingError
from equiscale.functional import ConvGeometry, GeometryOptions, support_windows
from equiscale.functional.algorithms import Convolution, FilterCache
from equiscale.functional.checks import is_whole
from equiscale.functional.conv import convolve
from equiscale.scales import ScaleGrid

DEFAULT_BASIS = HermiteBasis(3)


class FilterWeights(nn.Module):
    """Learned weights of filters, and a bias an output channel."""

    out_channels: int
    bias: nn.Parameter | None

    def _make_parameters(self, weight_shape: tuple[int, ...], bias: bool) -> None:
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.register_parameter("bias", nn.Parameter(torch.empty(self.out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from U(−b, b) with b = 1/√fan_in as published; bias zero.

        Args:
            generator: Source of randomness; None: torch's default, as in torch.nn.
        """
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SteerableConv2d(FilterWeights):
    """Base of the convolutions whose filters are combinations of fixed basis functions.

    Holds the weights and the sampled basis, and checks both. The basis is a buffer that follows the
    module's device and dtype and is never part of the state dict.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, the side in pixels of the filter on the largest scale; odd.
        grid: The S scales.
        basis: ψ, the family of F functions.
        **geometry: As in `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels or geometry.

    Exactness:
        The algorithm is chosen for every shape, and all agree up to rounding (`equiscale.algorithm`;
        ``tests/functional/algorithms`` measures it). On the CPU the filters are kept while no gradient is
        wanted and the values of the weights stay.
        The basis is sampled in float64 and kept in torch's default dtype: with float32, ``.double()`` widens
        what was rounded, and leaves a relative error of about 3e-8. A layer built under
        ``torch.set_default_dtype(torch.float64)`` has none: ``tests/nn/test_contracts.py`` measures it.
    """

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
        self.filter_cache = FilterCache()
        check_channels(in_channels, out_channels, self.geometry.groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.grid, self.family = kernel_size, grid, basis
        sampled = sample_checked(basis, kernel_size, grid)
        self.windows = support_windows(sampled)
        self.register_buffer("basis", sampled.to(torch.get_default_dtype()), persistent=False)

    def _own_settings(self) -> str:
        """What a subclass shows beside the settings that all share."""
        return ""

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        operands = Convolution(
            x, self.weight, self.basis, self.bias, self.geometry, self.windows, self.filter_cache
        )
        return convolve(name, operands)

    def extra_repr(self) -> str:
        """Channels, kernel, grid, basis, geometry, and the algorithm of the last forward pass."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, grid={self.grid}, basis={self.family}",
            f"bias={self.bias is not None}",
            str(self.geometry),
            self._own_settings(),
            f"algorithm={self.filter_cache.algorithm}" if self.filter_cache.algorithm else "",
        ]
        return ", ".join(part for part in parts if part)


def check_family(kernel_size: int, grid: ScaleGrid, basis: SteerableBasis) -> None:
    """Raise a SettingError unless functions can be asked for: of a basis, on a grid, on odd pixels."""
    if not isinstance(grid, ScaleGrid):
        raise SettingError(f"expected a ScaleGrid, got {grid!r}; write grid=ScaleGrid({grid!r})")
    if not isinstance(basis, SteerableBasis):
        raise SettingError(f"expected a basis with num_functions and sample, got {basis!r}")
    if not is_whole(kernel_size):
        raise SettingError(f"expected a kernel_size of at least 1 pixel, got {kernel_size!r}")


def check_scale_size(scale_size: int, num_scales: int) -> None:
    """Raise a SettingError unless filters span some of the scales, or all."""
    if not (is_whole(scale_size) and scale_size <= num_scales):
        raise SettingError(
            f"expected a scale_size of 1 to {num_scales}, the grid's scales, got {scale_size!r}"
        )


def sample_checked(basis: SteerableBasis, kernel_size: int, grid: ScaleGrid) -> Tensor:
    """The sampled basis, after checking what a family of any origin returned."""
    sampled = basis.sample(kernel_size, grid)
    expected = (basis.num_functions, len(grid), kernel_size, kernel_size)
    if tuple(sampled.shape) != expected:
        raise BasisError(f"expected {basis} to sample (F, S, K, K) = {expected}, got {tuple(sampled.shape)}")
    if not bool(torch.isfinite(sampled).all()):
        broken = int((~torch.isfinite(sampled)).sum())
        raise BasisError(
            f"expected finite basis functions, got {broken} values of {basis} that are not finite"
        )
    return sampled


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Raise a SettingError that names the count of channels that the groups do not divide."""
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not is_whole(channels) or channels % groups:
            raise SettingError(
                f"expected {name} to be a positive multiple of groups={groups}, got {channels!r}"
            )


def check_channel_pair(in_channels: int, out_channels: int, groups: int) -> None:
    """Raise a SettingError that shows both counts unless the groups divide them."""
    legal = all(is_whole(channels) and channels % groups == 0 for channels in (in_channels, out_channels))
    if not legal:
        raise SettingError(
            f"expected positive multiples of groups={groups} as channels, "
            f"got {in_channels!r} and {out_channels!r}"
        )
