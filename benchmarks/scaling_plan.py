"""What would large machines do? Counted work and bytes of published trainings, and time under assumptions.

Counted by the library: multiply-adds of a training step, parameters, channels of batch norms. Assumed, and
no measurement of ours: the peak of an H200, the share of it that such networks reach, the bandwidth between
GPUs, and what a ResNet-50 costs. Writes one JSON record, and with --into a table.
"""

import math
from pathlib import Path

import recording
import torch
from torch import nn

from equiscale.choose.step import StepTask, make_step
from equiscale.experiments.benchmark.work import operations
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.spec import load_suite
from equiscale.models import create_model
from equiscale.nn.sync_norm import SharesStatistics
from equiscale.train import Numerics, OptimizerSettings

DEFAULT_OUTPUT = Path("results/benchmarks/scaling_plan.json")
COUNTED_WITH = 2  # images, whose work is in proportion

# --- assumptions ---
PEAK = (
    67e12 / 2
)  # multiply-adds a second of an H200 in single precision without tensor cores, as its maker says
UTILISATION = 0.3  # of the peak, of large steps
BANDWIDTH = 100e9  # bytes a second to and from each GPU, of an all-reduce
NEVER_BELOW = 0.01  # seconds of a step: a thousand launches of 10 µs
RESNET_50 = 4.1e9  # multiply-adds of a forward pass at 224×224, and its parameters and channels of norms
RESNET_50_PARAMETERS, RESNET_50_CHANNELS = 25.6e6, 26_560
IMAGES_OF_IMAGENET, EPOCHS_OF_IMAGENET, BATCH_OF_IMAGENET = 1_281_167, 90, 256
GPUS = (1, 8, 100)

# Suite, shape of the images and how many there are in an epoch.
SUITES = {"mnist-scale": ((1, 28, 28), 10_000), "stl10": ((3, 96, 96), 5_000)}


def count(name: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """A network's work in a training step, by image, and what its processes tell one another."""
    torch.manual_seed(0)
    model = create_model(name)
    task = StepTask(
        *(model, shape, COUNTED_WITH, COUNTED_WITH, "train", "cpu"),
        *(Numerics(), OptimizerSettings()),
    )
    flops = sum(operation.flops for operation in operations(make_step(task)))
    norms = [m for m in model.modules() if isinstance(m, (SharesStatistics, nn.modules.batchnorm._BatchNorm))]
    return {
        "multiply_adds": flops / 2 / COUNTED_WITH,
        "parameters": sum(p.numel() for p in model.parameters()),
        "norm_channels": sum(m.num_features for m in norms),
        "norms": len(norms),
    }


def measure() -> dict:
    networks, runs = {}, []
    for suite, (shape, images) in SUITES.items():
        for run in plan_runs(load_suite(suite), Selection()):
            if run.model not in networks:
                networks[run.model] = count(run.model, shape)
                print(f"counted {run.model}", flush=True)
            protocol = run.protocol
            steps = math.ceil(images / protocol.batch_size) * protocol.epochs
            runs.append({"suite": suite, "model": run.model, "steps": steps, "batch": protocol.batch_size})
    return {"networks": networks, "runs": runs}


def seconds_of_step(network: dict[str, float], batch: int, gpus: int) -> tuple[float, float]:
    """Of the arithmetic, and of what is told: gradients once, and norms twice forward and back."""
    share = math.ceil(batch / gpus)
    arithmetic = max(NEVER_BELOW, share * network["multiply_adds"] / (PEAK * UTILISATION))
    return arithmetic, told_bytes(network) * 2 * (gpus - 1) / gpus / BANDWIDTH


def told_bytes(network: dict[str, float]) -> float:
    """In a step, from each process: gradients of 4 bytes, and per channel of a norm 4 sums of 8 bytes."""
    return 4 * network["parameters"] + 4 * 8 * network["norm_channels"]


def imagenet(record: dict) -> dict[str, float]:
    """A SES ResNet-50 as dear beside the plain one as the SES network of STL-10 beside its own."""
    networks = record["networks"]
    factor = networks["wrn_16_8_ses_b"]["multiply_adds"] / networks["wrn_16_8"]["multiply_adds"]
    return {
        "multiply_adds": 3 * RESNET_50 * factor,  # forward, and twice as much backward
        "parameters": RESNET_50_PARAMETERS,
        "norm_channels": RESNET_50_CHANNELS,
    }


def runs_of(record: dict, suite: str) -> list[dict]:
    """Of the published table, without the methods that it does not have."""
    extra = load_suite(suite).extra_models
    return [run for run in record["runs"] if run["suite"] == suite and run["model"] not in extra]


def hours(record: dict, suite: str, gpus: int) -> float:
    """All runs of a suite on so many GPUs: whole runs side by side, and where there are fewer, shared."""
    runs = runs_of(record, suite)
    each = max(1, gpus // len(runs))
    seconds = [
        run["steps"] * sum(seconds_of_step(record["networks"][run["model"]], run["batch"], each))
        for run in runs
    ]
    return max(sum(seconds) * each / gpus, max(seconds)) / 3600


def hours_of_imagenet(record: dict, gpus: int) -> float:
    steps = math.ceil(IMAGES_OF_IMAGENET / BATCH_OF_IMAGENET) * EPOCHS_OF_IMAGENET
    return steps * sum(seconds_of_step(imagenet(record), BATCH_OF_IMAGENET, gpus)) / 3600


def markdown(record: dict) -> str:
    lines = [
        "| training | steps, all runs | multiply-adds a step | told a step | "
        + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)
        + " |",
        "|---|---:|---:|---:|" + "---:|" * len(GPUS),
    ]
    for suite, title in (("mnist-scale", "MNIST-scale"), ("stl10", "STL-10")):
        runs = runs_of(record, suite)
        work = [record["networks"][run["model"]]["multiply_adds"] * run["batch"] for run in runs]
        told = [told_bytes(record["networks"][run["model"]]) for run in runs]
        lines.append(
            f"| {title}, {len(runs)} runs | {sum(run['steps'] for run in runs):,} "
            f"| {spread(work, 1e9)} G | {spread(told, 1e6)} MB | "
            + " | ".join(f"{hours(record, suite, gpus):.1f} h" for gpus in GPUS)
            + " |"
        )
    network = imagenet(record)
    steps = math.ceil(IMAGES_OF_IMAGENET / BATCH_OF_IMAGENET) * EPOCHS_OF_IMAGENET
    lines.append(
        f"| ImageNet's size, one run | {steps:,} "
        f"| {network['multiply_adds'] * BATCH_OF_IMAGENET / 1e9:,.0f} G "
        f"| {told_bytes(network) / 1e6:.0f} MB | "
        + " | ".join(f"{hours_of_imagenet(record, gpus):.1f} h" for gpus in GPUS)
        + " |"
    )
    return "\n".join(lines)


def spread(values: list[float], unit: float) -> str:
    """The smallest and the largest."""
    return f"{min(values) / unit:,.1f} to {max(values) / unit:,.1f}"


def main() -> None:
    arguments = recording.parser(__doc__, DEFAULT_OUTPUT).parse_args()
    if not arguments.read:
        recording.measured("scaling-plan", arguments.output, measure)
    recording.show("scaling-plan", arguments, markdown)


if __name__ == "__main__":
    main()
