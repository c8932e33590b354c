"""One figure as SVG text: the same input gives the same bytes, and no state is shared."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from equiscale._extras import needs_extra

with needs_extra("report"):
    import matplotlib
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the common kinds of colour blindness can tell apart; its black is the
# ink, and its yellow is darkened for paper.
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800")
INK: Final = "#1f2328"
FAINT: Final = "#6e7781"
RULE: Final = "#d8dee4"
ACCENT: Final = "#d1242f"

_NO_METADATA: Final[dict[str, Any]] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_GLOBAL_KEYS: Final = ("backend", "date", "interactive", "timezone", "toolbar")
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Args:
        title: What it shows, for the caption.
        svg: An ``<svg>`` element whose ids start with the figure's name.
        alt: The content in words.
    """

    title: str
    svg: str
    alt: str


def draw(name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Paint on a new figure under our own settings, whatever the reader's are.

    Args:
        name: Unique among the figures of a page.
        size: Width and height in inches.
        paint: Fills the figure.

    Returns:
        The ``<svg>`` element.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
    with matplotlib.rc_context({**_defaults(), **_STYLE, "svg.hashsalt": slug}):
        figure = Figure(figsize=size)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(buffer.getvalue(), slug)


def _defaults() -> dict[Any, Any]:
    settings = matplotlib.rcParamsDefault.items()
    return {name: value for name, value in settings if not name.startswith(_GLOBAL_KEYS)}


def _inline(document: str, slug: str) -> str:
    """The ``<svg>`` element alone; ids are unique beside other figures, and no style leaks out of it."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", svg)  # equal pictures have equal ids
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{slug}-", svg)
