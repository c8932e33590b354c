"""Peak memory of one kind in one mode, in a process of its own."""

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from equiscale._machine import keep_memory
from equiscale.errors import BenchmarkError
from equiscale.experiments.benchmark.contenders import Contender, Subject, build
from equiscale.experiments.benchmark.measure import machine_state, make_step
from equiscale.experiments.benchmark.record import BenchmarkSettings, Kind, Mode

_FEW_IMAGES = 2
_STEPS = 2  # gradients and the optimiser's state are there from the second one on
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_THE_PEAK = "5"


@dataclass(frozen=True)
class MemoryTask:
    """What a process measures.

    Args:
        subject: The network and its images.
        kind: Which kind of it.
        mode: A training step or an evaluation.
        settings: Device, threads, precision.
    """

    subject: Subject
    kind: Kind
    mode: Mode
    settings: BenchmarkSettings


def peak_in_own_process(task: MemoryTask) -> int:
    """`peak_memory` in a fresh process, which no other network has left anything in.

    Must be called under ``if __name__ == "__main__":``, as everything that starts processes.

    Raises:
        BenchmarkError: If the process fails or dies, for example for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, sender), daemon=True)
    process.start()
    sender.close()
    try:
        result: int | str = receiver.recv()
    except EOFError:
        result = "its process died, perhaps for want of memory"
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        process.join()
    if isinstance(result, str):
        raise BenchmarkError(f"expected the peak memory of {task.kind} ({task.mode}), got none: {result}")
    return result


def _work(task: MemoryTask, sender: Connection) -> None:
    try:
        sender.send(peak_memory(task))
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the benchmark is gone or is ending
    except Exception as error:  # noqa: BLE001 (whatever it was, it is this process's last word)
        sender.send(f"{type(error).__name__}: {error}")
    finally:
        sender.close()


def peak_memory(task: MemoryTask) -> int:
    """Bytes that a step takes at its peak on top of the network and its images: this process's growth.

    First a copy of the network does a step with two images, so that code, threads and tables that torch
    loads once are there and not counted; what that took is given back. Then the network itself does two
    steps. Activations, gradients, the optimiser's state, filters and work space are what is counted.

    On a CPU the measure is the peak of the resident memory, minus that before the two steps. It is read
    from ``/proc`` where there is one, and reset there before: getrusage's ``ru_maxrss`` begins, on Linux,
    at that of the process that started this one. Elsewhere it is ``ru_maxrss``, and a step that stays
    below the peak of the start is not seen. On CUDA it is what torch has allocated at most.
    """
    settings, device = task.settings, torch.device(task.settings.device)
    if settings.keep_memory:
        keep_memory()
    with machine_state(settings.threads, device, settings.precision):
        contender = build(task.subject, task.kind)
        contender.network.to(device)
        step = make_step(contender, task.subject, task.mode, settings.precision)
        _rehearse(contender, task)
        return peak_growth(step, device)


def _rehearse(contender: Contender, task: MemoryTask) -> None:
    copy = replace(contender, network=deepcopy(contender.network))
    few = replace(task.subject, batch_size=_FEW_IMAGES)
    make_step(copy, few, task.mode, task.settings.precision)()


def peak_growth(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that two steps take at their peak on top of what there is before, as `peak_memory` measures."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        _give_back_freed_memory()
        reset_peak()
        before = resident_peak()
    for _ in range(_STEPS):
        step()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    return max(0, peak - before)


def resident_peak() -> int:
    """The largest resident memory of this process in bytes, since its start or since `reset_peak`.

    Without ``/proc`` since its start only.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not everywhere
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Forget the peak so far, where the system can, so that it hides no later one."""
    try:
        _CLEAR.write_text(_FORGET_THE_PEAK)
    except OSError:
        return  # not Linux, or not allowed: the peak before is the base then


def _give_back_freed_memory() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # not glibc
