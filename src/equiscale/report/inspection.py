"""The pictures beside a record: samples, filters and features, read with every size checked."""

import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from equiscale._files import check_zip_index
from equiscale.errors import RecordError

_MAX_BYTES = 32 * 2**20
# Several times what a run writes: every one of them is drawn.
_MOST_LAYERS = 32
_MOST_PICTURES = 256
_LONGEST_SIDE = 512
_MOST_FILTERS = 64
_MOST_SCALES = 32
_MOST_TILES = 4096
_MOST_ARRAYS = 256
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # nothing bounds what others unpack to
_FEATURE_SIZES = 3
_FILTERS = "filters/"
_KINDS = "buif"

Array = NDArray[np.generic]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Args:
        name: Its name in the network.
        filters: ``(n, S, K, K)``, some filters on every scale.
        scales: ``(S,)``, the scale grid.
        features: ``(3, S, H, W)``, the response of one channel to an image at three sizes.
    """

    name: str
    filters: NDArray[np.float64]
    scales: NDArray[np.float64]
    features: NDArray[np.float64]


@dataclass(frozen=True)
class Inspection:
    """What a trained network looks like.

    Args:
        samples: ``(N, H, W)`` or, in colour, ``(N, 3, H, W)``, test images.
        labels: ``(N,)``, their classes.
        predictions: ``(N,)``, the predicted classes.
        factors: ``(N,)``, their scaling factors.
        inputs: ``(3, H, W)``, a test image at three sizes.
        input_factors: ``(3,)``, the sizes.
        layers: The convolutions that can be drawn, from the image on.
    """

    samples: NDArray[np.uint8]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    factors: NDArray[np.float64]
    inputs: NDArray[np.uint8]
    input_factors: NDArray[np.float64]
    layers: tuple[Layer, ...]


# What NumPy, zipfile and zlib raise for damaged bytes; NotImplementedError is a RuntimeError.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    TokenError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
    UserWarning,
)


def read_inspection(path: Path) -> Inspection:
    """Read the .npz beside a record.

    Raises:
        RecordError: If the file is missing, damaged, too large, or its arrays do not fit each other.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("no ordinary file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of headers by a Python of long ago
            arrays = _load(path)
    except _DAMAGE as error:
        raise RecordError(f"expected the pictures of a run in {path}, got: {error}") from error
    samples = _samples(arrays)
    count = len(samples)
    return Inspection(
        samples=samples,
        labels=_whole(arrays, "sample_labels", (count,)).astype(np.int64),
        predictions=_whole(arrays, "sample_predictions", (count,)).astype(np.int64),
        factors=_positive(arrays, "sample_factors", (count,)),
        inputs=_whole(arrays, "feature_inputs", (_FEATURE_SIZES, None, None)).astype(np.uint8),
        input_factors=_positive(arrays, "feature_factors", (_FEATURE_SIZES,)),
        layers=_layers(arrays),
    )


def _samples(arrays: Mapping[str, Array]) -> NDArray[np.uint8]:
    """Grey images ``(N, H, W)`` or colour images ``(N, 3, H, W)``."""
    colour = "samples" in arrays and arrays["samples"].ndim == 4
    shape: Shape = (None, 3, None, None) if colour else (None, None, None)
    return _whole(arrays, "samples", shape).astype(np.uint8)


def _layers(arrays: Mapping[str, Array]) -> tuple[Layer, ...]:
    names = [name.removeprefix(_FILTERS) for name in arrays if name.startswith(_FILTERS)]
    if len(names) > _MOST_LAYERS:
        raise RecordError(
            f"expected at most {_MOST_LAYERS} layers among the pictures of a run, got {len(names)}"
        )
    layers = tuple(_layer(arrays, name) for name in names)
    tiles = sum((len(layer.filters) + _FEATURE_SIZES) * len(layer.scales) for layer in layers)
    if tiles > _MOST_TILES:
        raise RecordError(
            f"expected at most {_MOST_TILES} filters and features among the pictures of a run, got {tiles}"
        )
    return layers


def _layer(arrays: Mapping[str, Array], name: str) -> Layer:
    filters = _get(arrays, f"{_FILTERS}{name}", (None, None, None, None))
    count, scales = filters.shape[:2]
    if count > _MOST_FILTERS or scales > _MOST_SCALES:
        raise RecordError(
            f"expected at most {_MOST_FILTERS} filters on {_MOST_SCALES} scales in the layer {name!r} of the "
            f"pictures of a run, got {count} on {scales}"
        )
    return Layer(
        name=name,
        filters=_finite(filters),
        scales=_positive(arrays, f"filter_scales/{name}", (scales,)),
        features=_finite(_get(arrays, f"features/{name}", (_FEATURE_SIZES, scales, None, None))),
    )


def _positive(arrays: Mapping[str, Array], name: str, shape: Shape) -> NDArray[np.float64]:
    values = _get(arrays, name, shape).astype(np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise RecordError(
            f"expected finite positive numbers in the array {name!r} of the pictures of a run, got others"
        )
    return values


def _whole(arrays: Mapping[str, Array], name: str, shape: Shape) -> Array:
    array = _get(arrays, name, shape)
    if array.dtype.kind not in "ui":
        raise RecordError(
            f"expected whole numbers in the array {name!r} of the pictures of a run, got {array.dtype}"
        )
    return array


def _finite(array: Array) -> NDArray[np.float64]:
    return np.nan_to_num(array.astype(np.float64))


def _get(arrays: Mapping[str, Array], name: str, shape: Shape) -> Array:
    """The array of a name, of a shape in which None stands for any positive size up to a limit."""
    if name not in arrays:
        found = ", ".join(map(repr, list(arrays)[:_MOST_LAYERS]))
        raise RecordError(f"expected the array {name!r} among the pictures of a run, got {found}")
    array = arrays[name]
    fits = array.ndim == len(shape) and array.size > 0 and array.dtype.kind in "uif"
    if not fits or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        raise RecordError(
            f"expected numbers of shape {shape} in the array {name!r} of the pictures of a run, "
            f"got {array.dtype} {array.shape}"
        )
    if array.shape[0] > _MOST_PICTURES or max(array.shape) > _LONGEST_SIDE:
        raise RecordError(
            f"expected at most {_MOST_PICTURES} pictures of at most {_LONGEST_SIDE} pixels in the array "
            f"{name!r} of the pictures of a run, got {array.shape}"
        )
    return array


def _load(path: Path) -> dict[str, Array]:
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"a file of {size} bytes, more than {_MAX_BYTES}")
    check_zip_index(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MOST_ARRAYS:
            raise ValueError(f"{len(members)} arrays, more than {_MOST_ARRAYS}")
        if (total := sum(member.file_size for member in members)) > _MAX_BYTES:
            raise ValueError(f"{total} bytes, more than {_MAX_BYTES}")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two arrays of one name")
        for member in members:
            if member.compress_type not in _METHODS:
                raise ValueError(f"{member.filename!r} packed by another method than deflate")
            _check_header(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """NumPy allocates what the header says before it reads: believe no header larger than its data."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.kind not in _KINDS or any(side < 0 for side in shape):
        raise ValueError(f"{member.filename!r} holds {dtype} {shape}, not numbers")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} is shorter than its header says")
