"""One JSON record a run: what was run, on what, and what came out."""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from equiscale._files import atomic_path
from equiscale.errors import RecordError
from equiscale.experiments.spec import (
    Augmentation,
    FolderName,
    Many,
    Overrides,
    Protocol,
    Treatment,
    checked_file_name,
    problems,
)

_Record = TypeVar("_Record", bound=BaseModel)

SCHEMA_VERSION: Literal[1] = 1
_ID_DIGITS = 8
_MAX_RECORD_BYTES = 32 * 2**20
_MAX_PREDICTIONS = 10**7
_LARGEST_INTEGER = 2**63  # of bytes, operations and parameters
_LARGEST_REAL = 1e100  # a training that diverges has losses beyond all bounds, whose squares are summed
_WIDE = "uint16:"  # no character of base64 is a colon


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSettings(_Frozen):
    """Everything that decides the outcome of a run, and nothing else."""

    suite: FolderName
    dataset: str
    model: str
    augment: Augmentation
    realisation: int
    protocol: Protocol
    overrides: Overrides = ()

    @property
    def treatment(self) -> Treatment:
        """What is trained on what, whatever the realisation and the protocol."""
        return Treatment(self.model, self.overrides, self.augment, self.dataset)

    @property
    def run_id(self) -> str:
        """A readable name and a hash of all settings; the name of the record's file."""
        decisive = self.model_dump_json(exclude_defaults=True)  # a new field leaves old names alone
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:_ID_DIGITS]
        plus = "+" if self.augment == "scale" else ""
        return (
            f"{self.model}{plus}-r{self.realisation}-s{self.protocol.seed}-e{self.protocol.epochs}-{digest}"
        )


class EpochRecord(_Frozen):
    """One epoch; errors in percent, None where not measured."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_error: float
    validation_error: float | None
    seconds: float
    test_error: float | None = None


class DataRecord(_Frozen):
    """The data of a run.

    Args:
        checksum: Of the realisation's arrays.
        train: Images of the training split.
        validation: Of the validation split, 0 without one.
        test: Of the test split.
        train_factors: The smallest and the largest scale factor that was trained; None where not recorded.
    """

    checksum: str
    train: int
    validation: int
    test: int
    train_factors: tuple[float, float] | None = None


class FactorErrors(_Frozen):
    """Test errors by the image's scaling factor: counts in the bins between ``edges``."""

    edges: Many[float]
    images: Many[int]
    mistakes: Many[int]


class LayerEquivariance(_Frozen):
    """Relative equivariance error of the trained features behind one layer, at one scale factor."""

    layer: str
    factor: float
    error: float


class TestRecord(_Frozen):
    """The selected epoch on the test split.

    Args:
        epoch: The epoch that was tested, counted from 1.
        error: Percent of mistakes.
        predictions: The predicted class of every test image, see `encode_predictions`.
        by_factor: Mistakes by the image's scaling factor; None where all images have the same.
    """

    __test__ = False  # not a test case, whatever its name says

    epoch: int
    error: float
    predictions: str
    by_factor: FactorErrors | None = None


class Provenance(_Frozen):
    """What made the record."""

    versions: dict[str, str]
    machine: dict[str, str]
    commit: str | None
    clean: bool | None
    started: str
    finished: str
    train_seconds: float
    test_seconds: float


class RunRecord(_Frozen):
    """One run, finished or failed.

    Args:
        schema_version: Of this format.
        status: "finished", or "failed" with the reason in ``failure``.
        settings: What was asked for.
        parameters: Number of learned parameters.
        data: What it was trained and tested on.
        epochs: One entry an epoch.
        test: The result; None for a failed run.
        equivariance: Errors of the trained layers.
        inspection: Name of the .npz beside the record with filters, features and samples.
        notes: What went wrong without harm to the result, for example a picture that was left out.
        provenance: Versions, machine, commit and times.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["finished", "failed"]
    failure: str | None = None
    settings: RunSettings
    parameters: Annotated[int, Field(ge=0)]
    data: DataRecord
    epochs: Many[EpochRecord]
    test: TestRecord | None = None
    equivariance: Many[LayerEquivariance] = ()
    inspection: str | None = None
    notes: Many[str] = ()
    provenance: Provenance

    @field_validator("settings")
    @classmethod
    def _model_names_a_file(cls, settings: RunSettings) -> RunSettings:
        checked_file_name(settings.model)  # in a record alone: who asks for such a run hears of the models
        return settings


def encode_predictions(predictions: Sequence[int] | NDArray[np.integer]) -> str:
    """Classes 0 … 65535 as base64 of zlib of one byte an image, or of two where a class is above 255.

    Example:
        >>> decode_predictions(encode_predictions([3, 1, 4])).tolist()
        [3, 1, 4]
    """
    classes = np.asarray(predictions)
    wide = bool((classes > np.iinfo(np.uint8).max).any())
    raw = classes.astype("<u2" if wide else "u1").tobytes()
    return _WIDE * wide + base64.b64encode(zlib.compress(raw, 9)).decode()


def decode_predictions(encoded: str) -> NDArray[np.uint8 | np.uint16]:
    """The inverse of `encode_predictions`.

    Raises:
        RecordError: If the text is damaged or unreasonably long.
    """
    wide = encoded.startswith(_WIDE)
    limit = _MAX_PREDICTIONS * (1 + wide)
    try:
        inflater = zlib.decompressobj()
        text = encoded.removeprefix(_WIDE)
        raw = inflater.decompress(base64.b64decode(text, validate=True), limit)
    except (ValueError, zlib.error) as error:
        raise RecordError(f"expected predictions as base64 of zlib, got damaged text: {error}") from error
    if inflater.unconsumed_tail or not inflater.eof or len(raw) % (1 + wide):
        raise RecordError(f"expected at most {_MAX_PREDICTIONS} complete predictions, got more or a cut text")
    return np.frombuffer(raw, dtype="<u2" if wide else "u1")


def record_path(folder: Path, settings: RunSettings) -> Path:
    """Where the record of a run lies in a results folder."""
    return folder / settings.suite / f"{settings.run_id}.json"


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write a record atomically; returns its path.

    A finished record stays: what comes after it, from a worker that was taken for dead, is the same again.
    """
    target = record_path(folder, record.settings)
    if target.exists() and read_record(target).status == "finished":
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n")
    return target


def read_record(path: Path) -> RunRecord:
    """Read and validate one record.

    Raises:
        RecordError: If the file is missing, too large, or no valid record, with the reason.
    """
    return read_validated(
        path, RunRecord, _MAX_RECORD_BYTES, what="a valid run record", cure="delete it to run again"
    )


def read_validated(path: Path, model: type[_Record], most_bytes: int, *, what: str, cure: str) -> _Record:
    """Read a record of any schema; in errors ``what`` says what was expected, and ``cure`` what to do.

    Raises:
        RecordError: If the file is missing, too large, or no valid record, with the reason; numbers that are
            not finite are in none.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise RecordError(f"expected a record of at most {most_bytes} bytes, got a larger {path}")
        if not path.is_file():  # a pipe has no bytes, and no end
            raise OSError("no ordinary file")
        # A problem keeps what it is a problem of: one and the same value here, and from JSON a copy for each.
        record = model.model_validate(from_json(path.read_bytes()))
        _check_finite(record.model_dump())
        return record
    except (OSError, ValueError) as error:
        found = problems(error, "record") if isinstance(error, ValidationError) else error
        raise RecordError(f"expected {what} in {path}, got: {found}; {cure}") from error


def _check_finite(values: object) -> None:
    """JSON's readers take NaN, Infinity, 1e999 and a thousand digits for numbers; nothing could use them."""
    most = _LARGEST_INTEGER if isinstance(values, int) else _LARGEST_REAL
    if isinstance(values, int | float) and not -most <= values <= most:
        raise ValueError("a number that is not finite or far too large")
    inside = values.values() if isinstance(values, dict) else values
    if isinstance(inside, Iterable) and not isinstance(inside, str):
        for value in inside:
            _check_finite(value)


def read_records(folder: Path, suite: str) -> Iterator[RunRecord]:
    """All records of a suite in a results folder, in the order of their file names."""
    for path in sorted((folder / suite).glob("*.json")):
        yield read_record(path)
