"""What is exact and what is not: the error of one lifting convolution against what it depends on."""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from style import BLUE, INK, ORANGE, WIDTH, on_paper

from equiscale import HermiteBasis, ScaleGrid, SteerableBasis
from equiscale.basis import DiscoBasis
from equiscale.nn import LiftConv2d
from equiscale.testing import BandLimitedImage, equivariance_error

SIZE, SEEDS, FILTERS = 65, 3, 8
STEP = 2**0.5
FACTORS = (1 / STEP, STEP)
SMALLEST = (0.5, 0.7, 1.0, 1.4, 2.0)
RATIOS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
MARGINS = (0, 2, 4, 6, 8, 10, 12)
WINDOW = 8.0  # widths of the Gaussian: cuts nothing that matters
INNER = 16  # pixels: far from the border


def error(basis: SteerableBasis, grid: ScaleGrid, kernel_size: int, *, margin: int = INNER) -> float:
    """The root mean square over seeds and factors."""
    squares = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        image = BandLimitedImage.random(1, 1, size=(SIZE, SIZE), generator=generator)
        lift = LiftConv2d(1, FILTERS, kernel_size=kernel_size, grid=grid, basis=basis, padding="same")
        lift.reset_parameters(generator)
        squares += [e**2 for e in equivariance_error(lift, image, FACTORS, margin=margin).errors]
    return math.sqrt(sum(squares) / len(squares))


def odd(pixels: float) -> int:
    """The odd number above."""
    return 2 * math.ceil((pixels - 1) / 2) + 1


def grid(smallest: float) -> ScaleGrid:
    """Three scales."""
    return ScaleGrid.geometric(smallest, STEP, 3)


def by_scale(basis: SteerableBasis) -> list[float]:
    """The error against the smallest scale, with windows that cut nothing."""
    return [error(basis, grid(scale), odd(WINDOW * 2 * scale)) for scale in SMALLEST]


def by_window() -> list[float]:
    """The error against the window, in units of the largest scale."""
    return [error(HermiteBasis(3), grid(1.5), odd(ratio * 3.0)) for ratio in RATIOS]


def by_margin() -> list[float]:
    """The error against the distance from the border."""
    return [error(HermiteBasis(3), grid(1.0), odd(WINDOW * 2), margin=margin) for margin in MARGINS]


def disco() -> float:
    """DISCO sees ratios of scales only: one number."""
    return error(DiscoBasis(3), grid(1.0), 7)


def exactness() -> str:
    """Three panels."""

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        pixels, window, border = figure.subplots(1, 3, sharey=True)
        _pixels(pixels)
        _panel(window, "the window", "kernel size / largest scale", RATIOS)
        _line(window, RATIOS, by_window(), ORANGE)
        _panel(border, "the border", "distance from it, pixels", MARGINS)
        _line(border, MARGINS, by_margin(), ORANGE)
        pixels.set_ylabel("relative error")

    return on_paper("exactness", (WIDTH, 3.6), paint)


def _pixels(axis: Axes) -> None:
    axis.set_xscale("log")
    _panel(axis, "the pixel grid", "smallest scale, pixels", SMALLEST)
    axis.xaxis.set_minor_locator(NullLocator())
    exact = disco()
    axis.axhline(exact, color=BLUE, linewidth=2.0)
    axis.text(2.0, exact * 1.12, "DISCO", color=BLUE, fontsize=9.5, ha="right", va="bottom")
    _line(axis, SMALLEST, by_scale(HermiteBasis(3, degenerate="allow")), ORANGE, "Hermite A")


def _panel(axis: Axes, title: str, label: str, ticks: Sequence[float]) -> None:
    axis.set_title(title, fontsize=10.5, fontweight="bold", color=INK, loc="left", pad=8)
    axis.set_xlabel(label)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(LogLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(visible=False, axis="x")


def _line(axis: Axes, x: Sequence[float], y: Sequence[float], color: str, label: str = "") -> None:
    axis.plot(x, y, color=color, marker="o", clip_on=False, zorder=3)
    if label:
        axis.text(x[1], y[1] * 1.25, label, color=color, fontsize=9.5, ha="left", va="bottom")
