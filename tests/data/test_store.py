import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equiscale.data.scale_recipe import Split
from equiscale.data.store import (
    MANIFEST,
    Manifest,
    arrays_checksum,
    map_bytes,
    open_splits,
    read_manifest,
    save_made,
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


# --- several that make the same ---


def test_one_makes_a_folder_and_the_others_wait_for_it(tmp_path: Path) -> None:
    start, made = threading.Barrier(4), []

    def make(folder: Path) -> tuple[Mapping[str, Split], Mapping[str, Any]]:
        made.append(folder)
        threading.Event().wait(0.3)  # nobody else may begin
        for name, split in splits().items():
            np.save(folder / f"{name}-images.npy", split.images)
        return splits(), {"state": "x"}

    def save(_: int) -> tuple[Manifest, int]:
        start.wait()
        found = save_made(tmp_path / "data", "pictures", make=make, keep=lambda found: True)
        return found, (tmp_path / "data").stat().st_ino

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(save, range(4)))
    assert len(made) == 1
    assert len({folder for _, folder in found}) == 1
    assert all(manifest == found[0][0] for manifest, _ in found)


def test_a_folder_of_another_state_is_made_anew(tmp_path: Path) -> None:
    asked: list[Manifest] = []

    def keep(found: Manifest) -> bool:
        asked.append(found)
        return False

    folder = saved(tmp_path)
    save_made(folder, "pictures", make=lambda _: (splits(), {"state": "y"}), keep=keep)
    assert [manifest.notes for manifest in asked] == [{"state": "x"}]
    assert read_manifest(folder, mend="").notes == {"state": "y"}


def test_the_same_arrays_are_left_where_they_are(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    place = folder.stat().st_ino
    manifest = save_splits(folder, "pictures", splits(), notes={"state": "x"})
    assert (folder.stat().st_ino, manifest) == (place, read_manifest(folder, mend=""))
    for notes in ({"state": "y"}, {}):
        save_splits(folder, "pictures", splits(), notes=notes)
        assert read_manifest(folder, mend="").notes == notes
    save_splits(folder, "pictures", {"train": splits()["test"]})
    assert sorted(read_manifest(folder, mend="").files) == ["train-images.npy", "train-labels.npy"]
    save_splits(folder, "drawings", {"train": splits()["test"]})
    assert read_manifest(folder, mend="").dataset == "drawings"


@pytest.mark.parametrize("call", ["read_text", "stat"])
def test_a_folder_that_goes_while_it_is_read_is_told(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError("gone")

    folder = saved(tmp_path)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, call, gone)
    with pytest.raises(DataError, match=r"expected a manifest in .*, got: FileNotFoundError\('gone'\); MEND"):
        read_manifest(folder, mend="MEND")


def test_a_file_that_goes_while_it_is_compared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError("gone")

    folder = saved(tmp_path)
    os.utime(folder / "train-images.npy", ns=(1, 1))
    monkeypatch.setattr("equiscale.data.store.file_checksum", gone)
    with pytest.raises(DataError, match=r"expected the prepared file .*train-images.npy, got none; MEND"):
        read_manifest(folder, mend="MEND")


# --- folders of anyone ---


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", ".", "", "a\0b", "a\x1b[2J", "\udcff", "a/b"])
def test_a_manifest_names_only_the_files_beside_it(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change(folder, lambda stored: stored["files"].update({name: stored["files"]["train-images.npy"]}))
    with pytest.raises(DataError, match=r"expected a manifest in .*, got: .*expected the name of a file"):
        read_manifest(folder, mend="")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dataset", 1), ("checksum", None), ("notes", []), ("version", True), ("files", []), ("files", None)],
)
def test_a_manifest_of_other_types_is_refused(field: str, value: object, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change(folder, lambda stored: stored.update({field: value}))
    with pytest.raises(DataError, match=r"expected a manifest in .*, got: (TypeError|AttributeError)"):
        read_manifest(folder, mend="")


@pytest.mark.parametrize("stamp", [{}, {"size": "3", "mtime_ns": 1, "checksum": "x"}, {"size": 1}, None, 5])
def test_a_stamp_of_other_types_is_refused(stamp: object, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change(folder, lambda stored: stored["files"].update({"train-images.npy": stamp}))
    with pytest.raises(DataError, match=r"expected a manifest in .*, got: TypeError"):
        read_manifest(folder, mend="")


def test_a_manifest_that_is_deep_or_long_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"expected a manifest in .*, got: RecursionError"):
        read_manifest(folder, mend="")
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match="expected a manifest of at most 67108864 bytes, got 67108865"):
        read_manifest(folder, mend="")


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads((folder / MANIFEST).read_text())
    edit(stored)
    (folder / MANIFEST).write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("shape", "descr", "message"),
    [
        ((10**13,), "|u1", "is shorter than its header says"),
        ((100, 100), "|u1", "is shorter than its header says"),
        ((2**40, 2**40), "|u1", "is shorter than its header says"),
        ((0, 10**30), "|u1", "is shorter than its header says"),
        ((-1, -5), "|u1", "is shorter than its header says"),
        ((1,), "|O", "values of type object on 1 axes"),
        ((1,), "|V4", "values of type"),
        ((1,) * 9, "|u1", "values of type uint8 on 9 axes"),
        ((2.5,), "|u1", "(no header of an array|shape)"),
    ],
)
@pytest.mark.parametrize("file", ["images", "labels"])
def test_an_array_is_compared_with_its_file_before_memory_is_taken(
    shape: tuple[Any, ...], descr: str, message: str, file: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path)
    with (folder / f"train-{file}.npy").open("wb") as stream:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(64))
    with pytest.raises(DataError, match=rf"expected arrays of the split train in .*, got: .*{message}"):
        open_splits(folder, ["train"], mend="")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((6, 3, 4, 5), np.uint8), np.arange(5)),
        (np.zeros((6, 3, 4, 5), np.float32), np.arange(6)),
        (np.zeros((6, 3, 4, 5), np.uint8), np.zeros(6)),
        (np.zeros((6, 3), np.uint8), np.arange(6)),
        (np.zeros((6, 3, 4, 5), np.uint8), np.zeros((6, 1), np.int64)),
    ],
)
def test_images_and_labels_fit_each_other(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    folder = saved(tmp_path)
    np.save(folder / "train-images.npy", images)
    np.save(folder / "train-labels.npy", labels)
    with pytest.raises(DataError, match=r"expected images of bytes and as many labels of the split train"):
        open_splits(folder, ["train"], mend="")


def test_an_archive_in_the_place_of_an_array_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    np.savez(folder / "a.npz", a=np.zeros((6, 3, 4), np.uint8))
    (folder / "a.npz").rename(folder / "train-images.npy")
    with pytest.raises(DataError, match=r"expected arrays of the split train in .*, got: the magic string"):
        open_splits(folder, ["train"], mend="")
    np.save(folder / "train-images.npy", np.asfortranarray(np.zeros((6, 3, 4), np.uint8)))
    with pytest.raises(DataError, match="an array by columns, not by rows"):
        open_splits(folder, ["train"], mend="")


def test_mapped_bytes_are_as_many_as_the_shape_says(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(6))
    assert map_bytes(tmp_path / "a", (2, 3)).shape == (2, 3)
    for shape in ((7,), (5,), (2**40, 2**40)):
        with pytest.raises(DataError, match=r"expected \d+ bytes in .*a, got 6; prepare the data again"):
            map_bytes(tmp_path / "a", shape)


def test_missing_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the prepared file .*a, got: .*; prepare the data again"):
        map_bytes(tmp_path / "a", (2, 3))
