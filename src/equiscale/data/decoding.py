"""Photographs from JPEG, PNG and WebP bytes to square arrays of one size, by one exact recipe.

The recipe, all with Pillow: the first frame; turned upright as its EXIF orientation says; 16-bit grey to its
upper 8 bits; transparent pixels over white; to RGB (CMYK by Pillow's plain formula, colour profiles ignored);
the shorter side to the wanted size with the bicubic filter, the longer one in proportion, rounded; the middle
square of that, half a pixel to the top and left where the middle falls between two.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from equiscale._extras import needs_extra
from equiscale._machine import available_cores
from equiscale.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

RECIPE: Final = "upright, over white, RGB, shorter side bicubic, middle square"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
CHANNELS: Final = 3

_MOST_PIXELS: Final = 1 << 26  # more than telephones take; up to 20 bytes of memory each, a thread a core
_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_WHITE: Final = (255, 255, 255, 255)
_WITH_ALPHA: Final = ("RGBA", "LA", "PA", "La", "RGBa")
_CHUNK: Final = 64  # images a thread takes at a time
_TURNS: Final = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


def decode_image(content: bytes, size: int) -> NDArray[np.uint8]:
    """One photograph as ``(3, size, size)``, by the recipe of this module.

    Args:
        content: The bytes of a JPEG, PNG or WebP file.
        size: Side of the square, in pixels.

    Raises:
        DataError: If the bytes are no whole image, one of more than 2²⁶ pixels, or one of more pixels than
            Pillow's limit when its shorter side has ``size`` pixels.
        MissingExtraError: If Pillow is missing.

    Example:
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (30, 20), 7).save(file, "png")
        >>> image = decode_image(file.getvalue(), 10)
        >>> image.shape, int(image.min()), int(image.max())
        ((3, 10, 10), 7, 7)
    """
    with _strict_warnings():
        return _decode(content, size)


def decode_all(readers: Sequence[Callable[[], bytes]], out: NDArray[np.uint8]) -> dict[int, str]:
    """Decode many photographs with a thread a core.

    Args:
        readers: Each returns the bytes of one file.
        out: ``(N, 3, size, size)``, filled in the order of ``readers``; zeros where one failed.

    Returns:
        For each photograph that failed its index and why.
    """
    size = out.shape[-1]
    failures: dict[int, str] = {}

    def decode_from(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(readers))):
            try:
                out[index] = _decode(readers[index](), size)
            except (DataError, OSError) as error:
                out[index] = 0
                failures[index] = str(error)

    # The filter of warnings belongs to the process: it is set once around all threads.
    with _strict_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(decode_from, range(0, len(readers), _CHUNK)):
            pass
    return dict(sorted(failures.items()))


def _decode(content: bytes, size: int) -> NDArray[np.uint8]:
    with needs_extra("data"):
        from PIL import Image, UnidentifiedImageError
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            _check_pixels(opened)
            square = _middle_square(_over_white(_upright(opened)), size)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("no JPEG, PNG or WebP image") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"more than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow allows") from error
    except MemoryError as error:
        raise DataError("larger than the free memory") from error
    except Exception as error:  # damaged files make Pillow's readers stumble in every way
        raise DataError(f"damaged: {error or type(error).__name__}") from error
    return np.asarray(square).transpose(2, 0, 1)  # (H, W, C) -> (C, H, W)


def _check_pixels(image: "Picture") -> None:
    if image.width * image.height > _MOST_PIXELS:
        raise DataError(f"{image.width}×{image.height}, more than {_MOST_PIXELS} pixels; make it smaller")


def _upright(image: "Picture") -> "Picture":
    """Turned as its EXIF orientation says; ``ImageOps`` would write all other tags anew, whole or not."""
    from PIL import ExifTags, Image

    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _over_white(image: "Picture") -> "Picture":
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _middle_square(image: "Picture", size: int) -> "Picture":
    from PIL import Image

    shorter = min(image.size)
    # The shorter side exactly; images of the right size already are not resampled.
    width, height = (max(size, round(side * size / shorter)) for side in image.size)
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f"so narrow ({image.width}×{image.height}) that it has more than the {Image.MAX_IMAGE_PIXELS} "
            f"pixels that Pillow allows when its shorter side has {size}"
        )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


@contextmanager
def _strict_warnings() -> Iterator[None]:
    """Pillow only warns of images above its limit; its other warnings are about harmless metadata."""
    with needs_extra("data"):
        from PIL import Image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
