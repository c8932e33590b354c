import pickle

import pytest

from equiscale import ScaleGrid
from equiscale.errors import ScaleGridError


def test_holds_its_scales_as_floats() -> None:
    grid = ScaleGrid([1, 2.5, 4])
    assert grid.values == (1.0, 2.5, 4.0)
    assert (grid.min, grid.max, len(grid), grid[1], list(grid)) == (1.0, 4.0, 3, 2.5, [1.0, 2.5, 4.0])
    assert repr(grid) == "ScaleGrid([1.0, 2.5, 4.0])"


def test_is_a_value() -> None:
    grid = ScaleGrid([1.0, 2.0])
    assert grid == ScaleGrid((1, 2))
    assert grid != ScaleGrid([1.0, 2.1])
    assert hash(grid) == hash(ScaleGrid((1, 2)))
    assert pickle.loads(pickle.dumps(grid)) == grid
    with pytest.raises(AttributeError, match="cannot assign"):
        grid.values = (3.0,)  # type: ignore[misc]


def test_geometric_grid() -> None:
    assert ScaleGrid.geometric(0.9, 1.41, 3).values == pytest.approx((0.9, 1.269, 1.78929))
    assert ScaleGrid.geometric(2.0, 1.0, 1).values == (2.0,)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([1.0], None),
        ([1.0, 1.7], 1.7),
        ([1.0, 2.0, 4.0], 2.0),
        ([1.5, 1.89, 2.38, 3.0], 2 ** (1 / 3)),  # as published, rounded to two decimals
        ([1.7, 2.45, 3.54, 5.1], 3 ** (1 / 3)),
        ([1.0, 2.0, 4.1], None),
        ([1.0, 2.0, 3.0], None),
    ],
)
def test_step_of_geometric_grids_only(values: list[float], step: float | None) -> None:
    assert ScaleGrid(values).step == (None if step is None else pytest.approx(step))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "expected at least one scale, got an empty list"),
        (3.0, "expected a sequence of numbers as scales, got 3.0"),
        (["a"], r"expected a sequence of numbers as scales, got \['a'\]"),
        ([0.0, 1.0], r"expected finite positive scales, got 0.0 in \[0.0, 1.0\]"),
        ([-1.0], r"expected finite positive scales, got -1.0"),
        ([1.0, float("inf")], r"expected finite positive scales, got inf"),
        ([float("nan")], r"expected finite positive scales, got nan"),
        (
            [2.0, 1.0],
            "expected strictly increasing scales, got 1.0 after 2.0; sort the list and drop repeats",
        ),
        ([1.0, 1.0], "expected strictly increasing scales, got 1.0 after 1.0"),
    ],
)
def test_refuses(values: object, text: str) -> None:
    with pytest.raises(ScaleGridError, match=text):
        ScaleGrid(values)  # type: ignore[arg-type]


def test_geometric_refuses() -> None:
    with pytest.raises(ScaleGridError, match="expected at least one scale, got num=0"):
        ScaleGrid.geometric(1.0, 2.0, 0)
    with pytest.raises(
        ScaleGridError, match=r"expected a factor larger than 1, got 0\.5; scales must increase"
    ):
        ScaleGrid.geometric(1.0, 0.5, 2)
