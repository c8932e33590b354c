"""One run in a process of its own: claimed, done, and reported to the sweep that started the process."""

import multiprocessing
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from equiscale._machine import keep_memory
from equiscale.errors import TrainingStoppedError
from equiscale.experiments.claims import Claim, Claims, claims_of
from equiscale.experiments.execute import RunOptions, execute_run, with_room
from equiscale.experiments.records import RunSettings
from equiscale.experiments.runner import is_finished
from equiscale.experiments.stopping import StopRequest, stop_on_signals
from equiscale.train import EpochResult

EventKind: TypeAlias = Literal[
    "started", "epoch", "finished", "failed", "skipped", "stopped", "busy", "waiting"
]


@dataclass(frozen=True)
class RunEvent:
    """What happened to a run.

    Args:
        kind: "started"; an "epoch"; "finished", with the result; "failed", with the reason; "skipped",
            because it was finished before; "stopped" at a safe point; "busy", because another worker does
            it; "waiting" for other workers.
        settings: The run.
        epoch: What the epoch gave.
        message: More about it.
    """

    kind: EventKind
    settings: RunSettings
    epoch: EpochResult | None = None
    message: str = ""


def prepare_process() -> None:
    """Make this process one that trains: it keeps freed memory, and lets cuDNN measure its algorithms."""
    keep_memory()
    torch.backends.cudnn.benchmark = True  # every batch but an epoch's last has the same shape


def work(
    settings: RunSettings, options: RunOptions, sender: Connection, dead: Mapping[Path, int] | None = None
) -> None:
    """The body of a run's process, which is started with the signals of a stop blocked.

    Args:
        settings: The run.
        options: Where and how.
        sender: For the events.
        dead: The claims that the sweep has seen to be dead.
    """
    prepare_process()
    claims = Claims(claims_of(options.folder, settings.suite), options.lease, dead=dead)
    with stop_on_signals(patient=True) as stop:
        _stop_with_parent(stop)
        # Without the sweep nobody listens, and the checkpoint is safe.
        with suppress(BrokenPipeError):
            sender.send(_do_claimed(settings, options, sender, stop, claims))
    sender.close()


def _stop_with_parent(stop: StopRequest) -> None:
    """Stop at the next safe point when the sweep's process has died."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            stop.ask()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _do_claimed(
    settings: RunSettings, options: RunOptions, sender: Connection, stop: StopRequest, claims: Claims
) -> RunEvent:
    """The last word about a run."""
    claim: Claim | None = None
    try:
        claim = with_room(lambda: claims.claim(settings.run_id), stop)
        if claim is None:
            return RunEvent("busy", settings)
        return _do(settings, options, sender, stop, claim)
    except TrainingStoppedError as stopped:
        lost = claim is not None and claim.is_lost
        return RunEvent("busy" if lost else "stopped", settings, message=str(stopped))
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever it was, it is this run's last word)
        return RunEvent("failed", settings, message=f"{type(error).__name__}: {error}")
    finally:
        if claim is not None:
            claim.release()


def _do(
    settings: RunSettings, options: RunOptions, sender: Connection, stop: StopRequest, claim: Claim
) -> RunEvent:
    if is_finished(settings, options):  # by another worker, meanwhile
        return RunEvent("skipped", settings)
    sender.send(RunEvent("started", settings))
    record = execute_run(
        settings,
        options,
        on_epoch=lambda result: sender.send(RunEvent("epoch", settings, epoch=result)),
        should_stop=lambda: stop() or claim.is_lost,
    )
    result = f"{record.test.error:.2f} % test error" if record.test else ""
    return RunEvent(record.status, settings, message=record.failure or result)
