"""STL-10: ten kinds of objects, 96×96, read from its own binary files by memory map.

Source:
    Coates, Lee and Ng, 2011, "An analysis of single-layer networks in unsupervised feature learning"; the
    checksums are those that torchvision publishes.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from equiscale._files import alone, atomic_path
from equiscale.citations import STL10
from equiscale.data.archives import DAMAGES, Member, archive_members
from equiscale.data.dataset import DatasetInfo, Preparation, Realisation
from equiscale.data.download import fetch_file, file_checksum, percent_lines
from equiscale.data.root import data_root, prepare_command
from equiscale.data.scale_recipe import Split
from equiscale.data.store import Manifest, found_manifest, map_bytes, read_manifest, unscaled, write_manifest
from equiscale.errors import ChecksumError, DataError, SettingError

NAME: Final = "stl10"
FOLDS_NAME: Final = "stl10-folds"
IMAGE_SHAPE: Final = (3, 96, 96)
SPLIT_SIZES: Final = {"train": 5_000, "test": 8_000}
FOLD_SIZES: Final = {"train": 1_000, "test": 8_000}
FOLDS: Final = 10

ARCHIVE: Final = "stl10_binary.tar.gz"
MIRRORS: Final = (f"https://ai.stanford.edu/~acoates/stl10/{ARCHIVE}",)
ARCHIVE_MD5: Final = "91f7769df0f17e558f3565bffb0c7dfb"
CLASS_NAMES: Final = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip

_FOLDER: Final = "stl10_binary"  # in the archive
_FOLD_FILE: Final = "fold_indices.txt"
_MAX_ARCHIVE_BYTES: Final = 3 << 30
_MAX_FOLD_BYTES: Final = 1 << 20
_MAX_TOTAL_BYTES: Final = 4 << 30  # unpacked, with the unlabelled images
_PIXELS: Final = 3 * 96 * 96


@dataclass(frozen=True)
class BinaryFile:
    """One of the four files of labelled images.

    Args:
        name: The file's name.
        split: The split it belongs to.
        item_size: Bytes an image.
        md5: The published MD5.
    """

    name: str
    split: str
    item_size: int
    md5: str

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.item_size * SPLIT_SIZES[self.split]


FILES: Final = [
    BinaryFile("train_X.bin", "train", _PIXELS, "918c2871b30a85fa023e0c44e0bee87f"),
    BinaryFile("train_y.bin", "train", 1, "5a34089d4802c674881badbb80307741"),
    BinaryFile("test_X.bin", "test", _PIXELS, "7f263ba9f9e0b06b93213547f721ac82"),
    BinaryFile("test_y.bin", "test", 1, "36f9794fa4beb8a2c72628de14fa638e"),
]


def prepare(
    root: Path | str | None = None,
    *,
    source: Path | str | None = None,
    download: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Take the labelled images out of STL-10's archive and check them against the published checksums.

    Only the five known files are taken, under our own names for them, and only if they have their known
    sizes; the 100,000 unlabelled images (2.8 GB) stay in the archive. What is there and valid is left alone.

    Args:
        root: The folder of prepared data; ``None`` as for ``equiscale.data.data_root``.
        source: The archive, or the folder with its files; ``None`` for those in the root.
        download: Whether to download the archive (2.6 GB) to the root; a part that is there is resumed.
        progress: Called with a line of text after each step.

    Returns:
        The folder of the files.

    Raises:
        SettingError: If both ``source`` and ``download`` are given.
        DataError: If the archive is missing, damaged, or holds other files under the known names.
        ChecksumError: If a file is not the published one.
    """
    if source is not None and download:
        raise SettingError(f"expected either a source or a download, got both: {source} and download=True")
    base, tell = data_root(root), progress or (lambda _: None)
    folder = base / NAME
    if _is_prepared(folder):
        tell(f"{NAME}: {folder} is there and valid")
        return folder
    if download:
        fetch_file(
            MIRRORS,
            base / ARCHIVE,
            checksum=f"md5:{ARCHIVE_MD5}",
            max_bytes=_MAX_ARCHIVE_BYTES,
            progress=percent_lines(tell, ARCHIVE),
        )
    origin = _find_origin(base, None if source is None else Path(source))
    tell(f"{NAME}: taking the labelled images from {origin}")
    with alone(folder):
        if not _is_prepared(folder):  # by another process in the meantime
            _fill(folder, origin)
    tell(f"{NAME}: {folder} has the published checksums; the archive is not needed any more")
    return folder


def read_realisation(fold: int | None, root: Path) -> Realisation:
    """Open the prepared files; images stay in them until they are used.

    Args:
        fold: The fold whose thousand training images are wanted, or None for all of them.
        root: The folder of prepared data.

    Raises:
        DataError: If the files have not been prepared, or are not what they were.
    """
    folder = root / NAME
    manifest = read_manifest(folder, mend=_mend(root))
    if missing := _missing(manifest):
        raise DataError(f"expected {', '.join(missing)} among the files of {folder}, got none; {_mend(root)}")
    splits = {name: unscaled(_map_images(folder, name), _read_labels(folder, name)) for name in SPLIT_SIZES}
    if fold is None:
        return Realisation(splits, manifest.checksum)
    return Realisation(_in_fold(splits, _read_folds(folder)[fold]), _fold_checksum(manifest, fold))


def _prepare(asked: Preparation) -> Path:
    if asked.png or asked.realisations is not None:
        raise SettingError(
            f"expected neither png nor realisations for {NAME}, whose folds are in one file, got one; "
            "leave it out"
        )
    return prepare(asked.root, source=asked.source, download=asked.download, progress=asked.progress)


INFO: Final = DatasetInfo(
    name=NAME,
    title="photographs of ten classes, 96×96, 5,000 to train",
    citation=STL10,
    licence="that of ImageNet's images: for research",
    image_shape=IMAGE_SHAPE,
    num_classes=len(CLASS_NAMES),
    split_sizes=SPLIT_SIZES,
    realisations=1,
    mean=(0.4467, 0.4398, 0.4066),  # both as published for the STL-10 runs of SESN
    std=(0.2603, 0.2566, 0.2713),
    read=lambda _, root: read_realisation(None, root),
    prepare=_prepare,
    class_names=CLASS_NAMES,
)
FOLDS_INFO: Final = replace(
    INFO,
    name=FOLDS_NAME,
    title="STL-10 in ten published folds of 1,000 training images",
    split_sizes=FOLD_SIZES,
    realisations=FOLDS,
    read=read_realisation,
)


def _is_prepared(folder: Path) -> bool:
    manifest = found_manifest(folder)
    return manifest is not None and not _missing(manifest)


def _missing(manifest: Manifest) -> list[str]:
    """The files that a manifest should speak of, and does not."""
    return [name for name in (*(file.name for file in FILES), _FOLD_FILE) if name not in manifest.files]


def _fill(folder: Path, origin: Path) -> None:
    """Take the files from an archive or a folder, check them, and write their manifest; all or nothing."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _take_files(origin, temporary)
        for file in FILES:
            _check_published(temporary / file.name, file, origin)
        _read_folds(temporary)
        for split in SPLIT_SIZES:
            _read_labels(temporary, split)
        write_manifest(temporary, NAME, checksum=_checksum(temporary))


def _map_images(folder: Path, split: str) -> NDArray[np.uint8]:
    """``(N, C, H, W)``: planes are stored column after column, so that two axes are swapped in the view."""
    channels, height, width = IMAGE_SHAPE
    columns_first = map_bytes(folder / f"{split}_X.bin", (SPLIT_SIZES[split], channels, width, height))
    return columns_first.transpose(0, 1, 3, 2)


def _read_labels(folder: Path, split: str) -> NDArray[np.uint8]:
    """The labels, stored as 1…10, from 0."""
    path = folder / f"{split}_y.bin"
    labels = np.fromfile(path, np.uint8)
    if len(labels) != SPLIT_SIZES[split] or not np.isin(labels, range(1, len(CLASS_NAMES) + 1)).all():
        raise DataError(
            f"expected {SPLIT_SIZES[split]} labels of 1…{len(CLASS_NAMES)} in {path}, "
            f"got {len(labels)} of {labels.min(initial=255)}…{labels.max(initial=0)}"
        )
    return labels - np.uint8(1)


def _read_folds(folder: Path) -> list[NDArray[np.int64]]:
    """The indices of each fold's training images: a line a fold, counted from 0."""
    path = folder / _FOLD_FILE
    try:
        folds = [np.array(line.split(), np.int64) for line in path.read_text("ascii").splitlines()]
    except (ValueError, OverflowError) as error:
        raise DataError(f"expected lines of whole numbers in {path}, got: {error}") from error
    wanted, images = FOLD_SIZES["train"], SPLIT_SIZES["train"]
    legal = all(len(fold) == wanted and np.isin(fold, range(images)).all() for fold in folds)
    if len(folds) != FOLDS or not legal:
        raise DataError(
            f"expected {FOLDS} lines of {wanted} numbers of 0…{images - 1} in {path}, "
            f"got {len(folds)} lines of {[len(fold) for fold in folds]}"
        )
    return folds


def _in_fold(splits: dict[str, Split], chosen: NDArray[np.int64]) -> dict[str, Split]:
    train = splits["train"]
    return {**splits, "train": unscaled(train.images[chosen], train.labels[chosen])}


def _checksum(folder: Path) -> str:
    """SHA-256 over the SHA-256 of each file, in the order of their names."""
    names = sorted([*(file.name for file in FILES), _FOLD_FILE])
    told = "".join(f"{file_checksum(folder / name, 'sha256:')} {name}\n" for name in names)
    return hashlib.sha256(told.encode()).hexdigest()


def _fold_checksum(manifest: Manifest, fold: int) -> str:
    return hashlib.sha256(f"{manifest.checksum} fold {fold}".encode()).hexdigest()


def _find_origin(base: Path, source: Path | None) -> Path:
    for path in (base / ARCHIVE, base / _FOLDER) if source is None else (source,):
        if path.exists():
            return path
    place = f"{ARCHIVE} or {_FOLDER}/ in {base}" if source is None else f"{ARCHIVE} or its folder at {source}"
    raise DataError(f"expected STL-10's {place}, got neither; {_mend(base)}")


def _take_files(origin: Path, target: Path) -> None:
    """Copy the five files out of an archive or a folder, each with its size limit."""
    sizes = {file.name: file.size for file in FILES}
    if origin.is_dir():
        for name in [*sizes, _FOLD_FILE]:
            _take(partial(_open_file, origin / name), target / name, sizes.get(name))
        return
    try:
        _extract(origin, target, sizes)
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"expected a whole {ARCHIVE} in {origin}, got: {error}; get it again") from error


def _extract(archive: Path, target: Path, sizes: dict[str, int]) -> None:
    """Nothing is written under a name from the archive: its members are only compared with ours."""
    missing = {f"{_FOLDER}/{name}": name for name in [*sizes, _FOLD_FILE]}
    for member in archive_members(archive, max_bytes=_MAX_TOTAL_BYTES):
        name = missing.pop(member.name.removeprefix("./"), None)
        if name is not None:
            _take(partial(_open_member, member), target / name, sizes.get(name))
        if not missing:
            return
    raise DataError(f"expected {', '.join(missing)} in {archive}, got no such ordinary file; get it again")


def _open_file(path: Path) -> tuple[IO[bytes], int]:
    if not path.is_file():
        raise DataError(f"expected STL-10's file {path}, got none; give the archive or the whole folder")
    return path.open("rb"), path.stat().st_size


def _open_member(member: Member) -> tuple[IO[bytes], int]:
    return member.open(), member.size


def _take(opened: Callable[[], tuple[IO[bytes], int]], target: Path, expected: int | None) -> None:
    """Copy one file whose announced size is the expected one, or within the limit of the fold file."""
    content, size = opened()
    with content:
        if size != expected and (expected is not None or size > _MAX_FOLD_BYTES):
            wanted = f"at most {_MAX_FOLD_BYTES}" if expected is None else str(expected)
            raise DataError(f"expected {wanted} bytes of STL-10's {target.name}, got {size}; get it again")
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)


def _check_published(path: Path, file: BinaryFile, origin: Path) -> None:
    found = file_checksum(path, "md5:")
    if found != f"md5:{file.md5}":
        raise ChecksumError(
            f"expected MD5 {file.md5} of {file.name} from {origin}, found {str(found).removeprefix('md5:')}; "
            "get it again"
        )


def _mend(root: Path) -> str:
    return f"run: {prepare_command(NAME, root)} --download (or --source FILE with {ARCHIVE}, or its folder)"
