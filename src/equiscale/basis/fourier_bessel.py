"""Fourier–Bessel functions: the vibrations of a disc (Zhu et al. 2022)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from equiscale.basis.sampling import DegeneratePolicy, SampledFamily, Samples, check_family, check_positive
from equiscale.scales import ScaleGrid

# Zeros of one Bessel function lie about π apart, never closer than 2.4.
_SCAN_STEP = 0.25
# Halvings of one scan step until only rounding is left.
_BISECTIONS = 60


@dataclass(frozen=True)
class FourierBesselBasis(SampledFamily):
    r"""The eigenfunctions of the Laplacian on a disc whose radius grows with the scale.

    .. math:: \psi_{k q}(r, \theta; s) = \frac{1}{s^2} \,
        \frac{J_k(j_{k q}\, r / (\rho s))}{|J_{k + 1}(j_{k q})|}
        \begin{cases} 1 & k = 0 \\ \sqrt 2 \cos k \theta, \; \sqrt 2 \sin k \theta & k > 0 \end{cases}
        \qquad r < \rho s

    with :math:`j_{k q}` the q-th positive zero of the Bessel function :math:`J_k`, and θ measured from the
    row axis towards the column axis. The first e² in the order of rising :math:`j_{k q}` are taken, that
    is from slow to fast. Every function is divided by its L2 norm on the smallest scale. Where the disc
    is larger than the window of ``int(kernel_size * s / s_max) // 2 * 2 + 1`` pixels, the window cuts it.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size².

    Args:
        effective_size: e, the side of the ordinary filter with the same number of weights.
        radius: ρ, the radius of the disc in units of the scale; None: e / 2.
        degenerate: What to do when the sampled functions are dependent on some scale: "error",
            "warn" or "allow".

    Raises:
        BasisError: For illegal arguments; from `sample` also for an even kernel, for functions that
            are dependent (unless allowed), and for functions that vanish on the smallest scale.

    Exactness:
        In the continuum :math:`\psi(x / a; s) = a^2 \psi(x; a s)`. The functions end in a kink on the
        disc's border, which sampling smears; ``tests/basis/test_registry.py`` measures the error. Bessel
        functions and zeros agree with SciPy's to 1e-13 (``tests/basis/test_fourier_bessel.py``).

    Source:
        Zhu, Qiu, Calderbank, Sapiro, Cheng, *Scaling-Translation-Equivariant Networks with Decomposed
        Convolutional Filters*, JMLR 2022. As in the public comparison of Sosnovik et al.,
        *DISCO*, BMVC 2021, with ``radius`` half its kernel (its discs are cut by the windows).

    Example:
        >>> FourierBesselBasis(3).sample(15, ScaleGrid([2.0, 3.0, 4.5])).shape
        torch.Size([9, 3, 15, 15])
    """

    effective_size: int
    radius: float | None = None
    degenerate: DegeneratePolicy = "error"

    _alternative: ClassVar[str] = "a larger radius"

    def __post_init__(self) -> None:
        check_family(self.effective_size, self.degenerate)
        if self.radius is not None:
            check_positive("radius", self.radius)

    def _values(self, x: Samples, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        radius = self.effective_size / 2 if self.radius is None else self.radius
        rows, columns = np.meshgrid(x, x, indexing="ij")
        theta = np.arctan2(columns, rows)
        # Pixels share few distances from the centre, and the Bessel functions are what takes time.
        squares, place = np.unique(rows**2 + columns**2, return_inverse=True)
        r = np.sqrt(squares) / (radius * scale)
        functions = [
            _radial(order, zero, r)[place].reshape(theta.shape) * angular / scale**2
            for order, zero in _modes(self.num_functions)
            for angular in _angular(order, theta)
        ]
        return np.stack(functions[: self.num_functions])


def _radial(order: int, zero: float, r: Samples) -> Samples:
    amplitude = 1 / abs(float(bessel(order + 1, np.array(zero))))
    values = np.zeros_like(r)
    values[r < 1] = amplitude * bessel(order, zero * r[r < 1])
    return values


def _angular(order: int, theta: Samples) -> list[Samples]:
    if order == 0:
        return [np.ones_like(theta)]
    return [math.sqrt(2) * np.cos(order * theta), math.sqrt(2) * np.sin(order * theta)]


@lru_cache(maxsize=8)
def _modes(num_functions: int) -> tuple[tuple[int, float], ...]:
    """(k, zero of J_k), by rising zero, enough for this many functions."""
    # Weyl's law: a disc has x²/4 − x/2 functions below x, so this limit leaves some to spare.
    limit = 2 * math.sqrt(num_functions) + 4
    zeros = [(order, zero) for order in range(math.ceil(limit)) for zero in bessel_zeros(order, limit)]
    return tuple(sorted(zeros, key=lambda mode: mode[1])[:num_functions])


def bessel(order: int, x: Samples) -> Samples:
    r"""The Bessel function of the first kind and of integer order, for x ≥ 0.

    .. math:: J_k(x) = \frac{1}{2 \pi} \int_0^{2 \pi} \cos(k \tau - x \sin \tau) \, d\tau

    The sum over N equidistant points misses :math:`J_{k \pm N}(x)`, which is below rounding for
    N well above x + k.
    """
    points = 2 * (math.ceil(float(np.max(x, initial=0.0))) + order) + 64
    tau = 2 * np.pi * np.arange(points) / points
    phase = order * tau - np.asarray(x)[..., None] * np.sin(tau)
    return np.asarray(np.cos(phase).mean(-1), dtype=np.float64)


def bessel_zeros(order: int, limit: float) -> list[float]:
    """The positive zeros of one Bessel function below a limit, by bisection."""
    x = np.arange(_SCAN_STEP, limit + _SCAN_STEP, _SCAN_STEP)
    sign = np.sign(bessel(order, x))
    # Where x is small against the order, the function is positive but lost in rounding.
    (start,) = np.nonzero((sign[:-1] != sign[1:]) & (x[1:] > order))
    low, high, rising = x[start], x[start + 1], sign[start + 1]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = np.sign(bessel(order, middle)) == rising
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return [float(zero) for zero in (low + high) / 2 if zero < limit]
