"""One step of a network with few images that computes as the real one does: its time and its memory."""

import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale.errors import BenchmarkError
from equiscale.experiments.benchmark.memory import peak_growth
from equiscale.functional.algorithms import Convolution, unmeasured
from equiscale.functional.algorithms.choices import facts
from equiscale.functional.algorithms.planner import observed, plan
from equiscale.train import Numerics, OptimizerSettings

Mode: TypeAlias = Literal["train", "evaluate"]
Step: TypeAlias = Callable[[], object]

# Small enough to leave the weights where they are.
_LEARNING_RATE: Final = 1e-4
_FEW_IMAGES: Final = 2
_CHILD: Final = "from equiscale.choose.step import work; work()"
# glibc gives back at once what is larger than this when it is freed. Left alone it moves the bound up to
# 32 MiB, and memory is not linear in the images: below it the heap keeps gaps.
_NO_GAPS: Final = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


@dataclass(frozen=True)
class StepTask:
    """A step to be measured.

    Args:
        model: The network.
        image_shape: (C, H, W).
        images: In the step.
        batch: In the real step, whose algorithms are used.
        mode: A training step or an evaluation.
        device: "cpu" or "cuda", with an index.
        numerics: Precision and layout.
        optimizer: Of a training step.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    images: int
    batch: int
    mode: Mode
    device: str
    numerics: Numerics
    optimizer: OptimizerSettings


def make_step(task: StepTask) -> Step:
    """The step, on a copy of the network, with the algorithms that the planner takes for the real batch."""
    model = deepcopy(task.model).to(task.device)
    model.train(task.mode == "train")
    task.numerics.prepare(model)
    step = _train_step(model, task) if task.mode == "train" else _evaluation(model, task)

    def as_at_the_real_batch() -> None:
        with observed(_as_at(task)), unmeasured():
            step()

    return as_at_the_real_batch


def _images(task: StepTask) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(task.images, *task.image_shape, generator=generator).to(task.device)


def _evaluation(model: nn.Module, task: StepTask) -> Step:
    images = _images(task)

    def evaluate() -> None:
        with torch.no_grad():
            task.numerics.logits(model, images)

    return evaluate


def _train_step(model: nn.Module, task: StepTask) -> Step:
    images, optimizer = _images(task), task.optimizer.build(model, _LEARNING_RATE)

    def train() -> None:
        optimizer.zero_grad()
        _loss(task.numerics.logits(model, images)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def _loss(y: Tensor) -> Tensor:
    """Of class 0 where the output is logits; else anything with a gradient."""
    if y.ndim == 2:
        return cross_entropy(y, torch.zeros(len(y), dtype=torch.long, device=y.device))
    return y.square().mean()


def _as_at(task: StepTask) -> Callable[[Convolution], None]:
    """Before a layer chooses for the small batch, put down what it would choose for the real one."""

    def observe(convolution: Convolution) -> None:
        x, cache = convolution.x, convolution.cache
        if cache is None or task.images == task.batch:
            return
        size = max(1, len(x) * task.batch // task.images)
        many = x.detach()[:1].expand(size, *x.shape[1:]).requires_grad_(x.requires_grad)  # takes no memory
        cache.estimates[(*facts(convolution), x.device)] = plan(replace(convolution, x=many))

    return observe


def seconds(steps: list[Step], repeats: int, device: str) -> list[float]:
    """The fastest of some runs of each, in turn; the first, slow one warms up."""
    clock = _clock(device)
    rounds = [[_timed(step, clock) for step in steps] for _ in range(repeats + 1)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _timed(step: Step, clock: Callable[[], float]) -> float:
    started = clock()
    step()
    return clock() - started


def _clock(device: str) -> Callable[[], float]:
    """With one thread the processor's: what else runs on the machine meanwhile is not counted."""
    if device.startswith("cuda"):

        def after_all() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return after_all
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


# --- memory ---


def peak_bytes(task: StepTask, *, gaps: bool = False) -> int:
    """The peak of memory above the network and its images; on a CPU that of a process of its own.

    What the heap's gaps add depends on what else a process does, and is counted only with ``gaps``. A network
    that cannot be pickled is measured in this process, where memory that is free already is not seen.
    """
    if task.device == "cpu":
        try:
            content = pickle.dumps((task, torch.get_num_threads()))
        except (pickle.PicklingError, AttributeError, TypeError):
            return _peak(task)
        return _peak_in_child(content, {} if gaps else _NO_GAPS)
    return _peak(task)


def _peak_in_child(content: bytes, environment: Mapping[str, str]) -> int:
    """In a fresh interpreter: one of multiprocessing's would import the caller's script again."""
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=content,
        capture_output=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it died without a word"]
        raise BenchmarkError(
            f"expected the peak memory of a step with a process of its own, got none: {last[0]}; "
            "is the network's class in a module that can be imported, and is there enough memory?"
        )
    return int(done.stdout.split()[-1])


def work() -> None:
    """Of the child: read a task, write its bytes."""
    task, threads = pickle.load(io.BytesIO(sys.stdin.buffer.read()))
    torch.set_num_threads(threads)
    sys.stdout.write(f"{_peak(task)}\n")


def _peak(task: StepTask) -> int:
    few = replace(task, images=min(_FEW_IMAGES, task.images))
    make_step(few)()  # code, threads and tables that torch loads once
    return peak_growth(make_step(task), torch.device(task.device))
