"""Anybody's own images: a folder ``train/<class>/*``, and ``val/`` and ``test/`` where there are any.

JPEG, PNG and WebP files are brought to one size by the recipe of ``equiscale.data.decoding``, once for each
state of the folder, into a file in the root of prepared data from which they are mapped.
"""

import hashlib
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from equiscale.data.dataset import Dataset, DatasetInfo, Preparation, Realisation, load_split
from equiscale.data.decoding import CHANNELS, RECIPE, SUFFIXES, decode_all
from equiscale.data.root import absolute_path, data_root
from equiscale.data.scale_recipe import Split
from equiscale.data.store import (
    SPLIT_ORDER,
    Manifest,
    found_manifest,
    images_path,
    open_splits,
    save_made,
    unscaled,
    write_images,
)
from equiscale.errors import DataError, SettingError

PREFIX: Final = "image-folder:"
DEFAULT_SIZE: Final = 96

OnCorrupt = Literal["refuse", "skip"]

_MAX_SIZE: Final = 4096
_MAX_FILE_BYTES: Final = 1 << 28
_LISTED: Final = 10  # files that a message names
_STATISTICS_CHUNK: Final = 512
_BATCH_BYTES: Final = 1 << 28  # of decoded images in memory


@dataclass(frozen=True)
class FolderSettings:
    """What is read, and how.

    Args:
        path: The folder.
        size: Side of the square images, in pixels.
        on_corrupt: Whether files that are no whole image are refused, or skipped.
    """

    path: Path
    size: int = DEFAULT_SIZE
    on_corrupt: OnCorrupt = "refuse"

    @property
    def name(self) -> str:
        """The name by which ``equiscale.data.load`` finds the same.

        Example:
            >>> FolderSettings(Path("/pictures"), 64).name
            'image-folder:/pictures?size=64'
        """
        options = [] if self.size == DEFAULT_SIZE else [f"size={self.size}"]
        options += [] if self.on_corrupt == "refuse" else [f"on_corrupt={self.on_corrupt}"]
        return f"{PREFIX}{self.path}" + (f"?{'&'.join(options)}" if options else "")


@dataclass(frozen=True)
class _File:
    path: Path
    split: str
    label: int
    told: str  # the path in the folder, the size and the time of the last change


def load_folder(
    path: Path | str,
    *,
    split: str,
    size: int = DEFAULT_SIZE,
    on_corrupt: OnCorrupt = "refuse",
    root: Path | str | None = None,
) -> Dataset:
    """Load one split of a folder of images.

    Classes are the folders in ``train/``, sorted by name. Hidden files, files with other endings than .jpg,
    .jpeg, .png and .webp, and links that lead out of the folder are left out.

    Args:
        path: The folder with ``train/<class>/*``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Side of the square images, in pixels.
        on_corrupt: ``"refuse"`` files that are no whole image, with their list, or ``"skip"`` them: a warning
            when they are met first, and ``info.notes`` always, tell how many, and the first names.
        root: The folder of prepared data, where the images of this size are kept; ``None`` as for
            ``equiscale.data.data_root``.

    Returns:
        Images ``(N, 3, size, size)``; mean and deviation are those of the training images.

    Raises:
        SettingError: If the split does not exist, or the size or ``on_corrupt`` is no legal one.
        DataError: If a class has no training images, another split has a class of its own, or a file is no
            whole image (under ``"refuse"``).
        MissingExtraError: If Pillow is missing.
    """
    settings = _checked(FolderSettings(Path(path), size, on_corrupt))
    info = folder_info(settings, root)
    return load_split(info, split=split, realisation=0, root=data_root(root))


def parse_name(name: str) -> FolderSettings:
    """The settings in a name such as ``image-folder:/pictures?size=64&on_corrupt=skip``.

    Raises:
        SettingError: If an option is none of these.

    Example:
        >>> parse_name("image-folder:/pictures?size=64")
        FolderSettings(path=PosixPath('/pictures'), size=64, on_corrupt='refuse')
    """
    path, _, options = name.removeprefix(PREFIX).partition("?")
    found = dict(parse_qsl(options, keep_blank_values=True))
    size = found.pop("size", str(DEFAULT_SIZE))
    on_corrupt = found.pop("on_corrupt", "refuse")
    if not path or found or not re.fullmatch("[0-9]{1,9}", size):
        raise SettingError(
            f"expected a name like {PREFIX}/path or {PREFIX}/path?size=96&on_corrupt=skip, got {name!r}"
        )
    return _checked(FolderSettings(Path(path), int(size), cast(OnCorrupt, on_corrupt)))


def folder_info(settings: FolderSettings, root: Path | str | None = None) -> DatasetInfo:
    """The description of a folder, whose images are brought to their size where that was not done yet."""
    folder, manifest = _prepared(settings, data_root(root))
    notes = manifest.notes
    return DatasetInfo(
        name=settings.name,
        title=f"images in {settings.path}",
        citation=None,
        licence="that of the images",
        image_shape=(CHANNELS, settings.size, settings.size),
        num_classes=len(notes["classes"]),
        split_sizes={name: notes["sizes"][name] for name in SPLIT_ORDER if name in notes["sizes"]},
        realisations=1,
        mean=tuple(notes["mean"]),
        std=tuple(notes["std"]),
        read=partial(_read, folder, manifest),
        prepare=partial(_prepare, settings),
        class_names=tuple(notes["classes"]),
        notes=_told_skipped(notes["skipped"]),
    )


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's values in 0…1, to four digits.

    Example:
        >>> channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    counts = np.zeros((images.shape[1], 256))
    for start in range(0, len(images), _STATISTICS_CHUNK):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + _STATISTICS_CHUNK, channel].ravel(), minlength=256)
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    means = shares @ values
    deviations = np.sqrt(shares @ values**2 - means**2)
    return tuple(means.round(4).tolist()), tuple(np.maximum(deviations, 1e-4).round(4).tolist())


def _read(folder: Path, manifest: Manifest, _: int, __: Path) -> Realisation:
    splits = open_splits(folder, manifest.notes["sizes"], mend=f"delete {folder} and load the images again")
    return Realisation(splits, manifest.checksum)


def _prepare(settings: FolderSettings, asked: Preparation) -> None:
    if asked.png or asked.download or asked.source is not None or asked.realisations is not None:
        raise SettingError(
            f"expected neither source, download, realisations nor png for {settings.name}, which is its own "
            "source, got one; leave it out"
        )
    info = folder_info(settings, asked.root)
    for line in (f"{info.name}: {dict(info.split_sizes)} images", *info.notes):
        if asked.progress:
            asked.progress(line)


def _prepared(settings: FolderSettings, root: Path) -> tuple[Path, Manifest]:
    """The finished arrays of this state of the folder, made now where they are missing."""
    classes, files = _list_files(settings.path)
    state = hashlib.sha256("\n".join(file.told for file in files).encode()).hexdigest()
    key = hashlib.sha256(f"{settings.path.resolve()} {settings.size} {settings.on_corrupt}".encode())
    folder = root / "folders" / f"{settings.path.resolve().name}-{key.hexdigest()[:12]}"
    known = {"classes": classes, "state": state, "recipe": RECIPE}
    manifest = found_manifest(folder)
    if manifest is None or not _is_of(known, manifest):
        manifest = _make(settings, files, folder, known)
    return folder, manifest


def _is_of(known: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether arrays were made from this state of the folder, and their notes are of the right kinds."""
    notes = manifest.notes
    sizes, skipped = notes.get("sizes"), notes.get("skipped")
    return (
        all(notes.get(name) == value for name, value in known.items())
        and isinstance(sizes, dict)
        and "train" in sizes
        and all(name in SPLIT_ORDER and type(size) is int and size > 0 for name, size in sizes.items())
        and _are_numbers(notes.get("mean"))
        and _are_numbers(notes.get("std"))
        and min(notes["std"]) > 0
        and isinstance(skipped, list)
        and all(type(name) is str for name in skipped)
    )


def _are_numbers(values: object) -> bool:
    """Whether there is one finite number for each channel."""
    return (
        isinstance(values, list)
        and len(values) == CHANNELS
        and all(type(value) is float and math.isfinite(value) for value in values)
    )


def _make(
    settings: FolderSettings, files: Sequence[_File], folder: Path, known: Mapping[str, Any]
) -> Manifest:
    def make(temporary: Path) -> tuple[dict[str, Split], dict[str, Any]]:
        splits, failures = _decode(settings, files, temporary)
        _check_decoded(settings, known["classes"], splits, failures)
        mean, std = channel_statistics(splits["train"].images)
        return splits, {
            **known,
            "mean": mean,
            "std": std,
            "sizes": {name: len(split.labels) for name, split in splits.items()},
            "skipped": list(failures),
        }

    manifest = save_made(folder, settings.name, make=make, keep=partial(_is_of, known))
    for told in _told_skipped(manifest.notes["skipped"]):
        warnings.warn(f"{settings.name}: {told}", stacklevel=2)
    return manifest


def _decode(
    settings: FolderSettings, files: Sequence[_File], target: Path
) -> tuple[dict[str, Split], dict[str, str]]:
    """The whole images of each split, written to the target; the names of the others, and why."""
    splits: dict[str, Split] = {}
    failures: dict[str, str] = {}
    shape = (CHANNELS, settings.size, settings.size)
    for name in SPLIT_ORDER:
        chosen = [file for file in files if file.split == name]
        if chosen:
            labels: list[int] = []
            batches = _decode_batches(settings, chosen, labels, failures)
            images = write_images(images_path(target, name), batches, shape)
            splits[name] = unscaled(images, np.array(labels, np.int64))
    return splits, failures


def _decode_batches(
    settings: FolderSettings, files: Sequence[_File], labels: list[int], failures: dict[str, str]
) -> Iterator[NDArray[np.uint8]]:
    """Batches of whole images, whose labels are added to ``labels``; of the others to ``failures``."""
    shape = (CHANNELS, settings.size, settings.size)
    step = max(1, _BATCH_BYTES // math.prod(shape))
    for start in range(0, len(files), step):
        batch = files[start : start + step]
        images = np.empty((len(batch), *shape), np.uint8)
        failed = decode_all([partial(_content, file.path) for file in batch], images)
        for index, why in failed.items():
            failures[batch[index].path.relative_to(settings.path).as_posix()] = why
        kept = [index for index in range(len(batch)) if index not in failed]
        labels += [batch[index].label for index in kept]
        yield images[kept] if failed else images


def _check_decoded(
    settings: FolderSettings,
    classes: Sequence[str],
    splits: Mapping[str, Split],
    failures: Mapping[str, str],
) -> None:
    if failures and settings.on_corrupt == "refuse":
        raise DataError(_told_failures(settings, failures))
    sizes = {name: len(split.labels) for name, split in splits.items()}
    if not all(sizes.values()):
        raise DataError(f"expected whole images in every split of {settings.path}, got {sizes}")
    counts = np.bincount(splits["train"].labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"expected whole training images of every class in {settings.path}, got none of "
            f"{_first(empty)}; mend them, or remove the class"
        )


def _list_files(path: Path) -> tuple[list[str], list[_File]]:
    """The classes and the images of all splits, in the order of their paths."""
    if not (path / "train").is_dir():
        raise DataError(
            f"expected the folder {path / 'train'} with a folder of images for each class, got none; "
            "give the folder that holds train/"
        )
    home = path.resolve()
    for split in SPLIT_ORDER:
        if not _leads_into(path / split, home):
            raise DataError(
                f"expected {split} inside {path}, got a link that leads out of it, to "
                f"{os.path.realpath(path / split)}; put the images themselves there"
            )
    classes = [folder.name for folder in _folders(path / "train", home)]
    labels = {name: label for label, name in enumerate(classes)}
    files = []
    for split in SPLIT_ORDER:
        for folder in _folders(path / split, home):
            if folder.name not in labels:
                raise DataError(
                    f"expected the classes of {path / 'train'}, {classes}, in {path / split} too, "
                    f"got {folder.name!r}; add it to the training images, or remove it"
                )
            label = labels[folder.name]
            files += [_file(file, path, split, label) for file in _images(folder, home)]
    found = Counter(file.label for file in files if file.split == "train")
    counts = {name: found[label] for name, label in labels.items()}
    if len(classes) < 2 or not all(counts.values()):
        raise DataError(
            f"expected at least two classes with images ({', '.join(SUFFIXES)}) in {path / 'train'}, "
            f"got {counts or 'no folders'}"
        )
    return classes, files


def _file(path: Path, base: Path, split: str, label: int) -> _File:
    state = path.stat()
    told = f"{path.relative_to(base).as_posix()} {state.st_size} {state.st_mtime_ns}"
    return _File(path, split, label, told)


def _folders(path: Path, home: Path) -> list[Path]:
    return [found for found in _visible(path, home) if found.is_dir()] if path.is_dir() else []


def _images(folder: Path, home: Path) -> Iterator[Path]:
    for path in _visible(folder, home):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _visible(folder: Path, home: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and links that lead out of ``home``."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        if not name.isprintable():  # nor is a name that is no UTF-8
            raise DataError(f"expected names of printable characters in {folder}, got {name!r}; rename it")
    found = [folder / name for name in names]
    return [path for path in found if not path.is_symlink() or _leads_into(path, home)]


def _leads_into(link: Path, home: Path) -> bool:
    try:
        return link.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _content(path: Path) -> bytes:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise DataError(f"more than {_MAX_FILE_BYTES} bytes")
    return path.read_bytes()


def _told_failures(settings: FolderSettings, failures: Mapping[str, str]) -> str:
    told = [f"{name} ({why})" for name, why in failures.items()]
    return (
        f"expected whole images in {settings.path}, got {len(told)} that are not: {_first(told)}; "
        "mend or remove them, or skip them with on_corrupt='skip' "
        f"({FolderSettings(settings.path, settings.size, 'skip').name})"
    )


def _told_skipped(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"files left out because they are no whole image: {len(names)} ({_first(names)})",)


def _first(told: Sequence[str]) -> str:
    more = f" and {len(told) - _LISTED} more" if len(told) > _LISTED else ""
    return f"{', '.join(told[:_LISTED])}{more}"


def _checked(settings: FolderSettings) -> FolderSettings:
    """Legal settings, with the whole path, so that every folder has one name."""
    if settings.on_corrupt not in get_args(OnCorrupt):
        raise SettingError(f"expected on_corrupt of {get_args(OnCorrupt)}, got {settings.on_corrupt!r}")
    if not 1 <= settings.size <= _MAX_SIZE:
        raise SettingError(f"expected a size of 1 to {_MAX_SIZE} pixels, got {settings.size}")
    return FolderSettings(absolute_path(settings.path), settings.size, settings.on_corrupt)
