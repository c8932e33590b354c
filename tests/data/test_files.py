import os
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from equiscale import _files
from equiscale._files import alone, atomic_path, check_zip_index
from equiscale.data.archives import archive_members
from equiscale.deploy.published import read_published_state_dict
from equiscale.errors import CheckpointError


def test_the_file_appears_under_its_name_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with atomic_path(target) as path:
        path.write_text("half")
        assert not target.exists()
        assert path.parent == target.parent
        path.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def crash() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_an_older_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with atomic_path(target) as path:
            path.mkdir()
            (path / name).write_text(name)
    assert [file.name for file in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("count", "synced"), [(3, False), (1_001, True)])
def test_the_files_of_a_folder_are_on_the_disk_before_the_rename(
    count: int, synced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.fstat(number).st_ino))
    monkeypatch.setattr(os, "sync", lambda: done.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    target = tmp_path / "folder"
    with atomic_path(target) as path:
        (path / "inner").mkdir(parents=True)
        for number in range(count):
            (path / "inner" / str(number)).write_text("text")
    before = done[: done.index("rename")]
    written = {path.stat().st_ino for path in (target, *target.rglob("*"))}
    assert before == ["sync"] if synced else set(before) == written
    assert done[-1] == tmp_path.stat().st_ino


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


# --- one at a time ---


def at_once(target: Path, count: int) -> int:
    """How many threads were at work on a target at the same time, at most."""
    inside: list[int] = []
    most: list[int] = []
    start = threading.Barrier(count)

    def work(number: int) -> None:
        start.wait()
        for _ in range(5):
            with alone(target):
                inside.append(number)
                time.sleep(0.002)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(most)


def test_one_at_a_time_is_at_work_on_a_target(tmp_path: Path) -> None:
    """Also who waited for a lock on a file that its holder has removed."""
    target = tmp_path / "new" / "folder"
    target.parent.mkdir()
    (target.parent / ".folder.lock").touch()  # of a process that died
    assert at_once(target, 8) == 1
    assert list(target.parent.iterdir()) == []


def test_targets_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with alone(tmp_path / "a"), alone(tmp_path / "b"):
        assert {path.name for path in tmp_path.iterdir()} == {".a.lock", ".b.lock"}


def test_a_failure_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), alone(tmp_path / "a"):
        raise KeyboardInterrupt
    with alone(tmp_path / "a"):
        pass


@pytest.mark.parametrize("has_flock", [False, True])
def test_nobody_waits_where_there_are_no_locks(
    has_flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        LOCK_EX = 2

        @staticmethod
        def flock(*_: object) -> None:
            raise OSError("not supported")

    monkeypatch.setattr(_files, "_LOCKS", Refusing if has_flock else None)
    with alone(tmp_path / "a"), alone(tmp_path / "a"):
        assert list(tmp_path.iterdir()) == []


# --- long lists of members ---


def long_zip(path: Path, size: int) -> Path:
    """A .zip whose list of members has a size, to less than a member."""
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(size // 60_046):
            packed.writestr(f"{number:060000}", b"")
    return path


def as_zip64(path: Path) -> Path:
    """The same list, announced in the other way: the old fields are full."""
    content = path.read_bytes()
    _, _, _, count, _, size, offset, _ = struct.unpack("<4s4H2LH", content[-22:])
    place = len(content) - 22
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content[:-22] + record + locator + end)
    return path


@pytest.mark.parametrize("change", [Path, as_zip64])
def test_a_list_of_members_that_is_too_long_is_refused(
    change: Callable[[Path], Path], tmp_path: Path
) -> None:
    short = change(long_zip(tmp_path / "short.zip", (4 << 20) - 60_046))
    check_zip_index(short)
    assert len(list(archive_members(short, max_bytes=1))) == 68
    long = change(long_zip(tmp_path / "long.zip", (4 << 20) + 60_046))
    for read in (check_zip_index, lambda path: list(archive_members(path, max_bytes=1))):
        with pytest.raises(zipfile.BadZipFile, match=r"an index of 42\d{5} bytes, more than 4194304"):
            read(long)
    with pytest.raises(CheckpointError, match="an index of"):
        read_published_state_dict(long)
