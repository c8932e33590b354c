"""Error against cost: what was tried, the front of what is best, and what was chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.errors import SettingError
from equiscale.report.drawing import ACCENT, FAINT, INK, RULE, SERIES

with needs_extra("report"):
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

FORMATS: Final = (".png", ".svg", ".pdf")

_SIZE: Final = (7.2, 4.4)  # inches
_DPI: Final = 160
_MARKERS: Final = "os^Dv*P"
_ROOM: Final = 1.6  # above the largest error and below the least, as a factor
_TICKS: Final = (1.0, 2.0, 5.0)
_APART: Final = (0.35, 0.06)  # names, in parts of the width and of the height


@dataclass(frozen=True)
class Option:
    """One thing that could be chosen.

    Args:
        family: Its kind, in the legend.
        label: What it is, beside it where it is on the front.
        cost: On the horizontal axis.
        error: On the vertical one.
        on_front: Whether no other is better at its cost or below.
        chosen: Whether it is the one.
    """

    family: str
    label: str
    cost: float
    error: float
    on_front: bool = False
    chosen: bool = False


def draw_trade_off(options: Sequence[Option], target: Path, *, budget: float) -> Path:
    """Draw the options into a file.

    Args:
        options: At least one.
        target: A .png, .svg or .pdf file.
        budget: The largest cost that is wanted.

    Returns:
        The target.

    Raises:
        SettingError: If the file has another ending, or there is nothing to draw.
        OSError: If it cannot be written.
    """
    target = Path(target)
    if target.suffix.lower() not in FORMATS:
        raise SettingError(f"expected a file of {', '.join(FORMATS)}, got {target}")
    with matplotlib.style.context("default"):
        figure = Figure(figsize=_SIZE, layout="constrained")
        paint_trade_off(figure.add_subplot(), options, budget=budget)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=_DPI, facecolor="white")
    return target


def paint_trade_off(axes: Axes, options: Sequence[Option], *, budget: float) -> None:
    """Paint on axes that are there.

    Raises:
        SettingError: If there is nothing to paint.
    """
    if not options:
        raise SettingError("expected at least one option to draw, got none")
    _frame(axes, options, budget)
    front = sorted((option for option in options if option.on_front), key=lambda option: option.cost)
    costs, errors = [option.cost for option in front], [option.error for option in front]
    axes.step(costs, errors, where="post", color=INK, linewidth=1.1, zorder=2)
    for index, family in enumerate(sorted({option.family for option in options})):
        marker, color = _MARKERS[index % len(_MARKERS)], SERIES[index % len(SERIES)]
        own = [option for option in options if option.family == family]
        for strong in (False, True):
            shown = [option for option in own if option.on_front == strong]
            axes.scatter(
                [option.cost for option in shown],
                [option.error for option in shown],
                s=46 if strong else 26,
                marker=marker,
                color=color,
                alpha=1.0 if strong else 0.45,
                linewidths=0,
                label=family if strong == any(option.on_front for option in own) else None,
                zorder=4 if strong else 3,
            )
    for option in _named(front, axes):
        _name(axes, option)
    axes.legend(frameon=False, loc="upper right", fontsize=9, labelcolor=INK)


def _frame(axes: Axes, options: Sequence[Option], budget: float) -> None:
    errors = [option.error for option in options if option.error > 0]
    axes.set_yscale("log")
    axes.set_ylim(min(errors, default=1e-3) / _ROOM, max(errors, default=1.0) * _ROOM)
    left, right = 0.0, 1.08 * max(budget, *(option.cost for option in options))
    axes.set_xlim(left, right)
    axes.axvspan(left, budget, color=SERIES[0], alpha=0.06, linewidth=0)
    axes.axvline(budget, color=SERIES[0], linewidth=1, alpha=0.5)
    axes.annotate(
        f"budget: {budget:g}", (budget, 0.02), xycoords=("data", "axes fraction"), color=SERIES[0],
        xytext=(-5, 0), textcoords="offset points", ha="right", va="bottom", fontsize=9,
    )  # fmt: skip
    axes.set_xlabel("cost of a scale convolution, in plain convolutions with as many weights", color=INK)
    axes.set_ylabel("expected relative equivariance error", color=INK)
    axes.yaxis.set_major_locator(LogLocator(subs=_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelcolor=INK, which="both", length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def _named(front: Sequence[Option], axes: Axes) -> list[Option]:
    """The chosen one, and those of the front whose names have room beside the others'."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    named: list[Option] = []
    for option in sorted(front, key=lambda option: (not option.chosen, option.cost)):
        away = (
            abs(option.cost - other.cost) / (right - left) > _APART[0]
            or abs(math.log(option.error / other.error)) / math.log(high / low) > _APART[1]
            for other in named
        )
        if all(away):
            named.append(option)
    return named


def _name(axes: Axes, option: Option) -> None:
    if option.chosen:
        axes.scatter(
            [option.cost],
            [option.error],
            s=170,
            facecolors="none",
            edgecolors=ACCENT,
            linewidths=1.6,
            zorder=5,
        )
    axes.annotate(
        option.label,
        (option.cost, option.error),
        xytext=(-7, -9) if not option.chosen else (-11, -13),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8.5 if not option.chosen else 9.5,
        fontweight="bold" if option.chosen else "normal",
        color=ACCENT if option.chosen else INK,
        zorder=6,
    )
