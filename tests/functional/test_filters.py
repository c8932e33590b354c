import pytest
import torch

from equiscale.errors import ShapeError
from equiscale.functional import support_windows, synthesize_filters

COVERS = {"synthesize_filters", "support_windows"}


def test_filters_are_the_sum_over_functions(generator: torch.Generator) -> None:
    weight = torch.randn(4, 3, 2, 5, dtype=torch.float64, generator=generator)
    basis = torch.randn(5, 3, 7, 7, dtype=torch.float64, generator=generator)
    expected = torch.zeros(4, 3, 2, 3, 7, 7, dtype=torch.float64)
    for function in range(5):
        expected += weight[..., function, None, None, None] * basis[function]
    torch.testing.assert_close(synthesize_filters(weight, basis), expected, rtol=0, atol=1e-13)


def test_axes_of_functions_and_scales_stay_in_place() -> None:
    """F = S: a reshape that permutes functions and scales would keep the shape and go unnoticed."""
    basis = torch.tensor([[1.0, 2.0], [10.0, 20.0]]).view(2, 2, 1, 1)
    filters = synthesize_filters(torch.tensor([1.0, 0.0]), basis)
    assert filters.flatten().tolist() == [1.0, 2.0]


def test_refuses_weights_of_another_basis() -> None:
    text = r"expected weights \(\.\.\., F\) for a basis of F=9 functions, got \(4, 3, 8\)"
    with pytest.raises(ShapeError, match=text):
        synthesize_filters(torch.zeros(4, 3, 8), torch.zeros(9, 2, 5, 5))


@pytest.mark.parametrize(("row", "column", "window"), [(4, 4, 1), (4, 5, 3), (2, 4, 5), (8, 4, 9), (4, 0, 9)])
def test_support_reaches_to_the_farthest_pixel(row: int, column: int, window: int) -> None:
    basis = torch.zeros(2, 2, 9, 9)
    basis[1, 1, row, column] = -1e-30
    assert support_windows(basis) == (1, window)
