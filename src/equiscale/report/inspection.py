"""The pictures beside a record: samples, filters and features, read with every size checked."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from equiscale.errors import RecordError

_MAX_BYTES = 32 * 2**20
_FEATURE_SIZES = 3
_FILTERS = "filters/"

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
)


def read_inspection(path: Path) -> Inspection:
    """Read the .npz beside a record.

    Raises:
        RecordError: If the file is missing, damaged, too large, or its arrays do not fit each other.
    """
    try:
        arrays = _load(path)
    except _DAMAGE as error:
        raise RecordError(f"expected the pictures of a run in {path}, got: {error}") from error
    samples = _samples(arrays)
    count = len(samples)
    return Inspection(
        samples=samples,
        labels=_get(arrays, "sample_labels", (count,)).astype(np.int64),
        predictions=_get(arrays, "sample_predictions", (count,)).astype(np.int64),
        factors=_get(arrays, "sample_factors", (count,)).astype(np.float64),
        inputs=_get(arrays, "feature_inputs", (_FEATURE_SIZES, None, None)).astype(np.uint8),
        input_factors=_get(arrays, "feature_factors", (_FEATURE_SIZES,)).astype(np.float64),
        layers=tuple(
            _layer(arrays, name.removeprefix(_FILTERS)) for name in arrays if name.startswith(_FILTERS)
        ),
    )


def _samples(arrays: Mapping[str, Array]) -> NDArray[np.uint8]:
    """Grey images ``(N, H, W)`` or colour images ``(N, 3, H, W)``."""
    colour = "samples" in arrays and arrays["samples"].ndim == 4
    shape: Shape = (None, 3, None, None) if colour else (None, None, None)
    return _get(arrays, "samples", shape).astype(np.uint8)


def _layer(arrays: Mapping[str, Array], name: str) -> Layer:
    filters = _get(arrays, f"{_FILTERS}{name}", (None, None, None, None))
    scales = filters.shape[1]
    return Layer(
        name=name,
        filters=_finite(filters),
        scales=_finite(_get(arrays, f"filter_scales/{name}", (scales,))),
        features=_finite(_get(arrays, f"features/{name}", (_FEATURE_SIZES, scales, None, None))),
    )


def _finite(array: Array) -> NDArray[np.float64]:
    return np.nan_to_num(array.astype(np.float64))


def _get(arrays: Mapping[str, Array], name: str, shape: Shape) -> Array:
    """The array of a name, of a shape in which None stands for any positive size."""
    if name not in arrays:
        raise RecordError(f"expected the array {name!r} among the pictures of a run, got {', '.join(arrays)}")
    array = arrays[name]
    fits = array.ndim == len(shape) and array.size > 0 and array.dtype.kind in "uif"
    if not fits or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        raise RecordError(
            f"expected numbers of shape {shape} in the array {name!r} of the pictures of a run, "
            f"got {array.dtype} {array.shape}"
        )
    return array


def _load(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if (total := sum(member.file_size for member in members)) > _MAX_BYTES:
            raise ValueError(f"{total} bytes, more than {_MAX_BYTES}")
        for member in members:
            _check_header(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """NumPy allocates what the header says before it reads: believe no header larger than its data."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} is shorter than its header says")
