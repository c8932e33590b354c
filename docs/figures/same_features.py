"""Equivariance and invariance: one picture at two sizes, seen by ordinary and by steerable filters."""

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scene import GREY, render
from style import BLUE, FAINT, INK, ORANGE, WIDTH, caption, note, number, on_paper, show_picture, show_signed
from torch import Tensor, nn

from equiscale import ScaleGrid
from equiscale.functional.rescale import rescale
from equiscale.nn import LiftConv2d, ScaleConv2d

SIZE, FIRST, FACTOR = (96, 144), 0.6, 2.0
GRID = ScaleGrid.geometric(1.5, 2**0.5, 5)
CHANNELS, KERNEL, MIDDLE = 8, 43, 1
STEPS = 2  # √2 · √2 = 2
SHOWN = 6
NOTES = ("Both networks have two layers", "with the same random weights.", "Shown: one channel of eight.",
         "Errors: all channels and pixels.")  # fmt: skip


def picture(scale: float) -> Tensor:
    """The scene about its mean."""
    return render(SIZE, scale=FIRST * scale) - GREY


def network(grid: ScaleGrid) -> nn.Sequential:
    """Two layers with the same random weights whatever the grid; one scale makes ordinary convolutions."""
    options = {"kernel_size": KERNEL, "grid": grid, "padding": "same", "padding_mode": "replicate"}
    layers = nn.Sequential(
        LiftConv2d(3, CHANNELS, **options), nn.ReLU(), ScaleConv2d(CHANNELS, CHANNELS, **options)
    )
    generator = torch.Generator().manual_seed(4)
    for layer in (layers[0], layers[2]):
        layer.reset_parameters(generator)
    return layers


@dataclass(frozen=True)
class Row:
    """Features of the larger picture, larger features of the picture; the error over all channels."""

    title: str
    of_larger: Tensor
    larger_of: Tensor
    error: float


@torch.no_grad()
def rows() -> list[Row]:
    """The ordinary network, and the steerable one two scales up."""
    small, large = picture(1.0), picture(FACTOR)
    plain, steerable = network(ScaleGrid([GRID[MIDDLE]])), network(GRID)
    few, many = plain(small)[:, :, 0], plain(large)[:, :, 0]
    lower, upper = steerable(small)[:, :, MIDDLE], steerable(large)[:, :, MIDDLE + STEPS]
    return [
        _row("ordinary convolutions", many, rescale(few, FACTOR)),
        _row("scale convolutions", upper, rescale(lower, FACTOR)),
    ]


def _row(title: str, of_larger: Tensor, larger_of: Tensor) -> Row:
    error = float((of_larger - larger_of).norm() / larger_of.norm())
    return Row(title, of_larger[0, SHOWN], larger_of[0, SHOWN], error)


def equivariance() -> str:
    """Two pictures, and for both networks: two ways, and their difference."""
    found = rows()

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(
            3, 3, left=0.17, right=0.985, top=0.945, bottom=0.05, hspace=0.36, wspace=0.08
        )
        first, second = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        show_picture(first, picture(1.0)[0] + GREY)
        show_picture(second, picture(FACTOR)[0] + GREY)
        caption(first, "a picture", bold=True)
        caption(second, "the picture, twice as large", bold=True)
        _legend(figure.add_subplot(grid[0, 2]))
        for index, row in enumerate(found, start=1):
            axes = [figure.add_subplot(grid[index, column]) for column in range(3)]
            limit = float(row.larger_of.abs().quantile(0.998))
            show_signed(axes[0], row.of_larger, limit)
            show_signed(axes[1], row.larger_of, limit)
            show_signed(axes[2], row.of_larger - row.larger_of, limit)
            _words(axes, row)
            caption(axes[0], "features of the larger picture")
            caption(axes[1], "features, twice as large")
            caption(axes[2], "difference")

    return on_paper("equivariance-picture", (WIDTH, 6.3), paint)


def _legend(axis: Axes) -> None:
    axis.set_axis_off()
    lines = (("orange", ORANGE, "positive"), ("blue", BLUE, "negative"), ("white", FAINT, "zero"))
    for index, (name, color, meaning) in enumerate(lines):
        place = {"transform": axis.transAxes, "fontsize": 9.5, "va": "center"}
        axis.text(0.06, 0.93 - 0.13 * index, name, color=color, fontweight="bold", **place)
        axis.text(0.32, 0.93 - 0.13 * index, meaning, color=INK, **place)
    for index, line in enumerate(NOTES):
        axis.text(0.06, 0.47 - 0.12 * index, line, transform=axis.transAxes, fontsize=8.5, color=FAINT)


def _words(axes: list[Axes], row: Row) -> None:
    axes[0].text(
        -0.08, 0.5, row.title.replace(" ", "\n"), transform=axes[0].transAxes, ha="right", va="center",
        fontsize=10.5, fontweight="bold", color=INK,
    )  # fmt: skip
    good = row.error < 0.2
    note(axes[2], f"relative error {number(row.error)}", color=BLUE if good else ORANGE)
    if good:
        note(axes[0], f"at scale {GRID[MIDDLE + STEPS]:.1f}")
        note(axes[1], f"at scale {GRID[MIDDLE]:.1f}")
