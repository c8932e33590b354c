"""Records: a round trip, and what is refused."""

import base64
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
