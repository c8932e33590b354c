"""Arrays in ``.npy`` files of anyone: their header is compared with the file before a byte is allocated."""

import math
import tokenize
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_KINDS: Final = "buif"  # no objects, whose bytes would be code
_MAX_AXES: Final = 8
# What NumPy raises for headers that are none; others are wrong values already.
_DAMAGES: Final = (
    TypeError,
    KeyError,
    SyntaxError,
    RecursionError,
    MemoryError,
    OverflowError,
    EOFError,
    UserWarning,
    tokenize.TokenError,
)


def map_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file, which stays there until it is used; nothing that is written reaches it.

    Args:
        path: The file.

    Returns:
        Numbers of one kind, in C order.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no ``.npy`` file of numbers, or shorter than its header says.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.npy"
        >>> np.save(path, np.arange(3))
        >>> map_array(path).tolist()
        [0, 1, 2]
    """
    shape, dtype, offset = _read_header(path)
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="c", offset=offset, shape=shape)


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    with open(path, "rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of headers by a Python of long ago
        try:
            major, _ = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(stream)
        except _DAMAGES as error:
            raise ValueError(f"no header of an array ({type(error).__name__}: {error})") from error
        offset = stream.tell()
    _check_header(path, shape, dtype, offset)
    if by_columns and len(shape) > 1:
        raise ValueError(f"an array by columns, not by rows, in {path}")
    return shape, dtype, offset


def _check_header(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
    if dtype.kind not in _KINDS or len(shape) > _MAX_AXES:
        raise ValueError(f"values of type {dtype} on {len(shape)} axes in {path}")
    size = path.stat().st_size
    needed = math.prod(shape) * dtype.itemsize
    if any(not 0 <= side <= size for side in shape) or offset + needed > size:
        raise ValueError(f"{path} is shorter than its header says, {shape} of {dtype}")
