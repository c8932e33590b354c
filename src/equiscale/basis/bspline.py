"""B-splines on a grid of knots that grows with the scale (Bekkers 2020)."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from equiscale.basis.sampling import DegeneratePolicy, Samples, check_family, check_positive, is_whole
from equiscale.basis.separable import SeparableFamily
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid


@dataclass(frozen=True)
class BSplineBasis(SeparableFamily):
    r"""Cardinal B-splines centred on e × e knots, which lie s pixels apart on scale s.

    .. math:: \psi_{i j}(y, x; s) = \tfrac{1}{s^2}
        B_d\!\left(\frac{x / s - c_i}{w}\right) B_d\!\left(\frac{y / s - c_j}{w}\right), \qquad
        c_i = i - \tfrac{e - 1}{2}

    :math:`B_d` is the centred cardinal B-spline of degree d, :math:`d + 1` units wide. j, the knot's
    row, runs fastest. At s = 1 with d ≤ 1, w = 1 and odd e the functions are single pixels: the
    combinations are the ordinary e × e filters. Every function is divided by its L2 norm on the smallest
    scale.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size²; `sample_nd` the products of n splines,
        F = effective_sizeⁿ.

    Args:
        effective_size: e, the number of knots a side.
        degree: d; 0 steps, 1 hats, 2 and 3 smooth bumps.
        spread: w, the spline's unit of length in distances of knots; larger overlaps more.
        degenerate: What to do when the sampled functions are dependent on some scale: "error",
            "warn" or "allow".

    Raises:
        BasisError: For illegal arguments; from `sample` also for an even kernel, for functions that
            are dependent (unless allowed), and for functions that vanish on the smallest scale.

    Exactness:
        In the continuum :math:`\psi(x / a; s) = a^2 \psi(x; a s)`; the functions have compact support, so
        that no window cuts them where the kernel holds (e − 1 + w (d + 1)) s pixels on the largest scale.
        The error that sampling leaves is measured in ``tests/basis/test_registry.py``.

    Source:
        Bekkers, *B-Spline CNNs on Lie Groups*, ICLR 2020; as a basis for scale convolutions
        in Sosnovik, Moskalev, Smeulders, *DISCO*, BMVC 2021. Deviation: the public code of the latter
        places the knots in fractions of the window and thereby rounds every scale to whole pixels of half
        a window (0.6, 0.76, 0.95, 1.2 act as 0.6, 0.8, 1.0, 1.4), while it scales the amplitude with the
        scale that was asked for.

    Example:
        >>> BSplineBasis(3).sample(15, ScaleGrid([1.5, 2.0, 2.5])).shape
        torch.Size([9, 3, 15, 15])
    """

    effective_size: int
    degree: int = 2
    spread: float = 1.0
    degenerate: DegeneratePolicy = "error"

    _alternative: ClassVar[str] = "a smaller spread"

    def __post_init__(self) -> None:
        check_family(self.effective_size, self.degenerate)
        if not (is_whole(self.degree, 0) and self.degree <= 9):
            raise BasisError(f"expected a degree of 0 to 9, got {self.degree}")
        check_positive("spread", self.spread)

    def _values(self, x: Samples, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        splines = self._splines(x, scale)
        products = splines[None, :, :, None] * splines[:, None, None, :]  # (column, row, y, x)
        return np.asarray(products.reshape(-1, len(x), len(x)) / scale**2, dtype=np.float64)

    def _splines(self, x: Samples, scale: float) -> Samples:
        knots = np.arange(self.effective_size) - (self.effective_size - 1) / 2
        return _spline(self.degree, (x / scale - knots[:, None]) / self.spread)  # (e, w)

    def _profiles(self, x: Samples, scale: float, ndim: int) -> Samples:
        splines = self._splines(x, scale) / scale
        # The knot that runs fastest is that of the first axis.
        knots = [index[::-1] for index in product(range(self.effective_size), repeat=ndim)]
        return np.asarray(splines[knots], dtype=np.float64)


def _spline(degree: int, u: Samples) -> Samples:
    """The centred cardinal B-spline by the recursion of Cox and de Boor: sums of positive terms."""
    if degree == 0:
        return np.asarray((np.sign(0.5 - u) + np.sign(0.5 + u)) / 2, dtype=np.float64)
    half = (degree + 1) / 2
    lower, upper = _spline(degree - 1, u + 0.5), _spline(degree - 1, u - 0.5)
    return ((half + u) * lower + (half - u) * upper) / degree
