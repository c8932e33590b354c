"""Scale-normalised derivatives of a Gaussian (Lindeberg 2022)."""

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
from numpy.polynomial import hermite_e

from equiscale.basis.sampling import DegeneratePolicy, Samples, check_family, check_positive, is_whole
from equiscale.basis.separable import SeparableFamily
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid


@dataclass(frozen=True)
class GaussianDerivativeBasis(SeparableFamily):
    r"""Scale-normalised Gaussian derivatives whose window is as wide as the Gaussian asks for.

    .. math:: \psi_{n m}(y, x; s) = s^{n + m} \, \partial_y^n \partial_x^m \,
        \frac{e^{-(x^2 + y^2) / 2 s^2}}{2 \pi s^2}, \qquad |x|, |y| \le \rho s

    for all orders :math:`n, m < e`, m fastest; with ``max_order`` only those with
    :math:`n + m \le` ``max_order``, the jet that rotations map to itself. Every function is divided by its
    L2 norm on the smallest scale. The window depends on its own scale alone: it does not change
    with the kernel size, nor with the other scales of the grid, as that of `HermiteBasis` does.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size², fewer with ``max_order``; `sample_nd` the
        derivatives along n axes, F = effective_sizeⁿ or fewer.

    Args:
        effective_size: e; the highest order in each direction is e − 1.
        max_order: The highest total order N, or None for no such limit.
        radius: ρ, half the window in standard deviations. None: as far as the kernel reaches on the
            largest scale, and in proportion on the others.
        degenerate: What to do when the sampled functions are dependent on some scale: "error",
            "warn" or "allow".

    Raises:
        BasisError: For illegal arguments; from `sample` also for an even kernel, for a window that the
            kernel does not hold, for functions that are dependent (unless allowed), and for functions
            that vanish on the smallest scale.

    Exactness:
        In the continuum :math:`\psi(x / a; s) = a^2 \psi(x; a s)`. What the window cuts falls with ρ like
        :math:`e^{-\rho^2 / 2}`; ``tests/basis/test_gaussian_derivative.py`` measures it.

    Source:
        Lindeberg, *Scale-Covariant and Scale-Invariant Gaussian Derivative Networks*, JMIV 2022.
        Up to signs the functions are those of Hermite kind A; the window differs,
        and with ``max_order`` the choice of orders.

    Example:
        >>> GaussianDerivativeBasis(3).sample(13, ScaleGrid([1.0, 1.5, 2.0])).shape
        torch.Size([9, 3, 13, 13])
        >>> GaussianDerivativeBasis(3, max_order=2).num_functions
        6
    """

    effective_size: int
    max_order: int | None = None
    radius: float | None = 3.0
    degenerate: DegeneratePolicy = "error"

    _alternative: ClassVar[str] = "a larger radius"

    def __post_init__(self) -> None:
        check_family(self.effective_size, self.degenerate)
        if self.max_order is not None and not is_whole(self.max_order, 0):
            raise BasisError(f"expected max_order of at least 0 or None, got {self.max_order}")
        if self.radius is not None:
            check_positive("radius", self.radius)

    @property
    def num_functions(self) -> int:
        """F, the number of orders."""
        return len(self._orders())

    def _orders(self) -> list[tuple[int, int]]:
        side = range(self.effective_size)
        return [(n, m) for n in side for m in side if self.max_order is None or n + m <= self.max_order]

    def _window(self, kernel_size: int, scale: float, grid: ScaleGrid) -> int:
        if self.radius is None:
            return super()._window(kernel_size, scale, grid)
        needed = 2 * math.floor(self.radius * grid.max) + 1
        if needed > kernel_size:
            raise BasisError(
                f"expected a kernel that holds {self.radius:g} standard deviations of the largest scale "
                f"{grid.max:g}, {needed} pixels, got {kernel_size}; use kernel_size={needed}, a smaller "
                "radius, or radius=None for what the kernel holds"
            )
        return 2 * math.floor(self.radius * scale) + 1

    def _values(self, x: Samples, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        derivatives = [_derivative(order, x, scale) for order in range(self.effective_size)]
        return np.stack([np.outer(derivatives[n], derivatives[m]) for n, m in self._orders()])

    def _profiles(self, x: Samples, scale: float, ndim: int) -> Samples:
        derivatives = np.stack([_derivative(order, x, scale) for order in range(self.effective_size)])
        orders = product(range(self.effective_size), repeat=ndim)
        kept = [list(n) for n in orders if self.max_order is None or sum(n) <= self.max_order]
        return np.asarray(derivatives[kept], dtype=np.float64)


def _derivative(order: int, x: Samples, sigma: float) -> Samples:
    """σ^n times the n-th derivative of the normalised Gaussian."""
    polynomial = hermite_e.hermeval(-x / sigma, [0.0] * order + [1.0])
    gaussian = np.exp(-(x**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
    return np.asarray(polynomial * gaussian, dtype=np.float64)
