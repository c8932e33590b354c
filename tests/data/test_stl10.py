"""STL-10 from generated files of its own format: archive, folder, download, and everything that is wrong."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.data import dataset_info, load, stl10
from equiscale.errors import ChecksumError, DataError, SettingError


def pack(
    files: dict[str, bytes],
    *,
    change: Callable[[tarfile.TarInfo], None] | None = None,
    folder: str = "stl10_binary",
) -> bytes:
    """The bytes of a .tar.gz with the files; ``change`` may spoil a member's header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            if change is not None:
                change(member)
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return buffer.getvalue()


def written(small: SimpleNamespace, content: bytes) -> Path:
    path = small.folder / "stl10_binary.tar.gz"
    path.write_bytes(content)
    return path


def test_images_are_upright_labels_start_at_zero_and_nothing_is_copied(small_stl10: SimpleNamespace) -> None:
    told: list[str] = []
    archive = written(small_stl10, pack(small_stl10.files))
    folder = stl10.prepare(small_stl10.root, source=archive, progress=told.append)
    assert folder == small_stl10.root / "stl10"
    assert len(told) == 2
    for split in ("train", "test"):
        data = load("stl10", split=split, root=small_stl10.root)
        assert np.array_equal(data.images.numpy(), small_stl10.images[split])
        assert data.labels.tolist() == small_stl10.labels[split].tolist()
        assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
        assert data.images.stride()[2:] == (1, 96), "a view of the file, not a converted copy"
        assert torch.equal(data.factors, torch.ones(len(data), dtype=torch.float64))
    assert {path.name for path in folder.iterdir()} == {
        "train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "fold_indices.txt", "manifest.json",
    }  # fmt: skip


def test_writing_to_loaded_images_leaves_the_file_alone(small_stl10: SimpleNamespace) -> None:
    stl10.prepare(small_stl10.root, source=written(small_stl10, pack(small_stl10.files)))
    load("stl10", split="train", root=small_stl10.root).images.zero_()
    assert load("stl10", split="train", root=small_stl10.root).images.any()


def test_the_folds(small_stl10: SimpleNamespace) -> None:
    stl10.prepare(small_stl10.root, source=written(small_stl10, pack(small_stl10.files)))
    checksums = {load("stl10", split="train", root=small_stl10.root).checksum}
    for number, fold in enumerate(small_stl10.folds):
        data = load("stl10-folds", split="train", realisation=number, root=small_stl10.root)
        assert np.array_equal(data.images.numpy(), small_stl10.images["train"][fold])
        assert data.labels.tolist() == small_stl10.labels["train"][fold].tolist()
        checksums.add(data.checksum)
        test = load("stl10-folds", split="test", realisation=number, root=small_stl10.root)
        assert (len(test), test.checksum) == (20, data.checksum)
    assert len(checksums) == 11
    assert (dataset_info("stl10").realisations, dataset_info("stl10-folds").realisations) == (1, 10)
    with pytest.raises(SettingError, match=r"realisation of stl10-folds of \[0, .*, 9\], got 10"):
        load("stl10-folds", split="train", realisation=10, root=small_stl10.root)


def test_the_known_sizes_are_the_published_ones() -> None:
    assert {file.name: file.size for file in stl10.FILES} == {
        "train_X.bin": 138_240_000, "train_y.bin": 5_000, "test_X.bin": 221_184_000, "test_y.bin": 8_000,
    }  # fmt: skip


def test_a_folder_serves_as_source_and_what_lies_in_the_root_is_found(small_stl10: SimpleNamespace) -> None:
    folder = small_stl10.root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, content in small_stl10.files.items():
        (folder / name).write_bytes(content)
    stl10.prepare(small_stl10.root)
    first = load("stl10", split="train", root=small_stl10.root).checksum
    stl10.prepare(small_stl10.folder / "other", source=folder)
    assert load("stl10", split="train", root=small_stl10.folder / "other").checksum == first
    (folder / "test_y.bin").unlink()
    with pytest.raises(DataError, match=r"expected STL-10's file .*test_y.bin, got none; give the archive"):
        stl10.prepare(small_stl10.folder / "third", source=folder)


def test_finished_files_are_left_alone(small_stl10: SimpleNamespace) -> None:
    stl10.prepare(small_stl10.root, source=written(small_stl10, pack(small_stl10.files)))
    before, told = (small_stl10.root / "stl10").stat().st_ino, []
    stl10.prepare(small_stl10.root, source="/nowhere", progress=told.append)
    assert (small_stl10.root / "stl10").stat().st_ino == before
    assert told == [f"stl10: {small_stl10.root / 'stl10'} is there and valid"]


def test_downloads_resumes_and_extracts(
    small_stl10: SimpleNamespace, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = pack(small_stl10.files)
    monkeypatch.setattr(stl10, "MIRRORS", (f"{server.url}/missing", f"{server.url}/cut"))
    monkeypatch.setattr(stl10, "ARCHIVE_MD5", hashlib.md5(server.content).hexdigest())
    result = CliRunner().invoke(
        app, ["data", "prepare", "stl10-folds", "--download", "--root", str(small_stl10.root)]
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"Prepared stl10-folds in {small_stl10.root}"
    assert [asked for path, asked in server.ranges if path == "/cut"] == [
        None,
        f"bytes={len(server.content) // 2}-",
    ]
    assert len(load("stl10", split="test", root=small_stl10.root)) == 20
    server.content = b"x" + server.content
    stl10.prepare(small_stl10.root, download=True)  # it is there, and nobody is asked
    with pytest.raises(ChecksumError, match=r"stl10_binary.tar.gz from one of its mirrors, got none"):
        stl10.prepare(small_stl10.folder / "other", download=True)
    assert not (small_stl10.folder / "other" / "stl10").exists()


# --- what is wrong ---


def refused(small: SimpleNamespace, content: bytes, message: str, kind: type[Exception] = DataError) -> None:
    """Refused with the message, and nothing is left behind, neither inside nor outside the root."""
    source = written(small, content)
    before = sorted(small.folder.rglob("*"))
    with pytest.raises(kind, match=message):
        stl10.prepare(small.root, source=source)
    assert [path for path in sorted(small.folder.rglob("*")) if path not in before] in ([], [small.root])


def test_members_with_other_names_are_never_written(small_stl10: SimpleNamespace) -> None:
    """Paths out of the folder, absolute paths, and a link under a name of its own: all passed over."""
    outside = small_stl10.folder / "evil"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name in ("../evil", "stl10_binary/../../evil", str(outside), "stl10_binary/./../evil"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("stl10_binary/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        archive.addfile(link)
        for name, content in small_stl10.files.items():
            member = tarfile.TarInfo(f"./stl10_binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    folder = stl10.prepare(small_stl10.root, source=written(small_stl10, buffer.getvalue()))
    assert len(list(folder.iterdir())) == 6
    assert not any(path.name in ("evil", "link") for path in small_stl10.folder.rglob("*"))


def test_refuses_links_under_the_known_names(small_stl10: SimpleNamespace) -> None:
    def link(member: tarfile.TarInfo) -> None:
        if member.name.endswith("train_X.bin"):
            member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0

    content = pack(small_stl10.files, change=link)
    refused(small_stl10, content, r"expected stl10_binary/train_X.bin in .*, got no such ordinary file")


def test_refuses_other_sizes_before_anything_is_written(small_stl10: SimpleNamespace) -> None:
    files = {**small_stl10.files, "train_y.bin": b"\1" * 100_000}
    refused(small_stl10, pack(files), r"expected 60 bytes of STL-10's train_y.bin, got 100000; get it again")
    files = {**small_stl10.files, "fold_indices.txt": b"0 " * (1 << 20)}
    refused(
        small_stl10, pack(files), r"expected at most 1048576 bytes of STL-10's fold_indices.txt, got 2097152"
    )


def test_refuses_damaged_and_incomplete_archives(small_stl10: SimpleNamespace) -> None:
    whole = pack(small_stl10.files)
    refused(small_stl10, whole[: len(whole) // 2], r"expected a whole stl10_binary.tar.gz in .*, got: ")
    refused(small_stl10, b"no archive", r"expected a whole stl10_binary.tar.gz in .*, got: .*get it again")
    refused(small_stl10, gzip.compress(b"no tar"), r"expected a whole stl10_binary.tar.gz")
    files = {name: content for name, content in small_stl10.files.items() if name != "test_X.bin"}
    refused(small_stl10, pack(files), r"expected stl10_binary/test_X.bin in .*, got no such ordinary file")


def test_refuses_other_bytes(small_stl10: SimpleNamespace) -> None:
    spoilt = bytearray(small_stl10.files["test_X.bin"])
    spoilt[1000] ^= 1
    content = pack({**small_stl10.files, "test_X.bin": bytes(spoilt)})
    refused(small_stl10, content, r"expected MD5 [0-9a-f]{32} of test_X.bin from .*, found", ChecksumError)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ("0 1 2\n" * 10, r"10 lines of 12 numbers of 0…59 in .*fold_indices.txt, got 10 lines of \[3, 3"),
        ((" ".join(["60"] * 12) + "\n") * 10, r"expected 10 lines of 12 numbers of 0…59"),
        ((" ".join(["5"] * 12) + "\n") * 9, r"got 9 lines"),
        ("a b\n", r"expected lines of whole numbers in .*fold_indices.txt, got: invalid literal"),
    ],
)
def test_refuses_folds_that_cannot_be(small_stl10: SimpleNamespace, folds: str, message: str) -> None:
    refused(small_stl10, pack({**small_stl10.files, "fold_indices.txt": folds.encode()}), message)


def test_refuses_labels_that_cannot_be(small_stl10: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = bytes([11] * 60)
    known = {file.name: file for file in stl10.FILES}
    changed = stl10.BinaryFile("train_y.bin", "train", 1, hashlib.md5(labels).hexdigest())
    monkeypatch.setattr(stl10, "FILES", list({**known, "train_y.bin": changed}.values()))
    content = pack({**small_stl10.files, "train_y.bin": labels})
    refused(small_stl10, content, r"expected 60 labels of 1…10 in .*train_y.bin, got 60 of 11…11")


def test_unprepared_and_damaged_files_are_told_with_the_command(small_stl10: SimpleNamespace) -> None:
    command = (
        rf"equiscale data prepare stl10 --root {small_stl10.root} --download \(or --source FILE with stl"
    )
    with pytest.raises(
        DataError, match=rf"expected prepared data in .*stl10, got no manifest.json; run: {command}"
    ):
        load("stl10", split="train", root=small_stl10.root)
    with pytest.raises(
        DataError, match=r"expected STL-10's stl10_binary.tar.gz or stl10_binary/ in .*, got nei"
    ):
        stl10.prepare(small_stl10.root)
    folder = stl10.prepare(small_stl10.root, source=written(small_stl10, pack(small_stl10.files)))
    with (folder / "test_X.bin").open("r+b") as file:
        file.write(b"\0\1\2\3")
    os.utime(folder / "test_X.bin", ns=(1, 1))
    with pytest.raises(
        ChecksumError, match=r"expected sha256:.* of .*test_X.bin, found another: it is damaged"
    ):
        load("stl10", split="train", root=small_stl10.root)
    shutil.rmtree(folder)


def test_settings_that_do_not_belong_to_it_are_refused(small_stl10: SimpleNamespace) -> None:
    with pytest.raises(SettingError, match=r"expected either a source or a download, got both: /x and"):
        stl10.prepare(small_stl10.root, source="/x", download=True)
    for option in (["--png"], ["--realisations", "0-2"]):
        result = CliRunner().invoke(app, ["data", "prepare", "stl10", *option])
        assert result.exit_code == 2
        assert result.output.startswith("equiscale: expected neither png nor realisations for stl10")


@pytest.mark.parametrize("kept", [(), ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")])
def test_a_manifest_without_its_files_is_refused_and_made_anew(
    kept: tuple[str, ...], small_stl10: SimpleNamespace
) -> None:
    source = written(small_stl10, pack(small_stl10.files))
    folder = stl10.prepare(small_stl10.root, source=source)
    stored = json.loads((folder / "manifest.json").read_text())
    files = {name: stamp for name, stamp in stored["files"].items() if name in kept}
    (folder / "manifest.json").write_text(json.dumps({**stored, "files": files}))
    for path in folder.iterdir():
        if path.name not in (*kept, "manifest.json"):
            path.unlink()
    with pytest.raises(
        DataError, match=r"expected .*fold_indices.txt among the files of .*, got none; run: "
    ):
        load("stl10-folds", split="train", root=small_stl10.root)
    stl10.prepare(small_stl10.root, source=source)
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == stored["files"].keys()
    load("stl10-folds", split="train", root=small_stl10.root)


def test_what_another_process_has_taken_meanwhile_is_left_alone(
    small_stl10: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(small_stl10, pack(small_stl10.files))
    find, places = stl10._find_origin, []

    def find_slowly(base: Path, chosen: Path | None) -> Path:
        monkeypatch.setattr(stl10, "_find_origin", find)
        places.append(stl10.prepare(small_stl10.root, source=source).stat().st_ino)
        return find(base, chosen)

    monkeypatch.setattr(stl10, "_find_origin", find_slowly)
    places.append(stl10.prepare(small_stl10.root, source=source).stat().st_ino)
    assert places[0] == places[1]
