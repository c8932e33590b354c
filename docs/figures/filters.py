"""Steerable filters: fixed functions on every scale, and a filter as their combination."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, FAINT, INK, ORANGE, WIDTH, caption, on_paper, show_signed
from torch import Tensor

from equiscale import HermiteBasis, ScaleGrid
from equiscale.functional import synthesize_filters

GRID = ScaleGrid.geometric(2.5, 2**0.5, 3)
KERNEL = 33
FUNCTIONS = (0, 1, 3, 2, 4)  # of nine
WEIGHTS = (0.4, 0.9, -0.5, -0.6, 0.7)


def functions() -> Tensor:
    """(F, S, K, K), the functions that are shown."""
    return HermiteBasis(3).sample(KERNEL, GRID)[list(FUNCTIONS)]


def steerable_filters() -> str:
    """A row a scale: five basis functions, weights that all rows share, and the filter."""
    basis = functions()
    filters = synthesize_filters(torch.tensor(WEIGHTS), basis)

    def paint(figure: Figure) -> None:
        columns = len(FUNCTIONS)
        grid = figure.add_gridspec(
            len(GRID), columns + 1, width_ratios=[1] * columns + [1.06],
            left=0.11, right=0.985, top=0.845, bottom=0.03, hspace=0.14, wspace=0.3,
        )  # fmt: skip
        for row, scale in enumerate(GRID):
            axes = [figure.add_subplot(grid[row, column]) for column in range(columns + 1)]
            _row(axes, basis[:, row], filters[row])
            place = {"transform": axes[0].transAxes, "ha": "right", "va": "center"}
            axes[0].text(-0.14, 0.5, f"scale\n{scale:.1f}", fontsize=9.5, color=INK, **place)
            if row == 0:
                _weights(axes)

    return on_paper("steerable-filters", (WIDTH, 4.9), paint)


def _row(axes: list[Axes], basis: Tensor, combined: Tensor) -> None:
    for axis, values in zip(axes[:-1], basis, strict=True):
        show_signed(axis, values, float(basis.abs().max()))
        place = {"transform": axis.transAxes, "ha": "center", "va": "center"}
        axis.text(1.15, 0.5, "=" if axis is axes[-2] else "+", fontsize=14, color=FAINT, **place)
    show_signed(axes[-1], combined, float(combined.abs().max()))
    for spine in axes[-1].spines.values():
        spine.set(color=INK, linewidth=1.2)


def _weights(axes: list[Axes]) -> None:
    for index, (axis, weight) in enumerate(zip(axes, WEIGHTS, strict=False)):
        sign = "−" if weight < 0 else ""
        caption(axis, f"{sign}{abs(weight)} ·", bold=True)
        axis.title.set_color(ORANGE if weight > 0 else BLUE)
        if index == 0:
            axis.text(
                0.0, 1.36, "learned weights, the same on every scale", transform=axis.transAxes, fontsize=9.5,
                color=FAINT,
            )  # fmt: skip
    caption(axes[-1], "the filter", bold=True)
