"""Are the sampled functions independent on every scale?"""

import math
from dataclasses import dataclass

import torch

from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid

# float32 keeps about seven digits: beyond this condition number two filters that differ in
# their weights cannot be told apart on the pixel grid.
MAX_CONDITION = 1e6


@dataclass(frozen=True)
class ScaleDiagnosis:
    """Rank and condition number of the F sampled functions on one scale."""

    scale: float
    num_functions: int
    rank: int
    condition: float

    @property
    def degenerate(self) -> bool:
        """True when the functions are dependent to within `MAX_CONDITION`."""
        return self.rank < self.num_functions


def diagnose(basis: torch.Tensor, grid: ScaleGrid) -> list[ScaleDiagnosis]:
    """Rank and condition number on every scale.

    With :math:`A_s` the matrix of the functions on scale s, each normalised to unit length, the
    condition number is :math:`\\sigma_{max}(A_s) / \\sigma_{min}(A_s)` and the rank counts the
    singular values above :math:`\\sigma_{max} / \\text{MAX\\_CONDITION}`. Unit length on each scale by
    itself: that one function is far larger on one scale than on another is not seen. Look at
    ``basis.norm(dim=(2, 3))`` for that, which in the continuum falls like 1 / s.

    Shapes:
        basis: ``(F, S, K, K)``.

    Args:
        basis: Sampled functions.
        grid: The S scales they were sampled on.

    Returns:
        One `ScaleDiagnosis` for each scale, smallest first.

    Raises:
        BasisError: If these are no functions sampled on the grid.

    Example:
        >>> from equiscale import HermiteBasis, ScaleGrid
        >>> grid = ScaleGrid([1.0, 2.0])
        >>> [d.rank for d in diagnose(HermiteBasis(3).sample(9, grid), grid)]
        [9, 9]
    """
    check_sampled("diagnose", basis, grid)
    if basis.ndim != 4 or basis.shape[1] != len(grid) or 0 in basis.shape:
        raise BasisError(f"expected a basis (F, {len(grid)}, K, K) on {grid}, got {tuple(basis.shape)}")
    basis = basis.detach()
    return [_diagnose_scale(basis[:, index], scale) for index, scale in enumerate(grid)]


def check_sampled(name: str, basis: object, grid: object) -> None:
    """Raise a BasisError unless these are sampled functions, floating-point numbers, and a grid."""
    if not isinstance(basis, torch.Tensor) or not basis.is_floating_point():
        got = basis.dtype if isinstance(basis, torch.Tensor) else type(basis).__name__
        raise BasisError(f"{name}: expected a tensor of floating-point numbers, got {got}")
    if not isinstance(grid, ScaleGrid):
        raise BasisError(f"{name}: expected a ScaleGrid, got {grid!r}; write ScaleGrid([...])")


def _diagnose_scale(functions: torch.Tensor, scale: float) -> ScaleDiagnosis:
    rows = functions.double().flatten(1)  # (F, K*K)
    rows = torch.nn.functional.normalize(rows, dim=1)
    singular = torch.linalg.svdvals(rows)
    largest = float(singular[0])
    rank = int((singular > largest / MAX_CONDITION).sum())
    full = len(singular) == len(rows) and float(singular[-1]) > 0
    condition = largest / float(singular[-1]) if full else math.inf
    return ScaleDiagnosis(scale, len(rows), rank, condition)
