"""What the families sampled on pixels share: the window, the normalisation, the check of independence."""

import math
import warnings
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from equiscale._checks import is_number as is_number
from equiscale._checks import is_whole as is_whole
from equiscale._typing import BasisTensor
from equiscale.basis.diagnosis import MAX_CONDITION, ScaleDiagnosis, diagnose
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid

DegeneratePolicy = Literal["error", "warn", "allow"]
Samples = NDArray[np.float64]

# A kernel larger than this is no longer a remedy for a degenerate basis.
_LARGEST_REMEDY = 65

# Of the largest function: what is below it on the smallest scale is the rounding of a zero, or soon will be.
_VANISHING = 1e-10

# The layers of one network share a basis; a sweep over grids does not need the earlier ones again.
_CACHED = 32


def published_window(kernel_size: int, scale: float, largest: float) -> int:
    """The published window, an odd number; the order of the operations decides its rounding."""
    return int(kernel_size * scale / largest) // 2 * 2 + 1


def check_family(effective_size: int, degenerate: str) -> None:
    """Raise a BasisError unless both are legal."""
    if not is_whole(effective_size):
        raise BasisError(f"expected effective_size of at least 1, got {effective_size!r}")
    if degenerate not in get_args(DegeneratePolicy):
        raise BasisError(f"expected degenerate 'error', 'warn' or 'allow', got {degenerate!r}")


def check_positive(name: str, value: float) -> None:
    """Raise a BasisError unless the value is a positive finite number."""
    if not (is_number(value) and 0 < value < math.inf):
        raise BasisError(f"expected a positive finite {name}, got {value!r}")


def check_place(kernel_size: int, grid: ScaleGrid) -> None:
    """Raise a BasisError unless functions can be sampled there: on odd pixels, and on a grid of scales."""
    if not is_whole(kernel_size) or kernel_size % 2 == 0:
        raise BasisError(
            f"expected an odd kernel_size, got {kernel_size!r}; a centred filter needs a central pixel"
        )
    if not isinstance(grid, ScaleGrid):
        raise BasisError(f"expected a ScaleGrid, got {grid!r}; write ScaleGrid([...])")


class SampledFamily(ABC):
    """Base of the families that are formulas sampled on pixels.

    A family gives the values of its functions in the window of one scale. This class pads the windows,
    divides every function by its norm on the smallest scale, refuses functions that vanish there (norm at
    most 1e-10 of the largest: rounding that the division would blow up), and dependent functions as the
    policy says. Families are frozen dataclasses: what was sampled is remembered by value.
    """

    effective_size: int
    degenerate: DegeneratePolicy

    # The way out, in the words of an error, where neither scales nor kernels help.
    _alternative: ClassVar[str] = "another kind"

    @property
    def num_functions(self) -> int:
        """F = effective_size²."""
        return self.effective_size**2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        """The functions on the pixel grid, normalised on the smallest scale, float64 ``(F, S, K, K)``."""
        check_place(kernel_size, grid)
        basis, complaint = _sampled(self, kernel_size, grid)
        if complaint is not None:
            if self.degenerate == "error":
                raise BasisError(complaint)
            warnings.warn(complaint, stacklevel=3)
        return basis.clone()

    @abstractmethod
    def _values(self, x: Samples, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        """The functions on one scale, ``(F, w, w)``, at the w pixel positions x in both directions."""

    def _window(self, kernel_size: int, scale: float, grid: ScaleGrid) -> int:
        """The odd side in pixels of the window outside which the functions of this scale are zero."""
        return published_window(kernel_size, scale, grid.max)

    def _padded(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        sampled = [self._padded_scale(scale, kernel_size, grid) for scale in grid]
        return torch.from_numpy(np.stack(sampled, axis=1))  # (F, S, K, K)

    def _padded_scale(self, scale: float, kernel_size: int, grid: ScaleGrid) -> Samples:
        window = self._window(kernel_size, scale, grid)
        x = np.arange(window, dtype=np.float64) - window // 2
        margin = (kernel_size - window) // 2
        return np.pad(self._values(x, scale, kernel_size, grid), ((0, 0), (margin, margin), (margin, margin)))


@lru_cache(maxsize=_CACHED)
def _sampled(family: SampledFamily, kernel_size: int, grid: ScaleGrid) -> tuple[BasisTensor, str | None]:
    """The normalised functions, and what is wrong with them."""
    basis = _normalised(family, kernel_size, grid)
    if family.degenerate == "allow":
        return basis, None
    worst = min(diagnose(basis, grid), key=lambda diagnosis: diagnosis.rank)
    return basis, _complaint(family, worst, kernel_size, grid) if worst.degenerate else None


def _normalised(family: SampledFamily, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
    basis = family._padded(kernel_size, grid)
    vanishing = _vanishing(basis)
    if vanishing:
        raise BasisError(
            f"expected functions that are not zero on the smallest scale, got {vanishing} of "
            f"{family.num_functions} that vanish at scale {grid.min:g} (window "
            f"{family._window(kernel_size, grid.min, grid)}); {_remedy(family, kernel_size, grid)}"
        )
    return basis / _norms(basis)[:, :1]


def _norms(basis: BasisTensor) -> torch.Tensor:
    return basis.square().sum((2, 3), keepdim=True).sqrt()  # (F, S, 1, 1)


def _vanishing(basis: BasisTensor) -> int:
    """How many functions are zero, but for rounding, on the smallest scale."""
    norms = _norms(basis)
    return int((~(norms[:, 0] > _VANISHING * norms.max())).sum())  # so that NaN counts


def _complaint(family: SampledFamily, worst: ScaleDiagnosis, kernel_size: int, grid: ScaleGrid) -> str:
    return (
        f"expected {worst.num_functions} independent functions on every scale (condition number below "
        f"{MAX_CONDITION:.0e}), got rank {worst.rank} of {worst.num_functions} at scale {worst.scale:g} "
        f"(window {family._window(kernel_size, worst.scale, grid)} of kernel {kernel_size}); "
        f'{_remedy(family, kernel_size, grid)}, or accept it with degenerate="allow"'
    )


def _remedy(family: SampledFamily, kernel_size: int, grid: ScaleGrid) -> str:
    for candidate in range(kernel_size + 2, _LARGEST_REMEDY + 1, 2):
        basis = family._padded(candidate, grid)
        if not _vanishing(basis) and not any(d.degenerate for d in diagnose(basis, grid)):
            return f"the smallest kernel that works is {candidate}"
    return (
        f"no kernel up to {_LARGEST_REMEDY} works; use larger scales, a smaller effective_size "
        f"(now {family.effective_size}) or {family._alternative}"
    )
