"""Sizes of annotated objects: from masks, and from boxes in COCO's format."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from equiscale._extras import needs_extra
from equiscale.errors import DataError, SettingError

# The smallest and the largest of many sizes are mistakes of annotation more often than objects.
_TAILS: Final = (0.05, 0.95)
_MAX_FILE_BYTES: Final = 1 << 30  # COCO's own boxes have half of it


def factor_range(sizes: Sequence[float]) -> tuple[float, float]:
    r"""The range of scale factors that sizes of objects span, the middle 90 % of them.

    .. math:: (q_{0.05} / q_{0.5}, \; q_{0.95} / q_{0.5})

    Args:
        sizes: Of objects, in any unit.

    Returns:
        The factors of a small and of a large object against the one of median size.

    Raises:
        SettingError: For fewer than two sizes, or one that is not finite and positive.

    Example:
        >>> low, high = factor_range([10.0, 20.0, 40.0])
        >>> round(low, 2), round(high, 2)
        (0.54, 1.87)
    """
    values = np.asarray(list(sizes), dtype=np.float64)
    if len(values) < 2 or not np.all(np.isfinite(values) & (values > 0)):
        raise SettingError(
            f"expected at least two sizes of objects, finite and positive, got {len(values)} with "
            f"{int(np.sum(~(np.isfinite(values) & (values > 0))))} that are not; give the range itself"
        )
    low, middle, high = np.exp(np.quantile(np.log(values), [_TAILS[0], 0.5, _TAILS[1]]))
    return float(low / middle), float(high / middle)


def read_object_sizes(folder: Path | str) -> list[float]:
    r"""The sizes of the objects that a folder of annotations describes.

    .. math:: \sqrt{w \, h} \, / \min(W, H)

    with w × h an object's box and W × H its image, as images are brought to one size by their shorter side.

    Args:
        folder: Files, also in subfolders. ``.png`` is a mask: pixels of one value other than 0 are one
            object, on any number of channels. ``.json`` has COCO's lists: ``images`` with ``id``,
            ``width`` and ``height``, and ``annotations`` with ``image_id`` and ``bbox`` ``[x, y, w, h]``;
            those with ``"iscrowd": 1`` are no single objects and are left out.

    Returns:
        One size an object, in the order of the files' names.

    Raises:
        DataError: If there is no such folder, a file cannot be read, or no object is found.
        MissingExtraError: If there are masks and Pillow is missing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "boxes.json").write_text(
        ...     '{"images": [{"id": 1, "width": 80, "height": 100}],'
        ...     ' "annotations": [{"image_id": 1, "bbox": [0, 0, 20, 20]}]}'
        ... )
        >>> read_object_sizes(folder)
        [0.25]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"expected a folder of masks (.png) or boxes (.json), got {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".json"))
    sizes = [
        size for path in files for size in (_of_mask if path.suffix.lower() == ".png" else _of_json)(path)
    ]
    if not sizes:
        raise DataError(f"expected masks (.png) or boxes (.json) of objects in {folder}, got none")
    return sizes


def _of_mask(path: Path) -> list[float]:
    with needs_extra("data"):
        from PIL import Image
    try:
        _check_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as opened:  # readers of other formats run programs
                mask = np.asarray(opened)
    except Exception as error:  # damaged files make Pillow's readers stumble in every way
        raise DataError(f"expected a mask in {path}, got a file that cannot be read: {error}") from error
    return _box_sizes(mask if mask.ndim == 2 else _colours(mask))


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MAX_FILE_BYTES or not path.is_file():
        raise OSError(f"no file of at most {_MAX_FILE_BYTES} bytes")


def _colours(mask: NDArray[Any]) -> NDArray[np.int64]:
    """One number a colour, 0 for black; of two or four channels the last one is no colour, but opacity."""
    colours = mask[..., :-1] if mask.shape[-1] in (2, 4) else mask
    return np.asarray(colours.astype(np.int64) @ (1 << 16) ** np.arange(colours.shape[-1]))


def _box_sizes(labels: NDArray[Any]) -> list[float]:
    """Of every label but 0; all at once, because a photograph among the masks has a million of them."""
    values, places = np.unique(labels, return_inverse=True)
    places = places.reshape(labels.shape)
    height, width = (_extents(places, len(values), axis) for axis in (0, 1))
    sizes = np.sqrt(height * width) / min(labels.shape)
    return [float(size) for size in sizes[values != 0]]


def _extents(places: NDArray[np.intp], count: int, axis: int) -> NDArray[np.int64]:
    """How many rows, or columns, lie between the first and the last one of each label."""
    lines = np.arange(places.shape[axis])
    along = np.broadcast_to(lines[:, None] if axis == 0 else lines, places.shape)
    first, last = np.full(count, len(lines)), np.full(count, -1)
    np.minimum.at(first, places, along)
    np.maximum.at(last, places, along)
    return np.asarray(last - first + 1)


def _of_json(path: Path) -> list[float]:
    try:
        _check_size(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        shorter = {image["id"]: min(image["width"], image["height"]) for image in content["images"]}
        return list(_of_boxes(content["annotations"], shorter))
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DataError(
            f"expected COCO's 'images' (id, width, height) and 'annotations' (image_id, bbox) in {path}, "
            f"got something else ({type(error).__name__}: {error})"
        ) from error


def _of_boxes(annotations: Iterable[Mapping[str, Any]], shorter: Mapping[Any, float]) -> Iterator[float]:
    for annotation in annotations:
        _, _, width, height = map(float, annotation["bbox"])
        if not annotation.get("iscrowd") and min(width, height) > 0:
            yield math.sqrt(width * height) / shorter[annotation["image_id"]]
