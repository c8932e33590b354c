"""An index of the records in a results folder: SQLite in the user's cache, which only saves time.

The files are the truth. A row counts as long as its file is the one that was read, and an index that is
damaged, or cannot be written, is made again.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from equiscale._files import user_cache
from equiscale.errors import RecordError
from equiscale.experiments.records import RunRecord, read_record

_RUN_ID: Final = re.compile(r".+-r\d+-s\d+-e\d+-[0-9a-f]{8}")
_VERSION: Final = 1
_PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Row:
    """What the index knows of a record.

    Args:
        name: ``suite/run-id``.
        status: "finished", "failed", or "damaged".
        model: The network; empty for a damaged record.
        dataset: Its data.
        augment: Their augmentation.
        realisation: Their realisation.
        epochs: Of the schedule.
        error: Percent of mistakes on the test split; None without a result.
        seconds: Of training.
        note: Why it failed, or what is wrong with the file.
    """

    name: str
    status: str
    model: str
    dataset: str
    augment: str
    realisation: int
    epochs: int
    error: float | None
    seconds: float
    note: str


_COLUMNS: Final = ", ".join(field.name for field in fields(Row))
_SLOTS: Final = ", ".join("?" for _ in range(len(fields(Row)) + 1))


def record_files(folder: Path, suite: str | None = None) -> list[Path]:
    """The records' files of a suite, or of all, in a results folder, sorted; other files have other names."""
    found = folder.glob("*/*.json") if suite is None else (folder / suite).glob("*.json")
    return sorted(path for path in found if _RUN_ID.fullmatch(path.stem))


def read_rows(folder: Path, *, database: Path | None = None) -> list[Row]:
    """A row for each record in a results folder.

    Args:
        folder: The results folder.
        database: The index; None: one in the user's cache.

    Returns:
        The rows in the order of their names.
    """
    path = database or _database_of(folder)
    try:
        return _indexed(folder, path)
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    try:
        return _indexed(folder, path)
    except (sqlite3.DatabaseError, OSError):
        return [_read(folder, file) for file in record_files(folder)]


def _database_of(folder: Path) -> Path:
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return user_cache() / "index" / f"{digest}.sqlite"


def _indexed(folder: Path, path: Path) -> list[Row]:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_PATIENCE_SECONDS)) as connection, connection:
        _prepare(connection)
        known = _known(connection)
        files = {_name(folder, file): (file, _signature(file)) for file in record_files(folder)}
        for name in known.keys() - files.keys():
            connection.execute("DELETE FROM records WHERE name = ?", (name,))
        for name, (file, signature) in files.items():
            if name not in known or known[name][0] != signature:
                row = _read(folder, file)
                connection.execute(f"REPLACE INTO records VALUES ({_SLOTS})", (*astuple(row), signature))
                known[name] = (signature, row)
        return [known[name][1] for name in sorted(files)]


def _prepare(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        connection.execute("DROP TABLE IF EXISTS records")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute(f"CREATE TABLE IF NOT EXISTS records ({_COLUMNS}, signature, PRIMARY KEY (name))")


def _known(connection: sqlite3.Connection) -> dict[str, tuple[str, Row]]:
    rows: Iterator[tuple] = connection.execute(f"SELECT {_COLUMNS}, signature FROM records")  # type: ignore[type-arg]
    return {row[0]: (row[-1], Row(*row[:-1])) for row in rows}


def _name(folder: Path, file: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _signature(file: Path) -> str:
    """What changes when a file is replaced, by whatever clock."""
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_size}"


def _read(folder: Path, file: Path) -> Row:
    name = _name(folder, file)
    try:
        record = read_record(file)
    except RecordError as error:
        return Row(name, "damaged", "", "", "", 0, 0, None, 0.0, str(error))
    return _row(name, record)


def _row(name: str, record: RunRecord) -> Row:
    settings = record.settings
    return Row(
        name=name,
        status=record.status,
        model=settings.model,
        dataset=settings.dataset,
        augment=settings.augment,
        realisation=settings.realisation,
        epochs=settings.protocol.epochs,
        error=record.test.error if record.test else None,
        seconds=record.provenance.train_seconds,
        note=record.failure or "",
    )
