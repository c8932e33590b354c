"""Pictures of one trained network as SVG: its filters, and its features of an image at three sizes."""

import base64
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equiscale._extras import needs_extra
from equiscale.report.drawing import ACCENT, Drawing, draw
from equiscale.report.inspection import Inspection, Layer

with needs_extra("report"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import imsave
    from matplotlib.patches import Rectangle

_FILTER_TILE: Final = 0.36  # inches
_FEATURE_TILE: Final = 0.6
_LABEL_HEIGHT: Final = 0.22
_LABEL_WIDTH: Final = 0.46
_ALIKE: Final = np.log(1.1)  # scale grids are rounded: up to a tenth is the same step
_GAP: Final = 0.08  # between tiles, in tiles

Tile = NDArray[np.uint8]


def filter_drawings(inspection: Inspection, name: str) -> tuple[Drawing, ...]:
    """The learned filters of every layer: a row a filter, a column a scale."""
    return tuple(
        _draw_filters(layer, f"{name}-filters-{index}") for index, layer in enumerate(inspection.layers)
    )


def feature_drawings(inspection: Inspection, name: str) -> tuple[Drawing, ...]:
    """The response of every layer to an image at three sizes: a row a size, a column a scale."""
    return tuple(
        _draw_features(inspection, layer, f"{name}-features-{index}")
        for index, layer in enumerate(inspection.layers)
    )


def picture_png(image: NDArray[np.uint8]) -> str:
    """A grey image ``(H, W)`` or a colour image ``(3, H, W)`` as a ``data:`` URI of a PNG."""
    buffer = io.BytesIO()
    rgb = _grey(image) if image.ndim == 2 else np.ascontiguousarray(image.transpose(1, 2, 0))
    imsave(buffer, rgb, format="png", metadata={"Software": ""})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_filters(layer: Layer, name: str) -> Drawing:
    # Filters of larger scales have smaller weights: each tile has its own range of colours.
    tiles = [[_diverging(tile, np.abs(tile).max()) for tile in row] for row in layer.filters]
    columns = _scale_labels(layer, alone="")

    def paint(figure: Figure) -> None:
        _paint_tiles(figure, tiles, columns=columns, rows=[])

    size = (_FILTER_TILE * len(columns), _FILTER_TILE * len(tiles) + _LABEL_HEIGHT)
    alt = f"{len(tiles)} filters of {layer.name} on {_scale_words(layer)}"
    return Drawing(layer.name, draw(name, size, paint), alt)


def _draw_features(inspection: Inspection, layer: Layer, name: str) -> Drawing:
    limit = np.abs(layer.features).max()
    tiles = [
        [_grey(image), *(_diverging(tile, limit) for tile in row)]
        for image, row in zip(inspection.inputs, layer.features, strict=True)
    ]
    rows = [f"×{factor:.2g}" for factor in inspection.input_factors]
    columns = ["input", *_scale_labels(layer, alone="response")]
    partners = _partners(inspection.input_factors, layer.scales)

    def paint(figure: Figure) -> None:
        axes = _paint_tiles(figure, tiles, columns=columns, rows=rows)
        for row, scale in partners:
            axes.add_patch(_frame(row, scale + 1))

    size = (_FEATURE_TILE * len(columns) + _LABEL_WIDTH, _FEATURE_TILE * len(rows) + _LABEL_HEIGHT)
    alt = f"Response of {layer.name} to an image of the sizes {', '.join(rows)} on {_scale_words(layer)}"
    if partners:
        alt += f"; framed {', '.join(f'{rows[row]} on {columns[scale + 1]}' for row, scale in partners)}"
    return Drawing(layer.name, draw(name, size, paint), alt)


def _partners(factors: NDArray[np.float64], scales: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The tiles that equivariance makes alike: (row, scale) whose scale grew as much as the image did."""
    distance = np.abs(np.log((scales / scales[0])[None] / (factors / factors[0])[:, None]))  # (3, S)
    found = [(row, int(near.argmin())) for row, near in enumerate(distance) if near.min() < _ALIKE]
    return found if len(found) > 1 else []


def _scale_labels(layer: Layer, *, alone: str) -> list[str]:
    return [f"{scale:g}" for scale in layer.scales] if len(layer.scales) > 1 else [alone]


def _scale_words(layer: Layer) -> str:
    return f"the scales {', '.join(_scale_labels(layer, alone=''))}" if len(layer.scales) > 1 else "one scale"


def _paint_tiles(
    figure: Figure, tiles: Sequence[Sequence[Tile]], *, columns: Sequence[str], rows: Sequence[str]
) -> Axes:
    """Square tiles with their centres on whole coordinates, labels above and on the left."""
    width, height = figure.get_size_inches()
    left = _LABEL_WIDTH / width if rows else 0.0
    axes = figure.add_axes((left, 0, 1 - left, 1 - _LABEL_HEIGHT / height))
    half = (1 - _GAP) / 2
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            axes.imshow(tile, extent=(x - half, x + half, y + half, y - half), interpolation="none")
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(tiles) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize=8, pad=1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes


def _frame(row: int, column: int) -> Rectangle:
    side = 1 - _GAP
    corner = (column - side / 2, row - side / 2)
    return Rectangle(corner, side, side, fill=False, edgecolor=ACCENT, linewidth=1.6)


def _diverging(values: NDArray[np.float64], limit: float) -> Tile:
    """Blue for negative, white for 0, red for positive, full colour at ± the limit."""
    colors = matplotlib.colormaps["RdBu_r"](0.5 + values / (2 * limit or 1), bytes=True)
    rgb: Tile = np.asarray(colors, dtype=np.uint8)[..., :3]
    return rgb


def _grey(image: NDArray[np.uint8]) -> Tile:
    return np.repeat(image[:, :, None], 3, axis=2)
