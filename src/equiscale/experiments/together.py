"""One training that several processes do together, as torchrun or a cluster started them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.markup import escape

from equiscale._machine import available_cores
from equiscale.errors import SettingError, TrainingStoppedError
from equiscale.experiments.claims import Claim, Claims, claims_of
from equiscale.experiments.execute import RunOptions, execute_run
from equiscale.experiments.progress import error_of, print_result
from equiscale.experiments.records import RunRecord, RunSettings
from equiscale.experiments.runner import Jobs, check_device, is_finished, prepare_options
from equiscale.experiments.stopping import stop_on_signals
from equiscale.experiments.worker import prepare_process
from equiscale.train import EpochResult
from equiscale.train.distributed import Processes, local_rank, local_size, processes

_LOOK_SECONDS: Final = 0.5


def train_together(
    settings: RunSettings, *, folder: Path, data_root: Path | None, device: str, resume: bool
) -> int:
    """Do one run in this process and the others that were started with it; the first one tells of it.

    Args:
        settings: What to run.
        folder: The results folder, which all processes see.
        data_root: The folder of prepared data; None: the default.
        device: "cpu", or "cuda" for one GPU a process, or "auto".
        resume: Go on from a checkpoint where there is one.

    Returns:
        The exit status: 0; 1 if the run failed; 128 and the signal's number if it was stopped.

    Raises:
        SettingError: For a single GPU by its number, or what `prepare_options` and `execute_run` refuse.
        LostProcessError: If another process has ended.
    """
    own = own_device(device)
    torch.set_num_threads(max(1, available_cores() // local_size()))
    with stop_on_signals(patient=True) as stop, processes(own) as together:
        console = Console(quiet=together.rank > 0, highlight=False, soft_wrap=True)
        options, _ = prepare_options(
            [settings], folder=folder, data_root=data_root, device=own, jobs=Jobs(1), resume=resume
        )
        options = replace(options, threads=torch.get_num_threads(), group=together)
        if together.any(is_finished(settings, options)):
            console.print(f"skipped {escape(settings.run_id)}  has a record already")
            return 0
        console.print(f"training in {together.size} processes: {escape(settings.run_id)}")
        try:
            with _claimed(settings, options, together) as is_lost:
                record = _execute(settings, options, console, lambda: stop() or is_lost())
        except TrainingStoppedError as error:
            console.print(f"{error}; the same command goes on from the checkpoint")
            asked = max(_signals(together, stop.signal))
            return 128 + asked if asked else 1
        return _told(record, folder, console)


def own_device(device: str) -> str:
    """The device of this process: the CPU, or of the machine's GPUs the one of its local rank.

    Raises:
        SettingError: For a single GPU by its number, or where there are fewer GPUs than processes.
    """
    chosen = check_device(device)
    if chosen.startswith("cuda:"):
        raise SettingError(
            f"expected a device of auto, cpu or cuda for several processes, of which each takes its own GPU, "
            f"got {device}; choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    return check_device(f"cuda:{local_rank()}") if chosen == "cuda" else chosen


@contextmanager
def _claimed(settings: RunSettings, options: RunOptions, together: Processes) -> Iterator[Callable[[], bool]]:
    """Claim the run, in the first process for all; whether another worker has taken it since."""
    claim: Claim | None = None
    if together.rank == 0:
        claims = Claims(claims_of(options.folder, settings.suite), options.lease)
        claim = claims.claim(settings.run_id)
        while claim is None and claims.is_undecided(settings.run_id):  # its machine may be dead
            time.sleep(_LOOK_SECONDS)
            claim = claims.claim(settings.run_id)
    try:
        if together.any(together.rank == 0 and claim is None):
            raise SettingError(
                f"expected a run that nobody else does, got {settings.run_id}, which another worker has "
                "claimed; wait until it has ended"
            )
        yield lambda: claim is not None and claim.is_lost
    finally:
        if claim is not None:
            claim.release()


def _execute(
    settings: RunSettings, options: RunOptions, console: Console, stop: Callable[[], bool]
) -> RunRecord:
    prepare_process()

    def tell(result: EpochResult) -> None:
        console.print(
            f"epoch {result.epoch}/{settings.protocol.epochs}  loss {result.train_loss:.4f}  "
            f"error {error_of(result)}  {result.seconds:.0f} s"
        )

    return execute_run(settings, options, on_epoch=tell, should_stop=stop)


def _signals(together: Processes, own: int) -> list[int]:
    """The signals that asked the processes to stop."""
    numbers = torch.zeros(together.size)
    numbers[together.rank] = own
    return [int(number) for number in together.sum(numbers)]


def _told(record: RunRecord, folder: Path, console: Console) -> int:
    if record.status == "failed":
        console.print(f"failed {escape(record.settings.run_id)}: {escape(record.failure or '')}")
        return 1
    if not console.quiet:
        print_result(record.settings, folder)
    return 0
