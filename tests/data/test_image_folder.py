"""A folder of one's own: what is read, what is left out, what is refused, and when it is read again."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.data import dataset_info, image_folder, load
from equiscale.data.decoding import decode_all, decode_image
from equiscale.data.image_folder import FolderSettings, channel_statistics, load_folder, parse_name
from equiscale.errors import DataError, SettingError

LOADING = """
import pathlib, sys, time
from equiscale.data.image_folder import load_folder
tree, root, number = map(pathlib.Path, sys.argv[1:])
(tree.parent / f"ready-{number}").touch()
while not (tree.parent / "go").exists():
    time.sleep(0.001)
found = load_folder(tree, split="train", size=16, root=root)
(folder,) = root.glob("folders/*")
print(len(found), found.checksum, folder.stat().st_ino)
"""
CLASSES = ("cat", "dog", "Zebra")


def add(path: Path, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes, three formats, train and test."""
    tree = tmp_path / "pictures"
    for split, count in {"train": 3, "test": 2}.items():
        for label, name in enumerate(CLASSES):
            for index, suffix in enumerate(("jpg", "PNG", "webp")[:count]):
                add(tree / split / name / f"{index}.{suffix}", 10 * label + index)
    return tree


def test_images_labels_and_classes_in_the_order_of_their_names(tree: Path) -> None:
    data = load_folder(tree, split="train", size=16)
    assert data.images.shape == (9, 3, 16, 16)
    assert data.images.dtype == torch.uint8
    assert data.info.class_names == ("Zebra", "cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.factors.tolist() == [1.0] * 9
    files = [
        tree / "train" / name / file for name in sorted(CLASSES) for file in ("0.jpg", "1.PNG", "2.webp")
    ]
    for image, path in zip(data.images, files, strict=True):
        assert np.array_equal(image.numpy(), decode_image(path.read_bytes(), 16))


def test_it_is_a_data_set_by_name(tree: Path, tmp_path: Path) -> None:
    name, root = f"image-folder:{tree}?size=16", tmp_path / "root"
    info = dataset_info(name, root=root)
    assert (info.name, info.num_classes, info.image_shape) == (name, 3, (3, 16, 16))
    assert info.split_sizes == {"train": 9, "test": 6}
    data = load(name, split="test", root=root)
    direct = load_folder(tree, split="test", size=16, root=root)
    assert torch.equal(data.images, direct.images)
    assert (data.checksum, data.mean, data.std) == (direct.checksum, direct.mean, direct.std)
    train = load(name, split="train", root=root)
    assert train.checksum == data.checksum
    values = train.images.double() / 255
    assert data.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert data.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    assert load(f"image-folder:{tree}", split="train", root=root).images.shape == (9, 3, 96, 96)
    with pytest.raises(SettingError, match=r"of \['train', 'test'\], got 'val'; it has no validation images"):
        load(name, split="val", root=root)


def test_a_validation_split_where_there_is_one(tree: Path) -> None:
    add(tree / "val" / "dog" / "a.png", 77)
    assert dataset_info(f"image-folder:{tree}").split_sizes == {"train": 9, "val": 1, "test": 6}
    assert load_folder(tree, split="val").labels.tolist() == [2]


def test_unchanged_folders_are_decoded_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_folder(tree, split="train", size=16)
    decode = "equiscale.data.image_folder.decode_all"
    with monkeypatch.context() as patch:
        patch.setattr(decode, lambda *_: pytest.fail("decoded again"))
        again = load_folder(tree, split="train", size=16)
    assert torch.equal(first.images, again.images)
    add(tree / "train" / "cat" / "new.png", 99)
    grown = load_folder(tree, split="train", size=16)
    assert len(grown) == 10
    assert grown.checksum != first.checksum
    path = tree / "train" / "cat" / "0.jpg"
    state = path.stat()
    add(path, 50)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert load_folder(tree, split="train", size=16).checksum != grown.checksum


def test_hidden_other_and_outside_files_are_left_out(tree: Path, tmp_path: Path) -> None:
    outside = add(tmp_path / "secret" / "a.png")
    cat = tree / "train" / "cat"
    (cat / ".hidden.png").write_bytes(b"hidden")
    (cat / "notes.txt").write_text("notes")
    (cat / "folder.png").mkdir()
    (tree / "train" / "readme.md").write_text("text")
    (tree / "train" / ".cache").mkdir()
    (cat / "link.png").symlink_to(outside)
    (tree / "train" / "outside").symlink_to(outside.parent)
    (cat / "broken.png").symlink_to(tree / "nowhere.png")
    data = load_folder(tree, split="train", size=16)
    assert (len(data), data.num_classes) == (9, 3)
    (cat / "inside.png").symlink_to(tree / "train" / "dog" / "1.PNG")
    assert len(load_folder(tree, split="train", size=16)) == 10


def test_a_split_that_is_a_link_out_of_the_folder_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train").symlink_to(tree / "train")
    with pytest.raises(DataError, match=rf"train inside .*other, got a link that leads out of it, to {tree}"):
        load_folder(tmp_path / "other", split="train")


def test_corrupt_images_are_listed_and_refused(tree: Path) -> None:
    (tree / "train" / "cat" / "bad.png").write_bytes(b"text")
    (tree / "test" / "dog" / "cut.jpg").write_bytes((tree / "test" / "dog" / "0.jpg").read_bytes()[:400])
    message = (
        rf"expected whole images in {tree}, got 2 that are not: "
        r"train/cat/bad.png \(no JPEG, PNG or WebP image\), "
        r"test/dog/cut.jpg \(damaged: .*\); mend or remove them, or skip them with on_corrupt='skip' "
        rf"\(image-folder:{tree}\?on_corrupt=skip\)"
    )
    with pytest.raises(DataError, match=message):
        load_folder(tree, split="train")


def test_many_corrupt_images_are_counted(tree: Path) -> None:
    for index in range(30):
        (tree / "train" / "cat" / f"bad{index:02}.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"got 30 that are not: .*bad09.png \([^)]*\) and 20 more; mend"):
        load_folder(tree, split="train")


def test_corrupt_images_are_skipped_where_that_is_asked_for(tree: Path) -> None:
    whole = load_folder(tree, split="train", size=16)
    (tree / "train" / "cat" / "1bad.png").write_bytes(b"text")
    name = f"image-folder:{tree}?size=16&on_corrupt=skip"
    told = "files left out because they are no whole image: 1 (train/cat/1bad.png)"
    with pytest.warns(UserWarning, match=re.escape(f"{name}: {told}")):
        data = load(name, split="train")
    assert torch.equal(data.images, whole.images)
    assert data.labels.tolist() == whole.labels.tolist()
    assert dataset_info(name).split_sizes == {"train": 9, "test": 6}
    assert data.info.notes == dataset_info(name).notes == (told,), "the warning comes once, the notes stay"
    assert whole.info.notes == ()
    for path in (tree / "test").rglob("*.*"):
        path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"whole images in every split of .*, got \{'train': 9, 'test': 0\}"):
        load(name, split="train")


def test_a_class_that_skipping_leaves_without_training_images_is_refused(tree: Path) -> None:
    for path in (tree / "train" / "dog").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"whole training images of every class in .*, got none of dog; mend"):
        load(f"image-folder:{tree}?size=16&on_corrupt=skip", split="test")


def test_images_are_decoded_in_batches_that_memory_holds(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_folder(tree, split="train", size=16, root=tree / "a")
    for name in ("cat/1bad.png", "cat/2bad.png", "dog/bad.png"):
        (tree / "train" / name).write_bytes(b"text")
    sizes = []
    monkeypatch.setattr(image_folder, "_BATCH_BYTES", 2 * 3 * 16 * 16 + 5)

    def decode(readers: list[object], out: np.ndarray) -> dict[int, str]:
        sizes.append(len(out))
        return decode_all(readers, out)  # type: ignore[arg-type]

    monkeypatch.setattr(image_folder, "decode_all", decode)
    with pytest.warns(
        UserWarning, match=r": 3 \(train/cat/1bad.png, train/cat/2bad.png, train/dog/bad.png\)"
    ):
        parts = load_folder(tree, split="train", size=16, on_corrupt="skip", root=tree / "b")
    assert sizes == [2] * 6 + [2] * 3
    assert parts.checksum == whole.checksum
    assert torch.equal(parts.images, whole.images)
    assert torch.equal(parts.labels, whole.labels)


def test_the_command_prepares_a_folder_in_the_root(tree: Path, tmp_path: Path) -> None:
    (tree / "train" / "cat" / "bad.png").write_bytes(b"text")
    name, root = f"image-folder:{tree}?size=16&on_corrupt=skip", tmp_path / "root"
    arguments = ["data", "prepare", name, "--root", str(root)]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments)
        assert result.output == (
            f"{name}: {{'train': 9, 'test': 6}} images\n"
            "files left out because they are no whole image: 1 (train/cat/bad.png)\n"
            f"Prepared {name} in {root}\n"
        )
    assert len(list((root / "folders").iterdir())) == 1
    for option in (["--source", "x"], ["--download"], ["--realisations", "0"], ["--png"]):
        result = CliRunner().invoke(app, [*arguments, *option])
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        assert result.output.startswith("equiscale: expected neither source, download, realisations nor png")
        result = CliRunner().invoke(app, ["data", "prepare", "digits-scale", *option])
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        assert result.output.startswith("equiscale: expected no option but --root for digits-scale")


def test_folders_that_cannot_be_are_told(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected the folder .*nowhere/train with a folder of images for each"
    ):
        load_folder(tmp_path / "nowhere", split="train")
    (tree / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"at least two classes with images .* got \{.*'empty': 0\}"):
        load_folder(tree, split="train")
    (tree / "train" / "empty").rmdir()
    add(tree / "test" / "wolf" / "a.png")
    with pytest.raises(
        DataError, match=r"expected the classes of .*train, \['Zebra', 'cat', 'dog'\], .* 'wolf'"
    ):
        load_folder(tree, split="train")
    add(tmp_path / "one" / "train" / "cat" / "a.png")
    with pytest.raises(DataError, match=r"at least two classes with images .*, got \{'cat': 1\}"):
        load_folder(tmp_path / "one", split="train")
    (tmp_path / "none" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"at least two classes with images .*, got no folders"):
        load_folder(tmp_path / "none", split="train")


@pytest.mark.parametrize(
    "name",
    [
        "image-folder:",
        "image-folder:/x?size=big",
        "image-folder:/x?sise=3",
        "image-folder:?size=3",
        "image-folder:/x?size=",
        "image-folder:/x?size=²",
        "image-folder:/x?size=٣",
        "image-folder:/x?size=" + "9" * 5000,
    ],
)
def test_names_that_cannot_be_are_told(name: str) -> None:
    with pytest.raises(
        SettingError, match=r"expected a name like image-folder:/path or .*, got 'image-folder:"
    ):
        load(name, split="train")


def test_settings_that_cannot_be_are_told(tree: Path) -> None:
    with pytest.raises(SettingError, match=r"expected on_corrupt of \('refuse', 'skip'\), got 'keep'"):
        load(f"image-folder:{tree}?on_corrupt=keep", split="train")
    with pytest.raises(SettingError, match=r"expected a size of 1 to 4096 pixels, got 0"):
        load_folder(tree, split="train", size=0)
    with pytest.raises(SettingError, match=r"split of image-folder:.* of \['train', 'test'\], got 'dev'"):
        load_folder(tree, split="dev", size=16)


def test_names_and_settings_tell_the_same() -> None:
    for settings in (FolderSettings(Path("/a b")), FolderSettings(Path("/x"), 32, "skip")):
        assert parse_name(settings.name) == settings
    assert parse_name("image-folder:here").path == Path("here").absolute()


def test_statistics_of_many_chunks() -> None:
    images = np.random.default_rng(0).integers(0, 200, (1200, 2, 3, 5), np.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)).tolist(), abs=6e-5)
    assert std == pytest.approx((images / 255).std((0, 2, 3)).tolist(), abs=6e-5)
    assert min(channel_statistics(np.zeros((1, 3, 2, 2), np.uint8))[1]) > 0


def test_links_in_circles_are_left_out(tree: Path) -> None:
    circle = tree / "train" / "cat" / "circle.png"
    circle.symlink_to(circle)
    assert len(load_folder(tree, split="train", size=8)) == 9
    (tree / "val").symlink_to(tree / "val")
    with pytest.raises(DataError, match=r"expected val inside .*, got a link that leads out of it"):
        load_folder(tree, split="train", size=8)


@pytest.mark.parametrize("name", [b"\xff.png", b"a\x1b[2J.png", b"two\nlines.png", "\u202egnp.png".encode()])
def test_names_that_cannot_be_shown_are_refused(name: bytes, tree: Path) -> None:
    path = os.fsencode(tree / "train" / "cat") + b"/" + name
    os.rename(add(tree / "train" / "cat" / "new.png"), path)
    with pytest.raises(DataError, match=r"expected names of printable characters in .*cat, got '.*'; rename"):
        load_folder(tree, split="train", size=8)


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(SettingError, match=r"expected the path of a folder, got '~nobody-of-that-name/a': "):
        parse_name("image-folder:~nobody-of-that-name/a")


def test_a_manifest_without_its_notes_is_made_anew(tree: Path, tmp_path: Path) -> None:
    load_folder(tree, split="train", size=8, root=tmp_path / "root")
    (manifest,) = (tmp_path / "root").rglob("manifest.json")
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**stored, "notes": {}}))
    assert len(load_folder(tree, split="train", size=8, root=tmp_path / "root")) == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", None),
        ("classes", ["cat", "dog", "fox"]),
        ("sizes", 3),
        ("sizes", {}),
        ("sizes", {"train": "9"}),
        ("sizes", {"train": 9, "other": 1}),
        ("sizes", {"train": True}),
        ("mean", 5),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", [0.5, 0.5, "0.5"]),
        ("std", None),
        ("std", [0.5, 0.5, 0.0]),
        ("skipped", [1]),
        ("skipped", "a"),
    ],
)
def test_a_manifest_with_other_notes_is_made_anew(
    name: str, value: object, tree: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    first = load_folder(tree, split="train", size=8, root=root).info
    (manifest,) = root.rglob("manifest.json")
    stored = json.loads(manifest.read_text())
    notes = {**stored["notes"], name: value}
    if value is None:
        del notes[name]
    manifest.write_text(json.dumps({**stored, "notes": notes}))
    again = load_folder(tree, split="train", size=8, root=root).info
    for field in ("class_names", "split_sizes", "mean", "std", "notes"):
        assert getattr(again, field) == getattr(first, field)
    assert json.loads(manifest.read_text())["notes"] == stored["notes"]


def test_processes_that_load_at_once_share_one_folder(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADING, str(tree), str(tmp_path / "root")]
    started = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(started) and all(one.poll() is None for one in started):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    told = [process.communicate(timeout=60) for process in started]
    assert [errors for _, errors in told] == [""] * 3
    assert len({output for output, _ in told}) == 1
    assert told[0][0].startswith("9 ")
    assert len(list((tmp_path / "root" / "folders").iterdir())) == 1
