"""Records: a round trip, and what is refused."""

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from equiscale.errors import RecordError
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.records import (
    DataRecord,
    Provenance,
    RunRecord,
    decode_predictions,
    encode_predictions,
    read_record,
    read_records,
    write_record,
)
from equiscale.experiments.spec import load_suite


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        status="failed",
        failure="for the test",
        settings=plan_runs(load_suite("digits-scale"), Selection(realisations=[0]))[0],
        parameters=7,
        data=DataRecord(checksum="ab", train=1, validation=2, test=3),
        epochs=(),
        provenance=Provenance(
            versions={},
            machine={},
            commit=None,
            clean=None,
            started="2026-01-01T00:00:00+00:00",
            finished="2026-01-01T00:00:01+00:00",
            train_seconds=1.0,
            test_seconds=0.0,
        ),
    )


def test_round_trip(tmp_path: Path, record: RunRecord) -> None:
    path = write_record(tmp_path, record)
    assert path == tmp_path / "digits-scale" / f"{record.settings.run_id}.json"
    assert read_record(path) == record
    assert list(read_records(tmp_path, "digits-scale")) == [record]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no temporary file may stay"


def test_damaged_records_are_refused(tmp_path: Path, record: RunRecord) -> None:
    path = write_record(tmp_path, record)
    text = path.read_text()
    for broken in (
        text[:-20],
        text.replace('"parameters": 7', '"parameters": -7'),
        text.replace("failed", "odd"),
    ):
        path.write_text(broken)
        with pytest.raises(RecordError, match=r"^expected a valid run record in .* delete it to run again$"):
            read_record(path)
    with pytest.raises(RecordError, match="expected a valid run record"):
        read_record(tmp_path / "missing.json")


@pytest.mark.parametrize("suite", ["", "..", "../elsewhere", "/etc", "a/b", "a\\b", "a\0b", "a\n", ".hidden"])
def test_a_suite_that_is_no_folders_name_is_refused(tmp_path: Path, record: RunRecord, suite: str) -> None:
    path = write_record(tmp_path, record)
    content = json.loads(path.read_text())
    content["settings"]["suite"] = suite
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"got: settings.suite: String should match pattern"):
        read_record(path)


@pytest.mark.parametrize(
    "model", ["", ".", "..", "../elsewhere", "/etc", "a/b", "a\\b", "c:a", "a\0b", "a\n"]
)
def test_a_model_that_is_no_files_name_is_refused(tmp_path: Path, record: RunRecord, model: str) -> None:
    path = write_record(tmp_path, record)
    content = json.loads(path.read_text())
    content["settings"]["model"] = model
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"got: settings: Value error, a name must be printable") as caught:
        read_record(path)
    assert str(caught.value).isprintable()


PEAK = """
import re, sys
from contextlib import suppress
from pathlib import Path
from equiscale.errors import RecordError
from equiscale.experiments.benchmark.record import read_benchmark
from equiscale.experiments.records import read_record

def peak():  # getrusage's is at least that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

read = {"run": read_record, "benchmark": read_benchmark}[sys.argv[2]]
with suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak()
try:
    read(Path(sys.argv[1]))
except RecordError:
    print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is asked of Linux")
@pytest.mark.parametrize(
    ("kind", "start", "unit", "most"),
    [
        ("run", '{"epochs":[', "1,", 14),
        ("run", '{"notes":[', "1,", 14),
        ("run", '{"equivariance":[', "1,", 14),
        ("run", '{"settings":{"overrides":[', "1,", 14),
        ("run", '{"settings":{"overrides":[["a",[', "{},", 45),
        ("run", '{"settings":{"protocol":{"lr_steps":[', "0,", 14),
        ("run", '{"test":{"by_factor":{"images":[', '"",', 14),
        ("run", '{"test":{"by_factor":{"edges":[', '"",', 14),
        ("benchmark", '{"models":[', "1,", 14),
        ("benchmark", '{"settings":{"models":[', "1,", 14),
        ("benchmark", '{"models":[{"kinds":[', "{},", 45),
        ("benchmark", '{"models":[{"notes":[', "1,", 14),
    ],
)
def test_what_is_wrong_everywhere_takes_a_few_times_its_size(
    tmp_path: Path, kind: str, start: str, unit: str, most: float
) -> None:
    """A number is read into eight bytes, an empty object into 64; a problem of each would take a thousand."""
    end = "".join({"[": "]", "{": "}"}[letter] for letter in reversed(start) if letter in "[{")
    path = tmp_path / "r.json"
    path.write_text(start + (unit * (2**21 // len(unit))).rstrip(",") + end)
    child = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), kind], check=True, capture_output=True, text=True
    )
    assert float(child.stdout) < most


def test_predictions_are_compact_and_exact() -> None:
    classes = np.random.RandomState(0).randint(0, 10, 50_000)
    encoded = encode_predictions(classes)
    assert np.array_equal(decode_predictions(encoded), classes)
    assert len(encoded) < 34_000  # uniform classes; the mistakes of a real network compress no worse


def test_more_than_256_classes_take_two_bytes() -> None:
    classes = np.array([0, 255, 256, 65_535])
    assert decode_predictions(encode_predictions(classes)).tolist() == classes.tolist()
    assert decode_predictions(encode_predictions([])).tolist() == []


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        "uint16:" + base64.b64encode(zlib.compress(bytes(3))).decode(),
        base64.b64encode(b"no zlib").decode(),
        base64.b64encode(zlib.compress(bytes(100))[:-6]).decode(),
        base64.b64encode(zlib.compress(bytes(10**7 + 1))).decode(),
    ],
)
def test_damaged_predictions_are_refused(text: str) -> None:
    with pytest.raises(RecordError, match=r"expected predictions|expected at most 10000000 complete"):
        decode_predictions(text)
