"""The look of the figures: white paper, pictures in their own pixels, signed values in two colours."""

import re
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from equiscale.report.drawing import FAINT, INK, RULE, SERIES, draw

BLUE, ORANGE, GREEN, PURPLE = SERIES[0], SERIES[1], SERIES[2], SERIES[3]
SIGNED = LinearSegmentedColormap.from_list("signed", ["#00395c", BLUE, "#ffffff", ORANGE, "#7a2c00"], N=257)
WIDTH = 9.0  # inches; a page shows 46 rem


def on_paper(name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """The figure as SVG on white paper, which dark pages need; the pictures keep their pixels."""
    svg = draw(name, size, paint)
    head, rest = svg.split(">", 1)
    paper = '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
    return re.sub(r"[ \t]+$", "", f"{head}>{paper}{rest}", flags=re.MULTILINE)


def show_picture(axis: Axes, image: Tensor) -> None:
    """A colour picture (3, H, W)."""
    pixels = (image.movedim(0, -1).numpy() * 255).round().astype(np.uint8)
    axis.imshow(pixels, interpolation="none")
    frame(axis)


def show_signed(axis: Axes, values: Tensor, limit: float) -> None:
    """Values (H, W): orange is positive, blue negative, white zero."""
    shades = SIGNED(((values / limit).clamp(-1, 1).numpy() + 1) / 2, bytes=True)[..., :3]
    axis.imshow(shades, interpolation="none")
    frame(axis)


def frame(axis: Axes) -> None:
    """No ticks, a thin line around."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=RULE, linewidth=0.8)


def caption(axis: Axes, text: str, *, bold: bool = False) -> None:
    """Above a panel."""
    axis.set_title(text, fontsize=9.5, color=INK, fontweight="bold" if bold else "normal", pad=5)


def note(axis: Axes, text: str, *, color: str = FAINT) -> None:
    """Below a panel."""
    axis.text(0.5, -0.06, text, transform=axis.transAxes, ha="center", va="top", fontsize=9, color=color)


def arrow(
    figure: Figure, start: Axes, end: Axes, *, rows: tuple[float, float] = (0.5, 0.5), color: str = FAINT
) -> None:
    """From the right side of a panel to the left side of another."""
    figure.add_artist(
        ConnectionPatch(
            (1.04, rows[0]), (-0.04, rows[1]), "axes fraction", "axes fraction", axesA=start, axesB=end,
            arrowstyle="-|>", mutation_scale=9, linewidth=1.1, color=color,
        )
    )  # fmt: skip


def number(value: float) -> str:
    """A part of one in percent, with two digits."""
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
