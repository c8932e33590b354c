"""The scale grid: the finite list of scales on which filters are held."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        ScaleGridError: If the list is empty, or a value is not finite, not positive, or not
            larger than its predecessor.

    Example:
        >>> grid = ScaleGrid([1.0, 2.0, 4.0])
        >>> len(grid), grid.step, grid.max
        (3, 2.0, 4.0)
    """

    values: tuple[float, ...]

    def __init__(self, values: Sequence[float]) -> None:
        try:
            scales = tuple(float(value) for value in values)
        except (TypeError, ValueError) as error:
            raise ScaleGridError(f"expected a sequence of numbers as scales, got {values!r}") from error
        _check(scales)
        object.__setattr__(self, "values", scales)

    @classmethod
    def geometric(cls, start: float, factor: float, num: int) -> "ScaleGrid":
        """The grid ``start * factor**i`` for ``i = 0 … num - 1``.

        Args:
            start: The smallest scale.
            factor: The ratio of neighbouring scales, larger than 1.
            num: The number of scales, at least 1.

        Example:
            >>> ScaleGrid.geometric(1.0, 2.0, 3)
            ScaleGrid([1.0, 2.0, 4.0])
        """
        if num < 1:
            raise ScaleGridError(f"expected at least one scale, got num={num}")
        if num > 1 and not factor > 1:
            raise ScaleGridError(f"expected a factor larger than 1, got {factor}; scales must increase")
        return cls([start * factor**i for i in range(num)])

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
