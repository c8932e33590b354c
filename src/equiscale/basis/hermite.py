"""Hermite polynomials under a Gaussian (Sosnovik et al. 2020)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

import numpy as np
from numpy.polynomial import hermite_e

from equiscale.basis.sampling import DegeneratePolicy as DegeneratePolicy
from equiscale.basis.sampling import Samples, check_family, is_number, is_whole
from equiscale.basis.separable import SeparableFamily
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid


@dataclass(frozen=True)
class HermiteBasis(SeparableFamily):
    r"""Hermite polynomials under a Gaussian, in both published kinds.

    .. math:: \psi_{n m}(y, x; \sigma) = \tfrac{1}{\sigma^2}
        He_n(\tfrac{y}{\sigma})\, He_m(\tfrac{x}{\sigma})\, e^{-(x^2 + y^2) / 2 \sigma^2}

    Kind A holds all orders :math:`n, m < e` at :math:`\sigma = s`. Kind B holds the orders
    :math:`n + m \le` ``max_order`` at :math:`\sigma = s, s/q, s/q^2, \dots` (q = ``mult``) until
    there are :math:`e^2` functions. Every function is divided by its L2 norm on the smallest scale,
    so that the relation between scales is kept. The window on scale s is
    ``int(kernel_size * s / s_max) // 2 * 2 + 1`` pixels wide; outside it the function is zero.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size²; `sample_nd` the products of n functions,
        F = effective_sizeⁿ.

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
        check_family(self.effective_size, self.degenerate)
        if self.kind not in ("A", "B"):
            raise BasisError(f"expected kind 'A' or 'B', got {self.kind!r}")
        if not is_whole(self.max_order, 0):
            raise BasisError(f"expected max_order of at least 0, got {self.max_order!r}")
        if not (is_number(self.mult) and 1 < self.mult < math.inf):
            raise BasisError(f"expected mult larger than 1, got {self.mult}; internal scales are s / mult**i")

    def _values(self, x: Samples, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        functions = [
            np.outer(_hermite_gaussian(x, order_x, sigma), _hermite_gaussian(x, order_y, sigma))
            for sigma, order_y, order_x in self.functions(scale)
        ]
        return np.stack(functions)

    def _profiles(self, x: Samples, scale: float, ndim: int) -> Samples:
        listing = self._orders_nd_a(scale, ndim) if self.kind == "A" else self._orders_nd_b(scale, ndim)
        functions = islice(listing, self.effective_size**ndim)
        # As published in two dimensions: the order that is listed last is that of the first axis.
        return np.stack(
            [
                [_hermite_gaussian(x, order, sigma) for order in reversed(orders)]
                for sigma, orders in functions
            ]
        )

    def _orders_nd_a(self, scale: float, ndim: int) -> Iterator[tuple[float, tuple[int, ...]]]:
        yield from ((scale, orders) for orders in product(range(self.effective_size), repeat=ndim))

    def _orders_nd_b(self, scale: float, ndim: int) -> Iterator[tuple[float, tuple[int, ...]]]:
        sigma, jet = scale, [*product(range(self.max_order + 1), repeat=ndim)]
        while True:
            yield from ((sigma, orders) for orders in jet if sum(orders) <= self.max_order)
            sigma /= self.mult

    def functions(self, scale: float) -> list[tuple[float, int, int]]:
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


def _hermite_gaussian(x: Samples, order: int, sigma: float) -> Samples:
    polynomial = hermite_e.hermeval(x / sigma, [0.0] * order + [1.0])
    return np.asarray(np.exp(-(x**2) / (2 * sigma**2)) / sigma * polynomial, dtype=np.float64)
