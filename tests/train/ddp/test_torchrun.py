"""Trainings over two processes from the command line, as people start them; ``make ddp-test`` runs them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equiscale.experiments.records import RunRecord, decode_predictions, read_record

pytestmark = pytest.mark.skipif(
    "EQUISCALE_DDP_TESTS" not in os.environ, reason="starts many processes; make ddp-test runs it"
)

SPLITS = {"train": 21, "val": 7, "test": 5}  # images a class, of three: none can be halved
EPOCHS = 3
# Rounding of single precision, which every step makes larger; tests/train/test_distributed.py has float64.
CLOSE = 1e-3
PATIENCE = 120.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.RandomState(0)
    for split, count in SPLITS.items():
        for label, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 200, (16, 16, 3)).astype(np.uint8)
                pixels[..., 2 - label] += 20
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return f"image-folder:{folder}?size=16"


def command(data: str, results: Path, *more: str) -> list[str]:
    return [
        *("-m", "equiscale", "train", "wrn_10_1_ses_b", "--data", data, "--results", str(results)),
        *("--epochs", str(EPOCHS), "--batch-size", "9", "--optimizer", "sgd", "--lr", "0.01"),
        *("--augment", "crop-flip-cutout", "--set", "dropout=0.0", "--test-every", "1", "--device", "cpu"),
        *more,
    ]


def variables(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("EQUISCALE_DDP")}
    return {**own, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **more}


def alone(data: str, results: Path) -> RunRecord:
    subprocess.run([sys.executable, *command(data, results)], env=variables(), check=True, timeout=PATIENCE)
    return record_in(results)


def torchrun(data: str, results: Path, *more: str, count: int = 2) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(count)),
            *command(data, results, *more),
        ],
        env=variables(PYTHONWARNINGS="default"),  # torchrun's own warnings are not ours to answer for
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks(data: str, results: Path) -> list["subprocess.Popen[str]"]:
    """Two processes that nobody watches, started as a cluster starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, *command(data, results)],
            env=variables(
                RANK=str(rank),
                WORLD_SIZE="2",
                LOCAL_RANK=str(rank),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def record_in(results: Path) -> RunRecord:
    (path,) = results.glob("*/*.json")
    return read_record(path)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.05)


def checkpoints(results: Path) -> list[Path]:
    return list(results.glob("*/checkpoints/*.safetensors"))


def check_same(ours: RunRecord, expected: RunRecord) -> None:
    for one, other in zip(ours.epochs, expected.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=CLOSE)
        assert (one.validation_error, one.test_error) == (other.validation_error, other.test_error)
    assert ours.test is not None
    assert expected.test is not None
    assert ours.test.epoch == expected.test.epoch
    ours_found, found = (decode_predictions(record.test.predictions) for record in (ours, expected))
    assert ours_found.tolist() == found.tolist()
    assert len(ours_found) == 3 * SPLITS["test"]


@pytest.fixture(scope="module")
def expected(data: str, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """What one process gives."""
    record = alone(data, tmp_path_factory.mktemp("alone"))
    assert "processes" not in record.provenance.machine
    return record


def test_two_processes_have_the_curve_of_one_and_tell_it_once(
    data: str, expected: RunRecord, tmp_path: Path
) -> None:
    process = torchrun(data, tmp_path)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    record = record_in(tmp_path)
    check_same(record, expected)
    assert record.provenance.machine["processes"] == "2"
    assert record.settings == expected.settings
    assert said.count("epoch 1/3") == said.count("training in 2 processes") == said.count("weights: ") == 1
    assert "Warning" not in said
    assert checkpoints(tmp_path) == []


def test_a_signal_to_one_stops_both_and_one_process_goes_on(
    data: str, expected: RunRecord, tmp_path: Path
) -> None:
    both = ranks(data, tmp_path)
    wait_for(lambda: checkpoints(tmp_path))
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, said
    assert "the same command goes on from the checkpoint" in said[0]
    assert said[1] == ""
    assert list(tmp_path.glob("*/*.json")) == []
    check_same(alone(data, tmp_path), expected)


def test_a_killed_process_ends_the_other_and_two_go_on(
    data: str, expected: RunRecord, tmp_path: Path
) -> None:
    both = ranks(data, tmp_path)
    wait_for(lambda: checkpoints(tmp_path))
    both[1].kill()
    killed = time.monotonic()
    said, _ = both[0].communicate(timeout=PATIENCE)
    assert time.monotonic() - killed < PATIENCE / 2
    both[1].communicate()
    assert both[0].returncode == 2, said
    assert "equiscale: expected all processes to go on, got: " in said
    process = torchrun(data, tmp_path)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    check_same(record_in(tmp_path), expected)


def test_what_cannot_be_shared_is_refused_before_any_work(data: str, tmp_path: Path) -> None:
    process = torchrun(data, tmp_path, "--batch-size", "31")
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "expected a batch size that leaves no batch of a single image" in said or "at least one" in said
    assert list(tmp_path.glob("*/*.json")) == []
