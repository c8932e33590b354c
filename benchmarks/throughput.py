"""Where does the time of an epoch go, and what makes a training faster around its convolutions?

Four questions, each answered in one JSON record:

- epoch: the shares of reading a batch, augmentation, forward pass, backward pass, optimiser and validation
  in an epoch of MNIST-scale (10,000 images to learn from, 2,000 to validate);
- evaluation: time an image against the size of the batch;
- allocator: a training step with freed memory given back, kept, and kept in huge pages, interleaved in
  processes of their own;
- side-by-side: images a second of one training with all threads against several with their share. This one
  needs a quiet machine.

Times are medians; what is compared is interleaved, so that a slow moment of the machine hits all of it.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale import create_model
from equiscale._files import atomic_path
from equiscale._machine import available_cores, keep_memory
from equiscale.data import TensorBatches, normalize, random_rescale
from equiscale.experiments import provenance
from equiscale.experiments.benchmark.memory import reset_peak, resident_peak
from equiscale.report.tables import insert_into

MODELS = ("mnist_cnn_28", "mnist_cnn_56", "mnist_ses_scalar_28", "mnist_ses_scalar_56")
QUESTIONS = ("epoch", "evaluation", "allocator", "side-by-side")
DEFAULT_OUTPUT = Path("results/benchmarks/throughput.json")
TRAIN, VALIDATION = 10_000, 2_000
EVALUATION_BATCHES = (32, 128, 512, 1024)
_PATIENCE = 300  # seconds until a training that has not begun is given up
ALLOCATORS = ("given back", "kept", "kept, huge pages")


class Stopwatch:
    """Seconds of the parts of a step; on a GPU each part waits for the one before.

    On a CPU, where the runs of a sweep have one thread each, the thread's own time: what else runs there
    meanwhile is not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, dict[str, list[float]]()
        self.lap_started = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def lap(self, part: str) -> None:
        now = self.now()
        self.times.setdefault(part, []).append(now - self.lap_started)
        self.lap_started = now


def digits(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random grey levels: their values do not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 28, 28), generator=generator).byte()
    return images.to(device), torch.randint(10, (count,), generator=generator).to(device)


def epoch(name: str, rounds: int, batch_size: int, device: torch.device) -> dict[str, Any]:
    model = create_model(name).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator, watch = torch.Generator().manual_seed(0), Stopwatch(device)
    batches = TensorBatches(*digits(TRAIN, device), batch_size=batch_size, shuffle=True).epoch(generator)
    for _ in range(rounds + 1):
        watch.lap("")
        images, labels = next(batches)
        watch.lap("reading")
        augmented = random_rescale(images, generator=generator)
        watch.lap("augmentation")
        normalized = normalize(augmented, 0.0607, 0.2161)
        watch.lap("normalisation")
        loss = cross_entropy(model(normalized), labels)
        watch.lap("forward")
        model.zero_grad()
        loss.backward()
        watch.lap("backward")
        optimizer.step()
        watch.lap("optimiser")
    del watch.times[""]
    steps = -(-TRAIN // batch_size)
    seconds = {part: steps * statistics.median(times[1:]) for part, times in watch.times.items()}
    seconds["validation"] = VALIDATION * seconds_an_image(model.eval(), 512, rounds, device)
    total = sum(seconds.values())
    return {
        "model": name,
        "augment": "scale",
        "seconds": total,
        "share": {part: round(value / total, 4) for part, value in seconds.items()},
    }


def seconds_an_image(model: nn.Module, batch_size: int, rounds: int, device: torch.device) -> float:
    images, watch = torch.randn(batch_size, 1, 28, 28, device=device), Stopwatch(device)
    with torch.no_grad():
        for _ in range(min(rounds, 3) + 1):
            model(images)
            watch.lap("")
    return statistics.median(watch.times[""][1:]) / batch_size


def evaluation(name: str, rounds: int, device: torch.device) -> dict[str, Any]:
    model = create_model(name).to(device).eval()
    times: dict[int, list[float]] = {size: [] for size in EVALUATION_BATCHES}
    for _ in range(rounds):
        for size in EVALUATION_BATCHES:
            times[size].append(seconds_an_image(model, size, 1, device))
    return {
        "model": name,
        "milliseconds_an_image": {
            str(size): round(1e3 * statistics.median(values), 4) for size, values in times.items()
        },
    }


def train_step(name: str, batch_size: int, device: torch.device) -> Callable[[], None]:
    model = create_model(name).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    images = torch.randn(batch_size, 1, 28, 28, device=device)
    labels = torch.arange(batch_size, device=device) % 10

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def in_process(task: Callable[..., Any], *arguments: object) -> Any:
    """The answer of a task, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(task, *arguments).result()


def step_with_allocator(name: str, allocator: str, rounds: int, batch_size: int) -> tuple[float, float]:
    """The processor's time of a step on one thread, undisturbed by neighbours, and the MB that it takes."""
    torch.set_num_threads(1)
    if allocator != "given back":
        keep_memory()
    step = train_step(name, batch_size, torch.device("cpu"))
    reset_peak()
    before, times = resident_peak(), []
    for _ in range(rounds + 2):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return statistics.median(times[2:]), (resident_peak() - before) / 2**20


@contextmanager
def huge_pages() -> Iterator[None]:
    """glibc reads this at a program's start only: it is for the processes that are started inside."""
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    try:
        yield
    finally:
        del os.environ["GLIBC_TUNABLES"]


def allocator(name: str, rounds: int, batch_size: int) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ALLOCATORS}
    for _ in range(3):
        for kind in ALLOCATORS:
            arguments = (step_with_allocator, name, kind, rounds, batch_size)
            with huge_pages() if kind.endswith("huge pages") else nullcontext():
                found[kind].append(in_process(*arguments))
    return {
        "model": name,
        "seconds": {kind: statistics.median(s for s, _ in pairs) for kind, pairs in found.items()},
        "peak_mb": {kind: round(statistics.median(m for _, m in pairs)) for kind, pairs in found.items()},
    }


def train_for(
    name: str, seconds: float, threads: int, batch_size: int, device: str, barrier: Any, answers: Any
) -> None:
    """Images a second of one of several trainings that start together."""
    torch.set_num_threads(threads)
    keep_memory()
    step = train_step(name, batch_size, torch.device(device))
    step()
    barrier.wait(_PATIENCE)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
        if device != "cpu":
            torch.cuda.synchronize(device)
    answers.put(steps * batch_size / (time.perf_counter() - started))


def side_by_side(
    name: str, counts: Iterable[int], seconds: float, batch_size: int, device: str
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(3):
        for count in rates:
            barrier, answers = context.Barrier(count), context.SimpleQueue()
            threads = max(1, available_cores() // count)
            arguments = (name, seconds, threads, batch_size, device, barrier, answers)
            processes = [context.Process(target=train_for, args=arguments) for _ in range(count)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                raise RuntimeError(f"a training of {name} failed; its error stands above")
            rates[count].append(sum(answers.get() for _ in processes))
    return {
        "model": name,
        "images_a_second": {str(count): round(statistics.median(each), 1) for count, each in rates.items()},
    }


def answer(question: str, name: str, settings: argparse.Namespace) -> dict[str, Any]:
    device, rounds, batch_size = torch.device(settings.device), settings.rounds, settings.batch_size
    if question == "epoch":
        return epoch(name, rounds, batch_size, device)
    if question == "evaluation":
        return evaluation(name, rounds, device)
    if question == "allocator":
        return allocator(name, rounds, batch_size)
    return side_by_side(name, settings.jobs, settings.seconds, batch_size, settings.device)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def markdown(record: dict[str, Any]) -> str:
    """What was answered, a table a question."""
    tables = []
    if "epoch" in record:
        results = record["epoch"]["results"]
        parts = list(results[0]["share"])
        rows = [[f"`{r['model']}`", *(f"{100 * r['share'][part]:.1f} %" for part in parts)] for r in results]
        tables.append(table(["share of an epoch", *parts], rows))
    if "evaluation" in record:
        results = record["evaluation"]["results"]
        sizes = list(results[0]["milliseconds_an_image"])
        rows = [
            [f"`{r['model']}`", *(f"{r['milliseconds_an_image'][size]:.2f} ms" for size in sizes)]
            for r in results
        ]
        tables.append(table(["evaluation of an image, in batches of", *sizes], rows))
    if "allocator" in record:
        results = record["allocator"]["results"]
        rows = [
            [
                f"`{r['model']}`",
                *(f"{r['seconds'][kind]:.2f} s, {r['peak_mb'][kind]} MB" for kind in ALLOCATORS),
            ]
            for r in results
        ]
        tables.append(table(["a step on one thread, freed memory", *ALLOCATORS], rows))
    if "side-by-side" in record:
        results = record["side-by-side"]["results"]
        counts = list(results[0]["images_a_second"])
        rows = [
            [f"`{r['model']}`", *(f"{r['images_a_second'][count]:.0f}" for count in counts)] for r in results
        ]
        tables.append(table(["images a second, trainings side by side", *counts], rows))
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(QUESTIONS)} (default: all)")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="trainings side by side")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each training side by side")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--read", action="store_true", help="do not measure, read the record")
    parser.add_argument("--into", type=Path, help="write the tables into this document")
    settings = parser.parse_args()
    unknown = set(settings.questions) - set(QUESTIONS)
    if unknown:
        parser.error(f"expected questions of {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    if not settings.read:
        measure(settings)
        print(f"Wrote {settings.output}")
    if settings.into:
        insert_into(settings.into, "throughput", markdown(json.loads(settings.output.read_text())))
        print(f"Wrote the tables into {settings.into}")


def measure(settings: argparse.Namespace) -> None:
    """Answer the questions; what was not asked for this time stays as it was answered before."""
    torch.set_num_threads(1)
    keep_memory()
    commit, clean = provenance.commit()
    record = {"benchmark": "throughput"}
    if settings.output.exists():
        record = json.loads(settings.output.read_text())
    for question in settings.questions or QUESTIONS:
        results = []
        for name in settings.models:
            results.append(answer(question, name, settings))
            print(question, json.dumps(results[-1]), flush=True)
        record[question] = {
            "batch_size": settings.batch_size,
            "results": results,
            "machine": provenance.machine(torch.device(settings.device)),
            "load": round(os.getloadavg()[0], 1),
            "versions": provenance.versions(),
            "commit": commit,
            "clean": clean,
            "finished": provenance.now(),
        }
        with atomic_path(settings.output) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
