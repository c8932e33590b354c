"""Several sweeps on one folder: every run is done once, stops are gentle, and no failure stops the rest."""

import errno
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from equiscale.experiments import execute, sweep
from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.execute import RunOptions, checkpoint_path, execute_run
from equiscale.experiments.index import record_files
from equiscale.experiments.plan import plan_runs
from equiscale.experiments.records import RunSettings, read_record, record_path, write_record
from equiscale.experiments.spec import load_suite
from equiscale.experiments.stopping import stop_on_signals
from equiscale.experiments.sweep import SweepResult, run_sweep
from equiscale.experiments.worker import RunEvent
from tests.experiments.commands import reproduce, until, workers_of
from tests.experiments.conftest import LONG_SUITE, make_record


@pytest.fixture
def runs(small_suite: Path) -> list[RunSettings]:
    return plan_runs(load_suite(str(small_suite)))


# --- with real processes ---


def test_two_commands_share_the_runs_and_wait_for_each_other(
    tmp_path: Path, small_suite: Path, runs: list[RunSettings]
) -> None:
    processes = [reproduce(small_suite, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines = [line.split() for output in outputs for line in output.splitlines()]
    finished = sorted(" ".join(words[1:4]) for words in lines if words[:1] == ["finished"])
    assert finished == [f"mnist_cnn_28 digits-scale r{number}" for number in (0, 1)]
    assert all("2 of 2 runs are finished" in output for output in outputs)
    assert len(record_files(tmp_path)) == 2
    assert list(claims_of(tmp_path, "small").iterdir()) == []


def test_a_worker_whose_sweep_is_killed_ends_at_a_safe_point(tmp_path: Path, small_suite: Path) -> None:
    small_suite.write_text(LONG_SUITE)
    runs = plan_runs(load_suite(str(small_suite)))
    process, claims = reproduce(small_suite, tmp_path), Claims(claims_of(tmp_path, "small"))
    until(checkpoint_path(tmp_path, runs[0]).exists, by=process)
    process.kill()
    process.wait()
    until(lambda: not claims.held())
    process.communicate()  # until the worker has closed the pipe
    assert not record_path(tmp_path, runs[0]).exists(), "stopped too late for the test to show anything"
    assert checkpoint_path(tmp_path, runs[0]).exists()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, small_suite: Path) -> None:
    small_suite.write_text(LONG_SUITE)
    runs = plan_runs(load_suite(str(small_suite)))
    process = reproduce(small_suite, tmp_path)
    until(checkpoint_path(tmp_path, runs[0]).exists, by=process)
    (worker,) = workers_of(process.pid)
    os.kill(worker, signal.SIGSTOP)  # it comes to no safe point
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopping at the next safe point; once more to stop at once" in output
    assert not Path(f"/proc/{worker}").exists()


def test_a_signal_is_a_request_and_the_second_one_is_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_patient_process_takes_every_signal_for_the_same_request() -> None:
    with stop_on_signals(patient=True) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT


# --- with processes that only pretend ---


class PretendProcess:
    def __init__(self) -> None:
        self.terminated = False

    def join(self) -> None: ...

    def kill(self) -> None: ...

    def terminate(self) -> None:
        self.terminated = True


class Pretend:
    """Starts of workers, each with the words that it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, words: Callable[[RunSettings], list[str]]) -> None:
        self.words, self.started, self.senders = words, [], []
        monkeypatch.setattr(sweep, "_start", self.start)

    def start(self, settings: RunSettings, options: RunOptions) -> tuple[Connection, PretendProcess]:
        receiver, sender = Pipe(duplex=False)
        self.started.append(settings.realisation)
        self.senders.append(sender)
        for kind in self.words(settings):
            sender.send(RunEvent(kind, settings))
        return receiver, PretendProcess()


def do(runs: list[RunSettings], folder: Path, **options) -> tuple[SweepResult, list[tuple[str, int]]]:
    events: list[RunEvent] = []
    result = run_sweep(runs, RunOptions(folder), on_event=events.append, **options)
    return result, [(event.kind, event.settings.realisation) for event in events]


def test_a_run_that_another_worker_was_quicker_to_claim_comes_again(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def words(settings: RunSettings) -> list[str]:
        tried.append(settings.realisation)
        return ["busy"] if tried.count(0) == 1 and settings.realisation == 0 else ["finished"]

    pretend = Pretend(monkeypatch, words)
    _, events = do(runs, tmp_path)
    assert pretend.started == [0, 1, 0]
    assert events == [("busy", 0), ("finished", 1), ("finished", 0)]


def test_runs_of_others_are_left_to_them_or_waited_for(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = Pretend(monkeypatch, lambda settings: ["finished"])
    claim = Claims(claims_of(tmp_path, "small")).claim(runs[0].run_id)
    result, events = do(runs, tmp_path, wait_for_others=False)
    assert events == [("finished", 1)]
    assert runs[0] in result.left
    assert result.failures == ()

    told: list[str] = []

    def release(event: RunEvent) -> None:
        told.append(event.kind)
        if event.kind == "waiting":
            assert event.message == "for 1 run of others"
            claim.release()

    run_sweep(runs[:1], RunOptions(tmp_path), on_event=release)
    assert told == ["waiting", "finished"]
    assert pretend.started == [1, 0]


def test_what_another_sweep_finishes_or_sees_fail_is_not_done_again(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = Pretend(monkeypatch, lambda settings: ["finished"])
    claims = Claims(claims_of(tmp_path, "small"))
    held = [claims.claim(run.run_id) for run in runs]

    def end_elsewhere(event: RunEvent) -> None:
        if event.kind == "waiting":
            write_record(tmp_path, make_record(realisation=0).model_copy(update={"settings": runs[0]}))
            failed = make_record(realisation=1).model_copy(
                update={"settings": runs[1], "status": "failed", "failure": "no luck", "test": None}
            )
            write_record(tmp_path, failed)
            for claim in held:
                claim.release()

    result = run_sweep(runs, RunOptions(tmp_path), on_event=end_elsewhere)
    assert pretend.started == []
    (failure,) = result.failures
    assert failure.message == "elsewhere: no luck"
    assert result.left == ()
    do(runs, tmp_path)
    assert pretend.started == [1], "an older failure is tried again"


def test_a_damaged_record_is_reported_and_the_rest_goes_on(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = Pretend(monkeypatch, lambda settings: ["finished"])
    damaged = record_path(tmp_path, runs[0])
    damaged.parent.mkdir()
    damaged.write_text("{")
    result, events = do(runs, tmp_path)
    assert events == [("failed", 0), ("finished", 1)]
    assert "delete it to run again" in result.failures[0].message
    assert pretend.started == [1]


def test_a_stop_lets_runs_come_to_an_end_and_starts_no_more(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = Pretend(monkeypatch, lambda settings: ["started"])
    stopped = False

    def terminate(process: PretendProcess) -> None:
        pretend.senders[0].send(RunEvent("stopped", runs[0]))

    def stop_when_started(event: RunEvent) -> None:
        nonlocal stopped
        stopped = event.kind == "started"

    monkeypatch.setattr(PretendProcess, "terminate", terminate)
    result = run_sweep(runs, RunOptions(tmp_path), on_event=stop_when_started, should_stop=lambda: stopped)
    assert result.left == (runs[0], runs[1])
    assert pretend.started == [0]


# --- results without room ---


def full_disk(times: int, code: int = errno.ENOSPC) -> Callable[..., Path]:
    """`write_record` on a disk that is full so many times."""
    tried = iter(range(times))

    def write(folder: Path, record: object) -> Path:
        if next(tried, None) is not None:
            raise OSError(code, os.strerror(code))
        return write_record(folder, record)  # type: ignore[arg-type]

    return write


@pytest.fixture
def quick_run(small_suite: Path) -> RunSettings:
    text = (
        small_suite.read_text().replace("epochs = 3", "epochs = 1").replace("lr_steps = [2]", "lr_steps = []")
    )
    small_suite.write_text(text)
    return plan_runs(load_suite(str(small_suite)))[0]


def test_a_result_waits_for_room(
    tmp_path: Path, quick_run: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(execute, "write_record", full_disk(5))
    execute_run(quick_run, RunOptions(tmp_path))
    assert read_record(record_path(tmp_path, quick_run)).status == "finished"
    assert not checkpoint_path(tmp_path, quick_run).exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_what_cannot_be_written_in_the_end_is_an_error_and_the_training_is_kept(
    tmp_path: Path, quick_run: RunSettings, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(execute, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(execute, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(execute, "write_record", full_disk(10**6, code))
    with pytest.raises(OSError, match=os.strerror(code)):
        execute_run(quick_run, RunOptions(tmp_path))
    assert checkpoint_path(tmp_path, quick_run).exists()


def test_a_finished_record_is_never_written_again(tmp_path: Path) -> None:
    first = write_record(tmp_path, make_record(error=2.0))
    write_record(tmp_path, make_record(error=3.0))
    assert read_record(first).test.error == 2.0
    failed = make_record().model_copy(update={"status": "failed", "failure": "late", "test": None})
    write_record(tmp_path, failed)
    assert read_record(first).status == "finished"
