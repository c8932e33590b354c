import os
from pathlib import Path

import pytest

from equiscale._files import atomic_path


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
