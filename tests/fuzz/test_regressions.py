"""Inputs that once came out as something else than a typed error, or took far too much, one by one."""

import io
import json
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from equiscale import create_model, load_published_state_dict
from equiscale.choose import read_object_sizes
from equiscale.cli import app
from equiscale.data import mnist_scale
from equiscale.data.root import data_root
from equiscale.deploy.published import read_published_state_dict
from equiscale.errors import CheckpointError, DataError, RecordError, SettingError
from equiscale.experiments.benchmark.record import read_benchmark
from equiscale.experiments.maintenance import _problems_of_pictures, _problems_of_weights
from equiscale.experiments.plan import parse_overrides
from equiscale.experiments.records import read_record
from equiscale.experiments.spec import load_suite, make_protocol, printable
from equiscale.functional.algorithms.choices import _read_or_warn
from equiscale.models.hub import model_card
from equiscale.models.settings_json import SettingsJsonError, decode, read_object
from equiscale.models.weights_file import WeightsFile
from equiscale.report.inspection import read_inspection
from equiscale.scales import ScaleGrid
from equiscale.train.checkpoint import load_checkpoint, restore_optimizer, save_checkpoint
from tests.fuzz.targets import (
    array_examples,
    benchmark_examples,
    packed_pictures,
    record_examples,
    suite_examples,
    written,
)

# --- published checkpoints ---


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False])
def test_nothing_in_a_published_file_is_run(tmp_path: Path, new: bool) -> None:
    content = {"weight": torch.ones(1), "evil": Evil(tmp_path / "evil")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=r"expected a file of torch.save with tensors at .*a.pt, got: "):
        read_published_state_dict(tmp_path / "a.pt")
    assert not (tmp_path / "evil").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "evil").exists(), "the control: it would have run"


def test_a_published_file_is_read_whatever_its_format_and_wrapping(tmp_path: Path) -> None:
    network = create_model("mnist_cnn_28", channels=(1, 2, 3), hidden=4)
    state = network.state_dict()
    for content in (state, {"state_dict": state, "epoch": 3}, {"model": state}):
        for new in (True, False):
            torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
            found = read_published_state_dict(tmp_path / "a.pt")
            assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
            load_published_state_dict(network, found)


def test_a_few_bytes_are_no_huge_tensor(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"got fewer for \(1000000, 1000000\) as 'a'; get the file anew"
    ):
        read_published_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], r"expected a state dict in .*a.pt, got list; give the file of a network"),
        ({"a": 1}, r"expected tensors in the state dict, got int as 'a'"),
        ({1: torch.ones(1)}, r"expected tensors in the state dict, got Tensor as '1'"),
        (
            {"a": torch.ones(1, dtype=torch.complex64)},
            r"expected ordinary dense numbers .*, got torch.complex64",
        ),
        (
            {"a": torch.ones(2, 2).to_sparse()},
            r"expected ordinary dense numbers .*, torch.sparse_coo, as 'a'",
        ),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        read_published_state_dict(tmp_path / "a.pt")


def test_packed_and_missing_published_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "plain.pt")
    plain = zipfile.ZipFile(tmp_path / "plain.pt")
    with plain, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="members that are packed, or announced larger than the file"):
        read_published_state_dict(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="No such file"):
        read_published_state_dict(tmp_path / "b.pt")


def test_a_huge_constant_is_refused_before_its_like_is_made() -> None:
    network = create_model("mnist_dss_scalar_28")
    state = {**network.state_dict(), "main.0.kernelx_1": torch.zeros(1).expand(10**6, 10**6, 1, 1)}
    with pytest.raises(CheckpointError, match=r"kernelx_1: not part of this network"):
        load_published_state_dict(network, state)


# --- safetensors ---


def forged(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    ("dtype", "size"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F4", 1), ("F6_E2M3", 3)]
)
def test_types_that_numpy_lacks_are_damage(tmp_path: Path, dtype: str, size: int) -> None:
    count = {"F4": 2, "F6_E2M3": 4}.get(dtype, 1)
    header = {"train.images": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}
    (tmp_path / "mnist-scale").mkdir()
    forged(tmp_path / "mnist-scale/realisation-0.safetensors", json.dumps(header).encode(), bytes(size))
    with pytest.raises(DataError, match=r"expected (train.images of U8|a safetensors file of mnist-scale)"):
        mnist_scale.read_realisation(0, tmp_path)


@pytest.mark.parametrize(
    "progress", ['{"a": NaN}', '{"a": 1e999}', "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "[]", "null"]
)
def test_a_checkpoints_progress_is_finite_and_flat(tmp_path: Path, progress: str) -> None:
    metadata = {"format": "equiscale-checkpoint-2", "identity": "x", "progress": progress}
    save_file({"model/a": torch.ones(1)}, tmp_path / "c", metadata)
    with pytest.raises(CheckpointError, match=r"expected (a checkpoint|the format .*) in .*c, got"):
        load_checkpoint(tmp_path / "c", identity="x")


def test_a_checkpoint_with_a_huge_header_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(struct.pack("<Q", 2**24 + 1) + b"{")
    with pytest.raises(CheckpointError, match="got: a header of more than 16777216 bytes; delete it"):
        load_checkpoint(tmp_path / "c", identity="x")


def test_the_identity_of_another_training_is_shown_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {}, identity="\x1b[2J", progress={})
    with pytest.raises(CheckpointError, match=r"got one of '\\x1b\[2J'; delete"):
        load_checkpoint(tmp_path / "c", identity="x")


@pytest.mark.parametrize("key", ["5/step", "-1/step", "x", "²/step", "step/0"])
def test_the_state_of_a_parameter_that_is_none_is_refused(key: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=r"expected one of 1 parameters, got "):
        restore_optimizer(optimizer, {key: torch.ones(2)})


# --- settings and cards ---


@pytest.mark.parametrize("depth", [33, 500, 985, 995, 10_000])
@pytest.mark.parametrize("start", ["[", '{"a":'])
def test_settings_are_of_few_levels(depth: int, start: str) -> None:
    end = {"[": "]", '{"a":': "}"}[start]
    with pytest.raises(SettingsJsonError, match=r"expected JSON (of at most 32 levels )?as notes"):
        read_object('{"a": ' + start * depth + "1" + end * depth + "}", "notes")
    assert read_object('{"a": [[[1]]]}', "notes")


def test_messages_on_settings_are_short_and_obeyed_by_no_terminal() -> None:
    for document in ({"type": "ScaleGrid", "\x1b[2J" * 999: 1}, {"type": "\x1b" * 999}, "\x1b\n" * 999):
        with pytest.raises(SettingsJsonError) as caught:
            decode(document, ScaleGrid)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200


def test_a_licence_cannot_add_to_the_head_of_a_card(tmp_path: Path) -> None:
    file = WeightsFile(tmp_path, "mnist_cnn_28", {}, {"license": "mit\nwidget: evil"}, "1", "0", {})
    with pytest.raises(SettingError, match="expected one of the hub's names of licences"):
        model_card(file)


# --- suites ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (".".join("a" * 50_000) + " = 1", "more than 200 dots in a line"),
        ("a = " + "[" * 5000, "maximum recursion depth"),
        ("a = " + "1" * 5000, "Exceeds the limit"),
        ("a = 1 # " + "x" * 2**18, "no file of at most 262144 bytes"),
        ('"\\u001b[2J" = 1', r"\\x1b\[2J: Extra inputs are not permitted"),
    ],
)
def test_suites_that_are_too_much(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(f"{line}\n{suite_examples()[0].decode()}")
    start = time.process_time()
    with pytest.raises(
        SettingError, match=rf"expected a (valid|readable) suite in .*, got: .*{message}"
    ) as caught:
        load_suite(str(path))
    assert time.process_time() - start < 20, "a key of fifty thousand parts took a minute"
    assert len(str(caught.value)) < 8000


def test_a_suite_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("folder.toml", "pipe.toml", "absent.toml"):
        with pytest.raises(SettingError, match=r"expected a readable suite in "):
            load_suite(str(tmp_path / name))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e999])
def test_settings_of_a_training_are_finite(value: float) -> None:
    with pytest.raises(SettingError, match="learning_rate: Input should be a finite number"):
        make_protocol(epochs=1, batch_size=8, learning_rate=value, lr_steps=(), lr_gamma=0.1)


def test_printable() -> None:
    assert printable("Ünïcode ≤ 1\u00a0%") == "Ünïcode ≤ 1\u00a0%"
    assert printable("a\x1b\n\t\u202e\ud800\u200b") == r"a\x1b\n\t\u202e\ud800\u200b"
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"


# --- records ---


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"9" * 400])
def test_numbers_of_records_can_be_computed_with(tmp_path: Path, number: bytes) -> None:
    content = record_examples()[0]
    field = b'"train_seconds": '
    start = content.index(field) + len(field)
    end = content.index(b",", start)
    path = tmp_path / "r.json"
    path.write_bytes(content[:start] + number + content[end:])
    with pytest.raises(
        RecordError, match=r"expected a valid run record in .*r.json, got: .*; delete it to run"
    ):
        read_record(path)


def test_a_benchmark_with_endless_digits_is_refused(tmp_path: Path) -> None:
    record = json.loads(benchmark_examples()[0])
    record["models"][0]["kinds"][0]["train"]["work"]["flops"] = 10**400
    (tmp_path / "b.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="got: a number that is not finite or far too large"):
        read_benchmark(tmp_path / "b.json")


def test_a_record_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.json")
    with pytest.raises(RecordError, match=r"got: no ordinary file; delete it"):
        read_record(tmp_path / "r.json")


def test_many_problems_of_a_record_are_told_briefly(tmp_path: Path) -> None:
    record = json.loads(record_examples()[0]) | {f"\x1b{n}": n for n in range(500)}
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(
        RecordError, match=r"\\x1b0: Extra inputs are not permitted; .*; and 480 more; del"
    ) as caught:
        read_record(tmp_path / "r.json")
    assert str(caught.value).isprintable()


# --- arrays and pictures ---


@pytest.mark.parametrize("shape", [(0, 10**30), (-1, -5, 1, 1), (2**40, 2**40)])
def test_shapes_that_numpy_cannot_count(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    (tmp_path / "run.npz").write_bytes(packed_pictures(stream.getvalue() + bytes(5)))
    with pytest.raises(RecordError, match=r"expected the pictures of a run in .*run.npz, got: "):
        read_inspection(tmp_path / "run.npz")


def test_a_root_in_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(SettingError, match=r"expected the path of a folder, got '~nobody-of-that-name'"):
        data_root("~nobody-of-that-name")


# --- annotations, and what was measured ---


def png_header(width: int, height: int) -> bytes:
    """A picture of a few bytes that says it has these sides."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_mask_that_unpacks_to_far_too_much_is_refused_before_it_does(tmp_path: Path, side: int) -> None:
    """Pillow warns of the first, and refuses the second."""
    (tmp_path / "mask.png").write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"expected a mask in .*mask.png, got .*decompression bomb"):
        read_object_sizes(tmp_path)
    (tmp_path / "mask.png").write_bytes(png_header(9000, 9000))
    with pytest.raises(DataError, match=r"got a file that cannot be read: (?!.*bomb)"):
        read_object_sizes(tmp_path)


def test_a_mask_is_a_png_whatever_its_name_says(tmp_path: Path) -> None:
    """Pillow's reader of EPS starts Ghostscript on the file."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "mask.png").write_bytes(eps)
    with Image.open(tmp_path / "mask.png") as opened:
        assert opened.format == "EPS", "the control: it would have been taken for one"
    with pytest.raises(DataError, match=r"expected a mask in .*mask.png, got .*cannot identify image file"):
        read_object_sizes(tmp_path)
    for kind in ("bmp", "tiff", "gif"):
        Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "mask.png", kind)
        with pytest.raises(DataError, match="cannot identify image file"):
            read_object_sizes(tmp_path)


def test_a_photograph_among_the_masks_ends(tmp_path: Path) -> None:
    """A search of the picture for each of its colours would take longer than anybody waits."""
    pixels = np.random.default_rng(0).integers(1, 256, (1000, 1000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png", compress_level=1)
    assert len(read_object_sizes(tmp_path)) > 900_000


@pytest.mark.parametrize("name", ["mask.png", "boxes.json"])
def test_annotations_that_are_a_pipe_or_too_large_are_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="no file of at most 1073741824 bytes"):
        read_object_sizes(tmp_path)
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**30 + 1)  # a hole, which takes no room
    with pytest.raises(DataError, match="no file of at most 1073741824 bytes"):
        read_object_sizes(tmp_path)


DEEP = ["[" * 100_000, '{"a":' * 100_000, '{"images": ' + "[" * 100_000]


@pytest.mark.parametrize(
    "content", [*DEEP, '{"images": [], "annotations": ' + "1" * 5000 + "}", "[]", '"\\ud800"']
)
def test_boxes_that_are_too_deep_or_no_boxes_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=r"expected COCO's 'images' .* in .*boxes.json, got something else"):
        read_object_sizes(tmp_path)


@pytest.mark.parametrize("side", ["1" + "0" * 400, "-0", '"3"', "[]"])
def test_sides_with_which_nothing_can_be_computed_are_refused(tmp_path: Path, side: str) -> None:
    annotation = '{"image_id": 1, "bbox": [0, 0, 2, 2]}'
    image = '{"id": 1, "width": ' + side + ', "height": ' + side + "}"
    (tmp_path / "boxes.json").write_text('{"images": [' + image + '], "annotations": [' + annotation + "]}")
    with pytest.raises(DataError, match=r"expected COCO's 'images' .* in .*boxes.json, got something else"):
        read_object_sizes(tmp_path)


@pytest.mark.parametrize(
    "content", [*DEEP, '{"format": 1, "choices": "abc"}', '{"format": 1, "choices": [[]]}']
)
def test_measured_choices_that_are_too_deep_or_none_are_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "autotune.json").write_text(content)
    with pytest.warns(
        UserWarning, match=r"expected measured choices .*autotune.json, got a file that cannot"
    ):
        assert _read_or_warn(tmp_path / "autotune.json") == {}


def test_measured_choices_without_end_are_left_out_unread(tmp_path: Path) -> None:
    with (tmp_path / "autotune.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.warns(UserWarning, match="ValueError: more than 67108864 bytes"):
        assert _read_or_warn(tmp_path / "autotune.json") == {}


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", "\x1b[2J"])
def test_a_setting_of_the_command_line_that_is_no_number_is_a_text(text: str) -> None:
    assert parse_overrides([f"name={text}"]) == (("name", text),)


# --- what a terminal is shown ---


def test_no_message_has_what_a_terminal_obeys(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(
        json.dumps({"images": [{"id": 1, "width": "\x1b[2J\u202e", "height": 3}]})
    )
    hostile = tmp_path / "\x1b]0;title\x07.json"
    (tmp_path / "boxes.json").rename(hostile)
    with pytest.raises(DataError, match="\x1b"):
        read_object_sizes(tmp_path)
    result = CliRunner().invoke(app, ["suggest", "--data", "digits-scale", "--objects", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert r"\x1b]0;title\x07.json" in result.stderr
    assert result.stderr.removesuffix("\n").isprintable()


# --- the check of results ---


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "F6_E2M3"])
def test_weights_of_types_with_which_nobody_computes_are_a_problem_and_no_crash(
    tmp_path: Path, dtype: str
) -> None:
    size, count = {"F8_E4M3": (1, 1), "F4": (1, 2), "F6_E2M3": (3, 4)}[dtype]
    header = {"a": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}
    path = forged(tmp_path / "w.safetensors", json.dumps(header).encode(), bytes(size))
    record = read_record(written("records/digits-scale/r.json", record_examples()[0]))
    assert [text.partition(":")[0] for text in _problems_of_weights(path, record)] == [
        f"its weights in {path} cannot be read"
    ]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo, "no archive", "an array"])
def test_pictures_that_are_no_archive_are_a_problem_and_leave_no_open_file(tmp_path: Path, make: Any) -> None:
    contents = {"no archive": b"PK nonsense", "an array": array_examples()[0]}
    path = tmp_path / "run.npz"
    path.write_bytes(contents[make]) if make in contents else make(path)
    (problem,) = _problems_of_pictures(tmp_path, "run.npz")
    assert problem.startswith(
        f"its pictures run.npz {'are missing' if not path.is_file() else 'cannot be read'}"
    )


def test_pictures_of_a_million_arrays_are_a_problem(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "run.npz", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}.npy", b"")
    assert list(_problems_of_pictures(tmp_path, "run.npz")) == ["its pictures run.npz are 10001 arrays"]
