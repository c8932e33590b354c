"""The index of a results folder: as the files are, whatever happens to it."""

import os
from pathlib import Path

import pytest

from equiscale.experiments import index as module
from equiscale.experiments.index import Row, read_rows, record_files
from equiscale.experiments.records import RunRecord, write_record
from tests.experiments.conftest import make_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for realisation in range(3):
        write_record(tmp_path / "results", make_record(realisation=realisation, error=2.0 + realisation))
    return tmp_path / "results"


def rows(folder: Path) -> list[Row]:
    return read_rows(folder, database=folder.parent / "index.sqlite")


def test_a_row_says_what_the_record_says(folder: Path) -> None:
    (first, second, third) = rows(folder)
    assert (first.status, first.model, first.error, first.epochs) == ("finished", "mnist_cnn_28", 2.0, 3)
    assert (second.realisation, third.error) == (1, 4.0)
    assert first.name == record_files(folder)[0].relative_to(folder).with_suffix("").as_posix()


def test_only_files_that_changed_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    look = module.read_record

    def counted(path: Path) -> RunRecord:
        read.append(path)
        return look(path)

    monkeypatch.setattr(module, "read_record", counted)
    assert len(rows(folder)) == len(read) == 3
    assert rows(folder) == rows(folder)
    assert len(read) == 3
    changed = record_files(folder)[1]
    text = changed.read_text()
    changed.write_text(text.replace('"error": 3.0', '"error": 9.0'))
    assert [row.error for row in rows(folder)] == [2.0, 9.0, 4.0]
    assert read[3:] == [changed]


def test_a_change_counts_although_size_and_time_are_the_same(folder: Path) -> None:
    """As when a clock was set back: the system's own time of change cannot be set."""
    changed, before = record_files(folder)[1], rows(folder)
    times = changed.stat()
    text = changed.read_text()
    replaced = text.replace('"error": 3.0', '"error": 9.0')
    assert len(replaced) == len(text)
    changed.write_text(replaced)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert before[1].error == 3.0
    assert rows(folder)[1].error == 9.0


def test_what_is_gone_is_forgotten_and_what_is_damaged_is_told(folder: Path) -> None:
    rows(folder)
    gone, damaged, _ = record_files(folder)
    gone.unlink()
    damaged.write_text("{")
    found = rows(folder)
    assert [row.status for row in found] == ["damaged", "finished"]
    assert "expected a valid run record" in found[0].note


@pytest.mark.parametrize("harm", ["garbage", "truncated", "folder", "another version", "another table"])
def test_a_damaged_index_is_made_again(folder: Path, harm: str) -> None:
    expected, database = rows(folder), folder.parent / "index.sqlite"
    if harm == "garbage":
        database.write_bytes(b"no database at all" * 500)
    elif harm == "truncated":
        database.write_bytes(database.read_bytes()[:5000])
    elif harm == "folder":
        database.unlink()
        database.mkdir()
    elif harm == "another version":
        _execute(database, "PRAGMA user_version = 99")
    else:
        _execute(database, "DROP TABLE records", "CREATE TABLE records (x)")
    assert rows(folder) == expected
    assert rows(folder) == expected


def _execute(database: Path, *statements: str) -> None:
    import sqlite3

    connection = sqlite3.connect(database)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_the_index_is_in_the_users_cache_and_not_in_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    before = sorted(folder.rglob("*"))
    assert len(read_rows(folder)) == 3
    assert sorted(folder.rglob("*")) == before
    assert len(list((folder.parent / "cache" / "equiscale" / "index").glob("*.sqlite"))) == 1


def test_other_files_are_no_records(folder: Path) -> None:
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "speed.json").write_text("{}")
    assert len(record_files(folder)) == 3
