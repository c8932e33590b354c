"""The figures of a benchmark: times and memory side by side, and how far each is from the machine's limit."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.experiments.benchmark.record import (
    MODES,
    BenchmarkRecord,
    Kind,
    KindResult,
    Measured,
    Mode,
    ModelResult,
    Peaks,
)
from equiscale.report.benchmark import KIND_NAMES, MODE_NAMES, conditions, times
from equiscale.report.drawing import FAINT, INK, RULE, SERIES, draw

with needs_extra("report"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

_COLORS: Final[dict[Kind, str]] = {"ours": SERIES[1], "dense": SERIES[0], "peer": SERIES[5], "cnn": FAINT}
_MARKERS: Final[dict[Kind, str]] = {"ours": "o", "dense": "s", "peer": "D", "cnn": "^"}
_NETWORK_MARKERS: Final = "osD^vP*Xhd<>p8"
_RIVALS: Final[tuple[Kind, ...]] = ("peer", "dense")  # the ratio to the first one there is stands in figures
_ROW: Final = 0.52  # inches, a network
_GIGA: Final = 1e9
_MEGABYTE: Final = 1e6
_ROOM: Final = 1.35  # beside the outermost points, as a factor


@dataclass(frozen=True)
class _Panel:
    """One panel: what of a kind is drawn, with the range around it."""

    title: str
    unit: str
    value: Callable[[KindResult], float | None]
    interval: Callable[[KindResult], tuple[float, float] | None]
    ratio: Callable[[ModelResult, Kind], float | None]


def write_plots(record: BenchmarkRecord, target: Path) -> list[Path]:
    """Draw both figures beside a record.

    Args:
        record: What to draw.
        target: The record's file: NAME.json gives NAME.svg and NAME-roofline.svg.

    Returns:
        The files.
    """
    figures = {
        target.with_suffix(".svg"): speed_plot(record),
        target.with_name(f"{target.stem}-roofline.svg"): roofline_plot(record),
    }
    for path, svg in figures.items():
        with atomic_path(path) as temporary:
            temporary.write_text(svg, encoding="utf-8")
    return list(figures)


def speed_plot(record: BenchmarkRecord) -> str:
    """Time of a training step and of an evaluation, and peak memory, a line a network, all kinds on it."""
    height = 1.75 + _ROW * len(record.models)

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.05)
        panels = list(_panels(record))
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            _paint_panel(axes, record.models, panel)
        row[0].set_yticks(range(len(record.models)), [_name(result) for result in record.models])
        row[0].set_ylim(len(record.models) - 0.5, -0.6)
        kinds = _kinds(record)
        _legend(figure, kinds)
        rival = next((KIND_NAMES[kind] for kind in _RIVALS if kind in kinds), None)
        _footnote(figure, record, *([f"above the lines: {rival} over ours"] if rival else []))

    return _on_white(draw("speed", (11.5, height), paint))


def roofline_plot(record: BenchmarkRecord) -> str:
    """Arithmetic a second over arithmetic a byte, under the roof of what the machine can do.

    Filled: the operations that were done. Hollow: the arithmetic of the published formulation in our time;
    where that is above the roof, the formulation itself would be as fast only with fewer multiplications
    than it is written with.
    """

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.05)
        row = figure.subplots(1, len(MODES), sharey=True, squeeze=False)[0]
        for axes, mode in zip(row, MODES, strict=True):
            _paint_roofline(axes, record, mode)
        row[0].set_ylabel("GFLOP/s")
        _legend(figure, _kinds(record), networks=[result.model for result in record.models])
        _footnote(figure, record)

    return _on_white(draw("roofline", (11.5, 6.2), paint))


# --- times and memory ---


def _panels(record: BenchmarkRecord) -> Iterator[_Panel]:
    for mode in MODES:
        yield _time_panel(mode)
    if any(kind.train.peak_bytes for result in record.models for kind in result.kinds):
        yield _Panel(
            "peak memory of a training step",
            "MB an image",
            lambda kind: None if not kind.train.peak_bytes else kind.train.peak_bytes / _MEGABYTE,
            lambda kind: None,
            lambda result, kind: result.memory_ratio(kind, "ours", "train"),
        )


def _time_panel(mode: Mode) -> _Panel:
    def interval(kind: KindResult) -> tuple[float, float]:
        seconds = kind.mode(mode).seconds
        return 1_000 * seconds.quartile_1, 1_000 * seconds.quartile_3

    return _Panel(
        MODE_NAMES[mode],
        "ms an image",
        lambda kind: 1_000 * kind.mode(mode).seconds.median,
        interval,
        lambda result, kind: result.ratio(kind, "ours", mode),
    )


def _paint_panel(axes: Axes, models: Sequence[ModelResult], panel: _Panel) -> None:
    axes.set_xscale("log")
    every = [
        value / result.batch_size
        for result in models
        for kind in result.kinds
        if (value := panel.value(kind)) is not None
    ]
    axes.set_xlim(min(every) / _ROOM, max(every) * _ROOM**2)
    for place, result in enumerate(models):
        _paint_network(axes, place, result, panel)
    axes.set_title(panel.title, fontsize=11, fontweight="bold", loc="left", pad=10)
    axes.set_xlabel(panel.unit)
    _plain_ticks(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _paint_network(axes: Axes, place: int, result: ModelResult, panel: _Panel) -> None:
    """The kinds on one line; between ours and the slowest rival how many times ours that is."""
    points = {
        kind.kind: value / result.batch_size
        for kind in result.kinds
        if (value := panel.value(kind)) is not None
    }
    if not points:
        return
    axes.plot(
        [min(points.values()), max(points.values())], [place, place], color=RULE, linewidth=3.5, zorder=1
    )
    for kind in result.kinds:
        if kind.kind in points:
            _paint_point(axes, place, points[kind.kind], kind.kind)
            _paint_interval(axes, place, panel.interval(kind), kind.kind, result.batch_size)
    rivals = [kind for kind in _RIVALS if kind in points]
    if rivals and "ours" in points:
        ratio = panel.ratio(result, rivals[0])
        middle = math.sqrt(points["ours"] * points[rivals[0]])
        axes.annotate(
            times(ratio), (middle, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9,
            fontweight="bold", color=INK,
        )  # fmt: skip


def _paint_point(axes: Axes, place: int, value: float, kind: Kind) -> None:
    axes.plot([value], [place], clip_on=False, zorder=4 if kind == "ours" else 3, **_marker_style(kind))


def _marker_style(kind: Kind) -> dict[str, Any]:
    size = 7.5 if kind == "ours" else 6.5
    return {
        "marker": _MARKERS[kind],
        "color": _COLORS[kind],
        "markersize": size,
        "markeredgewidth": 0,
        "linestyle": "none",
    }


def _paint_interval(
    axes: Axes, place: int, interval: tuple[float, float] | None, kind: Kind, images: int
) -> None:
    if interval is not None:
        low, high = (end / images for end in interval)
        axes.plot([low, high], [place, place], color=_COLORS[kind], linewidth=1.6, zorder=2)


# --- the roofline ---


def _paint_roofline(axes: Axes, record: BenchmarkRecord, mode: Mode) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = [
        (result, kind.kind, *_place(kind.mode(mode))) for result in record.models for kind in result.kinds
    ]
    points = [point for point in points if point[3] > 0]
    markers = dict(zip((result.model for result in record.models), _NETWORK_MARKERS * 9, strict=False))
    for result, kind, intensity, speed in points:
        style: dict[str, Any] = {"marker": markers[result.model], "color": _COLORS[kind], "markersize": 7}
        axes.plot([intensity], [speed], zorder=4 if kind == "ours" else 3, linestyle="none", **style)
        if kind == "ours":
            _paint_dense_arithmetic(axes, result, mode, (intensity, speed), style)
    _paint_roof(axes, record.peaks, [point[2] for point in points])
    axes.set_title(MODE_NAMES[mode], fontsize=11, fontweight="bold", loc="left", pad=10)
    axes.set_xlabel("FLOP a byte that the operations read and write")
    _plain_ticks(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(_number))
    axes.yaxis.set_minor_locator(NullLocator())


def _place(measured: Measured) -> tuple[float, float]:
    """FLOP a byte, and GFLOP a second."""
    work = measured.work
    return work.flops / max(work.bytes, 1), work.flops / measured.seconds.median / _GIGA


def _paint_dense_arithmetic(
    axes: Axes, result: ModelResult, mode: Mode, ours: tuple[float, float], style: dict[str, Any]
) -> None:
    """What the published formulation would have had to do in our time."""
    dense = result.kind("dense")
    kind = result.kind("ours")
    if dense is None or kind is None:
        return
    intensity, speed = ours
    effective = dense.mode(mode).work.flops / kind.mode(mode).seconds.median / _GIGA
    axes.plot([intensity, intensity], [speed, effective], color=style["color"], linewidth=0.9, zorder=2)
    axes.plot([intensity], [effective], linestyle="none", zorder=4, markerfacecolor="white", **style)


def _paint_roof(axes: Axes, peaks: Peaks, intensities: Sequence[float]) -> None:
    ridge = peaks.flops / peaks.bandwidth
    low = min([*intensities, ridge]) / _ROOM**2
    high = max([*intensities, ridge]) * _ROOM**2
    roof = [peaks.bandwidth * low / _GIGA, peaks.flops / _GIGA, peaks.flops / _GIGA]
    axes.plot([low, ridge, high], roof, color=INK, linewidth=1.4, zorder=2)
    bottom = axes.get_ylim()[0]
    axes.fill_between([low, ridge, high], roof, [bottom] * 3, color=RULE, alpha=0.28, linewidth=0, zorder=0)
    axes.set_ylim(bottom=bottom)
    axes.set_xlim(low, high)
    label: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "color": INK, "zorder": 5}
    label["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.annotate(
        f"{peaks.flops / _GIGA:.0f} GFLOP/s", (high, peaks.flops / _GIGA), xytext=(-4, 5), ha="right", **label
    )
    start = math.sqrt(low * ridge)
    axes.annotate(
        f"{peaks.bandwidth / _GIGA:.0f} GB/s", (start, peaks.bandwidth * start / _GIGA), xytext=(-6, 5),
        ha="right", **label,
    )  # fmt: skip


# --- what both share ---


def _kinds(record: BenchmarkRecord) -> list[Kind]:
    return [kind for kind in KIND_NAMES if any(result.kind(kind) for result in record.models)]


def _legend(figure: Figure, kinds: Sequence[Kind], networks: Sequence[str] = ()) -> None:
    """Kinds by colour; where networks have markers of their own, these in ink, and the hollow ones."""
    if not networks:
        lines = [Line2D([], [], label=KIND_NAMES[kind], **_marker_style(kind)) for kind in kinds]
    else:
        lines = [Line2D([], [], label=KIND_NAMES[kind], color=_COLORS[kind], linewidth=5) for kind in kinds]
        hollow: dict[str, Any] = {
            "color": _COLORS["ours"],
            "markerfacecolor": "white",
            "marker": "o",
            "markersize": 7,
        }
        if "dense" in kinds:
            lines.append(Line2D([], [], linestyle="none", label="dense arithmetic in our time", **hollow))
        lines += [
            Line2D([], [], label=name, marker=marker, color=INK, linestyle="none", markersize=6)
            for name, marker in zip(networks, _NETWORK_MARKERS * 9, strict=False)
        ]
    figure.legend(handles=lines, loc="outside upper left", ncols=min(len(lines), 5), columnspacing=2.0)


def _footnote(figure: Figure, record: BenchmarkRecord, *more: str) -> None:
    figure.supxlabel("\n".join([*conditions(record), *more]), fontsize=8, color=FAINT, x=0.99, ha="right")


def _name(result: ModelResult) -> str:
    return f"{result.model}\n{result.batch_size} images"


def _plain_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    axes.xaxis.set_minor_locator(NullLocator())


def _number(value: float, _: object) -> str:
    return f"{value:g}"


def _on_white(svg: str) -> str:
    """On paper of its own, because documents are also read on a dark background."""
    head, rest = svg.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="white"/>{rest}'
