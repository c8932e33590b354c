"""The projection: answers of single scales follow the size of an object, their maximum does not."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scale_axis import GRID, KERNEL, SIZE, disc_finder
from scene import GREY, balls, in_picture, render
from style import BLUE, FAINT, INK, ORANGE, WIDTH, on_paper, show_picture
from torch import Tensor

FACTORS = tuple(2 ** (i / 8) for i in range(-16, 17))
OTHERS = "#b6c0ca"
PICTURED = (0.25, 0.5, 1.0, 2.0, 4.0)
LEFT, SPAN, REACH = 0.09, 0.885, 2.32  # of the figure; powers of two on both sides
BALL = 2  # as large as the disc of the middle scale
LABELS = ("one scale alone: an ordinary filter", "the other scales", "projection: the largest of all")


def ball(factor: float) -> Tensor:
    """The surroundings of the ball, as many pixels as the largest filter sees."""
    row, column, _ = in_picture(balls()[BALL])
    return render((KERNEL, KERNEL), scale=factor * SIZE[0] / KERNEL, center=(row, column))


@torch.no_grad()
def answers() -> Tensor:
    """(factors, S): the answer of every scale in the middle of the ball."""
    lift = disc_finder(padding=0)
    return torch.stack([lift(ball(factor) - GREY)[0, 0, :, 0, 0] for factor in FACTORS])


def invariance() -> str:
    """Answers against the size of the ball, with the ball below."""
    found = answers()
    found = found / found.max()

    def paint(figure: Figure) -> None:
        axis = figure.add_axes((LEFT, 0.345, SPAN, 0.565))
        _curves(axis, found)
        for factor in PICTURED:
            x = LEFT + SPAN * (math.log2(factor) + REACH) / (2 * REACH)
            inset = figure.add_axes((x - 0.06, 0.03, 0.12, 0.22))
            show_picture(inset, ball(factor)[0])

    return on_paper("invariance", (WIDTH, 4.9), paint)


def _curves(axis: Axes, found: Tensor) -> None:
    for index in range(len(GRID)):
        middle = index == len(GRID) // 2
        label = LABELS[0] if middle else LABELS[1] if index == 0 else "_"
        axis.plot(
            FACTORS, found[:, index], color=ORANGE if middle else OTHERS, linewidth=2.0 if middle else 1.4,
            zorder=3 if middle else 2, label=label,
        )  # fmt: skip
    axis.plot(FACTORS, found.amax(1), color=BLUE, linewidth=2.6, zorder=4, label=LABELS[2])
    axis.axvspan(0.5, 2.0, facecolor=BLUE, alpha=0.06, linewidth=0)
    axis.text(1.0, 0.03, "the sizes that the axis holds", ha="center", fontsize=9, color=FAINT)
    axis.set_xscale("log")
    axis.set_xlim(2**-REACH, 2**REACH)
    axis.set_ylim(0, 1.08)
    axis.xaxis.set_major_locator(FixedLocator(PICTURED))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylabel("answer of the filter")
    lines = sorted(
        axis.get_lines(), key=lambda line: LABELS.index(line.get_label()) if line.get_label() in LABELS else 9
    )
    axis.legend(
        handles=lines[: len(LABELS)], loc="lower left", fontsize=9, labelcolor=INK, ncols=3,
        bbox_to_anchor=(-0.01, 1.0), columnspacing=2.2, handlelength=2.2,
    )  # fmt: skip
