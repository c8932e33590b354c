"""Families in any number of dimensions: products of functions of one axis each."""

import math
import warnings
from abc import abstractmethod
from functools import lru_cache, reduce
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from equiscale.basis.diagnosis import MAX_CONDITION, ScaleDiagnosis
from equiscale.basis.protocol import SteerableBasis
from equiscale.basis.sampling import DegeneratePolicy, SampledFamily, Samples, check_place, is_whole
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid

# As in `sampling`: of the largest function, what counts as zero on the smallest scale.
_VANISHING = 1e-10

# Samples of three dimensions are larger than those of two, and networks use few of them.
_CACHED = 8


@runtime_checkable
class SeparableBasis(Protocol):
    """What a filter family needs beside the members of `SteerableBasis` to serve for signals and volumes.

    Any object with both plugs into the layers for one and three dimensions, such as
    `equiscale.nn.LiftConv1d` and `equiscale.nn.ScaleConv3d`.
    """

    def sample_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> torch.Tensor:
        """The functions of so many dimensions, float64, axes ``(F, S, K, …, K)``; for 2 as `sample`."""
        ...


def sample_nd(basis: SteerableBasis, kernel_size: int, grid: ScaleGrid, *, ndim: int) -> torch.Tensor:
    r"""The functions of a family on a pixel grid of one, two, three or more dimensions.

    .. math:: \psi_f(x_1, \dots, x_n; s) = \prod_{a \le n} \phi_{f a}(x_a; s)

    Shapes:
        result: ``(F, S, K, …, K)``, K as often as there are dimensions.

    Args:
        basis: The family.
        kernel_size: K, the side in pixels on the largest scale; odd.
        grid: The S scales.
        ndim: n, the number of dimensions.

    Raises:
        BasisError: If the family exists in two dimensions only, there is not at least one dimension, or
            what is sampled has other axes or is not finite; and as from ``basis.sample``.

    Exactness:
        Equal to ``basis.sample`` for n = 2. In the continuum :math:`\psi(x / a; s) = a^n \psi(x; a s)`.

    Example:
        >>> from equiscale.basis import HermiteBasis
        >>> sample_nd(HermiteBasis(3), 7, ScaleGrid([1.0, 1.5]), ndim=3).shape
        torch.Size([27, 2, 7, 7, 7])
    """
    if not isinstance(basis, SteerableBasis):
        raise BasisError(f"expected a basis with num_functions and sample, got {basis!r}")
    if not is_whole(ndim):
        raise BasisError(f"expected at least 1 dimension, got {ndim!r}")
    if ndim == 2:
        sampled = basis.sample(kernel_size, grid)
    elif isinstance(basis, SeparableBasis):
        sampled = basis.sample_nd(kernel_size, grid, ndim)
    else:
        raise BasisError(
            f"expected a basis that exists in {ndim} dimensions, got {basis}, whose functions are "
            "two-dimensional; use HermiteBasis, BSplineBasis, GaussianDerivativeBasis or DiscoBasis"
        )
    _check_sampled(sampled, basis, (len(grid), *[kernel_size] * ndim))
    return sampled


def _check_sampled(sampled: torch.Tensor, basis: SteerableBasis, expected: tuple[int, ...]) -> None:
    if tuple(sampled.shape[1:]) != expected:
        sizes = ", ".join(map(str, expected))
        raise BasisError(f"expected {basis} to sample (F, {sizes}), got {tuple(sampled.shape)}")
    broken = int((~torch.isfinite(sampled)).sum())
    if broken:
        raise BasisError(
            f"expected finite basis functions, got {broken} values of {basis} that are not finite"
        )


class SeparableFamily(SampledFamily):
    """Base of the families sampled on pixels whose functions are products of functions of one axis each.

    A family gives these profiles. As in `SampledFamily`, windows are padded, every function is divided by
    its norm on the smallest scale, and functions that vanish there or are dependent are refused.
    """

    def sample_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> torch.Tensor:
        """The functions of so many dimensions, normalised on the smallest scale, ``(F, S, K, …, K)``."""
        if ndim == 2:
            return self.sample(kernel_size, grid)
        check_place(kernel_size, grid)
        basis, complaint = _sampled(self, kernel_size, grid, ndim)
        report_dependent(complaint, self.degenerate)
        return basis.clone()

    @abstractmethod
    def _profiles(self, x: Samples, scale: float, ndim: int) -> Samples:
        """The factors of every function along every axis, ``(F, n, w)``, at the w pixel positions x."""

    def _padded_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> torch.Tensor:
        scales = [self._padded_scale_nd(scale, kernel_size, grid, ndim) for scale in grid]
        return torch.from_numpy(np.stack(scales, axis=1))  # (F, S, K, …, K)

    def _padded_scale_nd(self, scale: float, kernel_size: int, grid: ScaleGrid, ndim: int) -> Samples:
        window = self._window(kernel_size, scale, grid)
        x = np.arange(window, dtype=np.float64) - window // 2
        margin = (kernel_size - window) // 2
        profiles = np.pad(self._profiles(x, scale, ndim), ((0, 0), (0, 0), (margin, margin)))
        return products(profiles)


def products(profiles: Samples) -> Samples:
    """The functions ``(F, K, …, K)`` of their profiles ``(F, n, K)``."""
    axes = (profiles[:, axis] for axis in range(profiles.shape[1]))
    return reduce(lambda product, axis: product[..., None] * _aligned(axis, product.ndim), axes)


def _aligned(axis: Samples, ndim: int) -> Samples:
    """Profiles ``(F, K)`` with ones between, so that they multiply the last axis of ``ndim + 1``."""
    return axis.reshape(len(axis), *[1] * (ndim - 1), -1)


def dependent(basis: torch.Tensor, grid: ScaleGrid) -> str | None:
    """What is wrong with functions ``(F, S, …)`` that depend on one another on some scale, or None."""
    worst = min(map(_diagnosed, basis.unbind(1), grid), key=lambda diagnosis: diagnosis.rank)
    if not worst.degenerate:
        return None
    return (
        f"expected {worst.num_functions} independent functions on every scale (condition number below "
        f"{MAX_CONDITION:.0e}), got rank {worst.rank} of {worst.num_functions} at scale {worst.scale:g} in "
        f"{basis.ndim - 2} dimensions; use a larger kernel, larger scales or a smaller effective_size, or "
        'accept it with degenerate="allow"'
    )


def report_dependent(complaint: str | None, policy: DegeneratePolicy) -> None:
    """Raise or warn of dependent functions, as the policy says."""
    if complaint is None or policy == "allow":
        return
    if policy == "error":
        raise BasisError(complaint)
    warnings.warn(complaint, stacklevel=4)


def _diagnosed(functions: torch.Tensor, scale: float) -> ScaleDiagnosis:
    """Rank and condition number of functions ``(F, K, …, K)``; defined as in `diagnose`."""
    rows = torch.nn.functional.normalize(functions.flatten(1), dim=1)
    if rows.shape[1] > len(rows):
        rows = torch.linalg.qr(rows.mT).R  # of the same singular values, and small
    singular = torch.linalg.svdvals(rows)
    largest, smallest = float(singular[0]), float(singular[-1])
    rank = int((singular > largest / MAX_CONDITION).sum())
    full = len(singular) == len(functions) and smallest > 0
    return ScaleDiagnosis(scale, len(functions), rank, largest / smallest if full else math.inf)


@lru_cache(maxsize=_CACHED)
def _sampled(
    family: SeparableFamily, kernel_size: int, grid: ScaleGrid, ndim: int
) -> tuple[torch.Tensor, str | None]:
    """The normalised functions, and what is wrong with them."""
    basis = family._padded_nd(kernel_size, grid, ndim)
    norms = basis.flatten(2).square().sum(2).sqrt()  # (F, S)
    vanishing = int((~(norms[:, 0] > _VANISHING * norms.max())).sum())  # so that NaN counts
    if vanishing:
        raise BasisError(
            f"expected functions that are not zero on the smallest scale, got {vanishing} of {len(basis)} "
            f"that vanish at scale {grid.min:g} in {ndim} dimensions; use a larger kernel or larger scales"
        )
    basis = basis / norms[:, :1].view(-1, *[1] * (ndim + 1))
    return basis, None if family.degenerate == "allow" else dependent(basis, grid)
