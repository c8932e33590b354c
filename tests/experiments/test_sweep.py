"""Whole sweeps in real processes: records, skipping, failures, kill -9 and resumption."""

import os
import re
import signal
import struct
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from equiscale.errors import DataError, SettingError
from equiscale.experiments import runner, sweep, worker
from equiscale.experiments.execute import RunOptions, checkpoint_path, execute_run, weights_path
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.records import RunSettings, decode_predictions, read_record, record_path
from equiscale.experiments.runner import (
    Jobs,
    choose_jobs,
    devices_of,
    is_finished,
    prepare_options,
)
from equiscale.experiments.spec import load_suite
from equiscale.experiments.sweep import run_sweep
from equiscale.experiments.worker import RunEvent
from tests.experiments.commands import reproduce, until, workers_of
from tests.experiments.conftest import LONG_SUITE

FIRST = ("--realisations", "0")


@pytest.fixture
def runs(small_suite: Path) -> list[RunSettings]:
    return plan_runs(load_suite(str(small_suite)))


def test_a_sweep_leaves_records_weights_and_pictures(tmp_path: Path, runs: list[RunSettings]) -> None:
    options = RunOptions(tmp_path / "results", threads=2)
    events: list[RunEvent] = []
    assert run_sweep(runs, options, jobs=2, on_event=events.append).failures == ()
    assert sorted(event.kind for event in events) == ["epoch"] * 6 + ["finished"] * 2 + ["started"] * 2

    record = read_record(record_path(options.folder, runs[0]))
    assert (record.status, record.parameters, record.data.test) == ("finished", 5_674, 600)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert [epoch.learning_rate for epoch in record.epochs] == pytest.approx([0.01, 0.01, 0.001])
    best = min(record.epochs, key=lambda epoch: epoch.validation_error)
    assert record.test.epoch == best.epoch
    predictions = decode_predictions(record.test.predictions)
    assert len(predictions) == sum(record.test.by_factor.images) == 600
    assert sum(record.test.by_factor.mistakes) == pytest.approx(6 * record.test.error)
    assert [layer.layer for layer in record.equivariance] == ["main.0", "main.4", "main.8"]
    assert all(0 < layer.error < 2 for layer in record.equivariance)
    with np.load(options.folder / "small" / record.inspection) as arrays:
        assert arrays["filters/main.0"].shape == (4, 1, 7, 7)
        assert arrays["features/main.8"].shape == (3, 1, 7, 7)
        assert arrays["feature_inputs"].shape == (3, 28, 28)
    assert load_file(weights_path(options.folder, runs[0]))["linear.4.bias"].shape == (10,)
    assert not checkpoint_path(options.folder, runs[0]).exists()

    again: list[RunEvent] = []
    run_sweep(runs, options, jobs=2, on_event=again.append)
    assert [event.kind for event in again] == ["skipped", "skipped"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a sweep that nobody disturbed."""
    folder = tmp_path_factory.mktemp("quiet")
    suite = folder / "small.toml"
    suite.write_text(LONG_SUITE)
    process = reproduce(suite, folder, *FIRST)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return folder


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_resumes_to_the_same_bits(
    tmp_path: Path, small_suite: Path, quiet: Path, sent: signal.Signals, code: int
) -> None:
    small_suite.write_text(LONG_SUITE)
    runs = plan_runs(load_suite(str(small_suite)))
    process = reproduce(small_suite, tmp_path, *FIRST)
    checkpoint = checkpoint_path(tmp_path, runs[0])
    until(checkpoint.exists, by=process)
    os.killpg(process.pid, sent)  # the sweep and its worker, as a terminal does
    output, _ = process.communicate(timeout=60)  # until the last process has closed the pipe
    assert process.returncode == code, output
    if sent == signal.SIGTERM:
        assert "stopping at the next safe point; once more to stop at once" in output
        assert re.search(r"stopped +mnist_cnn_28 .* stopped in epoch \d after \d+ steps", output)
        assert "stopped; the same command goes on from the last checkpoints" in output
        assert "Traceback" not in output
    assert not is_finished(runs[0], RunOptions(tmp_path)), "stopped too late for the test to show anything"

    process = reproduce(small_suite, tmp_path, "--resume", *FIRST)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    expected, resumed = (load_file(weights_path(folder, runs[0])) for folder in (quiet, tmp_path))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    first, second = (read_record(record_path(folder, runs[0])) for folder in (quiet, tmp_path))
    assert first.test == second.test
    assert [epoch.train_loss for epoch in first.epochs] == [epoch.train_loss for epoch in second.epochs]


def test_a_training_that_diverges_leaves_a_record_that_says_so(tmp_path: Path, small_suite: Path) -> None:
    small_suite.write_text(small_suite.read_text().replace("learning_rate = 0.01", "learning_rate = 1e30"))
    run = plan_runs(load_suite(str(small_suite)), Selection(realisations=[0]))[0]
    options = RunOptions(tmp_path / "results")
    record = execute_run(run, options)
    assert record == read_record(record_path(options.folder, run))
    assert record.status == "failed"
    assert record.failure.startswith("expected a finite loss, got nan in epoch")
    assert record.test is None
    assert not is_finished(run, options), "a failed run is done again"


def test_a_network_that_overflows_in_its_last_step_leaves_a_record_too(
    tmp_path: Path, small_suite: Path
) -> None:
    text = small_suite.read_text().replace("learning_rate = 0.01", "learning_rate = 1e30")
    small_suite.write_text(
        text.replace("epochs = 3", "epochs = 1").replace("batch_size = 250", "batch_size = 1000")
    )
    run = plan_runs(load_suite(str(small_suite)), Selection(realisations=[0]))[0]
    options = RunOptions(tmp_path / "results")
    result = run_sweep([run], options, on_event=lambda event: None)
    record = read_record(record_path(options.folder, run))
    assert record.status == "failed"
    assert result.failures[0].message == record.failure
    assert not weights_path(options.folder, run).exists()
    assert not checkpoint_path(options.folder, run).exists()


def test_a_batch_of_one_image_is_refused(tmp_path: Path, small_suite: Path) -> None:
    small_suite.write_text(small_suite.read_text().replace("batch_size = 250", "batch_size = 111"))
    run = plan_runs(load_suite(str(small_suite)), Selection(realisations=[0]))[0]
    with pytest.raises(SettingError, match=r"no batch of a single image, .* got 111 for 1000 images"):
        execute_run(run, RunOptions(tmp_path / "results"))


def test_what_another_sweep_finished_meanwhile_is_skipped(tmp_path: Path, runs: list[RunSettings]) -> None:
    options = RunOptions(tmp_path / "results")
    events: list[RunEvent] = []

    def finish_the_second(event: RunEvent) -> None:
        events.append(event)
        if event.kind == "started" and event.settings == runs[0]:
            execute_run(runs[1], options)

    run_sweep(runs, options, jobs=1, on_event=finish_the_second)
    assert [event.kind for event in events if event.settings == runs[1]] == ["skipped"]


def test_a_process_that_dies_is_reported_and_the_rest_goes_on(tmp_path: Path, runs) -> None:
    options = RunOptions(tmp_path / "results")
    finished: list[str] = []

    def kill_the_first(event: RunEvent) -> None:
        if event.kind == "epoch" and event.settings == runs[0]:
            for pid in workers_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
        elif event.kind == "finished":
            finished.append(event.settings.run_id)

    result = run_sweep(runs, options, jobs=1, on_event=kill_the_first)
    assert [failure.settings for failure in result.failures] == [runs[0]]
    assert "died with exit code -9" in result.failures[0].message
    assert "go on from its last checkpoint" in result.failures[0].message
    assert finished == [runs[1].run_id]


def test_that_data_are_there_is_known_without_loading_them(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(runner, "load")
    prepare_options(runs, folder=tmp_path, data_root=tmp_path, device="cpu", jobs=Jobs(1), resume=True)


def test_missing_data_and_devices_are_errors_before_any_run(tmp_path: Path) -> None:
    mnist = plan_runs(load_suite("mnist-scale"), Selection(realisations=[0]))
    settings = {"folder": tmp_path, "data_root": tmp_path, "jobs": Jobs(1), "resume": True}
    with pytest.raises(DataError, match="equiscale data prepare mnist-scale"):
        prepare_options(mnist, device="cpu", **settings)
    with pytest.raises(SettingError, match="expected a device of auto, cpu, cuda or cuda:N, got 'tpu'"):
        prepare_options(mnist, device="tpu", **settings)
    with pytest.raises(SettingError, match=r"expected 0 jobs \(automatic\) or more, got -1"):
        Jobs(-1)
    with pytest.raises(SettingError, match=r"expected 0 jobs on each device .* got -2"):
        Jobs(on_each=-2)


def test_numerics_that_the_device_lacks_are_errors_before_any_run(tmp_path: Path) -> None:
    (run, *_) = plan_runs(load_suite("digits-scale"), Selection(cuda_graphs=True))
    assert run.protocol.cuda_graphs
    with pytest.raises(SettingError, match="expected a CUDA device for cuda_graphs = true, got cpu"):
        prepare_options([run], folder=tmp_path, data_root=None, device="cpu", jobs=Jobs(1), resume=True)


# --- several at a time ---


@pytest.mark.parametrize(
    ("jobs", "device", "expected"),
    [
        (Jobs(), "cpu", 6),  # one a core
        (Jobs(3), "cpu", 3),
        (Jobs(30), "cpu", 20),  # not more than runs
        (Jobs(on_each=2), "cpu", 2),
        (Jobs(), "cuda", 2),  # one on each GPU
        (Jobs(), "cuda:1", 1),
        (Jobs(on_each=4), "cuda", 8),
        (Jobs(on_each=4), "cuda:1", 4),
        (Jobs(3, on_each=4), "cuda", 3),  # a total is never exceeded,
        (Jobs(9, on_each=4), "cuda", 8),  # nor are the places
    ],
)
def test_how_many_go_side_by_side(
    monkeypatch: pytest.MonkeyPatch, jobs: Jobs, device: str, expected: int
) -> None:
    monkeypatch.setattr(runner, "available_cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_jobs(jobs, device=device, runs=20) == expected


def test_one_gpu_needs_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices_of("cuda") == ("cuda",)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("cuda") == ("cuda:0", "cuda:1", "cuda:2")
    assert devices_of("cuda:1") == ("cuda:1",)
    assert devices_of("cpu") == ("cpu",)


class PretendProcess:
    exitcode = -9

    def join(self) -> None: ...


def test_a_worker_that_dies_in_the_middle_of_a_word_has_failed(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(settings: RunSettings, options: RunOptions, dead: object) -> tuple[Connection, PretendProcess]:
        receiver, sender = Pipe(duplex=False)
        os.write(sender.fileno(), struct.pack("!i", 1000) + b"a few bytes")  # of a thousand
        sender.close()
        return receiver, PretendProcess()

    monkeypatch.setattr(sweep, "_start", start)
    result = run_sweep(runs[:1], RunOptions(tmp_path), on_event=lambda _: None)
    (failure,) = result.failures
    assert "its process died with exit code -9" in failure.message


def test_runs_are_shared_out_among_the_devices(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on the device with the fewest: the fourth takes the place of the one that has finished."""
    monkeypatch.setattr(sweep, "devices_of", lambda device: ("cuda:0", "cuda:1"))
    placed: list[tuple[str, int]] = []
    senders = []

    def start(settings: RunSettings, options: RunOptions, dead: object) -> tuple[Connection, PretendProcess]:
        receiver, sender = Pipe(duplex=False)
        placed.append((options.device, options.threads))
        senders.append((sender, settings))
        sender.send(RunEvent("started", settings))
        if len(placed) == 3:  # all places are taken: the second one ends
            finish(1)
        return receiver, PretendProcess()

    def finish(index: int) -> None:
        sender, settings = senders[index]
        sender.send(RunEvent("finished", settings))

    def end_the_rest(event: RunEvent) -> None:
        if event.kind == "started" and len(placed) == 4:
            for index in (0, 2, 3):
                finish(index)

    monkeypatch.setattr(sweep, "_start", start)
    four = [runs[0].model_copy(update={"realisation": number}) for number in range(4)]
    options = RunOptions(tmp_path, device="cuda", threads=7)
    assert run_sweep(four, options, jobs=3, on_event=end_the_rest).failures == ()
    assert placed == [("cuda:0", 2), ("cuda:1", 2), ("cuda:0", 2), ("cuda:1", 2)]


def test_a_run_keeps_its_memory(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(worker, "keep_memory", lambda: kept.append(True))
    monkeypatch.setattr(worker, "execute_run", lambda *_, **__: 1 / 0)
    receiver, sender = Pipe(duplex=False)
    worker.work(runs[0], RunOptions(tmp_path), sender)
    assert receiver.recv().kind == "started"
    assert "ZeroDivisionError" in receiver.recv().message
    assert kept == [True]
