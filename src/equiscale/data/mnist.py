"""MNIST's four original files: found, checked and read.

Source:
    LeCun, Bottou, Bengio and Haffner, 1998, "Gradient-based learning applied to document recognition".
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equiscale.data.download import fetch_file
from equiscale.errors import ChecksumError, DataError

MIRRORS: Final = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_MEND: Final = (
    "equiscale data prepare mnist-scale --download, or --source DIR with MNIST's four original files"
)
_UBYTE: Final = 0x08  # the idx format's code of unsigned bytes


@dataclass(frozen=True)
class MnistFile:
    """One of the four files.

    Args:
        name: The file's name, without ``.gz``.
        shape: The shape of its array.
        md5: The MD5 of the unpacked bytes, which decides.
        gz_md5: The MD5 of the packed file that the mirrors serve.
    """

    name: str
    shape: tuple[int, ...]
    md5: str
    gz_md5: str

    @property
    def size(self) -> int:
        """The unpacked size in bytes: the idx header and the array."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


TRAIN_IMAGES: Final = MnistFile(
    "train-images-idx3-ubyte",
    (60_000, 28, 28),
    "6bbc9ace898e44ae57da46a324031adb",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
)
TRAIN_LABELS: Final = MnistFile(
    "train-labels-idx1-ubyte",
    (60_000,),
    "a25bea736e30d166cdddb491f175f624",
    "d53e105ee54ea40749a09fcbcd1e9432",
)
TEST_IMAGES: Final = MnistFile(
    "t10k-images-idx3-ubyte",
    (10_000, 28, 28),
    "2646ac647ad5339dbf082846283269ea",
    "9fb629c4189551a2d022fa330f9573f3",
)
TEST_LABELS: Final = MnistFile(
    "t10k-labels-idx1-ubyte",
    (10_000,),
    "27ae3e4e09519cfbb04c329615203637",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FILES: Final = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


def read_mnist_pool(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 60,000 training and then the 10,000 test images, with their labels.

    Args:
        folder: Holds the four files, each packed (``<name>.gz``) or not (``<name>``).

    Returns:
        Images ``(70000, 28, 28)`` and labels ``(70000,)``.

    Raises:
        DataError: If a file is missing, truncated or no gzip file.
        ChecksumError: If a file holds another one's contents, or wrong bytes.
    """
    train_images, train_labels, test_images, test_labels = (read_file(Path(folder), file) for file in FILES)
    return np.concatenate([train_images, test_images]), np.concatenate([train_labels, test_labels])


def read_file(folder: Path, file: MnistFile) -> NDArray[np.uint8]:
    """One file's array, after its checksum has been compared."""
    path = _find(folder, file)
    content = _unpack(path)
    _check_content(path, file, content)
    return parse_idx(content, path)


def parse_idx(content: bytes, path: Path) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes.

    Raises:
        DataError: If the header is not that of such a file, or announces another size than the file has.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, _UBYTE]) or not 1 <= content[3] <= 3:
        raise DataError(
            f"expected the idx header of unsigned bytes with 1 to 3 axes in {path}, "
            f"got {content[:4].hex(' ') or 'no bytes'}; get the file again: {_MEND}"
        )
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else ()
    if not shape or start + math.prod(shape) != len(content):
        raise DataError(
            f"expected {start + math.prod(shape)} bytes in {path}, as its header of shape {shape} announces, "
            f"got {len(content)}; get the file again: {_MEND}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def download_mnist(
    folder: Path, *, mirrors: tuple[str, ...] = MIRRORS, progress: Callable[[str], None] | None = None
) -> Path:
    """Download the four packed files; those that are there and right are left alone.

    Args:
        folder: Where they go.
        mirrors: The folders, as urls, that serve them.
        progress: Called with a line of text for each file.

    Returns:
        The folder.

    Raises:
        DataError: If no mirror delivers a file.
        ChecksumError: If the mirrors deliver wrong bytes.
    """
    for file in FILES:
        if progress:
            progress(f"MNIST: {file.name}.gz")
        urls = [f"{mirror}{file.name}.gz" for mirror in mirrors]
        target = Path(folder) / f"{file.name}.gz"
        fetch_file(urls, target, checksum=f"md5:{file.gz_md5}", max_bytes=file.size)
    return Path(folder)


def _find(folder: Path, file: MnistFile) -> Path:
    for path in (folder / f"{file.name}.gz", folder / file.name):
        if path.is_file():
            return path
    raise DataError(f"expected MNIST's {file.name}.gz or {file.name} in {folder}, got neither; run: {_MEND}")


def _unpack(path: Path) -> bytes:
    """The bytes of the file, at most one more than the longest of the four has."""
    limit = max(file.size for file in FILES) + 1
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            return stream.read(limit)
    except EOFError as error:
        raise DataError(f"expected a whole gzip file in {path}, got a truncated one; run: {_MEND}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"expected a gzip file in {path}, got: {error}; run: {_MEND}") from error


def _check_content(path: Path, file: MnistFile, content: bytes) -> None:
    found = _md5(content)
    if found == file.md5:
        return
    other = next((known.name for known in FILES if known.md5 == found), None)
    if other is not None:
        raise ChecksumError(
            f"expected the contents of {file.name} in {path}, got those of {other}; "
            f"the files have been swapped: give each its own name, or run: {_MEND}"
        )
    if len(content) < file.size:
        raise DataError(
            f"expected {file.size} bytes in {path}, got {len(content)}: it is truncated; run: {_MEND}"
        )
    raise ChecksumError(
        f"expected MD5 {file.md5} of the unpacked {path}, got {found}: it is corrupt; run: {_MEND}"
    )


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
