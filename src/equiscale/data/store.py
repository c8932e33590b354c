"""A folder of prepared arrays with a manifest: checked once when it is made, opened by memory map after."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equiscale._files import alone, atomic_path
from equiscale.data.array_file import map_array
from equiscale.data.download import file_checksum
from equiscale.data.scale_recipe import Split
from equiscale.errors import ChecksumError, DataError

MANIFEST: Final = "manifest.json"
FORMAT_VERSION: Final = 1
SPLIT_ORDER: Final = ("train", "val", "test")

_MAX_MANIFEST_BYTES: Final = 64 << 20  # the names of a million images that were left out

Maker: TypeAlias = Callable[[Path], tuple[Mapping[str, Split], Mapping[str, Any]]]
"""Writes images into a folder; returns the splits, and notes for the manifest."""


@dataclass(frozen=True)
class FileStamp:
    """By what a file is recognised.

    Args:
        size: Its size in bytes.
        mtime_ns: The time of its last change: while it is the same, the file need not be read.
        checksum: ``"sha256:…"`` of its bytes, which decides when the time has changed.
    """

    size: int
    mtime_ns: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of prepared arrays holds.

    Args:
        dataset: The data set's name.
        checksum: The checksum of the data set, as hex digits.
        files: The stamp of each file, by name.
        notes: What else the data set wants to remember, as JSON.
        version: The version of the format.
    """

    dataset: str
    checksum: str
    files: Mapping[str, FileStamp]
    notes: Mapping[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION


def write_manifest(
    folder: Path, dataset: str, *, checksum: str, notes: Mapping[str, Any] | None = None
) -> Manifest:
    """Stamp every file of a folder and write its manifest."""
    files = {path.name: _stamp(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(dataset, checksum, files, dict(notes or {}))
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
    return manifest


def read_manifest(folder: Path, *, mend: str) -> Manifest:
    """The manifest of a folder whose files are those that were stamped.

    Files of another time of change, as after copying the folder, are read and compared once more.

    Args:
        folder: The folder.
        mend: What to do when something is wrong, for the messages.

    Raises:
        DataError: If the manifest or a file is missing, of another size, or of another format version.
        ChecksumError: If a file's bytes are not the stamped ones.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"expected prepared data in {folder}, got no {MANIFEST}; {mend}")
    try:
        if (size := path.stat().st_size) > _MAX_MANIFEST_BYTES:
            raise DataError(f"expected a manifest of at most {_MAX_MANIFEST_BYTES} bytes, got {size}; {mend}")
        manifest = _parse(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"expected a manifest in {path}, got: {error!r}; {mend}") from error
    if manifest.version != FORMAT_VERSION:
        raise DataError(f"expected format version {FORMAT_VERSION} in {path}, got {manifest.version}; {mend}")
    for name, stamp in manifest.files.items():
        _check_file(folder / name, stamp, mend)
    return manifest


def found_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished and valid folder."""
    try:
        return read_manifest(folder, mend="")
    except DataError:
        return None


def save_splits(
    folder: Path, dataset: str, splits: Mapping[str, Split], *, notes: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the images and labels of each split as ``.npy`` files, and the manifest; all or nothing.

    What is there already and the same is left as it is: others may be reading it.
    """
    wanted = (dataset, arrays_checksum(splits), json.dumps(notes or {}, sort_keys=True))

    def is_same(found: Manifest) -> bool:
        return (found.dataset, found.checksum, json.dumps(found.notes, sort_keys=True)) == wanted

    def make(temporary: Path) -> tuple[Mapping[str, Split], Mapping[str, Any]]:
        for name, split in splits.items():
            np.save(images_path(temporary, name), split.images, allow_pickle=False)
        return splits, notes or {}

    return save_made(folder, dataset, make=make, keep=is_same)


def save_made(folder: Path, dataset: str, *, make: Maker, keep: Callable[[Manifest], bool]) -> Manifest:
    """Write the labels and the manifest beside images that are written as they are made; all or nothing.

    One process makes a folder while the others that want it wait, and then find it.

    Args:
        folder: Where they go.
        dataset: The data set's name.
        make: Writes the images of each split to ``images_path`` in the folder that it is given; returns the
            splits, and what else the manifest should remember.
        keep: Whether a whole folder, which another process has finished in the meantime, is the wanted one.
    """
    with alone(folder):
        found = found_manifest(folder)
        return found if found is not None and keep(found) else _save(folder, dataset, make)


def _save(folder: Path, dataset: str, make: Maker) -> Manifest:
    known: list[str] = []
    try:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            manifest = _fill(temporary, dataset, make)
            known.append(manifest.checksum)
        return manifest
    except OSError:
        found = found_manifest(folder)
        if found is None or found.checksum not in known:
            raise
        return found  # another process was quicker, on a file system without locks


def images_path(folder: Path, split: str) -> Path:
    """The file of a split's images."""
    return folder / f"{split}-images.npy"


def write_images(
    path: Path, batches: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Write batches of images as one ``.npy`` file, of which memory holds one batch; the file, mapped.

    Args:
        path: The file.
        batches: Arrays ``(n, *shape)``; together they may be of any number.
        shape: Of one image.
    """
    count = 0
    with path.open("wb") as file:
        _write_header(file, (0, *shape))
        for batch in batches:
            file.write(np.ascontiguousarray(batch).data)
            count += len(batch)
        file.seek(0)
        _write_header(file, (count, *shape))  # as long as before: NumPy leaves room for a longer first axis
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r" if count else None, allow_pickle=False)
    return mapped


def open_splits(folder: Path, names: Iterable[str], *, mend: str) -> dict[str, Split]:
    """The splits that ``save_splits`` wrote; images stay in their files until they are used.

    Raises:
        DataError: If a file is no array of bytes or of whole numbers, or holds less than its header says, or
            there are not as many images as labels.
    """
    return {name: _open_split(folder, name, mend) for name in names}


def _open_split(folder: Path, name: str, mend: str) -> Split:
    try:
        images = map_array(images_path(folder, name))
        labels = np.array(map_array(folder / f"{name}-labels.npy"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected arrays of the split {name} in {folder}, got: {error}; {mend}") from error
    legal = images.dtype == np.uint8 and images.ndim in (3, 4) and labels.dtype.kind in "ui"
    if not legal or labels.shape != images.shape[:1]:
        raise DataError(
            f"expected images of bytes and as many labels of the split {name} in {folder}, got "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}; {mend}"
        )
    return unscaled(images, labels)


def map_bytes(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of a file as an array that stays in the file until it is used.

    The map is copy-on-write: what a caller writes to the array never reaches the file.

    Raises:
        DataError: If the file is missing, or shorter or longer than the array.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"expected the prepared file {path}, got: {error}; prepare the data again") from error
    if size != math.prod(shape):
        raise DataError(f"expected {math.prod(shape)} bytes in {path}, got {size}; prepare the data again")
    return np.memmap(path, np.uint8, mode="c", shape=shape)


def unscaled(images: NDArray[np.uint8], labels: NDArray[Any]) -> Split:
    """A split of images as they were taken: every scale factor is 1."""
    return Split(images, labels, np.ones(len(labels)))


def arrays_checksum(splits: Mapping[str, Split]) -> str:
    """SHA-256 over images and labels (as int64) of train, val and test, in this order, as hex digits."""
    digest = hashlib.sha256()
    for name in SPLIT_ORDER:
        if name in splits:
            digest.update(np.ascontiguousarray(splits[name].images).data)
            digest.update(np.ascontiguousarray(splits[name].labels, "<i8").data)
    return digest.hexdigest()


def _fill(folder: Path, dataset: str, make: Maker) -> Manifest:
    splits, notes = make(folder)
    for name, split in splits.items():
        np.save(folder / f"{name}-labels.npy", split.labels, allow_pickle=False)
    return write_manifest(folder, dataset, checksum=arrays_checksum(splits), notes=notes)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _parse(stored: Any) -> Manifest:
    files = {_plain(name): _parse_stamp(stamp) for name, stamp in stored.pop("files").items()}
    manifest = Manifest(files=files, **stored)
    kinds = {"dataset": str, "checksum": str, "notes": dict, "version": int}
    for name, kind in kinds.items():
        _check_kind(name, getattr(manifest, name), kind)
    return manifest


def _parse_stamp(stored: Any) -> FileStamp:
    stamp = FileStamp(**stored)
    for name, kind in (("size", int), ("mtime_ns", int), ("checksum", str)):
        _check_kind(name, getattr(stamp, name), kind)
    return stamp


def _check_kind(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__} as {name}, got {type(value).__name__}")


def _plain(name: str) -> str:
    """A manifest speaks of the files beside it and of no others."""
    if Path(name).name != name or name in ("", "..") or not name.isprintable():
        raise ValueError(f"expected the name of a file, got {name!r}")
    return name


def _stamp(path: Path) -> FileStamp:
    state = path.stat()
    return FileStamp(state.st_size, state.st_mtime_ns, str(file_checksum(path, "sha256:")))


def _check_file(path: Path, stamp: FileStamp, mend: str) -> None:
    try:
        state = path.stat()
        if state.st_size != stamp.size:
            raise DataError(f"expected {stamp.size} bytes in {path}, got {state.st_size}; {mend}")
        same = state.st_mtime_ns == stamp.mtime_ns or file_checksum(path, "sha256:") == stamp.checksum
    except OSError as error:
        raise DataError(f"expected the prepared file {path}, got none; {mend}") from error
    if not same:
        raise ChecksumError(f"expected {stamp.checksum} of {path}, found another: it is damaged; {mend}")
