"""MNIST's digits at any size, smoothed and thresholded softly: the recipe of MNIST Large Scale.

Source:
    Jansson and Lindeberg, 2022, "Scale-invariant scale-channel networks": bicubic interpolation to the size,
    on black; a Gaussian of 7/8 of the scale factor in pixels, so that every size is equally sharp for its
    size; then :math:`2/\\pi \\arctan(0.02\\,(I - 128))`, which takes the grey of the blurred edges back.
    Checked: these numbers against the public generator of STIR, which cites the paper for them, and the
    range −0.76…0.76 against the paper's own notebook. Not checked: the border of the bicubic kernel and its
    filter against aliasing below size 1, for which the widened Keys kernel of image editors is taken here.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from equiscale.data.dataset import Preparation
from equiscale.data.mnist import FILES, download_mnist, read_mnist_pool
from equiscale.data.root import data_root, prepare_command
from equiscale.data.scale_recipe import Split
from equiscale.errors import DataError, SettingError

TRAIN_IMAGES: Final = 60_000  # of the pool; its other 10,000 are MNIST's test images

_DIGIT: Final = 28
_SMOOTHING: Final = 7 / 8  # the Gaussian's standard deviation at factor 1, in pixels
_STEEPNESS: Final = 0.02
_MIDDLE_GREY: Final = 128
_KEYS: Final = -0.5
_REACH: Final = 4  # of the Gaussian, in standard deviations

# Weights are whole numbers of 2^-16 and grey levels whole numbers of 1/16. Two products with such weights
# stay below 2^53, so that sums in double precision are exact: every machine gives the same images.
_WEIGHT_BITS: Final = 16
_GREY_PARTS: Final = 16
_WHITE: Final = 255
_THRESHOLD_UNIT: Final = 2**30
_CHUNK: Final = 500

Weights = NDArray[np.float64]
Images = NDArray[np.uint8]


class SplitsOnDemand(Mapping[str, Split]):
    """Splits that are made when they are asked for, each time anew.

    Args:
        makers: Under the name of each split, what makes it.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Split]]) -> None:
        self.makers = makers

    def __getitem__(self, name: str) -> Split:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


def resampling_weights(points: NDArray[np.floating[Any]], factor: float) -> Weights:
    r"""The weights that scale and smooth along one axis, in whole numbers of 2^-16.

    .. math:: W = G_{\sigma} K, \qquad K_{ij} \propto k\big((p_i / f + 13.5 - j) / w\big),
        \quad \sigma = 7 f / 8, \quad w = \max(1, 1 / f),

    with Keys' cubic :math:`k`, widened by :math:`w` against aliasing where the digit shrinks, and black
    outside the digit.

    Shapes:
        ``points`` is ``(P,)``, the result ``(P, 28)``.

    Args:
        points: Target pixels, one apart, by their distance from the digit's centre.
        factor: The scale factor :math:`f`; 1 is MNIST's own size.

    Returns:
        One row of weights for each point.

    Example:
        >>> weights = resampling_weights(np.arange(28) - 13.5, 1.0)
        >>> weights.shape, round(weights[14].sum().item() / 2**16, 3)
        ((28, 28), 1.0)
    """
    sigma = _SMOOTHING * factor
    reach = math.ceil(_REACH * sigma)
    gaussian = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    gaussian /= gaussian.sum()
    wider = np.arange(-reach, len(points) + reach) + points[0]
    cubic = _cubic_weights(wider, factor)
    smooth = sum(value * cubic[shift : shift + len(points)] for shift, value in enumerate(gaussian))
    weights: Weights = np.rint(smooth * 2.0**_WEIGHT_BITS)
    return weights


def scale_digits(digits: Images, weights: Weights) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    """Scale digits by the same weights along both axes.

    Args:
        digits: ``(N, 28, 28)``.
        weights: ``(P, 28)`` of `resampling_weights`.

    Yields:
        Which digits, and their grey levels 0…255 in whole numbers of 1/16, ``(n, P, P)``.
    """
    unit = 2.0 ** (2 * _WEIGHT_BITS) / _GREY_PARTS
    for start in range(0, len(digits), _CHUNK):
        chosen = slice(start, min(start + _CHUNK, len(digits)))
        columns = digits[chosen].astype(np.float64) @ weights.T  # (n, 28, P)
        grey = np.matmul(weights, columns)  # (n, P, P)
        np.floor(grey / unit + 0.5, out=grey)
        yield chosen, np.clip(grey, 0, _WHITE * _GREY_PARTS, out=grey).astype(np.int32)


def soft_threshold() -> NDArray[np.int64]:
    """The arcus tangent of every grey level of `scale_digits`, 0 at black, in whole numbers of 2^-30."""
    grey = np.arange(_WHITE * _GREY_PARTS + 1) / _GREY_PARTS
    values = 2 / math.pi * np.arctan(_STEEPNESS * (grey - _MIDDLE_GREY))
    units: NDArray[np.int64] = np.rint((values - values[0]) * _THRESHOLD_UNIT).astype(np.int64)
    return units


def grey_levels() -> Images:
    """The softly thresholded grey level of every grey level of `scale_digits`: black and white stay."""
    values = soft_threshold()
    levels: Images = ((2 * _WHITE * values + values[-1]) // (2 * values[-1])).astype(np.uint8)
    return levels


def fingerprint(*parts: str | NDArray[Any]) -> str:
    """SHA-256, as hex digits, over everything that decides what the images are.

    The arithmetic is exact, so that the same weights, thresholds, digits and places give the same images;
    they are hashed instead of gigabytes of pixels. MNIST's own checksums are among the parts, and MNIST is
    compared with them whenever it is read.
    """
    digest = hashlib.sha256()
    for part in (*(file.md5 for file in FILES), *parts):
        array = None if isinstance(part, str) else np.ascontiguousarray(part)
        head = part if isinstance(part, str) else f"{part.dtype.str} {part.shape}"
        digest.update(f"{len(head)} {head}".encode())
        digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()


def read_digits(name: str, root: Path) -> tuple[Images, Images]:
    """MNIST's pool from the folder of prepared data.

    Raises:
        DataError: If it is not there or damaged; the message holds the command that puts it there.
        ChecksumError: If a file holds wrong bytes.
    """
    folder = root / "mnist"
    if not folder.is_dir():
        raise DataError(
            f"expected MNIST's files in {folder}, of which {name} is made when it is loaded, got no folder; "
            f"run: {prepare_command(name, root)} --download (or --source DIR with MNIST's four files)"
        )
    return read_mnist_pool(folder)


def prepare_digits(name: str, asked: Preparation) -> None:
    """Put MNIST's four files into the folder of prepared data, and check them; nothing else is stored.

    Raises:
        SettingError: If both a source and a download are asked for.
        DataError: If the files are missing or damaged.
        ChecksumError: If a file holds wrong bytes.
    """
    if asked.source is not None and asked.download:
        raise SettingError(
            f"expected either a source or a download, got both: {asked.source} and download=True"
        )
    root = data_root(asked.root)
    if asked.download:
        download_mnist(root / "mnist", progress=asked.progress)
    if asked.source is not None:
        read_mnist_pool(asked.source)
        _copy_mnist(Path(asked.source), root / "mnist")
    read_digits(name, root)
    if asked.progress:
        asked.progress(f"{name}: made when it is loaded, from MNIST in {root / 'mnist'}")


def geometric_edges(sizes: Sequence[float]) -> tuple[float, ...]:
    """Edges of bins around sizes, halfway between them in ratio.

    Example:
        >>> geometric_edges([1.0, 4.0, 16.0])
        (0.5, 2.0, 8.0, 32.0)
    """
    logs = np.log2(np.asarray(sizes, dtype=np.float64))
    middles = (logs[:-1] + logs[1:]) / 2
    first, last = 2 * logs[0] - middles[0], 2 * logs[-1] - middles[-1]
    return tuple(np.exp2([first, *middles, last]).tolist())


def _cubic_weights(points: NDArray[np.floating[Any]], factor: float) -> NDArray[np.float64]:
    source = points / factor + (_DIGIT - 1) / 2
    width = max(1.0, 1 / factor)
    reach = math.ceil(2 * width)
    neighbours = np.floor(source)[:, None] + np.arange(1 - reach, reach + 1)  # (P, taps)
    total = _keys((source[:, None] - neighbours) / width).sum(1, keepdims=True)
    weights: NDArray[np.float64] = _keys((source[:, None] - np.arange(_DIGIT)) / width) / total
    return weights


def _keys(distance: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    d, a = np.abs(distance), _KEYS
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _copy_mnist(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        for name in (f"{file.name}.gz", file.name):
            if (source / name).is_file() and source.resolve() != target.resolve():
                shutil.copyfile(source / name, target / name)
