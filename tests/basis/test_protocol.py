"""A family of the user's own, in the layers."""

from dataclasses import dataclass

import pytest
import torch

from equiscale import ScaleGrid, SteerableBasis
from equiscale.errors import BasisError
from equiscale.nn import LiftConv2d, ScaleConv2d

COVERS = {"SteerableBasis"}

GRID = ScaleGrid([1.0, 2.0, 3.0])


@dataclass(frozen=True)
class Boxes:
    """Two functions: the mean over a box of side 2s - 1, and its centre alone."""

    num_functions: int = 2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> torch.Tensor:
        basis = torch.zeros(2, len(grid), kernel_size, kernel_size, dtype=torch.float64)
        center = kernel_size // 2
        for index, scale in enumerate(grid):
            reach = int(scale) - 1
            box = slice(center - reach, center + reach + 1)
            basis[0, index, box, box] = 1 / (2 * reach + 1) ** 2
            basis[1, index, center, center] = 10.0**index
        return basis


class Broken(Boxes):
    def __init__(self, change) -> None:
        super().__init__()
        object.__setattr__(self, "change", change)

    def sample(self, kernel_size: int, grid: ScaleGrid) -> torch.Tensor:
        return self.change(super().sample(kernel_size, grid))


def test_is_recognised_without_inheritance() -> None:
    assert isinstance(Boxes(), SteerableBasis)
    assert not isinstance(object(), SteerableBasis)


def test_works_in_the_lifting_convolution() -> None:
    """F = 2 and S = 3 differ in count and in meaning: the weight of function 1 scales by ten a scale."""
    lift = LiftConv2d(1, 1, kernel_size=5, grid=GRID, basis=Boxes(), padding="same")
    assert lift.weight.shape == (1, 1, 2)
    assert lift.windows == (1, 3, 5)
    with torch.no_grad():
        lift.weight.copy_(torch.tensor([0.0, 1.0]))
        assert lift(torch.ones(1, 1, 7, 7))[0, 0, :, 3, 3].tolist() == pytest.approx([1.0, 10.0, 100.0])
        lift.weight.copy_(torch.tensor([1.0, 0.0]))
        assert lift(torch.ones(1, 1, 7, 7))[0, 0, :, 3, 3].tolist() == pytest.approx([1.0, 1.0, 1.0])
        assert lift(torch.ones(1, 1, 7, 7))[0, 0, :, 0, 0].tolist() == pytest.approx([1.0, 4 / 9, 9 / 25])


def test_works_in_the_scale_convolution() -> None:
    conv = ScaleConv2d(1, 1, kernel_size=5, grid=GRID, basis=Boxes(), scale_size=2)
    assert conv.weight.shape == (1, 1, 2, 2)
    assert conv(torch.zeros(1, 1, 3, 5, 6)).shape == (1, 1, 3, 1, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda basis: basis.transpose(0, 1), r"\(F, S, K, K\) = \(2, 3, 5, 5\), got \(3, 2, 5, 5\)"),
        (lambda basis: basis[..., :3], r"\(F, S, K, K\) = \(2, 3, 5, 5\), got \(2, 3, 5, 3\)"),
        (lambda basis: basis[:1], r"\(F, S, K, K\) = \(2, 3, 5, 5\), got \(1, 3, 5, 5\)"),
        (lambda basis: basis.log(), r"finite basis functions, got \d+ values of .* that are not finite"),
        (
            lambda basis: basis * torch.nan,
            r"finite basis functions, got 150 values of .* that are not finite",
        ),
    ],
)
def test_refuses_a_broken_family(change, text: str) -> None:
    with pytest.raises(BasisError, match="expected .*" + text):
        LiftConv2d(1, 1, kernel_size=5, grid=GRID, basis=Broken(change))
