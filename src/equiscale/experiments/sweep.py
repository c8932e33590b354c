"""A sweep: several runs at a time, each in a process of its own, beside other sweeps on the same folder."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from signal import SIGTERM
from typing import Final, NamedTuple

from equiscale.errors import EquiscaleError
from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.execute import RunOptions, checkpoint_path
from equiscale.experiments.records import RunSettings, read_record, record_path
from equiscale.experiments.runner import devices_of, is_finished
from equiscale.experiments.stopping import stops_blocked
from equiscale.experiments.worker import RunEvent, work

_POLL_SECONDS: Final = 0.5
_LAST_WORDS: Final = ("finished", "failed", "skipped", "stopped", "busy")
_MOST_STOPS: Final = 3


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Args:
        failures: The events of the runs that failed.
        left: Runs that are not finished and have not failed: they were stopped, or other workers do them.
    """

    failures: tuple[RunEvent, ...]
    left: tuple[RunSettings, ...]


def run_sweep(
    runs: Sequence[RunSettings],
    options: RunOptions,
    *,
    on_event: Callable[[RunEvent], None],
    jobs: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    wait_for_others: bool = True,
) -> SweepResult:
    """Do all runs that are not finished, ``jobs`` at a time; a run that fails does not stop the rest.

    Any number of sweeps, on any number of machines, may work on one folder: each run is done once. Runs that
    others do are waited for at the end, and taken over if their worker dies. Runs that failed before come
    last.

    Must be called under ``if __name__ == "__main__":``, as everything that starts processes.

    Args:
        runs: What to run.
        options: Where and how; its threads are shared out among the jobs, and for "cuda" the jobs among
            all GPUs.
        on_event: Called with everything that happens.
        jobs: Processes at a time.
        should_stop: Asked twice a second; then all runs end at their next safe point.
        wait_for_others: Whether to wait for runs that others do. If not, still for a sign of life from the
            workers of other machines, a lease at most.
    """
    sweep = _Sweep(runs, replace(options, threads=max(1, options.threads // jobs)), on_event)
    try:
        while not should_stop() and sweep.is_open(wait_for_others):
            sweep.start(jobs)
            sweep.receive()
        sweep.stop()
    finally:
        sweep.kill()
    return sweep.result()


class _Active(NamedTuple):
    """A run in its process."""

    process: SpawnProcess
    settings: RunSettings
    device: str


class _Sweep:
    """The runs that wait, the runs that go, and what has become of the others."""

    def __init__(
        self, runs: Sequence[RunSettings], options: RunOptions, on_event: Callable[[RunEvent], None]
    ) -> None:
        self.options, self.tell = options, on_event
        self.pending = list(runs)
        self.active: dict[Connection, _Active] = {}
        self.failures: list[RunEvent] = []
        self.left: list[RunSettings] = []
        self.claims = {
            suite: Claims(claims_of(options.folder, suite), options.lease)
            for suite in dict.fromkeys(run.suite for run in runs)
        }
        self.waits, self.is_stopping = False, False
        self.stops: Counter[RunSettings] = Counter()
        self.failed_before = {run: _signature(record_path(options.folder, run)) for run in runs}

    def is_open(self, wait_for_others: bool) -> bool:
        """Whether anything is left to do or to wait for."""
        if self.active or not self.pending:
            return bool(self.active)
        self._drop_ended()
        held = self._held()
        others = bool(self.pending) and all(run.run_id in held for run in self.pending)
        waits = others and (wait_for_others or any(map(self._is_undecided, self.pending)))
        if waits and not self.waits:
            count = len(self.pending)
            message = f"for {count} run{'s' * (count > 1)} of others"
            self.tell(RunEvent("waiting", self.pending[0], message=message))
        self.waits = waits
        return waits or (bool(self.pending) and not others)

    def start(self, jobs: int) -> None:
        """Start processes for runs that nobody does."""
        if len(self.active) >= jobs or not self.pending:
            return
        self._drop_ended()
        held = self._held()
        # Of what has not ended, what had a record before has failed before.
        free = sorted(
            (run for run in self.pending if run.run_id not in held),
            key=lambda run: bool(self.failed_before[run]),
        )
        for settings in free[: jobs - len(self.active)]:
            self.pending.remove(settings)
            device = _least_used(devices_of(self.options.device), self.active.values())
            dead = self.claims[settings.suite].seen_dead()
            try:
                receiver, process = _start(settings, replace(self.options, device=device), dead)
            except OSError as error:
                self._note(RunEvent("failed", settings, message=f"its process could not be started: {error}"))
            else:
                self.active[receiver] = _Active(process, settings, device)

    def receive(self) -> None:
        """Wait a moment for events and pass them on."""
        if not self.active:
            time.sleep(_POLL_SECONDS)
        for receiver in wait(list(self.active), timeout=_POLL_SECONDS) if self.active else ():
            if isinstance(receiver, Connection):
                self._take(receiver)

    def stop(self) -> None:
        """Let all runs end at their next safe point."""
        self.is_stopping = True
        for run in self.active.values():
            run.process.terminate()
        while self.active:
            self.receive()
        self.left.extend(self.pending)

    def kill(self) -> None:
        """End all processes at once; after `stop` there are none."""
        for run in self.active.values():
            run.process.kill()
            run.process.join()

    def result(self) -> SweepResult:
        """What has become of the runs; a failure that another sweep has made good is none."""
        failures = [event for event in self.failures if not _is_finished(event.settings, self.options)]
        left = [run for run in self.left if not _is_finished(run, self.options)]
        return SweepResult(tuple(failures), tuple(left))

    def _take(self, receiver: Connection) -> None:
        """One event of a run; the end of the stream without a last word means that its process died."""
        process, settings, _ = self.active[receiver]
        try:
            event: RunEvent = receiver.recv()
        except (EOFError, OSError):  # it died before a word, or in the middle of one
            process.join()
            event = _obituary(process.exitcode, settings, self.options)
        if event.kind in _LAST_WORDS:
            process.join()
            del self.active[receiver]
            receiver.close()
        self._note(event)

    def _note(self, event: RunEvent) -> None:
        if event.kind == "failed":
            self.failures.append(event)
        elif event.kind == "stopped" and self.is_stopping:
            self.left.append(event.settings)
        elif event.kind == "stopped":  # by somebody else
            self._stopped_by_others(event.settings)
        elif event.kind == "busy":
            self.pending.append(event.settings)
        self.tell(event)

    def _stopped_by_others(self, settings: RunSettings) -> None:
        """Go on with a run whose process was told to stop, but not by us; not for ever."""
        self.stops[settings] += 1
        if self.stops[settings] < _MOST_STOPS:
            self.pending.append(settings)
            return
        message = (
            f"its process was stopped {_MOST_STOPS} times by signals from outside; run it again to go on"
        )
        self.failures.append(RunEvent("failed", settings, message=message))

    def _is_undecided(self, settings: RunSettings) -> bool:
        return self.claims[settings.suite].is_undecided(settings.run_id)

    def _held(self) -> set[str]:
        try:
            return {run for claims in self.claims.values() for run in claims.held()}
        except OSError:  # the folder may be away for a while: then nobody begins anything
            return {run.run_id for run in self.pending}

    def _drop_ended(self) -> None:
        """Take out the runs that are finished, or that another sweep has seen fail meanwhile."""
        for settings in list(self.pending):
            event = self._ended(settings)
            if event is not None:
                self.pending.remove(settings)
                self._note(event)

    def _ended(self, settings: RunSettings) -> RunEvent | None:
        path = record_path(self.options.folder, settings)
        try:
            if not path.exists():
                return None
            if is_finished(settings, self.options):
                return RunEvent("skipped", settings)
            if _signature(path) == self.failed_before[settings]:
                return None
            return RunEvent("failed", settings, message=f"elsewhere: {read_record(path).failure}")
        except (EquiscaleError, OSError) as error:
            return RunEvent("failed", settings, message=str(error))


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_finished(settings: RunSettings, options: RunOptions) -> bool:
    try:
        return is_finished(settings, options)
    except (EquiscaleError, OSError):
        return False


def _least_used(devices: Sequence[str], active: Iterable[_Active]) -> str:
    """The device with the fewest runs, the first of several."""
    used = [run.device for run in active]
    return min(devices, key=used.count)


def _start(
    settings: RunSettings, options: RunOptions, dead: Mapping[Path, int]
) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(settings, options, sender, dead), daemon=True)
    resource_tracker.ensure_running()  # its start would let the signals through
    with stops_blocked():
        process.start()
    sender.close()
    return receiver, process


def _obituary(exitcode: int | None, settings: RunSettings, options: RunOptions) -> RunEvent:
    if exitcode == -SIGTERM:  # before it could listen
        return RunEvent("stopped", settings)
    resumable = checkpoint_path(options.folder, settings).exists()
    cure = "run the same command again to go on from its last checkpoint" if resumable else "run it again"
    reason = f"its process died with exit code {exitcode} (killed, or out of memory); {cure}"
    return RunEvent("failed", settings, message=reason)
