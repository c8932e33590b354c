"""The steps of the augmentation side by side, a row an image, all at one scale."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.errors import SettingError
from equiscale.report.drawing import ACCENT, FAINT, INK, RULE

with needs_extra("report"):
    import matplotlib
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from equiscale.data.preview import Preview

FORMATS: Final = (".png", ".svg", ".pdf")

_TILE: Final = 1.5  # inches, an image
_GAP: Final = 0.16  # between tiles, in images
_NAMES: Final = 0.95  # the room for the classes, in images
_HEAD: Final = 0.52  # the room for the title and the steps' names, in images
_FOOT: Final = 0.3
_LONGEST_NAME: Final = 16  # letters that the room holds
_DPI: Final = 160
_CAPTIONS: Final = {
    "padded": "zeros around",
    "cropped": "at a random place",
    "flipped": "half of them",
    "cut out": "one grey square",
}


def draw_preview(preview: "Preview", target: Path) -> Path:
    """Draw the steps into a file.

    Args:
        preview: What to draw.
        target: A .png, .svg or .pdf file.

    Returns:
        The target.

    Raises:
        SettingError: If the file has another ending.
        OSError: If it cannot be written.
    """
    target = Path(target)
    if target.suffix.lower() not in FORMATS:
        raise SettingError(f"expected a file of {', '.join(FORMATS)}, got {target}")
    with matplotlib.style.context(["default", {"text.parse_math": False}]):  # names are no formulas
        figure = _paint(preview)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=_DPI, facecolor="white")
    return target


def _paint(preview: "Preview") -> Figure:
    """One axes over the whole figure, in units of an image's side."""
    lefts, width = _columns(preview)
    step, rows = _row_step(preview), len(preview.names)
    height = _HEAD + rows * step - _GAP + _FOOT
    figure = Figure(figsize=(width * _TILE, height * _TILE))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for row, name in enumerate(preview.names):
        middle = _HEAD + row * step + (step - _GAP) / 2
        axes.text(_NAMES - _GAP, middle, _short(name), ha="right", va="center", fontsize=10, color=INK)
        for stage, left in lefts.items():
            _tile(axes, preview, stage, row, left, middle)
        if preview.mirrored[row]:
            _mark(axes, lefts["flipped"] + 0.5, middle + 0.5, "↔ mirrored")
    for stage, left in lefts.items():
        side = _side(preview, stage)
        axes.text(left + side / 2, 0.29, stage, ha="center", fontsize=11, fontweight="bold", color=INK)
        axes.text(left + side / 2, 0.42, _CAPTIONS.get(stage, ""), ha="center", fontsize=8, color=FAINT)
    told = f"{preview.dataset}, {preview.split}: as in training, each epoch anew"
    axes.text(width - _GAP, height - 0.1, told, ha="right", fontsize=8, color=FAINT)
    return figure


def _tile(axes: Axes, preview: "Preview", stage: str, row: int, left: float, middle: float) -> None:
    side = _side(preview, stage)
    top = middle - side / 2
    axes.imshow(
        preview.stages[stage][row],
        extent=(left, left + side, top + side, top),
        interpolation="none",
        aspect="auto",
    )
    axes.add_patch(_frame(left, top, side, RULE, 0.7))  # white images on white paper have a border too
    if stage == "padded":
        pixel = side / preview.stages["padded"].shape[1]
        down, right = (float(corner) * pixel for corner in preview.corners[row])
        axes.add_patch(_frame(left + right, top + down, 1, ACCENT, 1.6))


def _frame(left: float, top: float, side: float, colour: str, width: float) -> Rectangle:
    return Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=width)


def _mark(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y + 0.01, text, ha="center", va="top", fontsize=7.5, color=ACCENT)


def _columns(preview: "Preview") -> tuple[dict[str, float], float]:
    """The left edge of each step, and the width of all."""
    lefts, left = {}, _NAMES
    for stage in preview.stages:
        lefts[stage] = left
        left += _side(preview, stage) + _GAP
    return lefts, left


def _row_step(preview: "Preview") -> float:
    return max(_side(preview, stage) for stage in preview.stages) + _GAP


def _side(preview: "Preview", stage: str) -> float:
    """A tile's side; an image's is 1, and a padded one's is larger."""
    sides: dict[str, int] = {name: images.shape[1] for name, images in preview.stages.items()}
    return sides[stage] / sides["original"]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
