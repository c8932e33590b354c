"""Log-radial harmonics: waves in the logarithm of the radius (Ghosh and Gupta 2019)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import ClassVar, Final

import numpy as np

from equiscale.basis.sampling import (
    DegeneratePolicy,
    SampledFamily,
    Samples,
    check_family,
    check_positive,
    is_whole,
)
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid

# Of its cone's norm: a part below it is the rounding of a wave that is zero on all pixels.
_VANISHING: Final = 1e-10

# Published with this phase; it moves the real part's first maximum off the innermost ring.
PHASE = -math.pi / 4


@dataclass(frozen=True)
class LogRadialBasis(SampledFamily):
    r"""Waves in the logarithm of the radius, each in a double cone of directions.

    .. math:: \psi_{k \varphi}(r, \theta; s) = \frac{1}{s^2} \, \frac{e^{-d(\theta, \varphi)^2 / 2 w^2}}{\rho}
        \begin{cases} \cos \\ \sin \end{cases}\!\!\!\left(\frac{2 \pi k \ln \rho}{\ln \rho_{max}}
        - \frac{\pi}{4}\right), \qquad \rho = \frac{\max(r, s / s_{min})}{s}

    :math:`d` is the angle between the directions θ and φ, at most π / 2; the directions are
    :math:`\varphi_j = \pi j / n`; the orders are :math:`k = \tfrac12, 1, 2, 4, \dots`, as many as e²
    functions take; cosine and sine alternate fastest, then φ, then k. :math:`\rho_{max} = \sqrt 2
    \lfloor K / 2 \rfloor / s_{max}` is the kernel's corner on the largest scale. θ is measured from the
    upward direction towards the right. Every function is divided by its L2 norm on the smallest scale; the
    window on scale s is ``int(kernel_size * s / s_max) // 2 * 2 + 1`` pixels wide.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size².

    Args:
        effective_size: e, the side of the ordinary filter with the same number of weights.
        rotations: n, the number of directions; None: e.
        angular_width: w, the width of a cone in radians; None: half the angle between directions.
        degenerate: What to do when the sampled functions are dependent on some scale: "error",
            "warn" or "allow".

    Raises:
        BasisError: For illegal arguments; from `sample` also for an even kernel, for a kernel whose
            corner is nearer than the largest scale, for functions that are dependent (unless allowed),
            and for functions that vanish on the smallest scale.

    Exactness:
        In the continuum :math:`\psi(x / a; s) = a^2 \psi(x; a s)`. The functions are steep at the centre,
        so that sampling costs more than with smooth families: ``tests/basis/test_registry.py``.

    Source:
        Ghosh, Gupta, *Scale Steerable Filters for Locally Scale-Invariant Convolutional Neural Networks*,
        2019; as basis in Sosnovik et al., *DISCO*, BMVC 2021. Deviations from the public code
        of the latter: its directions end at π, which is direction 0 again, so that functions repeat (rank
        45 of 49); it takes :math:`\rho_{max}` of each window by itself, so that the frequency jumps from
        scale to scale; its core is one pixel on every scale, here one pixel on the smallest and wider in
        proportion. As published, the centre counts as direction 0.

    Example:
        >>> LogRadialBasis(3).sample(15, ScaleGrid([1.5, 2.0, 2.5])).shape
        torch.Size([9, 3, 15, 15])
    """

    effective_size: int
    rotations: int | None = None
    angular_width: float | None = None
    degenerate: DegeneratePolicy = "error"

    _alternative: ClassVar[str] = "other rotations"

    def __post_init__(self) -> None:
        check_family(self.effective_size, self.degenerate)
        if self.rotations is not None and not is_whole(self.rotations):
            raise BasisError(f"expected at least 1 rotation, got {self.rotations}")
        if self.angular_width is not None:
            check_positive("angular_width", self.angular_width)

    def _values(self, x: Samples, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        radius, angle = polar(x)
        rho = np.maximum(radius, scale / grid.min) / scale
        rotations = self.rotations or self.effective_size
        width = self.angular_width or math.pi / (2 * rotations)
        cones = [cone(angle, math.pi * j / rotations, width) / (rho * scale**2) for j in range(rotations)]
        orders = (2.0 ** (i - 1) for i in count())
        reach = self._log_reach(kernel_size, grid)
        waves = (2 * math.pi * order * np.log(rho) / reach + PHASE for order in orders)
        functions = (c * part for wave in waves for c in cones for part in (np.cos(wave), np.sin(wave)))
        return np.stack(list(islice(functions, self.num_functions)))

    def _log_reach(self, kernel_size: int, grid: ScaleGrid) -> float:
        corner = math.sqrt(2) * (kernel_size // 2)
        if corner <= grid.max:
            raise BasisError(
                f"expected a kernel whose corner is farther from the centre than the largest scale "
                f"{grid.max:g}, got {kernel_size} with its corner at {corner:.3g}; use a larger kernel"
            )
        return math.log(corner / grid.max)


def polar(x: Samples) -> tuple[Samples, Samples]:
    """Radius and angle of the pixels at these rows and columns; the angle runs from up to right."""
    rows, columns = np.meshgrid(x, x, indexing="ij")
    return np.hypot(rows, columns), np.arctan2(columns, -rows)


def cone(angle: Samples, direction: float, width: float) -> Samples:
    """A Gaussian of the angle to the line in this direction, which is a direction modulo π."""
    distance = np.abs((angle - direction + math.pi / 2) % math.pi - math.pi / 2)
    return np.asarray(np.exp(-(distance**2) / (2 * width**2)), dtype=np.float64)


def log_radial_harmonics(
    kernel_size: int, orders: Sequence[float], angles: Sequence[float], *, width: float, phase: float
) -> tuple[Samples, Samples, list[float]]:
    """Real and imaginary parts ``(N, J, K, K)`` of the harmonics of SS-CNN, and their frequencies.

    Every part is divided by its own norm, and zero outside the disc that the kernel holds. The centre
    counts as one pixel away in direction 0.
    """
    radius, angle = polar(np.arange(kernel_size, dtype=np.float64) - kernel_size // 2)
    disc = radius <= kernel_size // 2
    radius[kernel_size // 2, kernel_size // 2] = 1.0
    frequencies = [2 * math.pi * order / math.log(radius.max()) for order in orders]
    waves = np.stack([frequency * np.log(radius) + phase for frequency in frequencies])[:, None]
    cones = np.stack([cone(angle, direction, width) * disc / radius for direction in angles])
    parts = [cones * np.cos(waves), cones * np.sin(waves)]
    whole, *norms = (np.sqrt((part**2).sum((-2, -1), keepdims=True)) for part in (cones, *parts))
    if not all((norm > _VANISHING * whole).all() for norm in norms):
        raise BasisError(
            f"expected harmonics that are not zero, got one that vanishes on {kernel_size} pixels with phase "
            f"{phase:g}; use a larger kernel or another phase"
        )
    return parts[0] / norms[0], parts[1] / norms[1], frequencies
