"""Scales, kernel and basis of least equivariance error on the data, within a budget."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from equiscale.choose.candidates import Candidate, SearchSpace, combined, grid_shapes, search
from equiscale.choose.cost import relative_time
from equiscale.choose.measure import error_between, error_on_grid, neighbour_correlation, prepared
from equiscale.choose.objects import factor_range as range_of
from equiscale.choose.spread import check_images, strongest_scales
from equiscale.errors import SettingError

Progress = Callable[[str], None]

# What costs more than this many budgets is not measured: it stands in no plot of interest.
_ROOM: Final = 2.0
_OUT_CHANNELS: Final = 16
_SHOWN: Final = 16


@dataclass(frozen=True)
class Suggestion:
    """What was tried, and what is suggested.

    Args:
        candidates: All, the chosen one and the measured ones first, by error.
        factor_range: The range of object sizes, against the median one.
        range_source: Where the range comes from: "given" or "estimated from the images".
        budget: The largest cost, in plain convolutions.
        in_channels: Channels of the images.
        seed: Of weights, crops and the choice of images.
    """

    candidates: tuple[Candidate, ...]
    factor_range: tuple[float, float]
    range_source: str
    budget: float
    in_channels: int
    seed: int

    @property
    def measured(self) -> tuple[Candidate, ...]:
        """The candidates that were measured, by error."""
        found = [candidate for candidate in self.candidates if candidate.status == "measured"]
        return tuple(sorted(found, key=lambda candidate: candidate.error or 0.0))

    @property
    def pareto(self) -> tuple[Candidate, ...]:
        """Of the measured ones those that no other beats in error without costing more, by cost."""
        return tuple(front(self.measured, _cost_and_error))

    @property
    def chosen(self) -> Candidate | None:
        """The measured one of least error within the budget; None where there is none."""
        affordable = [c for c in self.measured if c.cost is not None and c.cost <= self.budget]
        return affordable[0] if affordable else None

    @property
    def code(self) -> str:
        """Python that makes the layer: two lines to paste.

        Raises:
            SettingError: If nothing is within the budget.
        """
        chosen = self.chosen
        if chosen is None:
            raise SettingError(self._nothing())
        start, step, count = chosen.grid.min, chosen.grid.step, len(chosen.grid)
        grid = f"ScaleGrid.geometric({start:g}, {_rounded(step)}, {count})"
        return (
            "from equiscale import ScaleGrid, basis, nn\n"
            f"lift = nn.LiftConv2d({self.in_channels}, {_OUT_CHANNELS}, kernel_size={chosen.kernel_size}, "
            f'grid={grid}, basis={chosen.expression}, padding="same")'
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        marked = [
            {**c.as_dict(), "pareto": c in self.pareto, "chosen": c is self.chosen} for c in self.candidates
        ]
        return {
            "factor_range": list(self.factor_range),
            "range_source": self.range_source,
            "budget": self.budget,
            "in_channels": self.in_channels,
            "seed": self.seed,
            "code": self.code if self.chosen else None,
            "candidates": marked,
        }

    def trade_off(self) -> list[dict[str, Any]]:
        """The measured candidates as the fields of `equiscale.report.trade_off.Option`, for a plot."""
        return [
            {
                "family": c.basis_name,
                "label": f"{c.basis_name}, {len(c.grid)} scales, kernel {c.kernel_size}",
                "cost": c.cost,
                "error": c.error,
                "on_front": any(c is other for other in self.pareto),
                "chosen": c is self.chosen,
            }
            for c in self.measured
        ]

    def __str__(self) -> str:
        low, high = self.factor_range
        range_line = f"sizes of objects from {low:.2f} to {high:.2f} ({self.range_source})"
        legend = "> chosen, * no other is better at its cost or below"
        end = self.code if self.chosen else self._nothing()
        return "\n".join([range_line, "", *self._table(), legend, *self._left_out(), "", end])

    def _table(self) -> list[str]:
        head = (
            f"  {'basis':<42}{'grid':>18}{'kernel':>8}{'F':>4}{'rank':>6}{'condition':>11}{'cost':>7}"
            f"{'on grid':>9}{'error':>8}"
        )
        return [head, *(self._row(candidate) for candidate in self.measured[:_SHOWN])]

    def _row(self, c: Candidate) -> str:
        mark = ">" if c is self.chosen else "*" if c in self.pareto else " "
        grid = f"{c.grid.min:g} × {_rounded(c.grid.step)}^{len(c.grid) - 1}"
        return (
            f"{mark} {c.expression.removeprefix('basis.'):<42}{grid:>18}{c.kernel_size:>8}{c.functions:>4}"
            f"{c.rank:>6}{c.condition:>11.3g}{c.cost:>7.2f}{c.on_grid:>9.3f}{c.error:>8.3f}"
        )

    def _left_out(self) -> list[str]:
        words = {
            "sieved": "with a larger error of rescaling in closed form",
            "costly": "beyond twice the budget",
            "degenerate": "with dependent functions at every smallest scale",
            "unfit": "that the kernel does not hold",
        }
        counts = {status: sum(c.status == status for c in self.candidates) for status in words}
        lines = [f"not measured: {count} {words[status]}" for status, count in counts.items() if count]
        names = sorted(
            {
                f"{c.basis_name} with kernel {c.kernel_size}"
                for c in self.candidates
                if c.status == "degenerate"
            }
        )
        return [*lines, *([f"degenerate: {', '.join(names)}"] if names else [])]

    def _nothing(self) -> str:
        costs = [c.cost for c in self.candidates if c.cost is not None]
        least = f"{min(costs):.2f}" if costs else "none that can be used"
        return (
            f"expected a candidate that costs at most {self.budget:g} plain convolutions, got {least} as the "
            "least; raise the budget or narrow the range of factors"
        )


def suggest(
    images: Tensor,
    *,
    factor_range: tuple[float, float] | None = None,
    budget: float = 4.0,
    space: SearchSpace | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Suggestion:
    r"""Find the scale grid, kernel and basis of least equivariance error on images, within a budget.

    Grids cover the range of sizes in steps of at most an octave. For every grid, kernel and basis the
    smallest scale of least closed-form error (`equiscale.basis.rescaling_error`) is taken. Those that are
    then best for their cost are measured: a lifting convolution, ReLU and a scale convolution with drawn
    weights, by `equiscale.testing.equivariance_error` between the images and their enlargements.

    Shapes:
        images: ``(N, C, H, W)``, at least 16 pixels a side.

    Args:
        images: Of the data, of any number type; constant ones are left out.
        factor_range: The scale factors of the smallest and of the largest objects; only their ratio counts.
            None: estimated by `strongest_scales`, which is a guess where images show more than one object.
        budget: The largest cost of a scale convolution, in plain convolutions with as many weights.
        space: What is tried; None: `SearchSpace` as by default.
        seed: Of weights, crops and the choice of images: the same seed gives the same suggestion.
        progress: Called with a line before each step.

    Returns:
        All candidates, and the chosen one.

    Raises:
        SettingError: If no image shows anything, the range or the budget is not positive, or sizes hardly
            differ.
        ShapeError: For other axes, or images that are too small.
        BasisError: For an unknown basis.

    Source:
        The rule is that of Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020:
        the least equivariance error on the data. Range, sieve and cost are ours.

    Example:
        >>> images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> space = SearchSpace(kernel_sizes=(5,), bases=("disco-a",), measured=1)
        >>> found = suggest(images, factor_range=(1.0, 2.0), budget=8.0, space=space)
        >>> print(found.code.splitlines()[0])
        from equiscale import ScaleGrid, basis, nn
    """
    space, tell = space or SearchSpace(), progress or (lambda _: None)
    check_images(images)
    if not budget > 0:
        raise SettingError(f"expected a positive budget, got {budget}")
    images = _that_show_something(images)
    chosen_range, source = _range(images, factor_range, tell)
    ratio = chosen_range[1] / chosen_range[0]
    x = prepared(images, space.images, seed)
    with torch.random.fork_rng(devices=[]):  # layers draw weights when they are made
        done, rest = _searched(x, ratio, budget=budget, space=space, seed=seed, tell=tell)
    done.sort(key=lambda c: c.error or 0.0)
    return Suggestion((*done, *rest), chosen_range, source, budget, images.shape[1], seed)


def _searched(
    x: Tensor, ratio: float, *, budget: float, space: SearchSpace, seed: int, tell: Progress
) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates that were measured, and the others."""
    shapes = grid_shapes(ratio)
    tell(f"trying {len(shapes) * len(space.kernel_sizes) * len(space.bases)} combinations")
    found = list(search(ratio, space, size=(x.shape[-2], x.shape[-1]), correlation=neighbour_correlation(x)))
    gaps = {
        count: error_between(step, x, effective_size=space.effective_size, seed=seed)
        for step, count in shapes
    }
    found = [replace(c, between=gaps[len(c.grid)]) for c in found]
    found = [_marked_if_costly(c, budget) for c in found]
    passed = sieve(found, space.measured)
    done = [
        _measured(c, x, space=space, seed=seed, tell=_counted(tell, n, len(passed)))
        for n, c in enumerate(passed)
    ]
    rest = [c for c in found if not any(c is other for other in passed)]
    return done, rest


def _that_show_something(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    kept = images[flat.amax(1) > flat.amin(1)]
    if not len(kept):
        raise SettingError("expected images that show something, got constant ones only; give others")
    if kept.is_floating_point() and not bool(torch.isfinite(kept).all()):
        raise SettingError(
            "expected finite pixel values, got some that are not; mend or leave out those images"
        )
    return kept


def _range(
    images: Tensor, given: tuple[float, float] | None, tell: Progress
) -> tuple[tuple[float, float], str]:
    if given is None:
        tell("estimating the range of sizes")
        return range_of(strongest_scales(images).tolist()), "estimated from the images"
    low, high = given
    if not 0 < low < high < math.inf:
        raise SettingError(
            f"expected a factor_range of two rising positive factors, got {low:g} and {high:g}"
        )
    return (low, high), "given"


def _marked_if_costly(candidate: Candidate, budget: float) -> Candidate:
    costly = candidate.cost is not None and candidate.cost > _ROOM * budget
    return replace(candidate, status="costly") if costly else candidate


def _measured(
    candidate: Candidate, images: Tensor, *, space: SearchSpace, seed: int, tell: Progress
) -> Candidate:
    tell(f"{candidate.basis_name}, kernel {candidate.kernel_size}, {len(candidate.grid)} scales")
    size = (images.shape[-2], images.shape[-1])
    cost = relative_time(candidate.layer(), size) if space.cost == "time" else candidate.cost
    return replace(candidate, on_grid=error_on_grid(candidate, images, seed), cost=cost, status="measured")


def _counted(tell: Progress, number: int, total: int) -> Progress:
    return lambda line: tell(f"measuring {number + 1} of {total}: {line}")


# --- fronts ---


def sieve(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The best for their cost, front after front, until there are so many."""
    left = [c for c in candidates if c.status == "sieved"]
    passed: list[Candidate] = []
    while left and len(passed) < count:
        best = front(left, _cost_and_sieve)
        passed += best
        left = [c for c in left if not any(c is other for other in best)]
    return passed[:count]


def front(
    candidates: Sequence[Candidate], values: Callable[[Candidate], tuple[float, float]]
) -> list[Candidate]:
    """Those of which no other has both values at most as large and one smaller; by the first value."""
    best, found = math.inf, []
    for candidate in sorted(candidates, key=values):
        if values(candidate)[1] < best:
            best = values(candidate)[1]
            found.append(candidate)
    return found


def _cost_and_error(candidate: Candidate) -> tuple[float, float]:
    return _or_infinite(candidate.cost), _or_infinite(candidate.error)


def _cost_and_sieve(candidate: Candidate) -> tuple[float, float]:
    return _or_infinite(candidate.cost), _or_infinite(combined(candidate.sieve, candidate.between))


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _rounded(step: float | None) -> str:
    return f"{step or 1.0:.4g}"
