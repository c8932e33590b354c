"""Imagenette from generated archives of both kinds, from the real zip, and from archives that are hostile."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.data import dataset_info, imagenette, load
from equiscale.data.decoding import decode_image
from equiscale.data.image_folder import channel_statistics
from equiscale.errors import DataError, SettingError

Files = dict[str, bytes]


def encoded(seed: int, kind: str, side: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Two training images and one test image of each class, as in the zip and as in the public archive."""
    monkeypatch.setitem(imagenette.SPLIT_SIZES, "train", 20)
    monkeypatch.setitem(imagenette.SPLIT_SIZES, "test", 10)
    monkeypatch.delenv(imagenette.SOURCE_VARIABLE, raising=False)
    zipped, tarred = {}, {}
    for label, (number, name) in enumerate(imagenette.CLASSES.items()):
        for split, count in {"train": 2, "val": 1}.items():
            for index in range(count):
                seed = 100 * label + 10 * index + (split == "val")
                zipped[f"imagenette96/{split}/{name}/{index:04}.webp"] = encoded(seed, "webp", 96)
                tarred[f"imagenette2-160/{split}/{number}/{number}_{index}.JPEG"] = encoded(seed, "jpeg", 160)
    tarred["imagenette2-160/noisy_imagenette.csv"] = b"a table"
    return SimpleNamespace(zipped=zipped, tarred=tarred, root=tmp_path / "root", folder=tmp_path)


def zip_file(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in reversed(files.items()):  # the order in the archive does not matter
            archive.writestr(name, content)
    return path


def tgz_file(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_both_archives_give_the_same_classes_and_different_pixels(small: SimpleNamespace) -> None:
    checksums = []
    for make, files in ((zip_file, small.zipped), (tgz_file, small.tarred)):
        root = small.folder / make.__name__
        imagenette.prepare(root, source=make(small.folder / f"{make.__name__}.archive", files))
        train, test = (load("imagenette96", split=split, root=root) for split in ("train", "test"))
        assert (train.images.shape, test.images.shape) == ((20, 3, 96, 96), (10, 3, 96, 96))
        assert train.labels.tolist() == [label for label in range(10) for _ in range(2)]
        assert test.labels.tolist() == list(range(10))
        images = [content for name, content in files.items() if "/train/" in name]
        for image, content in zip(train.images, images, strict=True):
            assert np.array_equal(image.numpy(), decode_image(content, 96))
        checksums.append(train.checksum)
    assert checksums[0] != checksums[1]


def test_it_is_made_again_only_from_another_source(
    small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zip_file(small.folder / "a.zip", small.zipped)
    second = tgz_file(small.folder / "b.tgz", small.tarred)
    told: list[str] = []

    def prepare(**options: Path) -> str:
        told.clear()
        imagenette.prepare(small.root, progress=told.append, **options)
        return told[-1]

    assert "has SHA-256" in prepare(source=first)
    assert prepare(source=first).endswith("is there and valid")
    assert prepare().endswith("is there and valid")
    before = load("imagenette96", split="test", root=small.root).checksum
    assert "has SHA-256" in prepare(source=second)
    assert load("imagenette96", split="test", root=small.root).checksum != before
    monkeypatch.setenv(imagenette.SOURCE_VARIABLE, str(first))
    assert "has SHA-256" in prepare()
    assert load("imagenette96", split="test", root=small.root).checksum == before


def test_a_known_zip_that_is_decoded_differently_is_told_and_kept(
    small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = zip_file(small.folder / "a.zip", small.zipped)
    monkeypatch.setattr(imagenette, "ZIP_MD5", hashlib.md5(source.read_bytes()).hexdigest())
    told: list[str] = []
    imagenette.prepare(small.root, source=source, progress=told.append)
    assert "this libwebp decodes them a little differently (SHA-256 " in told[-1]
    found = load("imagenette96", split="train", root=small.root).checksum
    monkeypatch.setattr(imagenette, "ZIP_CHECKSUM", found)
    imagenette.prepare(small.folder / "other", source=source, progress=told.append)
    assert told[-1].endswith(f"has the expected SHA-256 {found}")


def test_downloads_the_public_archive(
    small: SimpleNamespace, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = tgz_file(small.folder / "public.tgz", small.tarred).read_bytes()
    monkeypatch.setattr(imagenette, "MIRRORS", (f"{server.url}/cut",))
    monkeypatch.setattr(imagenette, "ARCHIVE_MD5", hashlib.md5(server.content).hexdigest())
    for _ in range(2):
        result = CliRunner().invoke(
            app, ["data", "prepare", "imagenette96", "--download", "--root", str(small.root)]
        )
        assert result.exit_code == 0, result.output
    assert f"imagenette96: {small.root / 'imagenette96'} is there and valid" in result.output
    assert [asked for _, asked in server.ranges] == [None, f"bytes={len(server.content) // 2}-"]
    assert len(load("imagenette96", split="test", root=small.root)) == 10


# --- what is wrong ---


def refused(small: SimpleNamespace, source: Path, message: str) -> None:
    before = sorted(small.folder.rglob("*"))
    with pytest.raises(DataError, match=message):
        imagenette.prepare(small.root, source=source)
    assert [path for path in sorted(small.folder.rglob("*")) if path not in before] in ([], [small.root])


def test_members_with_other_names_are_never_written(small: SimpleNamespace) -> None:
    """Paths out of the folder, in both kinds of archives, and a link in the place of an image."""
    evil = encoded(1, "jpeg", 96)
    names = ("../evil.jpg", "/evil.jpg", "a/../../train/tench/evil.jpg", "x/train/tench/../evil.jpg")
    extra = {
        **dict.fromkeys(names, evil),
        "x/train/wolf/evil.jpg": evil,
        "a/train/tench/b\\evil.jpg": evil,
    }
    for make, files in ((zip_file, small.zipped), (tgz_file, small.tarred)):
        root = small.folder / make.__name__
        folder = imagenette.prepare(
            root, source=make(small.folder / f"{make.__name__}.x", {**files, **extra})
        )
        assert len(list(folder.iterdir())) == 5
    assert not [path for path in small.folder.rglob("*") if "evil" in path.name]
    path = small.folder / "link.tgz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("x/train/tench/evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused(small, path, r"under <any>/train/<class>/ and <any>/val/<class>/, got \{'train': 0, 'test': 0\}")


def test_refuses_images_that_are_too_large(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(small.zipped))
    bomb = {**small.zipped, name: bytes(5 << 20)}
    message = rf"expected images of at most 4194304 bytes, \d+ together, in .*, got {name} of 5242880"
    path = small.folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, content in bomb.items():
            archive.writestr(key, content)
    assert path.stat().st_size < 2 << 20
    refused(small, path, message)
    refused(small, tgz_file(small.folder / "bomb.tgz", bomb), message)
    monkeypatch.setattr(imagenette, "_MAX_TOTAL_BYTES", 100_000)
    refused(
        small, zip_file(small.folder / "a.zip", small.zipped), r"100000 together, in .*, got .*, \d+ together"
    )


def test_refuses_images_of_too_many_pixels_and_damaged_ones(small: SimpleNamespace) -> None:
    name = "imagenette96/val/church/0000.webp"
    files = {**small.zipped, name: small.zipped[name][:500]}
    refused(
        small, zip_file(small.folder / "a.zip", files), r"got 1 that are not, the first 0000.webp: damaged: "
    )


def test_only_the_ending_of_a_name_may_be_in_capitals(small: SimpleNamespace) -> None:
    name, content = next(iter(small.zipped.items()))
    files = {key: value for key, value in small.zipped.items() if key != name}
    loud = zip_file(small.folder / "a.zip", {**files, name.replace(".webp", ".WEBP"): content})
    imagenette.prepare(small.root, source=loud)
    for other in (name.replace("train", "Train"), name.replace("tench", "Tench")):
        path = zip_file(small.folder / "b.zip", {**files, other: content})
        refused(small, path, r"got \{'train': 19, 'test': 10\}")


def test_refuses_other_numbers_of_images(small: SimpleNamespace) -> None:
    files = dict(list(small.zipped.items())[1:])
    refused(
        small,
        zip_file(small.folder / "a.zip", files),
        r"expected \{'train': 20, 'test': 10\} images in .*a.zip, .* got \{'train': 19, 'test': 10\}",
    )


def test_refuses_damaged_archives(small: SimpleNamespace) -> None:
    for make, files in ((zip_file, small.zipped), (tgz_file, small.tarred)):
        path = make(small.folder / "cut", files)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(small, path, r"expected a whole .zip or .tgz archive in .*cut, got: ")
    path = zip_file(small.folder / "spoilt.zip", small.zipped)
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in the first member
    path.write_bytes(content)
    refused(small, path, r"expected a whole .zip or .tgz archive in .*spoilt.zip, got: Bad CRC-32")
    for method, name in ((zipfile.ZIP_LZMA, "lzma.zip"), (zipfile.ZIP_BZIP2, "bzip2.zip")):
        path = small.folder / name
        with zipfile.ZipFile(path, "w", method) as archive:
            for key, packed in small.zipped.items():
                archive.writestr(key, packed)
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)  # in the first member
        path.write_bytes(content)
        refused(small, path, rf"expected a whole .zip or .tgz archive in .*{name}, got: ")
    flagged = bytearray(zip_file(small.folder / "b.zip", small.zipped).read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = flagged.find(mark)
        while start >= 0:
            flagged[start + place] |= 1  # encrypted
            start = flagged.find(mark, start + 1)
    path.write_bytes(flagged)
    refused(small, path, r"expected a whole .zip or .tgz archive in .*, got: .*encrypted")


def test_unprepared_arrays_and_missing_archives_are_told_with_the_command(small: SimpleNamespace) -> None:
    command = (
        rf"equiscale data prepare imagenette96 --root {small.root} --download \(or --source FILE, or EQUI"
    )
    with pytest.raises(
        DataError, match=rf"prepared data in .*imagenette96, got no manifest.json; run: {command}"
    ):
        load("imagenette96", split="train", root=small.root)
    with pytest.raises(DataError, match=rf"Imagenette at .*imagenette2-160.tgz, got no file; run: {command}"):
        imagenette.prepare(small.root)
    with pytest.raises(SettingError, match=r"expected either a source or a download, got both: /x and"):
        imagenette.prepare(small.root, source="/x", download=True)
    result = CliRunner().invoke(app, ["data", "prepare", "imagenette96", "--png"])
    assert result.output.startswith("equiscale: expected neither png nor realisations for imagenette96")


# --- the real zip ---


@pytest.fixture(scope="module")
def real_root(imagenette_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenette")
    imagenette.prepare(root, source=imagenette_source)
    return root


def test_the_real_zip_is_what_it_was(real_root: Path) -> None:
    """Fails when another libwebp decodes other pixels: then say so and renew."""
    data = load("imagenette96", split="train", root=real_root)
    assert data.checksum == imagenette.ZIP_CHECKSUM
    assert data.images.shape == (9469, 3, 96, 96)
    counts = torch.bincount(data.labels).tolist()
    assert counts == [963, 955, 993, 858, 941, 956, 961, 931, 951, 960]
    test = load("imagenette96", split="test", root=real_root)
    assert torch.bincount(test.labels).tolist() == [387, 395, 357, 386, 409, 394, 389, 419, 399, 390]


def test_it_is_normalised_by_its_own_constants(real_root: Path) -> None:
    data = load("imagenette96", split="train", root=real_root)
    assert channel_statistics(data.images.numpy()) == (data.mean, data.std)
    assert dataset_info("imagenette96").mean == data.mean
