"""The scale grid: the finite list of scales on which filters are held."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Number
from typing import Any

from equiscale.errors import ScaleGridError

# Published grids are rounded to two decimals: neighbouring ratios then differ by up to 1 %.
_GEOMETRIC_TOLERANCE = 0.01


@dataclass(frozen=True)
class ScaleGrid:
    r"""A finite, strictly increasing list of positive scales :math:`s_0 < s_1 < \dots`.

    A larger scale is a wider filter, which answers to a larger object.

    Args:
        values: The scales, in pixels of filter width (any sequence of numbers).

    Raises:
        ScaleGridError: If the list is a text or empty, or a value is no real number, not finite, not
            positive, or not larger than its predecessor.

    Example:
        >>> grid = ScaleGrid([1.0, 2.0, 4.0])
        >>> len(grid), grid.step, grid.max
        (3, 2.0, 4.0)
    """

    values: tuple[float, ...]

    def __init__(self, values: Sequence[float]) -> None:
        scales = _floats(values, "a sequence of numbers as scales")
        _check(scales)
        object.__setattr__(self, "values", scales)

    @classmethod
    def geometric(cls, start: float, factor: float, num: int) -> "ScaleGrid":
        """The grid ``start * factor**i`` for ``i = 0 … num - 1``.

        Args:
            start: The smallest scale.
            factor: The ratio of neighbouring scales, larger than 1.
            num: The number of scales, at least 1.

        Raises:
            ScaleGridError: If num is no whole number from 1, or the scales are not finite, not positive, or
                do not increase.

        Example:
            >>> ScaleGrid.geometric(1.0, 2.0, 3)
            ScaleGrid([1.0, 2.0, 4.0])
        """
        if not isinstance(num, Integral) or isinstance(num, bool):
            raise ScaleGridError(f"expected a whole number of scales, got num={num!r}")
        if num < 1:
            raise ScaleGridError(f"expected at least one scale, got num={num}")
        first, ratio = _floats((start, factor), "numbers as start and factor")
        if num > 1 and not ratio > 1:
            raise ScaleGridError(f"expected a factor larger than 1, got {factor}; scales must increase")
        return cls([first * _power(ratio, i) for i in range(num)])

    @property
    def step(self) -> float | None:
        """The ratio of neighbouring scales, or None for one scale or a grid that is not geometric.

        Ratios count as equal when they agree within 1 %, because published grids are rounded.
        """
        ratios = [b / a for a, b in pairwise(self.values)]
        if not ratios:
            return None
        mean = (self.max / self.min) ** (1 / len(ratios))
        agree = all(math.isclose(ratio, mean, rel_tol=_GEOMETRIC_TOLERANCE) for ratio in ratios)
        return mean if agree else None

    @property
    def min(self) -> float:
        """The smallest scale."""
        return self.values[0]

    @property
    def max(self) -> float:
        """The largest scale."""
        return self.values[-1]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def __getitem__(self, index: int) -> float:
        return self.values[index]

    def __repr__(self) -> str:
        return f"ScaleGrid({[round(value, 4) for value in self.values]})"


def _floats(values: Any, expected: str) -> tuple[float, ...]:
    """Real numbers of Python, numpy or torch; texts, flags and complex numbers are none."""
    try:
        if isinstance(values, str | bytes | bytearray):
            raise TypeError("a text")
        return tuple(map(_float, values))
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ScaleGridError(f"expected {expected}, got {values!r}") from error


def _float(value: Any) -> float:
    number = value.item() if hasattr(value, "item") else value  # what numpy and torch hold is Python's own
    if not isinstance(number, Number) or isinstance(number, bool | complex):
        raise TypeError("no real number")
    return float(number)  # type: ignore[arg-type]


def _power(base: float, exponent: int) -> float:
    """Infinity where it is too large for a float."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def _check(scales: tuple[float, ...]) -> None:
    if not scales:
        raise ScaleGridError("expected at least one scale, got an empty list")
    for scale in scales:
        if not (math.isfinite(scale) and scale > 0):
            raise ScaleGridError(f"expected finite positive scales, got {scale} in {list(scales)}")
    for smaller, larger in pairwise(scales):
        if not smaller < larger:
            raise ScaleGridError(
                f"expected strictly increasing scales, got {larger} after {smaller}; "
                "sort the list and drop repeats"
            )
