"""Imagenette at 96×96: ten easily told classes of ImageNet, from its public archive or a zip of 96×96 WebP.

Both are decoded by the recipe of ``equiscale.data.decoding`` and give different pixels; the checksum in a
run's record tells which was used. The folder ``val`` is the test split; there is no validation split.

Source:
    Howard, 2019, "Imagenette", github.com/fastai/imagenette.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from equiscale.citations import IMAGENETTE
from equiscale.data.archives import DAMAGES, archive_members
from equiscale.data.dataset import DatasetInfo, Preparation, Realisation
from equiscale.data.decoding import CHANNELS, RECIPE, decode_all
from equiscale.data.download import fetch_file, file_checksum, percent_lines
from equiscale.data.root import data_root, prepare_command
from equiscale.data.scale_recipe import Split
from equiscale.data.store import Manifest, found_manifest, open_splits, read_manifest, save_splits, unscaled
from equiscale.errors import DataError, SettingError

NAME: Final = "imagenette96"
SIZE: Final = 96
SPLIT_SIZES: Final = {"train": 9_469, "test": 3_925}
SOURCE_VARIABLE: Final = "EQUISCALE_IMAGENETTE_SOURCE"

ARCHIVE: Final = "imagenette2-160.tgz"
MIRRORS: Final = (f"https://s3.amazonaws.com/fast-ai-imageclas/{ARCHIVE}",)
ARCHIVE_MD5: Final = "e793b78cc4c9e9a4ccc0c1155377a412"  # as torchvision publishes it

# SHA-256 over the arrays made from the zip with Pillow 13.0 (libwebp 1.6). Another libwebp may decode a few
# pixels differently, which is told and kept: a run's record carries the checksum that it has.
ZIP_MD5: Final = "55fdf929fa7f7e190291641d298cf4b4"
ZIP_CHECKSUM: Final = "24818ee6ee379266aac1c2d43131c1b0513a25a5604bcbe2060fd54ac27572f2"

# In the order of ImageNet's numbers.
CLASSES: Final = {
    "n01440764": "tench",
    "n02102040": "english_springer",
    "n02979186": "cassette_player",
    "n03000684": "chain_saw",
    "n03028079": "church",
    "n03394916": "french_horn",
    "n03417042": "garbage_truck",
    "n03425413": "gas_pump",
    "n03445777": "golf_ball",
    "n03888257": "parachute",
}

_SPLITS: Final = {"train": "train", "val": "test"}  # the archives' words and ours
_MEMBER: Final = re.compile(r"(?:\./)?\w[\w.-]*/(train|val)/(\w+)/([^/\\]+\.(?i:jpe?g|webp|png))")
_MAX_ARCHIVE_BYTES: Final = 1 << 28
_MAX_MEMBER_BYTES: Final = 4 << 20
_MAX_TOTAL_BYTES: Final = 1 << 30  # of all images, packed: ten times what the public archive holds


def prepare(
    root: Path | str | None = None,
    *,
    source: Path | str | None = None,
    download: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Decode all images of an archive once, into arrays that are mapped when they are loaded.

    Nothing of the archive is written to the disk: its members are read, each up to a limit, and decoded. What
    is there and valid, and made from the same archive, is left alone.

    Args:
        root: The folder of prepared data; ``None`` as for ``equiscale.data.data_root``.
        source: The archive, .zip or .tgz, with folders ``train`` and ``val`` of the ten classes; ``None`` for
            the one that ``EQUISCALE_IMAGENETTE_SOURCE`` names, or else the one in the root.
        download: Whether to download the public archive (99 MB) to the root.
        progress: Called with a line of text after each step.

    Returns:
        The folder of the arrays.

    Raises:
        SettingError: If both ``source`` and ``download`` are given.
        DataError: If the archive is missing, damaged, or holds other images than expected.
        ChecksumError: If the download is not the published file.
        MissingExtraError: If Pillow is missing.
    """
    if source is not None and download:
        raise SettingError(f"expected either a source or a download, got both: {source} and download=True")
    base, tell = data_root(root), progress or (lambda _: None)
    folder, manifest = base / NAME, found_manifest(base / NAME)
    chosen = source if source is not None or download else os.environ.get(SOURCE_VARIABLE)
    if manifest is not None and ((chosen is None and not download) or _is_from(manifest, chosen, base)):
        tell(f"{NAME}: {folder} is there and valid")
        return folder
    archive = _download(base, tell) if download else _find_archive(base, chosen)
    tell(f"{NAME}: decoding the images in {archive}")
    tell(_told(_make(archive, folder), folder))
    return folder


def read_realisation(_: int, root: Path) -> Realisation:
    """Open the prepared arrays; images stay in their files until they are used.

    Raises:
        DataError: If the arrays have not been prepared, or are not what they were.
    """
    folder, mend = root / NAME, _mend(root)
    manifest = read_manifest(folder, mend=mend)
    return Realisation(open_splits(folder, SPLIT_SIZES, mend=mend), manifest.checksum)


def _prepare(asked: Preparation) -> Path:
    if asked.png or asked.realisations is not None:
        raise SettingError(
            f"expected neither png nor realisations for {NAME}, which has one realisation, got one; "
            "leave it out"
        )
    return prepare(asked.root, source=asked.source, download=asked.download, progress=asked.progress)


INFO: Final = DatasetInfo(
    name=NAME,
    title="photographs of ten classes, 96×96",
    citation=IMAGENETTE,
    licence="Apache 2.0; the images: that of ImageNet's, for research",
    image_shape=(CHANNELS, SIZE, SIZE),
    num_classes=len(CLASSES),
    split_sizes=SPLIT_SIZES,
    realisations=1,
    mean=(0.4627, 0.4584, 0.4303),  # both of the training images in the zip
    std=(0.2767, 0.2741, 0.2962),
    read=read_realisation,
    prepare=_prepare,
    class_names=tuple(name.replace("_", " ") for name in CLASSES.values()),
)


def _make(archive: Path, folder: Path) -> Manifest:
    """Decode the archive's images into the folder's arrays."""
    notes = {"source": archive.name, "source_md5": _md5(archive), "recipe": RECIPE}
    return save_splits(folder, NAME, _decode_archive(archive), notes=notes)


def _decode_archive(archive: Path) -> dict[str, Split]:
    members = _read_members(archive)
    found = {split: sum(key[0] == split for key in members) for split in SPLIT_SIZES}
    if found != SPLIT_SIZES:
        raise DataError(
            f"expected {SPLIT_SIZES} images in {archive}, under <any>/train/<class>/ and <any>/val/<class>/, "
            f"got {found}"
        )
    return {split: _decode_split(archive, members, split) for split in SPLIT_SIZES}


def _decode_split(archive: Path, members: Mapping[tuple[str, int, str], bytes], split: str) -> Split:
    keys = sorted(key for key in members if key[0] == split)  # by class, then by name
    images = np.empty((len(keys), CHANNELS, SIZE, SIZE), np.uint8)
    failures = decode_all([partial(members.__getitem__, key) for key in keys], images)
    if failures:
        index, why = next(iter(failures.items()))
        raise DataError(
            f"expected whole images in {archive}, got {len(failures)} that are not, "
            f"the first {keys[index][2]}: {why}"
        )
    return unscaled(images, np.array([key[1] for key in keys], np.int64))


def _read_members(archive: Path) -> dict[tuple[str, int, str], bytes]:
    """The bytes of every image, by split, label and name; other members are passed over."""
    members: dict[tuple[str, int, str], bytes] = {}
    total = 0
    try:
        for member in archive_members(archive, max_bytes=_MAX_TOTAL_BYTES):
            key = _key(member.name)
            if key is None:
                continue
            if key in members:
                raise DataError(
                    f"expected every image once in {archive}, got {member.name} twice; get it anew"
                )
            total += member.size
            _check_size(archive, member.name, member.size, total)
            members[key] = member.read()
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"expected a whole .zip or .tgz archive in {archive}, got: {error}") from error
    return members


def _key(name: str) -> tuple[str, int, str] | None:
    """Split, label and file name of an image's path in the archive."""
    match = _MEMBER.fullmatch(name)
    if match is None:
        return None
    folder, found = match[2], [*CLASSES, *CLASSES.values()]
    return (_SPLITS[match[1]], found.index(folder) % len(CLASSES), match[3]) if folder in found else None


def _check_size(archive: Path, name: str, size: int, total: int) -> None:
    if size > _MAX_MEMBER_BYTES or total > _MAX_TOTAL_BYTES:
        raise DataError(
            f"expected images of at most {_MAX_MEMBER_BYTES} bytes, {_MAX_TOTAL_BYTES} together, in "
            f"{archive}, got {name} of {size}, {total} together"
        )


def _download(base: Path, tell: Callable[[str], None]) -> Path:
    return fetch_file(
        MIRRORS,
        base / ARCHIVE,
        checksum=f"md5:{ARCHIVE_MD5}",
        max_bytes=_MAX_ARCHIVE_BYTES,
        progress=percent_lines(tell, ARCHIVE, step=20),
    )


def _find_archive(base: Path, source: Path | str | None) -> Path:
    archive = base / ARCHIVE if source is None else Path(source)
    if not archive.is_file():
        raise DataError(f"expected an archive of Imagenette at {archive}, got no file; {_mend(base)}")
    if (size := archive.stat().st_size) > _MAX_ARCHIVE_BYTES:
        raise DataError(f"expected an archive of at most {_MAX_ARCHIVE_BYTES} bytes at {archive}, got {size}")
    return archive


def _is_from(manifest: Manifest, source: Path | str | None, base: Path) -> bool:
    """Whether the arrays were made from this source, or from the public archive for None."""
    wanted = ARCHIVE_MD5 if source is None else _md5(_find_archive(base, source))
    return (manifest.notes.get("source_md5"), manifest.notes.get("recipe")) == (wanted, RECIPE)


def _md5(path: Path) -> str:
    return str(file_checksum(path, "md5:")).removeprefix("md5:")


def _told(manifest: Manifest, folder: Path) -> str:
    if manifest.notes.get("source_md5") != ZIP_MD5:
        return f"{NAME}: {folder} has SHA-256 {manifest.checksum}"
    if manifest.checksum == ZIP_CHECKSUM:
        return f"{NAME}: {folder} has the expected SHA-256 {manifest.checksum}"
    return (
        f"{NAME}: {folder} holds the images of the known zip; this libwebp decodes them a little differently "
        f"(SHA-256 {manifest.checksum} instead of {ZIP_CHECKSUM})"
    )


def _mend(root: Path) -> str:
    return (
        f"run: {prepare_command(NAME, root)} --download (or --source FILE, or {SOURCE_VARIABLE}=FILE, with "
        f"{ARCHIVE} or imagenette96.zip)"
    )
