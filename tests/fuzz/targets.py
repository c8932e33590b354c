"""What reads bytes from outside: for each its entry point, the errors it may raise, and valid bytes.

``test_parsers.py`` damages the valid bytes in many ways; ``long.py`` leaves that to a fuzzer that watches
coverage.
"""

import atexit
import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from equiscale import create_model, load_published_state_dict
from equiscale.choose import read_object_sizes
from equiscale.data import download, imagenette, mnist, mnist_scale, stl10, store
from equiscale.data.decoding import decode_image
from equiscale.data.image_folder import FolderSettings, folder_info, parse_name
from equiscale.data.scale_recipe import Split
from equiscale.deploy.published import read_published_state_dict
from equiscale.errors import CheckpointError, DataError, ModelError, RecordError, SettingError
from equiscale.experiments.benchmark.record import read_benchmark
from equiscale.experiments.maintenance import _problems_of_pictures, _problems_of_weights
from equiscale.experiments.records import decode_predictions, encode_predictions, read_record
from equiscale.experiments.spec import load_suite
from equiscale.functional.algorithms.choices import Choice, Place, Problem, _read_or_warn, _write
from equiscale.models.hub import from_pretrained, model_card
from equiscale.models.settings_json import SettingsJsonError, decode, encode, read_object
from equiscale.models.weights import load, save, weights_info
from equiscale.report import benchmark
from equiscale.report.aggregate import aggregate
from equiscale.report.inspection import read_inspection
from equiscale.report.tables import FORMATS, insert_into, render
from equiscale.train.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
TINY = {"channels": (1, 1, 1), "hidden": 2, "num_classes": 2}
MODEL = "mnist_ses_vector_28"


@dataclass(frozen=True)
class Target:
    """One way in.

    Args:
        run: Takes the bytes that came from outside.
        errors: What it may raise; anything else is a defect.
        examples: Makes valid bytes.
        packed: Puts what is damaged into what is read, for example a damaged .tar into a whole gzip file.
    """

    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    examples: Callable[[], list[bytes]]
    packed: Callable[[bytes], bytes] = bytes


@cache
def folder() -> Path:
    """Where the bytes become files; it goes with the process."""
    place = tempfile.mkdtemp(prefix="equiscale-fuzz-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def made(make: Callable[[Path], object], name: str) -> bytes:
    """The bytes of a file that a library writes."""
    path = written(name, b"")
    make(path)
    return path.read_bytes()


# --- data ---


def run_idx(content: bytes) -> None:
    mnist.parse_idx(content, Path("digits"))


def run_idx_gz(content: bytes) -> None:
    path = written("digits.gz", content)
    mnist.parse_idx(mnist._unpack(path), path)


def run_mnist(content: bytes) -> None:
    written("mnist/t10k-labels-idx1-ubyte", content)
    mnist.read_file(folder() / "mnist", mnist.TEST_LABELS)


def idx_examples() -> list[bytes]:
    shapes = ((3,), (2, 4), (2, 3, 4))
    heads = [bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) for shape in shapes]
    return [head + bytes(int(np.prod(shape))) for head, shape in zip(heads, shapes, strict=True)]


def label_file() -> list[bytes]:
    return [bytes([0, 0, 8, 1]) + struct.pack(">I", 10_000) + bytes(10_000)]


def run_image(content: bytes) -> None:
    decode_image(content, 6)


@cache
def image_examples() -> list[bytes]:
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    pictures = {
        "png": [Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16)), _palette(pixels)],
        "jpeg": [Image.fromarray(pixels), Image.fromarray(pixels).convert("CMYK")],
        "webp": [Image.fromarray(pixels)],
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, images in pictures.items():
        for image in images:
            file = io.BytesIO()
            image.save(file, kind, exif=exif)
            found.append(file.getvalue())
    return found


def _palette(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels).convert("P")
    image.info["transparency"] = 0
    return image


def run_archive(content: bytes) -> None:
    imagenette._read_members(written("archive", content))


@cache
def zip_examples() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("a/train/tench/1.png", bytes(50))
            archive.writestr("a/val/n02102040/2.png", b"x" * 50)
        found.append(file.getvalue())
    return found


@cache
def tar_examples() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            long = "é" * (20 if form == tarfile.USTAR_FORMAT else 60)
            for name in ("a/train/tench/1.png", f"a/val/tench/{long}.png"):
                member = tarfile.TarInfo(name)
                member.size = 20
                archive.addfile(member, io.BytesIO(bytes(20)))
        found.append(file.getvalue())
    return found


@contextlib.contextmanager
def small_stl10() -> Iterator[None]:
    sizes = patch.dict(stl10.SPLIT_SIZES, train=3, test=2), patch.dict(stl10.FOLD_SIZES, train=2)
    file = stl10.BinaryFile("train_y.bin", "train", 1, "0")
    with sizes[0], sizes[1], patch.object(stl10, "FILES", [file]), patch.object(stl10, "FOLDS", 2):
        yield


def run_stl10(content: bytes) -> None:
    target = folder() / "stl10"
    target.mkdir(exist_ok=True)
    with small_stl10():
        stl10._take_files(written("stl10.tar.gz", content), target)
        stl10._read_labels(target, "train")
        stl10._read_folds(target)


def run_folds(content: bytes) -> None:
    source = folder() / "stl10_binary"
    written("stl10_binary/train_y.bin", b"\1\2\3")
    written("stl10_binary/fold_indices.txt", content)
    target = folder() / "stl10"
    target.mkdir(exist_ok=True)
    with small_stl10():
        stl10._take_files(source, target)
        stl10._read_folds(target)


def run_pixels(content: bytes) -> None:
    store.map_bytes(written("train_X.bin", content), (2, 3)).sum()


@cache
def stl10_examples() -> list[bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("train_y.bin", b"\1\2\3"), ("fold_indices.txt", b"0 1\n1 2\n")):
            member = tarfile.TarInfo(f"stl10_binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return [file.getvalue()]


def run_manifest(content: bytes) -> None:
    written("prepared/manifest.json", content)
    store.read_manifest(folder() / "prepared", mend="")
    store.found_manifest(folder() / "prepared")


@cache
def manifest_examples() -> list[bytes]:
    base = folder() / "prepared"
    base.mkdir(exist_ok=True)
    (base / "manifest.json").unlink(missing_ok=True)
    (base / "a.npy").write_bytes(b"abc")
    store.write_manifest(base, "pictures", checksum="0", notes={"state": "x", "mean": [0.5]})
    content = (base / "manifest.json").read_bytes()
    return [content, content.replace(b'"size": 3', b'"size": 4')]


def run_arrays(content: bytes) -> None:
    written("arrays/train-images.npy", content)
    written("arrays/train-labels.npy", made(lambda path: np.save(path, np.arange(2)), "labels.npy"))
    _use(store.open_splits(folder() / "arrays", ["train"], mend="")["train"])


def run_labels(content: bytes) -> None:
    written("arrays/train-labels.npy", content)
    written("arrays/train-images.npy", array_examples()[0])
    _use(store.open_splits(folder() / "arrays", ["train"], mend="")["train"])


def _use(split: Split) -> None:
    split.images.sum()
    split.labels.sum()


@cache
def array_examples() -> list[bytes]:
    arrays = (np.zeros((2, 3, 3), np.uint8), np.arange(2), np.zeros((2, 3, 4, 4), np.uint8))
    return [made(lambda path, array=array: np.save(path, array), "one.npy") for array in arrays]


def run_mnist_scale(content: bytes) -> None:
    written("mnist-scale/realisation-0.safetensors", content)
    with patch.object(mnist_scale, "SPLIT_SIZES", {"train": 2, "val": 1, "test": 1}):
        mnist_scale.read_realisation(0, folder())


@cache
def mnist_scale_examples() -> list[bytes]:
    tensors = {}
    for name, count in {"train": 2, "val": 1, "test": 1}.items():
        tensors[f"{name}.images"] = np.zeros((count, 1, 28, 28), np.uint8)
        tensors[f"{name}.labels"] = np.zeros(count, np.uint8)
        tensors[f"{name}.factors"] = np.ones(count)
    return [made(lambda path: save_file(tensors, path, {"format_version": "1"}), "m.safetensors")]


def run_folder(content: bytes) -> None:
    """A file of these bytes among whole images, in a fresh folder, so that it is decoded."""
    with tempfile.TemporaryDirectory(dir=folder()) as place:
        _add_images(
            Path(place), {"train/cat/1.png": b"", "train/dog/1.png": b"", "train/dog/2.webp": content}
        )
        folder_info(FolderSettings(Path(place), 6), place + "/root")


def run_file_name(content: bytes) -> None:
    """A file whose name has these bytes, as any archive can make one."""
    name = content.replace(b"/", b"").replace(b"\0", b"")[:200]
    with tempfile.TemporaryDirectory(dir=folder()) as place:
        _add_images(Path(place), {"train/cat/1.png": b"", "train/dog/1.png": b""})
        Path(os.fsdecode(os.fsencode(place) + b"/train/dog/x" + name + b".png")).write_bytes(
            image_examples()[0]
        )
        folder_info(FolderSettings(Path(place), 6), place + "/root")


def _add_images(place: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content or image_examples()[0])


def run_name(content: bytes) -> None:
    parse_name(f"image-folder:{content.decode('utf-8', 'surrogateescape')}")


def run_response(content: bytes) -> None:
    """What a server answers, from the first byte on, to a download that goes on where one was cut off."""
    target = folder() / "download" / "file"
    for old in (target, target.with_name("file.part")):
        old.unlink(missing_ok=True)
    written("download/file.part", b"12345")
    opener = SimpleNamespace(open=lambda *_, **__: _response(content))
    with patch.object(download, "_opener", lambda: opener):
        found = download.fetch_file(["https://x/"], target, checksum=f"md5:{_FETCHED_MD5}", max_bytes=1000)
    if found.read_bytes() != b"1234567890":
        raise AssertionError("other bytes than those of the checksum")


_FETCHED_MD5 = "e807f1fcf82d132f9bb018ca6738a19f"


def _response(content: bytes) -> http.client.HTTPResponse:
    socket = SimpleNamespace(makefile=lambda _: io.BytesIO(content))
    response = http.client.HTTPResponse(socket)  # type: ignore[arg-type]
    response.begin()
    return response


def response_examples() -> list[bytes]:
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234567890",
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\n67890",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n1234567890\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n1234567890",
    ]


# --- annotations, and what was measured ---


def run_mask(content: bytes) -> None:
    written("masks/1.png", content)
    read_object_sizes(folder() / "masks")


@cache
def mask_examples() -> list[bytes]:
    pixels = np.zeros((8, 9, 4), np.uint8)
    pixels[1:4, 2:7] = 200, 0, 9, 255
    kinds = (
        pixels,
        pixels[..., :3],
        pixels[..., 0],
        pixels[..., 0].astype(np.uint16) * 300,
        pixels[..., 0] > 0,
    )
    return [_png(Image.fromarray(kind)) for kind in kinds] + [_png(_palette(pixels[..., :3]))]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def run_boxes(content: bytes) -> None:
    written("boxes/1.json", content)
    read_object_sizes(folder() / "boxes")


def box_examples() -> list[bytes]:
    image = {"id": 1, "width": 80, "height": 100}
    boxes = [{"image_id": 1, "bbox": [0, 0, 20, 30.5]}, {"image_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}]
    return [json.dumps({"images": [image], "annotations": boxes}).encode()]


def run_choices(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _read_or_warn(written("autotune.json", content))


@cache
def choice_examples() -> list[bytes]:
    place = Place("a processor", "cpu", 2, "2.0", "1.0")
    problem = Problem(
        (1, 2, 8, 8), (3, 2, 1, 4), (3, 5), kernel_size=5, stride=1, padding=2, padding_mode="zeros",
        scale_padding="zeros", groups=1, projection=None, bias=True, dtypes=("float32", "float32"),
        autocast=None, gradients=("x", "weight"), keeps=True,
    )  # fmt: skip
    found = {(place, problem): Choice("dense", {"dense": 0.5, "cropped": None})}
    return [made(lambda path: _write(path, found), "choices.json")]


# --- networks ---


def run_weights(content: bytes) -> None:
    path = written("network/model.safetensors", content)
    model_card(weights_info(path))
    from_pretrained(folder() / "network")
    load(path)


@cache
def weights_examples() -> list[bytes]:
    network = create_model(MODEL, **TINY)
    return [made(lambda path: save(network, path, notes={"license": "mit", "n": [1, None]}), "w.safetensors")]


def run_settings(content: bytes) -> None:
    decode(read_object(content.decode("utf-8", "surrogateescape"), "settings"), _settings_kind())


@cache
def _settings_kind() -> type:
    from equiscale.models import model_entry

    return type(model_entry(MODEL).settings)


@cache
def settings_examples() -> list[bytes]:
    from equiscale.models import model_entry

    return [json.dumps(encode(model_entry(MODEL).settings)).encode()]


def run_checkpoint(content: bytes) -> None:
    load_checkpoint(written("checkpoint", content), identity="x")


@cache
def checkpoint_examples() -> list[bytes]:
    groups = {"model": {"a": torch.ones(2)}, "optimizer": {"0/step": torch.ones(())}}
    progress = {"history": [{"epoch": 1}], "best_epoch": 1, "loss": 0.5}
    return [made(lambda path: save_checkpoint(path, groups, identity="x", progress=progress), "c")]


def run_published(content: bytes) -> None:
    tensors = read_published_state_dict(written("published.pt", content))
    load_published_state_dict(_published_network(), tensors)


@cache
def _published_network() -> torch.nn.Module:
    return create_model("mnist_cnn_28", channels=(1, 1, 1), hidden=2, num_classes=2)


@cache
def published_examples() -> list[bytes]:
    state = _published_network().state_dict()
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    old = made(lambda path: torch.save(state, path, _use_new_zipfile_serialization=False), "old.pt")
    return [made(lambda path: torch.save(wrapped, path), "new.pt"), old]


# --- experiments and reports ---


def run_suite(content: bytes) -> None:
    load_suite(str(written("suite.toml", content)))


@cache
def suite_examples() -> list[bytes]:
    return [
        (ROOT / f"src/equiscale/experiments/suites/{name}.toml").read_bytes()
        for name in ("stl10", "digits-scale")
    ]


def run_record(content: bytes) -> None:
    record = read_record(written("records/digits-scale/r.json", content))
    if record.test is not None:
        decode_predictions(record.test.predictions)
    table = aggregate(load_suite("digits-scale"), [record])
    for form in FORMATS:
        render(table, form)


@cache
def record_examples() -> list[bytes]:
    found = sorted((ROOT / "results/digits-scale").glob("*.json"))[:2]
    return [json.dumps(json.loads(path.read_bytes())).encode() for path in found]


def run_predictions(content: bytes) -> None:
    decode_predictions(content.decode("latin-1"))


def prediction_examples() -> list[bytes]:
    return [encode_predictions([1, 2, 3]).encode(), encode_predictions([1, 300]).encode()]


def run_benchmark(content: bytes) -> None:
    record = read_benchmark(written("benchmark.json", content))
    benchmark.markdown(record)
    benchmark.markdown_details(record)
    Console(file=io.StringIO(), width=80).print(benchmark.terminal(record))


@cache
def benchmark_examples() -> list[bytes]:
    return [json.dumps(json.loads((ROOT / "results/benchmarks/wrn.json").read_bytes())).encode()]


def run_document(content: bytes) -> None:
    path = written("page.md", content)
    insert_into(path, "toy", "| a |")
    record = read_benchmark(written("benchmark.json", benchmark_examples()[0]))
    benchmark.insert_tables(path, "toy", record)


def document_examples() -> list[bytes]:
    return [b"# Page\n<!-- table:toy -->\nold\n<!-- /table:toy -->\nend\n"]


def run_pictures(content: bytes) -> None:
    read_inspection(written("run.npz", content))


@cache
def picture_arrays() -> dict[str, bytes]:
    arrays = {
        "samples": np.zeros((2, 4, 4), np.uint8), "sample_labels": np.arange(2), "sample_factors": np.ones(2),
        "sample_predictions": np.arange(2), "feature_inputs": np.zeros((3, 4, 4), np.uint8),
        "feature_factors": np.ones(3), "filters/a": np.ones((1, 2, 3, 3), np.float16),
        "filter_scales/a": np.array([1.0, 2.0]), "features/a": np.ones((3, 2, 4, 4), np.float16),
    }  # fmt: skip
    return {
        f"{name}.npy": made(lambda path, array=array: np.save(path, array), "one.npy")
        for name, array in arrays.items()
    }


def packed_pictures(content: bytes, name: str = "filters/a.npy") -> bytes:
    """A whole .npz, one of whose arrays has these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for known, array in picture_arrays().items():
            archive.writestr(known, content if known == name else array)
    return file.getvalue()


def run_checked_pictures(content: bytes) -> None:
    written("checked/run.npz", content)
    _refuse(_problems_of_pictures(folder() / "checked", "run.npz"))


def run_checked_weights(content: bytes) -> None:
    record = read_record(written("records/digits-scale/r.json", record_examples()[0]))
    small = record.model_copy(update={"parameters": 1})
    _refuse(_problems_of_weights(written("checked/run.safetensors", content), small))


def _refuse(problems: Iterator[str]) -> None:
    if found := list(problems):
        raise RecordError("; ".join(found))


def picture_examples() -> list[bytes]:
    return [packed_pictures(picture_arrays()["filters/a.npy"])]


def one_picture_array() -> list[bytes]:
    return [picture_arrays()["filters/a.npy"]]


TARGETS = {
    "idx": Target(run_idx, (DataError,), idx_examples),
    "idx in gzip": Target(run_idx_gz, (DataError,), idx_examples, gzip.compress),
    "gzip of idx": Target(run_idx_gz, (DataError,), lambda: [gzip.compress(idx_examples()[0])]),
    "MNIST's file": Target(run_mnist, (DataError,), label_file),
    "image": Target(run_image, (DataError,), image_examples),
    "zip": Target(run_archive, (DataError,), zip_examples),
    "tar": Target(run_archive, (DataError,), tar_examples, gzip.compress),
    "gzip of tar": Target(run_archive, (DataError,), lambda: [gzip.compress(tar_examples()[0])]),
    "STL-10's tar": Target(run_stl10, (DataError,), stl10_examples, gzip.compress),
    "STL-10's folds": Target(run_folds, (DataError,), lambda: [b"0 1\n1 2\n"]),
    "STL-10's pixels": Target(run_pixels, (DataError,), lambda: [b"123456"]),
    "manifest": Target(run_manifest, (DataError,), manifest_examples),
    "images in npy": Target(run_arrays, (DataError,), array_examples),
    "labels in npy": Target(run_labels, (DataError,), lambda: array_examples()[1:]),
    "MNIST-scale": Target(run_mnist_scale, (DataError,), mnist_scale_examples),
    "image folder": Target(run_folder, (DataError,), image_examples),
    "name of a file": Target(run_file_name, (DataError,), lambda: [b"picture", "Bär".encode()]),
    "name of a folder": Target(run_name, (SettingError,), lambda: [b"/a?size=64&on_corrupt=skip", b"~/a"]),
    "answer of a server": Target(run_response, (DataError,), response_examples),
    "mask": Target(run_mask, (DataError,), mask_examples),
    "boxes": Target(run_boxes, (DataError,), box_examples),
    "measured choices": Target(run_choices, (UserWarning,), choice_examples),
    "weights": Target(run_weights, (CheckpointError, ModelError, SettingError), weights_examples),
    "settings": Target(run_settings, (SettingsJsonError,), settings_examples),
    "checkpoint": Target(run_checkpoint, (CheckpointError,), checkpoint_examples),
    "published .pt": Target(run_published, (CheckpointError,), published_examples),
    "suite": Target(run_suite, (SettingError,), suite_examples),
    "record": Target(run_record, (RecordError,), record_examples),
    "predictions": Target(run_predictions, (RecordError,), prediction_examples),
    "benchmark": Target(run_benchmark, (RecordError,), benchmark_examples),
    "document": Target(run_document, (SettingError,), document_examples),
    "pictures": Target(run_pictures, (RecordError,), picture_examples),
    "checked pictures": Target(run_checked_pictures, (RecordError,), picture_examples),
    "checked weights": Target(run_checked_weights, (RecordError,), weights_examples),
    "array of pictures": Target(run_pictures, (RecordError,), one_picture_array, packed_pictures),
}


def check(target: Target, content: bytes) -> None:
    """Raise what a target must not raise."""
    with contextlib.suppress(*target.errors):
        target.run(target.packed(content))
