"""Several sweeps on one folder: every run is done once, stops are gentle, and no failure stops the rest."""

import errno
import io
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress, TaskID

from equiscale.experiments import execute, sweep, worker
from equiscale.experiments.claims import Claim, Claims, Lease, claims_of, machine_id
from equiscale.experiments.execute import RunOptions, checkpoint_path, execute_run
from equiscale.experiments.index import record_files
from equiscale.experiments.plan import plan_runs
from equiscale.experiments.progress import _Display
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


def test_a_stop_while_a_worker_starts_is_a_stop(tmp_path: Path, small_suite: Path) -> None:
    process = reproduce(small_suite, tmp_path)
    until(lambda: workers_of(process.pid), by=process)
    (pid,) = workers_of(process.pid)
    blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert blocked is not None
    assert all(int(blocked[1], 16) >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))
    time.sleep(1)  # it imports torch now
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "0 of 2 runs are finished" in output
    assert "failed" not in output
    assert "Traceback" not in output


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

    def start(
        self, settings: RunSettings, options: RunOptions, dead: object
    ) -> tuple[Connection, PretendProcess]:
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


def far_away(folder: Path, run: RunSettings) -> Path:
    """The claim of a worker on a machine that has lost its power."""
    claim = Claims(claims_of(folder, "small"), Lease(beat=1000, expires=2000)).claim(run.run_id)
    claim.path.write_text(claim.path.read_text().replace(machine_id(), "elsewhere"))
    return claim.path


@pytest.mark.parametrize("wait_for_others", [True, False])
def test_a_run_whose_machine_is_dead_is_taken_over(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch, wait_for_others: bool
) -> None:
    """The worker is another process, which sees the dead claim for the first time."""
    dead = far_away(tmp_path, runs[0])
    monkeypatch.setattr(worker, "execute_run", lambda *_, **__: make_record())
    started: list[list[Path]] = []

    def start(settings: RunSettings, options: RunOptions, seen: dict[Path, int]) -> tuple:
        receiver, sender = Pipe(duplex=False)
        started.append(list(seen))
        assert len(started) < 3, "it is busy for ever"
        worker.work(settings, options, sender, seen)
        return receiver, PretendProcess()

    monkeypatch.setattr(sweep, "_start", start)
    quick = RunOptions(tmp_path, lease=Lease(beat=0.1, expires=1.0))
    events: list[str] = []
    run_sweep(
        runs[:1], quick, on_event=lambda event: events.append(event.kind), wait_for_others=wait_for_others
    )
    assert started == [[dead]]
    assert events == ["waiting", "started", "finished"]
    assert not dead.exists()


def test_without_waiting_a_sign_of_life_is_enough(tmp_path: Path, runs: list[RunSettings]) -> None:
    claim = far_away(tmp_path, runs[0])
    events: list[str] = []

    def show_life(event: RunEvent) -> None:
        events.append(event.kind)
        os.utime(claim, ns=(1, 1))

    result = run_sweep(runs[:1], RunOptions(tmp_path), on_event=show_life, wait_for_others=False)
    assert events == ["waiting"]
    assert result.failures == ()


def test_a_run_that_somebody_else_stops_goes_on_but_not_for_ever(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: Counter[int] = Counter()

    def words(settings: RunSettings) -> list[str]:
        tried[settings.realisation] += 1
        return ["finished"] if settings.realisation == 0 and tried[0] == 2 else ["stopped"]

    Pretend(monkeypatch, words)
    result, _ = do(runs, tmp_path)
    assert tried == {0: 2, 1: 3}
    (failure,) = result.failures
    assert failure.settings == runs[1]
    assert "was stopped 3 times by signals from outside" in failure.message


def test_a_process_that_cannot_be_started_is_a_failure_and_the_rest_goes_on(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = Pretend(monkeypatch, lambda settings: ["finished"])

    def start(settings: RunSettings, options: RunOptions, dead: object) -> tuple[Connection, PretendProcess]:
        if settings == runs[0]:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return pretend.start(settings, options, dead)

    monkeypatch.setattr(sweep, "_start", start)
    result, events = do(runs, tmp_path)
    assert events == [("failed", 0), ("finished", 1)]
    assert "could not be started" in result.failures[0].message


def test_a_folder_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = Pretend(monkeypatch, lambda settings: ["finished"])
    away, held = iter([True, True]), Claims.held

    def held_unless_away(claims: Claims) -> dict:
        if next(away, False):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return held(claims)

    monkeypatch.setattr(Claims, "held", held_unless_away)
    do(runs, tmp_path)
    assert pretend.started == [0, 1]


def test_runs_that_failed_before_come_last(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {"settings": runs[0], "status": "failed", "failure": "no luck", "test": None}
    write_record(tmp_path, make_record().model_copy(update=failed))
    pretend = Pretend(monkeypatch, lambda settings: ["finished"])
    do(runs, tmp_path)
    assert pretend.started == [1, 0]


def test_what_cannot_be_shown_costs_no_run(runs: list[RunSettings]) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    console = Console(file=Full())
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        console.print("no room")
    _Display(Progress(console=console), TaskID(0)).show(RunEvent("waiting", runs[0], message="for others"))


def test_a_claim_waits_for_room(
    tmp_path: Path, runs: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(worker, "execute_run", lambda *_, **__: make_record())
    full, claim = iter([True] * 3), Claims.claim

    def claim_with_room(claims: Claims, run: str) -> Claim | None:
        if next(full, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return claim(claims, run)

    monkeypatch.setattr(Claims, "claim", claim_with_room)
    receiver, sender = Pipe(duplex=False)
    worker.work(runs[0], RunOptions(tmp_path), sender)
    assert [receiver.recv().kind for _ in range(2)] == ["started", "finished"]


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
