"""What does a second process bring? A training step over two processes of one thread each.

Beside one process with one thread, and one with two. The three take turns; medians of the steps, as ratios.
Writes one JSON record, and with --into a table.
"""

import os
import statistics
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import recording
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from equiscale.models import create_model
from equiscale.train import TrainConfig
from equiscale.train.distributed import Processes
from equiscale.train.group import ALONE, Group

DEFAULT_OUTPUT = Path("results/benchmarks/scaling.json")

# Network: images a step, and their shape.
NETWORKS = {"mnist_ses_scalar_28": (128, (1, 28, 28)), "wrn_10_1_ses_b": (16, (3, 96, 96))}
CONFIG = TrainConfig(epochs=1, learning_rate=0.01)
HOUR = timedelta(hours=1)


def step_of(name: str, group: Group):
    """A step on this process's share of the same batch."""
    batch, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = create_model(name).train()
    images = torch.randn(batch, *shape, generator=generator)
    labels = torch.arange(batch) % 10
    if isinstance(group, Processes):
        images = images.tensor_split(group.size)[group.rank]
    optimizer = CONFIG.optimizer.build(model, CONFIG.learning_rate)
    gradients = group.gradients(model, CONFIG)

    def step() -> None:
        with group.training(model):
            gradients(images, labels)
        optimizer.step()

    return step


def timed(step, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def work(rank: int, folder: str, rounds: int, steps: int) -> None:
    """Both processes take their turn together; process 0 also takes the turns of one."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=HOUR
    )
    group, found = Processes(), {}
    for name in NETWORKS:
        shared, alone = step_of(name, group), step_of(name, ALONE) if rank == 0 else None
        times: dict[str, list[float]] = {"two processes": [], "one thread": [], "two threads": []}
        for turn in range(rounds + 1):  # the first one is not counted
            took = {"two processes": timed(shared, steps)}
            for threads, label in ((1, "one thread"), (2, "two threads")):
                torch.set_num_threads(threads)
                if alone:
                    took[label] = timed(alone, steps)
                torch.set_num_threads(1)
            group.any(False)  # the other one sleeps meanwhile
            for label, seconds in took.items():
                if turn:
                    times[label].append(seconds)
        found[name] = {label: statistics.median(some) for label, some in times.items() if some}
    if rank == 0:
        torch.save(found, os.path.join(folder, "found.pt"))
    group.leave()


def measure(rounds: int, steps: int) -> dict:
    with TemporaryDirectory() as folder:
        mp.spawn(work, (folder, rounds, steps), nprocs=2)
        found = torch.load(os.path.join(folder, "found.pt"))
    return {"rounds": rounds, "steps": steps, "seconds": found}


def markdown(record: dict) -> str:
    lines = [
        "| network | images a step | two processes, beside one with one thread "
        "| one process with two threads, beside one |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in record["seconds"].items():
        one = seconds["one thread"]
        lines.append(
            f"| `{name}` | {NETWORKS[name][0]} | {one / seconds['two processes']:.2f} × as fast "
            f"| {one / seconds['two threads']:.2f} × as fast |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if not arguments.read:
        recording.measured("scaling", arguments.output, lambda: measure(arguments.rounds, arguments.steps))
    recording.show("scaling", arguments, markdown)


if __name__ == "__main__":
    main()
