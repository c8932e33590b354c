"""A sweep: several runs at a time, each in a process of its own."""

import multiprocessing
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from equiscale._machine import available_cores, keep_memory
from equiscale.data import check_available, load
from equiscale.data.image_folder import PREFIX as FOLDER_PREFIX
from equiscale.errors import RecordError, SettingError
from equiscale.experiments.execute import (
    RunOptions,
    check_networks,
    checkpoint_path,
    execute_run,
    numerics_of,
)
from equiscale.experiments.records import RunRecord, RunSettings, read_record, record_path
from equiscale.train import EpochResult


@dataclass(frozen=True)
class Jobs:
    """How many runs go side by side.

    Args:
        total: At most so many; 0: as many as there are places.
        on_each: Places on each device, which a CPU is too; 0: one a core, on a GPU one.

    Raises:
        SettingError: For a negative number.
    """

    total: int = 0
    on_each: int = 0

    def __post_init__(self) -> None:
        for what, number in (("jobs", self.total), ("jobs on each device", self.on_each)):
            if number < 0:
                raise SettingError(f"expected 0 {what} (automatic) or more, got {number}")


@dataclass(frozen=True)
class RunEvent:
    """What happened to a run: "started", an "epoch", "finished", "failed" (with the reason), "skipped"."""

    kind: Literal["started", "epoch", "finished", "failed", "skipped"]
    settings: RunSettings
    epoch: EpochResult | None = None
    message: str = ""


def prepare_options(
    runs: Sequence[RunSettings],
    *,
    folder: Path,
    data_root: Path | None,
    device: str,
    jobs: Jobs,
    resume: bool,
) -> tuple[RunOptions, int]:
    """Check device, networks and data before any work starts; decide how many runs go side by side.

    Returns:
        The options, and the number of jobs.

    Raises:
        SettingError: For an unknown or missing device, numerics that it does not have, or a network that
            is not for the images of its data set.
        ModelError: For an unknown model or override.
        DataError: If the data of a run are missing or damaged.
        OSError: If the results folder cannot be written.
    """
    chosen = check_device(device)
    side_by_side = choose_jobs(jobs, device=chosen, runs=len(runs))
    for protocol in dict.fromkeys(run.protocol for run in runs):
        numerics_of(protocol).check(torch.device(chosen))
    check_networks({run.treatment: run for run in runs}.values(), data_root=data_root)
    for dataset, realisation in dict.fromkeys((run.dataset, run.realisation) for run in runs):
        check_available(dataset, realisation=realisation, root=data_root)
    _check_writable(folder)
    options = RunOptions(folder, data_root, chosen, threads=available_cores(), resume=resume)
    return options, side_by_side


def choose_jobs(jobs: Jobs, *, device: str, runs: int) -> int:
    """How many runs go side by side: as many as there are places, as were asked for, and as there are."""
    on_each = jobs.on_each or (1 if device.startswith("cuda") else available_cores())
    places = on_each * len(devices_of(device))
    return max(1, min(jobs.total or places, places if jobs.on_each else runs, runs))


def devices_of(device: str) -> tuple[str, ...]:
    """The devices among which runs are shared out: all GPUs for "cuda", else the one that is named."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    return tuple(f"{device}:{index}" for index in range(count)) if count > 1 else (device,)


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_device(device: str) -> str:
    """The device itself: of "auto" the one that is found.

    Raises:
        SettingError: For an unknown or missing device.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = found if device == "auto" else device
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]*))?", chosen):
        raise SettingError(f"expected a device of auto, cpu, cuda or cuda:N, got {device!r}")
    if chosen.startswith("cuda") and found == "cpu":
        raise SettingError(
            f"expected a CUDA device for {device!r}, got none on this machine; use --device cpu"
        )
    if chosen.startswith("cuda:") and int(chosen[5:]) >= torch.cuda.device_count():
        raise SettingError(
            f"expected a device of cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {device!r}"
        )
    return chosen


def is_finished(settings: RunSettings, options: RunOptions) -> bool:
    """Whether a valid record of the finished run exists; a failed run is not finished.

    Raises:
        RecordError: If the record is damaged, or of other images than its folder holds now.
        DataError: If a folder of images cannot be read.
    """
    path = record_path(options.folder, settings)
    if not path.exists():
        return False
    record = read_record(path)
    if record.status != "finished":
        return False
    _check_same_images(record, path, options.data_root)
    return True


def _check_same_images(record: RunRecord, path: Path, root: Path | None) -> None:
    """People change the images in their folders; all other data sets have fixed checksums."""
    settings = record.settings
    if not settings.dataset.startswith(FOLDER_PREFIX):
        return
    images = load(settings.dataset, split="train", realisation=settings.realisation, root=root)
    if images.checksum != record.data.checksum:
        raise RecordError(
            f"expected a record of the images that are in {settings.dataset} now, got one of other data in "
            f"{path}; delete it, or give another folder with --results"
        )


def run_sweep(
    runs: Sequence[RunSettings],
    options: RunOptions,
    *,
    jobs: int = 1,
    on_event: Callable[[RunEvent], None],
) -> list[RunEvent]:
    """Do all runs that are not finished, ``jobs`` at a time; a run that fails does not stop the rest.

    Must be called under ``if __name__ == "__main__":``, as everything that starts processes.

    Args:
        runs: What to run.
        options: Where and how; its threads are shared out among the jobs, and for "cuda" the jobs among
            all GPUs.
        jobs: Processes at a time.
        on_event: Called with everything that happens.

    Returns:
        The events of the runs that failed.
    """
    failures: list[RunEvent] = []
    shared = replace(options, threads=max(1, options.threads // jobs))
    open_runs = [settings for settings in runs if not is_finished(settings, options)]
    for settings in runs:
        if settings not in open_runs:
            on_event(RunEvent("skipped", settings))
    for event in _run_processes(open_runs, shared, jobs):
        if event.kind == "failed":
            failures.append(event)
        on_event(event)
    return failures


def _run_processes(runs: Sequence[RunSettings], options: RunOptions, jobs: int) -> Iterator[RunEvent]:
    waiting, active = list(runs), dict[Connection, _Active]()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                settings = waiting.pop(0)
                if is_finished(settings, options):  # by another sweep, meanwhile
                    yield RunEvent("skipped", settings)
                    continue
                device = _least_used(devices_of(options.device), active.values())
                receiver, process = _start(settings, replace(options, device=device))
                active[receiver] = _Active(process, settings, device)
                yield RunEvent("started", settings)
            ready = wait(list(active)) if active else []
            for receiver in [receiver for receiver in active if receiver in ready]:
                yield from _receive(receiver, active, options)
    finally:
        for run in active.values():
            run.process.terminate()
            run.process.join()


class _Active(NamedTuple):
    """A run in its process."""

    process: SpawnProcess
    settings: RunSettings
    device: str


def _least_used(devices: Sequence[str], active: Iterable[_Active]) -> str:
    """The device with the fewest runs, the first of several."""
    used = [run.device for run in active]
    return min(devices, key=used.count)


def _start(settings: RunSettings, options: RunOptions) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(settings, options, sender), daemon=True)
    process.start()
    sender.close()
    return receiver, process


def _receive(
    receiver: Connection, active: dict[Connection, _Active], options: RunOptions
) -> Iterator[RunEvent]:
    """One event of a run; the end of the stream without a last word means that its process died."""
    process, settings, _ = active[receiver]
    try:
        event: RunEvent = receiver.recv()
    except EOFError:
        process.join()
        event = RunEvent("failed", settings, message=_obituary(process.exitcode, settings, options))
    if event.kind in ("finished", "failed"):
        process.join()
        del active[receiver]
        receiver.close()
    yield event


def _obituary(exitcode: int | None, settings: RunSettings, options: RunOptions) -> str:
    resumable = checkpoint_path(options.folder, settings).exists()
    cure = "run the same command again to go on from its last checkpoint" if resumable else "run it again"
    return f"its process died with exit code {exitcode} (killed, or out of memory); {cure}"


def _work(settings: RunSettings, options: RunOptions, sender: Connection) -> None:
    """The body of a run's process."""
    keep_memory()
    torch.backends.cudnn.benchmark = True  # every batch but an epoch's last has the same shape
    try:
        record = execute_run(
            settings, options, on_epoch=lambda result: sender.send(RunEvent("epoch", settings, epoch=result))
        )
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the sweep is gone or is ending; the checkpoint is safe
    except Exception as error:  # noqa: BLE001 (whatever it was, it is this run's last word)
        sender.send(RunEvent("failed", settings, message=f"{type(error).__name__}: {error}"))
    else:
        result = f"{record.test.error:.2f} % test error" if record.test else ""
        sender.send(RunEvent(record.status, settings, message=record.failure or result))
    finally:
        sender.close()
