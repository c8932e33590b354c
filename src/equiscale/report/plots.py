"""The curves of a table as SVG, one panel a column, all panels of a figure on one error axis."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final, Literal

import numpy as np

from equiscale._extras import needs_extra
from equiscale.report.aggregate import Table, TableCell, alike
from equiscale.report.drawing import FAINT, SERIES, Drawing, draw

with needs_extra("report"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

_DASHES: Final = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
_MARKERS: Final = "osD^vPX"
_PANEL: Final = (4.8, 2.9)  # inches, without the legend
_MANY: Final = 8  # methods, from which on the legend is small
_LEGEND_LINE: Final = 6  # letters that the line before a name takes
_BAR_SPACING: Final = 0.08  # between the bars of two methods, as a share of the distance between points
_BAR_SPREAD: Final = 0.45  # of all methods
_FEW_POINTS: Final = 20  # up to which every point of a curve is marked
_MARGIN: Final = 1.06
_EXACT: Final = 1e-7  # where an error of 0 is drawn: the resolution of single precision
_FEW_OCTAVES: Final = 3
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
    octaves: bool = False
    shade: Callable[[list[TableCell]], tuple[float, float] | None] = lambda _: None


def learning_curves(table: Table) -> tuple[Drawing, ...]:
    """Validation error by epoch, a panel a column: the mean, and the range over the realisations.

    A single epoch makes no curve.
    """
    return _draw_panels(
        table,
        _Panels("learning", _learning_line, "epoch", "validation error in percent", "band", whole_x=True),
    )


def testing_curves(table: Table) -> tuple[Drawing, ...]:
    """Test error by epoch where it was measured during training, drawn as the learning curves."""
    return _draw_panels(
        table, _Panels("test", _testing_line, "epoch", "test error in percent", "band", whole_x=True)
    )


def size_curves(table: Table) -> tuple[Drawing, ...]:
    """Test error by size where sizes beside the trained ones were tested, a panel a column.

    The mean over the realisations with a band of one standard deviation; the trained sizes are shaded.
    """
    panels = _Panels(
        "sizes",
        _size_line,
        "size of the object, 1 is the original",
        "test error in percent",
        "band",
        octaves=True,
        shade=_trained_sizes,
    )
    return _draw_panels(table, panels)


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
    errors: dict[int, list[float]] = defaultdict(list)
    for run in cell.runs:
        for epoch in run.epochs:
            if epoch.validation_error is not None:
                errors[epoch.epoch].append(_visible(epoch.validation_error, run.data.validation))
    return _spread_line(cell.method, errors) if len(errors) > 1 else None


def _testing_line(cell: TableCell) -> Line | None:
    errors: dict[int, list[float]] = defaultdict(list)
    for run in cell.runs:
        for epoch in run.epochs:
            if epoch.test_error is not None:
                errors[epoch.epoch].append(_visible(epoch.test_error, run.data.test))
    return _spread_line(cell.method, errors) if len(errors) > 1 else None


def _visible(error: float, images: int) -> float:
    """An axis of powers has no zero: no mistake is drawn as half a mistake."""
    return max(error, 50 / max(images, 1))


def _equivariance_line(cell: TableCell) -> Line | None:
    errors: dict[str, list[float]] = defaultdict(list)
    factors: dict[str, None] = {}
    for run in cell.runs:
        for entry in run.equivariance:
            errors[entry.layer].append(max(entry.error, _EXACT))
            factors[f"×{entry.factor:.2f}"] = None
    numbered = dict(enumerate(errors.values(), start=1))
    return _spread_line(f"{cell.method}, {' '.join(factors)}", numbered)


def _spread_line(method: str, values: Mapping[int, Sequence[float]]) -> Line | None:
    if not values:
        return None
    shown = sorted(values)
    return Line(
        method,
        x=tuple(map(float, shown)),
        y=tuple(fmean(values[x]) for x in shown),
        low=tuple(min(values[x]) for x in shown),
        high=tuple(max(values[x]) for x in shown),
    )


def _size_line(cell: TableCell) -> Line | None:
    """The error of each bin of sizes, as mean ± standard deviation over the realisations."""
    if not cell.by_size:
        return None
    counted = [bins for _, bins in alike(cell.runs)]
    filled = [index for index, images in enumerate(counted[0].images) if images]
    errors = [
        [
            _visible(100 * bins.mistakes[i] / bins.images[i], bins.images[i])
            for bins in counted
            if bins.images[i]
        ]
        for i in filled
    ]
    means = [fmean(values) for values in errors]
    spread = [stdev(values) if len(values) > 1 else 0.0 for values in errors]
    edges = np.array(counted[0].edges)
    half_a_mistake = [50 / counted[0].images[i] for i in filled]
    return Line(
        cell.method,
        x=tuple(np.sqrt(edges[:-1] * edges[1:])[filled].tolist()),
        y=tuple(means),
        low=tuple(
            max(mean - std, half) for mean, std, half in zip(means, spread, half_a_mistake, strict=True)
        ),
        high=tuple(mean + std for mean, std in zip(means, spread, strict=True)),
    )


def _trained_sizes(cells: list[TableCell]) -> tuple[float, float] | None:
    """From the lower edge of the smallest trained bin to the upper edge of the largest."""
    runs = [entry for cell in cells for entry in alike(cell.runs) if cell.by_size]
    touched = [
        edge
        for run, bins in runs
        if run.data.train_factors is not None
        for pair in zip(bins.edges[:-1], bins.edges[1:], strict=True)
        for edge in pair
        if pair[0] < run.data.train_factors[1] and run.data.train_factors[0] < pair[1]
    ]
    return (min(touched), max(touched)) if touched else None


def _factor_line(cell: TableCell) -> Line | None:
    """The bins summed over the realisations; records with other bins than the first one are left out."""
    counted = [bins for _, bins in alike(cell.runs)]
    if not counted or cell.by_size:
        return None
    images = np.sum([entry.images for entry in counted], axis=0)
    mistakes = np.sum([entry.mistakes for entry in counted], axis=0)
    middles = (np.array(counted[0].edges[:-1]) + np.array(counted[0].edges[1:])) / 2
    filled = np.flatnonzero(images)
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
            panels,
            f"{panels.name}-{index}",
            column,
            lines=lines[column],
            limits=_limits(drawn, panels),
            shade=panels.shade([cell for cell in _cells(table, column) if cell is not None]),
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
    shade: tuple[float, float] | None,
) -> Drawing:
    shown = {index: line for index, line in enumerate(lines) if line is not None}

    names = [line.method for line in shown.values()]
    legend = _legend(names, methods=len(lines))
    size = (_PANEL[0], _PANEL[1] + legend.row * -(-len(names) // legend.columns))

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        if shade is not None:
            axes.axvspan(*shade, color=FAINT, alpha=0.13, linewidth=0)
        handles = [
            _draw_line(axes, line, index=index, panels=panels, count=len(lines))
            for index, line in shown.items()
        ]
        _set_axes(axes, panels, limits)
        figure.legend(
            handles, names, loc="outside lower center", ncols=legend.columns, fontsize=legend.letters
        )

    words = "; ".join(f"{line.method} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in shown.values())
    alt = f"{panels.y_label} against {panels.x_label}, {column}: {words}"
    if shade is not None:
        alt += f"; trained on {shade[0]:.3g} to {shade[1]:.3g}"
    return Drawing(column, draw(name, size, paint), alt)


@dataclass(frozen=True)
class _Legend:
    """How many names stand side by side, in letters of how many points, and a row's height in inches."""

    columns: int
    letters: float
    row: float


def _legend(names: Sequence[str], *, methods: int) -> _Legend:
    letters, row, fitting = (7.5, 0.165, 84) if methods > _MANY else (10.0, 0.21, 62)
    columns = fitting // (max(map(len, names)) + _LEGEND_LINE)
    return _Legend(max(1, min(3, len(names), columns)), letters, row)


def _draw_line(axes: Axes, line: Line, *, index: int, panels: _Panels, count: int) -> Any:
    color, dash = SERIES[index % len(SERIES)], _DASHES[index // len(SERIES) % len(_DASHES)]
    marker = _MARKERS[(index + index // len(SERIES)) % len(_MARKERS)]
    if panels.interval == "band":
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, linewidth=0)
        style = _DASHES[index % len(_DASHES)]
        shown = marker if panels.octaves and len(line.x) <= _FEW_POINTS else ""
        return axes.plot(line.x, line.y, color=color, linestyle=style, marker=shown, markersize=3.2)[0]
    spacing = min(np.diff(line.x), default=1.0)
    apart = min(_BAR_SPACING, _BAR_SPREAD / count)
    x = np.array(line.x) + spacing * apart * (index - (count - 1) / 2)
    axes.vlines(x, line.low, line.high, color=color, linewidth=1.2, alpha=0.7)
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
    if panels.octaves:
        _set_octaves(axes)
    if panels.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _set_octaves(axes: Axes) -> None:
    """An axis of powers of two, with the half ones between where there are few."""
    axes.set_xscale("log", base=2)
    low, high = np.log2(axes.get_xlim())
    step = 1.0 if high - low > _FEW_OCTAVES else 0.5
    ticks = 2 ** (step * np.arange(np.ceil(low / step), np.floor(high / step) + 1))
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.xaxis.set_minor_locator(FixedLocator([]))
