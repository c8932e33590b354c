"""How far is each basis from scale equivariance, on the published grids?

Two measures, since each sees what the other does not:

- *Smooth images*: band-limited images, scaled analytically, through a lifting convolution with random
  weights; its output is compared with its own rescaled output. It is what features of a network do, on
  images without detail that the pixel grid cannot hold.
- *Noise*: the published objective of DISCO. White noise is shrunk bicubically and convolved, and convolved
  and shrunk; no filter can be exact on the detail that shrinking destroys, and filters that let no detail
  pass have an advantage. In closed form, with images correlated as photographs are beside it.

A family's smallest scale decides much. Every family but DISCO, which has none, is therefore shown at the best
of many smallest scales, chosen on the smooth images; where a published network uses the family on
the grid, at the published one too. Writes one JSON record and one SVG, and with --into a table.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import recording
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from equiscale import ScaleGrid, SteerableBasis
from equiscale._files import atomic_path
from equiscale.basis import basis_entry, diagnose, rescaling_error
from equiscale.errors import BasisError
from equiscale.nn import LiftConv2d
from equiscale.report.drawing import FAINT, SERIES, draw
from equiscale.testing import BandLimitedImage, equivariance_error

DEFAULT_OUTPUT = Path("results/benchmarks/equivariance.json")

SIZE, MARGIN, IMAGES, FILTERS, SEEDS = 81, 12, 2, 8, 4
SMALLEST_SCALES = (0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5)
PHOTOGRAPHS = 0.95


@dataclass(frozen=True)
class Grid:
    """A published grid: ratios of scales, kernel and effective size."""

    title: str
    kernel_size: int
    effective_size: int
    step: float
    num_scales: int

    def scales(self, smallest: float) -> ScaleGrid:
        return ScaleGrid.geometric(smallest, self.step, self.num_scales)

    @property
    def factors(self) -> list[float]:
        return [self.step**k for k in range(1, self.num_scales)]


GRIDS = {
    "mnist": Grid("MNIST-scale: kernel 15, steps of ∛2", 15, 7, 2 ** (1 / 3), 4),
    "stl-7": Grid("STL-10: kernel 7, steps of 1.41", 7, 3, 1.41, 3),
    "stl-5": Grid("STL-10 of DISCO: kernel 5, steps of √2", 5, 3, 2**0.5, 3),
}
ORDERS = {7: {"max_order": 4, "mult": 1.5}, 3: {"max_order": 2, "mult": 1.5}}
SIGMA = {7: 1.9, 3: 0.9}
PUBLISHED = {("mnist", "hermite-b"): 2.0, ("stl-7", "hermite-a"): 0.9}
BASES = (
    "disco-a", "disco-b", "hermite-a", "hermite-b",
    "gaussian-derivative", "bspline", "fourier-bessel", "log-radial",
)  # fmt: skip


def candidates(grid: Grid, name: str) -> Iterator[tuple[str, SteerableBasis, ScaleGrid]]:
    """Variant, basis and scales: the one published or at the best scale, or fitted as published."""
    options = {"degenerate": "allow"}
    if name.endswith("-b"):
        options |= ORDERS[grid.effective_size]
    if name == "gaussian-derivative":
        options["radius"] = None
    if name.startswith("disco"):
        options["sigma"] = SIGMA[grid.effective_size]
    build = partial(basis_entry(name).build, grid.effective_size, **options)
    if name.startswith("disco"):
        yield "", build(), grid.scales(1.0)
        if name.endswith("-b"):
            yield "fitted to white noise", build(correlation=0.0), grid.scales(1.0)
    else:
        yield from (("best scale", build(), grid.scales(scale)) for scale in SMALLEST_SCALES)


def smooth_errors(basis: SteerableBasis, kernel_size: int, grid: ScaleGrid) -> list[list[float]]:
    """The errors by factor, for every seed of image and filters."""
    step = grid.step or 1.0
    factors = [step**k for k in (*range(1 - len(grid), 0), *range(1, len(grid)))]
    errors = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        image = BandLimitedImage.random(IMAGES, 1, size=(SIZE, SIZE), generator=generator)
        lift = LiftConv2d(1, FILTERS, kernel_size=kernel_size, grid=grid, basis=basis, padding="same")
        lift.reset_parameters(generator)
        errors.append(list(equivariance_error(lift, image, factors, margin=MARGIN).errors))
    return errors


def noise_errors(sampled: torch.Tensor, grid: ScaleGrid, correlation: float) -> list[float]:
    """By ratio: the root mean square over the pairs of scales that are so far apart."""
    errors = rescaling_error(sampled, grid, correlation=correlation)
    return [float(errors.diagonal(k).square().mean().sqrt()) for k in range(1, len(grid))]


def measure(key: str, name: str, basis: SteerableBasis, scales: ScaleGrid) -> dict:
    grid = GRIDS[key]
    sampled = basis.sample(grid.kernel_size, scales)
    errors = smooth_errors(basis, grid.kernel_size, scales)
    return {
        "grid": key,
        "basis": name,
        "settings": str(basis),
        "smallest_scale": scales.min,
        "rank": min(diagnosis.rank for diagnosis in diagnose(sampled, scales)),
        "smooth": [root_mean_square(column) for column in zip(*errors, strict=True)],
        "smooth_low": [min(column) for column in zip(*errors, strict=True)],
        "smooth_high": [max(column) for column in zip(*errors, strict=True)],
        "white": noise_errors(sampled, scales, 0.0),
        "photographs": noise_errors(sampled, scales, PHOTOGRAPHS),
    }


def root_mean_square(values: tuple[float, ...] | list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def sweep(key: str, name: str) -> list[dict]:
    """Every variant of a basis at its best smallest scale, and the published scale where there is one."""
    results: dict[str, list[dict]] = defaultdict(list)
    for variant, basis, scales in candidates(GRIDS[key], name):
        # Functions that vanish on the smallest scale are no candidate.
        with suppress(BasisError):
            results[variant].append({**measure(key, name, basis, scales), "variant": variant})
    best = [min(found, key=lambda result: root_mean_square(result["smooth"])) for found in results.values()]
    published = [
        {**result, "variant": "published scale"}
        for result in results["best scale"]
        if result["smallest_scale"] == PUBLISHED.get((key, name)) and result not in best
    ]
    return best + published


def floor(key: str) -> list[float]:
    """What is measured where nothing is done to the image: the error of rescaling it bicubically."""
    grid = GRIDS[key]
    factors = [grid.step**k for k in (*range(1 - grid.num_scales, 0), *range(1, grid.num_scales))]
    generator = torch.Generator().manual_seed(0)
    image = BandLimitedImage.random(IMAGES * SEEDS, 1, size=(SIZE, SIZE), generator=generator)
    return list(equivariance_error(lambda x: x, image, factors, margin=MARGIN).errors)


# --- the table ---


def markdown(record: dict) -> str:
    lines = [
        "| grid | basis | smallest scale, variant | smooth images | white noise | photographs' spectrum |"
    ]
    lines.append("|---|---|---|--:|--:|--:|")
    for key, grid in GRIDS.items():
        for result in of_grid(record, key):
            scale = "–" if is_disco(result) else f"{result['smallest_scale']:g}"
            note = (
                f"{scale}, {result['variant'].removesuffix(' scale')}" if scale != "–" else result["variant"]
            )
            cells = [f"{root_mean_square(result[m]):.2g}" for m in ("smooth", "white", "photographs")]
            title = basis_entry(result["basis"]).title
            lines.append(f"| {grid.title} | {title} | {note} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *losses(record)])


def losses(record: dict) -> list[str]:
    """Where another basis is nearer to equivariance than both kinds of DISCO."""
    found = []
    for key, grid in GRIDS.items():
        results = of_grid(record, key)
        for measured in ("smooth", "white", "photographs"):
            ours = [
                min(column) for column in zip(*(r[measured] for r in results if is_disco(r)), strict=True)
            ]
            winners = {
                basis_entry(r["basis"]).title
                for r in results
                if not is_disco(r) and any(a < b for a, b in zip(r[measured], ours, strict=True))
            }
            if winners:
                found.append(f"{', '.join(sorted(winners))} ({grid.title}, {measured})")
    if not found:
        return ["No other basis has a lower error than DISCO at any factor, in any of the three measures."]
    return ["Lower errors than DISCO's, at some factor: " + "; ".join(found) + "."]


def of_grid(record: dict, key: str) -> list[dict]:
    return [result for result in record["results"] if result["grid"] == key]


def is_disco(result: dict) -> bool:
    return result["basis"].startswith("disco")


# --- the plot ---

LOWEST = {"smooth": 5e-5, "white": 5e-3}  # smaller errors are drawn at the edge
EXACT = 1e-6  # the root of a rounding error
COLORS = dict(
    zip(
        BASES,
        (SERIES[0], SERIES[5], SERIES[1], SERIES[4], SERIES[2], SERIES[3], FAINT, SERIES[6]),
        strict=True,
    )
)
MARKERS = dict(zip(BASES, "oosD^vPX", strict=True))


def plot(record: dict) -> str:
    """Two rows, one a measure; three columns, one a grid."""

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.08)
        axes = figure.subplots(2, len(GRIDS), sharey="row")
        for column, (key, grid) in enumerate(GRIDS.items()):
            paint_panel(axes[0, column], record, key, "smooth")
            paint_panel(axes[1, column], record, key, "white")
            axes[0, column].set_title(grid.title, fontsize=11, fontweight="bold", loc="left", pad=12)
        axes[0, 0].set_ylabel("relative error\nsmooth images, scaled analytically")
        axes[1, 0].set_ylabel("relative error\nwhite noise, shrunk bicubically")
        for axis in axes[1]:
            axis.set_xlabel("scale factor")
        lines = [
            line for axis in axes[0] for line in axis.get_lines() if not line.get_label().startswith("_")
        ]
        shown = {line.get_label(): line for line in sorted(lines, key=legend_order)}
        figure.legend(
            shown.values(),
            shown.keys(),
            loc="outside lower center",
            ncols=4,
            columnspacing=2.4,
            handlelength=2.6,
        )

    svg = draw("equivariance", (11.5, 7.2), paint)
    head, rest = svg.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="white"/>{rest}'


def legend_order(line: Line2D) -> int:
    titles = [basis_entry(name).title for name in BASES]
    return (
        titles.index(line.get_label().split(",")[0])
        if line.get_label().split(",")[0] in titles
        else len(titles)
    )


def paint_panel(axis: Axes, record: dict, key: str, measured: str) -> None:
    grid, lowest = GRIDS[key], LOWEST[measured]
    up = grid.factors
    factors = [1 / factor for factor in reversed(up)] + up if measured == "smooth" else up
    axis.set_xscale("log")
    axis.set_yscale("log")
    for result in of_grid(record, key):
        paint_curve(axis, result, factors, measured)
    if measured == "smooth":
        axis.plot(factors, record["floor"][key], color=FAINT, linewidth=1.0, linestyle=(0, (1, 2)),
                  label="no filter: the measure's own error")  # fmt: skip
    axis.set_ylim(lowest, 1.6)
    axis.margins(x=0.15)
    mark_exact(axis, record, key, measured, factors)
    axis.xaxis.set_major_locator(FixedLocator(factors))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}".rstrip("0").rstrip(".")))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(visible=False, axis="x")
    axis.tick_params(length=3, width=0.7)


def mark_exact(axis: Axes, record: dict, key: str, measured: str, factors: list[float]) -> None:
    disco = [result[measured] for result in of_grid(record, key) if is_disco(result)]
    for factor, values in zip(factors, zip(*disco, strict=True), strict=True):
        if max(values) < EXACT:
            place = {"xytext": (-9 if factor < 1 else 9, 15), "textcoords": "offset points", "ha": "center"}
            axis.annotate("exact", (factor, LOWEST[measured]), fontsize=9, color=COLORS["disco-a"], **place)


def paint_curve(axis: Axes, result: dict, factors: list[float], measured: str) -> None:
    lowest, name = LOWEST[measured], result["basis"]
    main = result["variant"] in ("", "best scale")
    values = [max(value, lowest) for value in result[measured]]
    style: dict[str, Any] = {
        "color": COLORS[name],
        "marker": MARKERS[name],
        "linewidth": 2.2 if is_disco(result) else 1.3,
        "zorder": 4 if is_disco(result) else 3,
    }
    if name == "gaussian-derivative":  # nearly Hermite A: let that be seen below it
        style |= {"linestyle": (0, (1.5, 2.5)), "linewidth": 2.0, "markersize": 3.0}
    if not main:
        style |= {"linestyle": (0, (4, 2)), "markerfacecolor": "white", "linewidth": 1.2}
    title = basis_entry(name).title + ("" if main else f", {result['variant']}")
    for part in halves(factors):
        label = title if part[0] == 0 else "_"
        points = [values[i] for i in part]
        axis.plot([factors[i] for i in part], points, label=label, clip_on=False, **style)


def halves(factors: list[float]) -> list[list[int]]:
    """Factors below and above 1: between them is the identity, where every error is zero."""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(factors)) if a < 1 < b]
    ends = [0, *breaks, len(factors)]
    return [list(range(a, b)) for a, b in pairwise(ends)]


def measure_all() -> dict:
    results = []
    for key in GRIDS:
        for name in BASES:
            results += sweep(key, name)
            print(key, name, f"{root_mean_square(results[-1]['smooth']):.2e}", flush=True)
    return {
        "results": results,
        "floor": {key: floor(key) for key in GRIDS},
        "images": IMAGES * SEEDS,
        "filters": FILTERS * SEEDS,
    }


def main() -> None:
    arguments = recording.parser(__doc__, DEFAULT_OUTPUT).parse_args()
    if not arguments.read:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        recording.measured("equivariance", arguments.output, measure_all)
    record = json.loads(arguments.output.read_text())
    with atomic_path(arguments.output.with_suffix(".svg")) as temporary:
        temporary.write_text(plot(record))
    recording.show("equivariance", arguments, markdown)


if __name__ == "__main__":
    main()
