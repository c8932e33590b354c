"""The figure of a network's equivariance: what every layer adds and why, and the error against the factor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.errors import RecordError
from equiscale.report.drawing import _STYLE, FAINT, INK, RULE, SERIES, _defaults

with needs_extra("report"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

# From what is nobody's fault to what is the layer's own.
COLORS: Final[dict[str, str]] = {
    "interpolation": RULE,
    "border": SERIES[5],
    "scale axis": SERIES[0],
    "stride": SERIES[6],
    "pooling": SERIES[4],
    "kernel": SERIES[2],
    "filters": SERIES[3],
    "module": SERIES[1],
}
_ROW: Final = 0.27  # inches, a layer
_WIDTH: Final = 11.5
_NAME: Final = 26
_MANY: Final = 40  # layers, from which on those that add nothing are left out
_NOTHING: Final = 1e-3


def write_plot(report: Mapping[str, Any], path: Path, *, title: str = "") -> None:
    """Draw what `NetworkEquivarianceReport.as_dict` holds into a file, of the kind that its ending says.

    Args:
        report: The numbers.
        path: A .png, .svg or .pdf file.
        title: What was measured.

    Raises:
        RecordError: If the numbers are not those of a report, or hold no layer.
    """
    layers = _layers(report)
    style = {**_defaults(), **_STYLE, "svg.hashsalt": "equivariance"}
    with matplotlib.rc_context(style), atomic_path(path) as temporary:
        figure = Figure(figsize=(_WIDTH, 2.3 + _ROW * max(len(layers), 7)))
        paint(figure, report, title=title)
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)


def paint(figure: Figure, report: Mapping[str, Any], *, title: str = "") -> None:
    """Draw both panels: stacked bars of causes by layer, and curves of the error against the factor.

    Args:
        figure: An empty figure.
        report: What `NetworkEquivarianceReport.as_dict` gives.
        title: What was measured.
    """
    layers = _layers(report)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    bars, curves = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _paint_bars(bars, layers)
    _paint_curves(curves, report, layers)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def _layers(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers that are drawn."""
    layers = report.get("layers")
    if not isinstance(layers, Sequence) or not layers:
        raise RecordError("expected the numbers of an equivariance report with layers, got none")
    if len(layers) <= _MANY:
        return list(layers)
    return [layer for layer in layers if _mean(layer["own"]) > _NOTHING]


def _paint_bars(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    rows, ends = range(len(layers)), [0.0] * len(layers)
    for cause, color in COLORS.items():
        parts = [_mean(layer["causes"].get(cause, ())) for layer in layers]
        if any(parts):
            axes.barh(rows, parts, left=ends, height=0.72, color=color, label=cause, linewidth=0)
        ends = [end + part for end, part in zip(ends, parts, strict=True)]
    totals = [_mean(layer["total"]) for layer in layers]
    axes.plot(
        totals, rows, "o-", color=INK, markersize=3.5, linewidth=0.6, label="from the image on", zorder=4
    )
    axes.set_yticks(rows, [_label(layer) for layer in layers], fontsize=8.5)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, max([*ends, *totals, 1e-6]) * 1.05)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("relative error that the layer adds, mean over the factors")
    axes.set_title("what each layer adds, and why", fontsize=11, fontweight="bold", loc="left", pad=10)
    axes.figure.legend(
        loc="outside lower center", ncols=9, fontsize=8.5, frameon=False, handlelength=1.1, columnspacing=1.4
    )


def _paint_curves(axes: Axes, report: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> None:
    """Every layer's error from the image on, in grey from light to dark, and the output's."""
    factors = report["factors"]
    for index, layer in enumerate(layers):
        depth = (index + 1) / len(layers)
        _paint_curve(axes, factors, layer["total"], color=FAINT, alpha=0.15 + 0.45 * depth, linewidth=1.1)
    _paint_curve(axes, factors, report["output"], color=SERIES[1], marker="o", linewidth=2.2, zorder=4)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({*factors, 1.0})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("scale factor (grey: the layers, the last darkest)")
    axes.xaxis.label.set_fontsize(8.5)
    axes.set_title("error from the image on", fontsize=11, fontweight="bold", loc="left", pad=10)
    _label_output(axes, factors, report["output"])


def _paint_curve(axes: Axes, factors: Sequence[float], errors: Sequence[float | None], **style: Any) -> None:
    """Through 0 at the factor 1, where every error is zero."""
    points = [(x, y) for x, y in zip(factors, errors, strict=True) if y is not None]
    if points:
        axes.plot(*zip(*sorted({*points, (1.0, 0.0)}), strict=True), **style)


def _label_output(axes: Axes, factors: Sequence[float], errors: Sequence[float | None]) -> None:
    points = [(x, y) for x, y in zip(factors, errors, strict=True) if y is not None]
    if points:
        axes.annotate(
            "output", max(points), xytext=(-4, 8), textcoords="offset points", ha="right", fontsize=9,
            fontweight="bold", color=SERIES[1],
        )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _label(layer: Mapping[str, Any]) -> str:
    name, kind = layer["name"], layer["kind"]
    name = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
    return name if name == kind else f"{name}  {kind}"
