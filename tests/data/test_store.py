import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from equiscale.data.scale_recipe import Split
from equiscale.data.store import (
    MANIFEST,
    arrays_checksum,
    open_splits,
    read_manifest,
    save_splits,
    unscaled,
    write_images,
)
from equiscale.errors import ChecksumError, DataError


def splits() -> dict[str, Split]:
    generator = np.random.default_rng(0)
    return {
        name: unscaled(generator.integers(0, 256, (count, 3, 4, 5), np.uint8), np.arange(count))
        for name, count in {"train": 6, "test": 3}.items()
    }


def saved(tmp_path: Path) -> Path:
    save_splits(tmp_path / "data", "pictures", splits(), notes={"state": "x"})
    return tmp_path / "data"


def test_arrays_come_back_as_maps_of_their_files(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    manifest = read_manifest(folder, mend="")
    assert (manifest.dataset, manifest.notes, manifest.checksum) == (
        "pictures",
        {"state": "x"},
        arrays_checksum(splits()),
    )
    found = open_splits(folder, ["train", "test"], mend="")
    for name, split in splits().items():
        assert isinstance(found[name].images, np.memmap)
        assert np.array_equal(found[name].images, split.images)
        assert np.array_equal(found[name].labels, split.labels)
        assert found[name].factors.tolist() == [1.0] * len(split.labels)
    found["train"].images[:] = 0
    assert open_splits(folder, ["train"], mend="")["train"].images.any()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("counts", [(), (0,), (3, 0, 120)])
def test_batches_make_the_same_file_as_one_array(counts: tuple[int, ...], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, 256, (count, 3, 4, 5), np.uint8) for count in counts]
    whole = np.concatenate([np.empty((0, 3, 4, 5), np.uint8), *batches])
    found = write_images(tmp_path / "a.npy", iter(batches), (3, 4, 5))
    np.save(tmp_path / "b.npy", whole)
    assert np.array_equal(found, whole)
    assert found.shape == whole.shape
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_the_checksum_sees_every_array_and_no_memory_layout() -> None:
    first = arrays_checksum(splits())
    turned = {name: unscaled(np.asfortranarray(s.images), s.labels) for name, s in splits().items()}
    assert arrays_checksum(turned) == first
    for name in ("train", "test"):
        for array in ("images", "labels"):
            changed = splits()
            getattr(changed[name], array)[0] += 1
            assert arrays_checksum(changed) != first


def test_a_copied_folder_is_read_once_more_and_accepted(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert (tmp_path / "copy" / "train-images.npy").stat().st_mtime_ns != (
        folder / "train-images.npy"
    ).stat().st_mtime_ns
    assert read_manifest(tmp_path / "copy", mend="") == read_manifest(folder, mend="")


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)
    monkeypatch.setattr("equiscale.data.store.file_checksum", lambda *_: pytest.fail("read again"))
    read_manifest(folder, mend="")


def test_damages_are_told(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder / "train-images.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        ChecksumError, match=r"expected sha256:\w+ of .*train-images.npy, found another.*; MEND"
    ):
        read_manifest(folder, mend="MEND")
    path.write_bytes(content[:-1])
    with pytest.raises(
        DataError, match=rf"expected {len(content)} bytes in .*, got {len(content) - 1}; MEND"
    ):
        read_manifest(folder, mend="MEND")
    path.unlink()
    with pytest.raises(DataError, match=r"expected the prepared file .*train-images.npy, got none; MEND"):
        read_manifest(folder, mend="MEND")
    with pytest.raises(DataError, match=r"expected prepared data in .*, got no manifest.json; MEND"):
        read_manifest(tmp_path, mend="MEND")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 7}, r"expected format version 1 in .*manifest.json, got 7; MEND"),
        (
            {"files": {"../evil": {"size": 1, "mtime_ns": 1, "checksum": "x"}}},
            r"the name of a file, got '../evil'",
        ),
        ({"files": {"a": {"size": 1}}}, r"expected a manifest in .*manifest.json, got: TypeError"),
        ({"files": []}, r"expected a manifest in"),
        ({"more": 1}, r"expected a manifest in"),
    ],
)
def test_manifests_that_cannot_be_are_told(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        read_manifest(path.parent, mend="MEND")
    path.write_text("no json")
    with pytest.raises(DataError, match=r"expected a manifest in .*, got: JSONDecodeError"):
        read_manifest(path.parent, mend="MEND")


def test_files_that_are_no_arrays_are_told(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "test-images.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"expected arrays of the split test in .*, got: .*; MEND"):
        open_splits(folder, ["test"], mend="MEND")


def test_the_quicker_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)

    def too_late(*_: object) -> None:
        raise OSError("Directory not empty")

    monkeypatch.setattr("equiscale._files.os.replace", too_late)
    monkeypatch.setattr("equiscale._files._remove", lambda path: None)
    assert save_splits(folder, "pictures", splits()).notes == {"state": "x"}
    other = {"train": splits()["test"]}
    with pytest.raises(OSError, match="Directory not empty"):
        save_splits(folder, "pictures", other)
