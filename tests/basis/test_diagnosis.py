import math

import pytest
import torch

from equiscale import ScaleGrid
from equiscale.basis import MAX_CONDITION, ScaleDiagnosis, diagnose

COVERS = {"diagnose", "ScaleDiagnosis", "MAX_CONDITION"}


def two_functions(angle: float) -> torch.Tensor:
    """Unit vectors at this angle: singular values sqrt(1 ± cos(angle))."""
    basis = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    basis[0, 0, 1, 1] = 5.0  # lengths are normalised away
    basis[1, 0, 1, 1], basis[1, 0, 0, 2] = math.cos(angle), math.sin(angle)
    return basis


def only(basis: torch.Tensor) -> ScaleDiagnosis:
    (diagnosis,) = diagnose(basis, ScaleGrid([2.0]))
    return diagnosis


@pytest.mark.parametrize("angle", [math.pi / 2, 1.0, 0.01])
def test_condition_number_in_closed_form(angle: float) -> None:
    diagnosis = only(two_functions(angle))
    assert diagnosis.condition == pytest.approx(1 / math.tan(angle / 2), rel=1e-9)
    assert (diagnosis.scale, diagnosis.rank, diagnosis.degenerate) == (2.0, 2, False)


@pytest.mark.parametrize(("factor", "rank"), [(0.5, 2), (2.0, 1)])
def test_rank_drops_at_the_largest_condition(factor: float, rank: int) -> None:
    angle = 2 * math.atan(1 / (factor * MAX_CONDITION))
    assert only(two_functions(angle)).rank == rank


def test_dependent_functions_have_an_infinite_condition() -> None:
    more_than_pixels = torch.randn(
        3, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    diagnosis = only(more_than_pixels)
    assert (diagnosis.rank, diagnosis.num_functions, diagnosis.condition) == (1, 3, math.inf)
    assert diagnosis.degenerate


def test_scales_are_told_apart() -> None:
    basis = torch.cat([two_functions(1.0), two_functions(0.0)], dim=1)
    assert [d.rank for d in diagnose(basis, ScaleGrid([1.0, 2.0]))] == [2, 1]
    assert [d.scale for d in diagnose(basis, ScaleGrid([1.0, 2.0]))] == [1.0, 2.0]
