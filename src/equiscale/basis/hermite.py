"""Hermite polynomials under a Gaussian (Sosnovik et al. 2020)."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.polynomial import hermite_e
from numpy.typing import NDArray

from equiscale._typing import BasisTensor
from equiscale.basis.diagnosis import MAX_CONDITION, ScaleDiagnosis, diagnose
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid

DegeneratePolicy = Literal["error", "warn", "allow"]

# A kernel larger than this is no longer a remedy for a degenerate basis.
_LARGEST_REMEDY = 65


@dataclass(frozen=True)
class HermiteBasis:
    r"""Hermite polynomials under a Gaussian, in both published kinds.

    .. math:: \psi_{n m}(y, x; \sigma) = \tfrac{1}{\sigma^2}
        He_n(\tfrac{y}{\sigma})\, He_m(\tfrac{x}{\sigma})\, e^{-(x^2 + y^2) / 2 \sigma^2}

    Kind A holds all orders :math:`n, m < e` at :math:`\sigma = s`. Kind B holds the orders
    :math:`n + m \le` ``max_order`` at :math:`\sigma = s, s/q, s/q^2, \dots` (q = ``mult``) until
    there are :math:`e^2` functions. Every function is divided by its L2 norm on the smallest scale,
    so that the relation between scales is kept. The window on scale s is
    ``int(kernel_size * s / s_max) // 2 * 2 + 1`` pixels wide; outside it the function is zero.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size².

    Args:
        effective_size: e, the side of the ordinary filter with the same number of weights.
        kind: "A" or "B".
        max_order: Largest total order of kind B.
        mult: q, the ratio of kind B's internal scales, larger than 1.
        degenerate: What to do when the sampled functions are dependent on some scale: "error",
            "warn" or "allow". The published MNIST networks need "allow": on their smallest scale
            49 functions live in a window of 25 pixels.

    Raises:
        BasisError: For illegal arguments; from `sample` also for an even kernel, for functions that
            are dependent (unless allowed), and for functions that vanish on the smallest scale.

    Exactness:
        In the continuum the family is closed under scaling: :math:`\psi(x / a; \sigma) = a^2
        \psi(x; a \sigma)`. Sampling and the finite window break it; the error of the layers is
        measured in ``tests/nn/test_equivariance.py``.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, section 5.
        Deviation: the published code divides by a norm of zero where a function vanishes on the
        first scale; this is an error here.

    Example:
        >>> HermiteBasis(3).sample(7, ScaleGrid([0.9, 1.27, 1.79])).shape
        torch.Size([9, 3, 7, 7])
    """

    effective_size: int
    kind: Literal["A", "B"] = "A"
    max_order: int = 4
    mult: float = 1.2
    degenerate: DegeneratePolicy = "error"

    def __post_init__(self) -> None:
        if self.effective_size < 1:
            raise BasisError(f"expected effective_size of at least 1, got {self.effective_size}")
        if self.kind not in ("A", "B"):
            raise BasisError(f"expected kind 'A' or 'B', got {self.kind!r}")
        if self.max_order < 0:
            raise BasisError(f"expected max_order of at least 0, got {self.max_order}")
        if not 1 < self.mult < math.inf:
            raise BasisError(f"expected mult larger than 1, got {self.mult}; internal scales are s / mult**i")
        if self.degenerate not in ("error", "warn", "allow"):
            raise BasisError(f"expected degenerate 'error', 'warn' or 'allow', got {self.degenerate!r}")

    @property
    def num_functions(self) -> int:
        """F = effective_size²."""
        return self.effective_size**2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        """The functions on the pixel grid, normalised on the smallest scale, float64 ``(F, S, K, K)``."""
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise BasisError(
                f"expected an odd kernel_size, got {kernel_size}; a centred filter needs a central pixel"
            )
        basis = self._normalised(kernel_size, grid)
        if self.degenerate != "allow":
            self._check_independent(basis, kernel_size, grid)
        return basis

    def _normalised(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        sampled = [self._sample_scale(scale, kernel_size, grid.max) for scale in grid]
        basis = torch.from_numpy(np.stack(sampled, axis=1))  # (F, S, K, K)
        norm = basis[:, :1].square().sum((2, 3), keepdim=True).sqrt()
        if not bool((norm > 0).all()):
            vanishing = int((norm == 0).sum())
            raise BasisError(
                f"expected functions that are not zero on the smallest scale, got {vanishing} of "
                f"{self.num_functions} that vanish at scale {grid.min:g} (window "
                f"{_window(kernel_size, grid.min, grid.max)}); {self._remedy(kernel_size, grid)}"
            )
        return basis / norm

    def _sample_scale(self, scale: float, kernel_size: int, largest: float) -> NDArray[np.float64]:
        window = _window(kernel_size, scale, largest)
        x = np.arange(window, dtype=np.float64) - window // 2
        functions = [
            np.outer(_hermite_gaussian(x, order_x, sigma), _hermite_gaussian(x, order_y, sigma))
            for sigma, order_y, order_x in self._functions(scale)
        ]
        margin = (kernel_size - window) // 2
        return np.pad(np.stack(functions), ((0, 0), (margin, margin), (margin, margin)))

    def _functions(self, scale: float) -> list[tuple[float, int, int]]:
        """(sigma, order_y, order_x) of every function, in the published order."""
        listing = self._orders_a(scale) if self.kind == "A" else self._orders_b(scale)
        return [function for function, _ in zip(listing, range(self.num_functions), strict=False)]

    def _orders_a(self, scale: float) -> Iterator[tuple[float, int, int]]:
        side = self.effective_size
        yield from ((scale, y, x) for y in range(side) for x in range(side))

    def _orders_b(self, scale: float) -> Iterator[tuple[float, int, int]]:
        sigma, orders = scale, range(self.max_order + 1)
        while True:
            yield from ((sigma, y, x) for y in orders for x in orders if y + x <= self.max_order)
            sigma /= self.mult

    def _check_independent(self, basis: BasisTensor, kernel_size: int, grid: ScaleGrid) -> None:
        worst = min(diagnose(basis, grid), key=lambda diagnosis: diagnosis.rank)
        if not worst.degenerate:
            return
        message = self._complaint(worst, kernel_size, grid)
        if self.degenerate == "error":
            raise BasisError(message)
        warnings.warn(message, stacklevel=4)

    def _complaint(self, worst: ScaleDiagnosis, kernel_size: int, grid: ScaleGrid) -> str:
        return (
            f"expected {worst.num_functions} independent functions on every scale (condition number below "
            f"{MAX_CONDITION:.0e}), got rank {worst.rank} of {worst.num_functions} at scale {worst.scale:g} "
            f"(window {_window(kernel_size, worst.scale, grid.max)} of kernel {kernel_size}); "
            f'{self._remedy(kernel_size, grid)}, or accept it with degenerate="allow"'
        )

    def _remedy(self, kernel_size: int, grid: ScaleGrid) -> str:
        for candidate in range(kernel_size + 2, _LARGEST_REMEDY + 1, 2):
            if self._works(candidate, grid):
                return f"the smallest kernel that works is {candidate}"
        return (
            f"no kernel up to {_LARGEST_REMEDY} works; use larger scales, a smaller effective_size "
            f"(now {self.effective_size}) or another kind"
        )

    def _works(self, kernel_size: int, grid: ScaleGrid) -> bool:
        sampled = [self._sample_scale(scale, kernel_size, grid.max) for scale in grid]
        basis = torch.from_numpy(np.stack(sampled, axis=1))
        return not any(diagnosis.degenerate for diagnosis in diagnose(basis, grid))


def _window(kernel_size: int, scale: float, largest: float) -> int:
    """The published window, an odd number; the order of the operations decides its rounding."""
    return int(kernel_size * scale / largest) // 2 * 2 + 1


def _hermite_gaussian(x: NDArray[np.float64], order: int, sigma: float) -> NDArray[np.float64]:
    polynomial = hermite_e.hermeval(x / sigma, [0.0] * order + [1.0])
    return np.asarray(np.exp(-(x**2) / (2 * sigma**2)) / sigma * polynomial, dtype=np.float64)
