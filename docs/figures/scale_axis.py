"""The scale axis: lifting convolution, scale convolution and projection, step by step."""

from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from scene import GREY, balls, in_picture, render
from style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    WIDTH,
    arrow,
    caption,
    note,
    on_paper,
    show_picture,
    show_signed,
)
from torch import Tensor

from equiscale import ScaleGrid
from equiscale.functional import synthesize_filters
from equiscale.nn import LiftConv2d, ScaleConv2d, ScaleProjection

SIZE, ZOOM = (96, 144), 1.0
GRID = ScaleGrid.geometric(2.6, 2**0.5, 5)
KERNEL = 75
# Hermite functions of order 2 along one axis and 0 along the other: their sum answers to dark discs.
ALONG_X, ALONG_Y = 2, 6


def disc_finder(padding: Literal["same"] | int = "same") -> LiftConv2d:
    """One filter on every scale: bright around dark."""
    lift = LiftConv2d(
        3, 1, kernel_size=KERNEL, grid=GRID, bias=False, padding=padding, padding_mode="replicate"
    )
    with torch.no_grad():
        lift.weight.zero_()
        lift.weight[:, :, [ALONG_X, ALONG_Y]] = 1 / 3
    return lift


@torch.no_grad()
def lifted() -> Tensor:
    """The scale map (S, H, W) of the picture."""
    return disc_finder()(render(SIZE, scale=ZOOM) - GREY)[0, 0]


def circles() -> list[tuple[float, float, float]]:
    """Row, column and radius of the balls in pixels."""
    height, width = SIZE
    half = height / 2 * ZOOM
    return [
        (half * row + (height - 1) / 2, half * column + (width - 1) / 2, half * radius)
        for row, column, radius in map(in_picture, balls())
    ]


def strongest(scale_map: Tensor) -> list[int]:
    """For every ball the scale of the strongest answer near its centre."""
    found = []
    for row, column, radius in circles():
        reach = max(int(radius / 2), 1)
        window = scale_map[
            :, round(row) - reach : round(row) + reach + 1, round(column) - reach : round(column) + reach + 1
        ]
        found.append(int(window.amax((1, 2)).argmax()))
    return found


def lifting() -> str:
    """The picture; the filter on five scales; the five answers with the balls that they find."""
    scale_map, lift = lifted(), disc_finder()
    filters = synthesize_filters(lift.weight.detach()[0].sum(0), lift.basis)

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(
            3, 5, height_ratios=[1.35, 1.12, 1], left=0.02, right=0.98, top=0.93, bottom=0.1,
            hspace=0.42, wspace=0.08,
        )  # fmt: skip
        top = figure.add_subplot(grid[0, 1:4])
        show_picture(top, render(SIZE, scale=ZOOM)[0])
        caption(top, "an image (B, C, H, W)", bold=True)
        limit = float(scale_map.max())
        answers = [figure.add_subplot(grid[2, index]) for index in range(len(GRID))]
        for index, axis in enumerate(answers):
            _filter(figure.add_subplot(grid[1, index]), filters[index], GRID[index])
            show_signed(axis, scale_map[index], limit)
            note(axis, f"s = {index}")
        for index, circle in zip(strongest(scale_map), circles(), strict=True):
            _ring(answers[index], circle)
        figure.text(0.02, 0.642, "⋆ one filter, on the scales", fontsize=9.5, color=INK, fontweight="bold")
        figure.text(0.02, 0.335, "= a scale map (B, C', S, H, W)", fontsize=9.5, color=INK, fontweight="bold")
        _axis_arrow(figure)

    return on_paper("lifting", (WIDTH, 5.6), paint)


def _filter(axis: Axes, values: Tensor, scale: float) -> None:
    show_signed(axis, values, float(values.abs().max()))
    caption(axis, f"{scale:.1f}")


def _ring(axis: Axes, circle: tuple[float, float, float]) -> None:
    row, column, radius = circle
    axis.add_patch(Circle((column, row), radius, fill=False, edgecolor=INK, linewidth=1.5))


def _axis_arrow(figure: Figure) -> None:
    figure.add_artist(
        FancyArrowPatch((0.13, 0.03), (0.98, 0.03), arrowstyle="-|>", mutation_scale=11, color=FAINT)
    )
    figure.text(0.02, 0.03, "scale axis", fontsize=9.5, color=FAINT, va="center")


# --- the scale convolution ---

INNER = ScaleGrid.geometric(2.0, 2**0.5, 3)
SLOTS = ((BLUE, "slot 0: its own scale"), (ORANGE, "slot 1: the next larger scale"))


def layers() -> tuple[LiftConv2d, ScaleConv2d]:
    """A lift with four channels, and a scale convolution whose filters span two scales."""
    options = {
        "kernel_size": 33,
        "grid": INNER,
        "bias": False,
        "padding": "same",
        "padding_mode": "replicate",
    }
    generator = torch.Generator().manual_seed(2)
    lift, conv = LiftConv2d(3, 1, **options), ScaleConv2d(1, 1, scale_size=2, **options)
    for layer in (lift, conv):
        layer.reset_parameters(generator)
        with torch.no_grad():
            layer.weight[..., 0] = 0  # the Gaussian: flat areas shall give no answer
    return lift, conv


def scale_convolution() -> str:
    """Scale by scale: what a filter of two slots sees, and what the projection keeps."""
    lift, conv = layers()
    with torch.no_grad():
        x = torch.relu(lift(render(SIZE, scale=ZOOM) - GREY))
        y = conv(x)
        p = ScaleProjection()(y)[0, 0]
    filters = synthesize_filters(conv.weight.detach()[0, 0], conv.basis)  # (N, S, K, K)

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(
            4, 4, width_ratios=[1.5, 0.5, 1.5, 1.5], height_ratios=[1, 1, 1, 0.55], left=0.075, right=0.985,
            top=0.92, bottom=0.03, hspace=0.16, wspace=0.42,
        )  # fmt: skip
        inputs = [figure.add_subplot(grid[row, 0]) for row in range(4)]
        outputs = [figure.add_subplot(grid[row, 2]) for row in range(3)]
        for row in range(3):
            show_signed(inputs[row], x[0, 0, row], float(x.max()))
            show_signed(outputs[row], y[0, 0, row], float(y.abs().max()))
            _scale_name(inputs[row], row)
            _slots(figure, grid[row, 1].subgridspec(2, 1, hspace=0.22), filters[:, row], inputs, outputs[row])
        _zeros(inputs[3])
        projected = figure.add_subplot(grid[1, 3])
        show_signed(projected, p, float(y.abs().max()))
        for row in range(3):
            arrow(figure, outputs[row], projected, rows=(0.5, 0.75 - 0.25 * row))
        caption(inputs[0], "a scale map x", bold=True)
        caption(outputs[0], "y = κ ⋆ x, a scale map", bold=True)
        caption(projected, "projection: the largest\nof all scales, an image", bold=True)
        _legend(figure)

    return on_paper("scale-convolution", (WIDTH, 5.6), paint)


def _scale_name(axis: Axes, row: int) -> None:
    axis.text(
        -0.06, 0.5, f"s = {row}", transform=axis.transAxes, ha="right", va="center", fontsize=9.5, color=INK
    )


def _slots(figure: Figure, cells, filters: Tensor, inputs: list[Axes], output: Axes) -> None:
    row = output.get_subplotspec().rowspan.start
    for slot, (color, _) in enumerate(SLOTS):
        axis = figure.add_subplot(cells[slot])
        show_signed(axis, filters[slot], float(filters.abs().max()))
        for spine in axis.spines.values():
            spine.set(color=color, linewidth=1.6)
        source = inputs[row + slot]
        arrow(figure, source, axis, rows=(0.5 if slot == 0 else 0.72, 0.5), color=color)
        arrow(figure, axis, output, rows=(0.5, 0.6 - 0.2 * slot), color=color)


def _zeros(axis: Axes) -> None:
    show_signed(axis, torch.zeros(*[n // 2 for n in (SIZE[0], 2 * SIZE[1])]), 1.0)
    axis.set_aspect("auto")
    axis.patch.set_visible(False)
    axis.text(
        0.5, 0.5, "zeros: the axis ends", transform=axis.transAxes, ha="center", va="center", fontsize=9.5,
        color=FAINT,
    )  # fmt: skip


def _legend(figure: Figure) -> None:
    for line, (color, text) in enumerate(SLOTS):
        figure.text(0.475, 0.105 - 0.045 * line, text, fontsize=9.5, color=color, fontweight="bold")
