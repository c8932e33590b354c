"""The curves of a table as SVG, one panel a column, all panels of a figure on one error axis."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Literal

import numpy as np

from equiscale._extras import needs_extra
from equiscale.report.aggregate import Table, TableCell
from equiscale.report.drawing import SERIES, Drawing, draw

with needs_extra("report"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

_DASHES: Final = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
_MARKERS: Final = "osD^vPX"
_PANEL: Final = (4.8, 3.5)  # inches
_MARGIN: Final = 1.06
_EXACT: Final = 1e-7  # where an error of 0 is drawn: the resolution of single precision
_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Line:
    """One method in a panel: points, and the interval around each."""

    method: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class _Panels:
    """How one kind of figure is drawn; ``line`` gives None for a cell with nothing to show."""

    name: str
    line: Callable[[TableCell], Line | None]
    x_label: str
    y_label: str
    interval: Literal["band", "bars"]
    logarithmic: bool = True
    whole_x: bool = False


def learning_curves(table: Table) -> tuple[Drawing, ...]:
    """Validation error by epoch, a panel a column: the mean, and the range over the realisations."""
    return _draw_panels(
        table,
        _Panels("learning", _learning_line, "epoch", "validation error in percent", "band", whole_x=True),
    )


def factor_curves(table: Table) -> tuple[Drawing, ...]:
    """Test error by the image's scaling factor, a panel a column, with 95 % Wilson intervals."""
    panels = _Panels(
        "factor", _factor_line, "scaling factor of the image", "test error in percent", "bars", False
    )
    return _draw_panels(table, panels)


def equivariance_curves(table: Table) -> tuple[Drawing, ...]:
    """Equivariance error of the trained layers, a panel a column: mean and range over the runs."""
    panels = _Panels(
        "equivariance",
        _equivariance_line,
        "convolution, from the image on",
        "relative error",
        "bars",
        whole_x=True,
    )
    return _draw_panels(table, panels)


def wilson_interval(mistakes: int, images: int) -> tuple[float, float]:
    r"""The 95 % interval of a proportion, in percent.

    .. math:: \frac{p + z^2/2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2/n}

    Source:
        Wilson, 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> [round(bound, 2) for bound in wilson_interval(10, 100)]
        [5.52, 17.44]
    """
    p, ratio = mistakes / images, _Z95**2 / images
    middle = p + ratio / 2
    half = (ratio * p * (1 - p) + ratio**2 / 4) ** 0.5
    low, high = (middle - half) / (1 + ratio), (middle + half) / (1 + ratio)
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def _learning_line(cell: TableCell) -> Line | None:
    # An axis of powers has no zero: no mistake is drawn as half a mistake.
    curves = [
        [max(epoch.validation_error, 50 / max(run.data.validation, 1)) for epoch in run.epochs]
        for run in cell.runs
        if run.epochs
    ]
    return _spread_line(cell.method, list(zip(*curves, strict=False)))


def _equivariance_line(cell: TableCell) -> Line | None:
    errors: dict[str, list[float]] = defaultdict(list)
    factors: dict[str, None] = {}
    for run in cell.runs:
        for entry in run.equivariance:
            errors[entry.layer].append(max(entry.error, _EXACT))
            factors[f"×{entry.factor:.2f}"] = None
    return _spread_line(f"{cell.method}, {' '.join(factors)}", list(errors.values()))


def _spread_line(method: str, values: Sequence[Sequence[float]]) -> Line | None:
    if not values:
        return None
    return Line(
        method,
        x=tuple(range(1, len(values) + 1)),
        y=tuple(map(fmean, values)),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
    )


def _factor_line(cell: TableCell) -> Line | None:
    """The bins summed over the realisations; records with other bins than the first one are left out."""
    bins = [run.test.by_factor for run in cell.runs if run.test is not None]
    if not bins:
        return None
    alike = [entry for entry in bins if entry.edges == bins[0].edges]
    images = np.sum([entry.images for entry in alike], axis=0)
    mistakes = np.sum([entry.mistakes for entry in alike], axis=0)
    middles = (np.array(bins[0].edges[:-1]) + np.array(bins[0].edges[1:])) / 2
    filled = np.flatnonzero(images)
    if not len(filled):
        return None
    bounds = [wilson_interval(int(mistakes[index]), int(images[index])) for index in filled]
    return Line(
        cell.method,
        x=tuple(middles[filled].tolist()),
        y=tuple((100 * mistakes[filled] / images[filled]).tolist()),
        low=tuple(low for low, _ in bounds),
        high=tuple(high for _, high in bounds),
    )


def _draw_panels(table: Table, panels: _Panels) -> tuple[Drawing, ...]:
    lines = {
        column: [None if cell is None else panels.line(cell) for cell in _cells(table, column)]
        for column in table.suite.columns
    }
    drawn = [line for column in lines.values() for line in column if line is not None]
    return tuple(
        _draw_panel(
            panels, f"{panels.name}-{index}", column, lines=lines[column], limits=_limits(drawn, panels)
        )
        for index, column in enumerate(table.suite.columns)
        if any(lines[column])
    )


def _cells(table: Table, column: str) -> list[TableCell | None]:
    return [table.cell(method, column) for method in table.methods]


def _limits(lines: Sequence[Line], panels: _Panels) -> tuple[float, float]:
    """One error axis for all panels, so that they can be compared."""
    low, high = min(min(line.low) for line in lines), max(max(line.high) for line in lines)
    return (low / _MARGIN, high * _MARGIN) if panels.logarithmic else (0.0, high * _MARGIN)


def _draw_panel(
    panels: _Panels,
    name: str,
    column: str,
    *,
    lines: Sequence[Line | None],
    limits: tuple[float, float],
) -> Drawing:
    shown = {index: line for index, line in enumerate(lines) if line is not None}

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        handles = [
            _draw_line(axes, line, index=index, panels=panels, count=len(lines))
            for index, line in shown.items()
        ]
        _set_axes(axes, panels, limits)
        names = [line.method for line in shown.values()]
        figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)))

    words = "; ".join(f"{line.method} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in shown.values())
    alt = f"{panels.y_label} against {panels.x_label}, {column}: {words}"
    return Drawing(column, draw(name, _PANEL, paint), alt)


def _draw_line(axes: Axes, line: Line, *, index: int, panels: _Panels, count: int) -> Any:
    color, dash = SERIES[index % len(SERIES)], _DASHES[index // len(SERIES) % len(_DASHES)]
    if panels.interval == "band":
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, linewidth=0)
        return axes.plot(line.x, line.y, color=color, linestyle=_DASHES[index % len(_DASHES)])[0]
    spacing = min(np.diff(line.x), default=1.0)
    x = np.array(line.x) + spacing * 0.08 * (index - (count - 1) / 2)
    axes.vlines(x, line.low, line.high, color=color, linewidth=1.2, alpha=0.7)
    marker = _MARKERS[index % len(_MARKERS)]
    return axes.plot(x, line.y, color=color, linestyle=dash, marker=marker, linewidth=1.2)[0]


def _set_axes(axes: Axes, panels: _Panels, limits: tuple[float, float]) -> None:
    axes.set_xlabel(panels.x_label)
    axes.set_ylabel(panels.y_label)
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=3, width=0.7)
    if panels.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.set_ylim(limits)
    if panels.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
