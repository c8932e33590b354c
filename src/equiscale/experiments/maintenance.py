"""The care of a results folder: is everything sound, what can go, and how two folders become one."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open

from equiscale._files import atomic_path, is_temporary
from equiscale.errors import RecordError, SettingError
from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.execute import checkpoint_path, weights_path
from equiscale.experiments.index import record_files
from equiscale.experiments.records import RunRecord, decode_predictions, read_record, record_path
from equiscale.models.weights_file import digest_of

_PERCENT_TOLERANCE: Final = 1e-6
_MOST_ARRAYS: Final = 10_000


def verify(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Look at every record of a results folder, with its weights and pictures.

    Yields:
        Each record's file, and what is wrong with it: nothing, if all is well.
    """
    for path in record_files(folder):
        try:
            record = read_record(path)
        except RecordError as error:
            yield path, [str(error)]
            continue
        yield path, list(_problems(folder, path, record))


def _problems(folder: Path, path: Path, record: RunRecord) -> Iterator[str]:
    expected = record_path(folder, record.settings)
    if path != expected:
        yield f"its settings belong to {expected.parent.name}/{expected.name}"
    if [epoch.epoch for epoch in record.epochs] != list(range(1, len(record.epochs) + 1)):
        yield "its epochs are not numbered 1, 2, …"
    if record.status == "finished":
        yield from _problems_of_result(record)
        if path == expected:  # else they are another record's
            yield from _problems_of_weights(weights_path(folder, record.settings), record)
    if record.inspection is not None:
        yield from _problems_of_pictures(path.parent, record.inspection)


def _problems_of_result(record: RunRecord) -> Iterator[str]:
    protocol, test = record.settings.protocol, record.test
    if test is None:
        yield "it is finished and has no test"
        return
    if len(record.epochs) != protocol.epochs:
        yield f"it has {len(record.epochs)} epochs of {protocol.epochs}"
    if not 1 <= test.epoch <= protocol.epochs:
        yield f"it tested epoch {test.epoch} of {protocol.epochs}"
    try:
        predictions = len(decode_predictions(test.predictions))
    except RecordError as error:
        yield str(error)
        return
    if record.data.test == 0:
        yield "it was tested on no images"
    if predictions != record.data.test:
        yield f"it has {predictions} predictions for {record.data.test} test images"
    if test.by_factor is not None:
        images, mistakes = sum(test.by_factor.images), sum(test.by_factor.mistakes)
        difference = abs(100 * mistakes - test.error * images)  # also of no images
        if images != record.data.test or difference > _PERCENT_TOLERANCE * images:
            yield f"its errors by factor, {mistakes} of {images}, are not its test error, {test.error} %"


def _problems_of_weights(path: Path, record: RunRecord) -> Iterator[str]:
    if not path.exists():  # records travel without their weights
        return
    try:
        if not path.is_file():
            raise OSError("no ordinary file")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        same = metadata.get("digest", "") in ("", digest_of(metadata, tensors))
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    except (OSError, SafetensorError, RuntimeError) as error:  # also of types with which nobody computes
        yield f"its weights in {path} cannot be read: {error}"
        return
    if not same:
        yield f"its weights in {path} are not those that were written"
    if not finite:
        yield f"its weights in {path} are not finite"
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if numbers < record.parameters:
        yield f"its weights in {path} are {numbers} numbers for {record.parameters} parameters"


def _problems_of_pictures(folder: Path, name: str) -> Iterator[str]:
    path = folder / name
    if Path(name).name != name:
        yield f"its pictures {name!r} are not beside it"
    elif not path.is_file():
        yield f"its pictures {name} are missing"
    else:
        try:
            with ZipFile(path) as arrays:
                count = len(arrays.namelist())
        except (OSError, ValueError, EOFError, BadZipFile, NotImplementedError, ArithmeticError) as error:
            yield f"its pictures {name} cannot be read: {error}"
            return
        if count > _MOST_ARRAYS:
            yield f"its pictures {name} are {count} arrays"


@dataclass(frozen=True)
class Merged:
    """What has become of one record in a merge.

    Args:
        path: The file it came from.
        fate: "copied"; "same", when the target has a record of the same outcome; "kept", when the target
            has a finished one and this one failed; "conflict"; or "invalid".
        message: What is wrong with it, or in conflict.
    """

    path: Path
    fate: Literal["copied", "same", "kept", "conflict", "invalid"]
    message: str = ""


def merge(sources: Sequence[Path], target: Path) -> Iterator[Merged]:
    """Copy the records of several results folders into one, with weights and pictures; overwrite nothing.

    A finished record takes the place of a failed one. Two finished ones of different outcomes are a conflict,
    and the target keeps its own.

    Raises:
        SettingError: If a source is missing, or is the target.
        OSError: If the target cannot be written.
    """
    for source in sources:
        if not source.is_dir() or source.resolve() == target.resolve():
            raise SettingError(f"expected results folders other than {target} to merge, got {source}")
    for source in sources:
        for path, problems in verify(source):
            if problems:
                yield Merged(path, "invalid", "; ".join(problems))
            else:
                yield _merge_one(path, source, target)


def _merge_one(path: Path, source: Path, target: Path) -> Merged:
    record = read_record(path)
    goal = record_path(target, record.settings)
    if goal.exists():
        try:
            present = read_record(goal)
        except RecordError as error:
            return Merged(path, "conflict", str(error))
        if present.status == "finished":
            return _beside(path, record, present)
    _copy(path, record, source, target)
    return Merged(path, "copied")


def _beside(path: Path, record: RunRecord, present: RunRecord) -> Merged:
    if record.status == "failed":
        return Merged(path, "kept", "the target has a finished record")
    differences = _differences(record, present)
    return Merged(path, "conflict", "; ".join(differences)) if differences else Merged(path, "same")


def _differences(record: RunRecord, present: RunRecord) -> list[str]:
    """How two outcomes of one run differ; times and machines do not count."""
    found = []
    if record.data != present.data:
        found.append("other data")
    if record.test != present.test and record.test is not None and present.test is not None:
        found.append(f"test error {record.test.error:.4g} %, and {present.test.error:.4g} % in the target")
    if [epoch.train_loss for epoch in record.epochs] != [epoch.train_loss for epoch in present.epochs]:
        found.append("other losses")
    return found


def _copy(path: Path, record: RunRecord, source: Path, target: Path) -> None:
    """The record last: it says that the rest is there."""
    weights = weights_path(source, record.settings)
    files = [(weights, weights_path(target, record.settings))]
    if record.inspection is not None:
        pictures = record_path(target, record.settings).with_name(record.inspection)
        files.append((path.with_name(record.inspection), pictures))
    files.append((path, record_path(target, record.settings)))
    for origin, goal in files:
        if origin.exists():
            with atomic_path(goal) as temporary:
                shutil.copyfile(origin, temporary)


@dataclass(frozen=True)
class Garbage:
    """A file that nothing needs.

    Args:
        path: The file.
        reason: Why.
        size: Bytes.
    """

    path: Path
    reason: str
    size: int


def garbage(folder: Path) -> Iterator[Garbage]:
    """What killed processes and finished runs have left behind in a results folder.

    Nothing is listed that a living worker may need: its claim, its checkpoint, and in its suite anything that
    is half written.
    """
    for suite in sorted(path for path in folder.glob("*") if path.is_dir()):
        claims = Claims(claims_of(folder, suite.name))
        held = claims.held()
        for path in claims.dead():
            yield _garbage(path, "claim of a dead worker")
        for path in () if held else sorted(filter(is_temporary, suite.rglob("*"))):
            yield _garbage(path, "half written")
        for path in _checkpoints_of_finished(folder, suite.name):
            if path.stem not in held:
                yield _garbage(path, "checkpoint of a finished run")


def collect(found: Iterable[Garbage]) -> None:
    """Delete what `garbage` has found."""
    for item in found:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)


def _garbage(path: Path, reason: str) -> Garbage:
    files = path.rglob("*") if path.is_dir() else (path,)
    return Garbage(path, reason, sum(file.lstat().st_size for file in files))


def _checkpoints_of_finished(folder: Path, suite: str) -> Iterator[Path]:
    for path in record_files(folder, suite):
        with suppress(RecordError):
            record = read_record(path)
            in_place = path == record_path(folder, record.settings)  # else the run may be unfinished
            checkpoint = checkpoint_path(folder, record.settings)
            if in_place and record.status == "finished" and checkpoint.exists():
                yield checkpoint
