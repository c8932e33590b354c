import math
import pickle
from array import array
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from equiscale import ScaleGrid
from equiscale.errors import ScaleGridError


def test_holds_its_scales_as_floats() -> None:
    grid = ScaleGrid([1, 2.5, 4])
    assert grid.values == (1.0, 2.5, 4.0)
    assert (grid.min, grid.max, len(grid), grid[1], list(grid)) == (1.0, 4.0, 3, 2.5, [1.0, 2.5, 4.0])
    assert repr(grid) == "ScaleGrid([1.0, 2.5, 4.0])"


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2]),
        np.array([1.0, 2.0], dtype=np.float32),
        [np.float16(1), np.int8(2)],
        [np.longdouble(1), np.longdouble(2)],
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        [Fraction(1), Decimal(2)],
        (1, 2.0),
        range(1, 3),
        array("d", [1.0, 2.0]),
    ],
    ids=repr,
)
def test_takes_every_kind_of_real_numbers(values: Any) -> None:
    grid = ScaleGrid(values)
    assert grid.values == (1.0, 2.0)
    assert all(type(value) is float for value in grid)


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
        ("12", "expected a sequence of numbers as scales, got '12'"),
        (b"12", "expected a sequence of numbers as scales, got b'12'"),
        (bytearray(b"12"), r"expected a sequence of numbers as scales, got bytearray\(b'12'\)"),
        (["1", "2"], r"expected a sequence of numbers as scales, got \['1', '2'\]"),
        (np.array(["1", "2"]), "expected a sequence of numbers as scales, got array"),
        ([b"1", 2.0], r"expected a sequence of numbers as scales, got \[b'1', 2.0\]"),
        ([True, 2.0], r"expected a sequence of numbers as scales, got \[True, 2.0\]"),
        ([False], r"expected a sequence of numbers as scales, got \[False\]"),
        (np.array([True]), "expected a sequence of numbers as scales, got array"),
        (torch.tensor([True]), "expected a sequence of numbers as scales, got tensor"),
        ([1 + 0j, 2.0], r"expected a sequence of numbers as scales, got \[\(1\+0j\), 2.0\]"),
        (np.array([1 + 0j]), "expected a sequence of numbers as scales, got array"),
        (torch.tensor([1 + 0j]), "expected a sequence of numbers as scales, got tensor"),
        (np.ones((2, 2)), "expected a sequence of numbers as scales, got array"),
        (torch.ones(2, 2), "expected a sequence of numbers as scales, got tensor"),
        ([None], r"expected a sequence of numbers as scales, got \[None\]"),
        ([10**400], r"expected a sequence of numbers as scales, got \[1000"),
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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1.0, 2.0, 0), "expected at least one scale, got num=0"),
        ((1.0, 2.0, -1), "expected at least one scale, got num=-1"),
        ((1.0, 2.0, 2.5), "expected a whole number of scales, got num=2.5"),
        ((1.0, 2.0, 2.0), "expected a whole number of scales, got num=2.0"),
        ((1.0, 2.0, math.nan), "expected a whole number of scales, got num=nan"),
        ((1.0, 2.0, True), "expected a whole number of scales, got num=True"),
        ((1.0, 2.0, "2"), "expected a whole number of scales, got num='2'"),
        ((1.0, 2.0, None), "expected a whole number of scales, got num=None"),
        ((1.0, 0.5, 2), r"expected a factor larger than 1, got 0\.5; scales must increase"),
        ((1.0, math.nan, 2), "expected a factor larger than 1, got nan"),
        ((1.0, "2", 2), r"expected numbers as start and factor, got \(1.0, '2'\)"),
        (("1", 2, 1), r"expected numbers as start and factor, got \('1', 2\)"),
        ((True, 2, 1), r"expected numbers as start and factor, got \(True, 2\)"),
        ((1.0, 2j, 2), r"expected numbers as start and factor, got \(1.0, 2j\)"),
        ((0.0, 2.0, 2), "expected finite positive scales, got 0.0"),
        ((1.0, 1e300, 3), "expected finite positive scales, got inf"),
        ((math.nan, 2.0, 2), "expected finite positive scales, got nan"),
    ],
)
def test_geometric_refuses(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ScaleGridError, match=text):
        ScaleGrid.geometric(*arguments)


def test_geometric_takes_numbers_of_numpy() -> None:
    assert ScaleGrid.geometric(np.float64(1.0), np.float32(2.0), np.int64(3)) == ScaleGrid([1.0, 2.0, 4.0])
