"""How far is an estimate from what is measured? Steps of the real batch against equiscale.choose.estimate.

Times are of the processor with one thread, the fastest of some steps; memory is that of a process of its own,
without the gaps in its heap,
and with them as malloc has them when it is left alone. Writes one JSON record, and with --into a table.
"""

import time
from pathlib import Path
from typing import get_args

import recording
import torch
from torch import nn

from equiscale._machine import keep_memory
from equiscale.choose.estimate import EstimateOptions, estimate
from equiscale.choose.step import Mode, StepTask, make_step, peak_bytes, seconds
from equiscale.models import create_model, model_entry
from equiscale.train import Numerics, OptimizerSettings

DEFAULT_OUTPUT = Path("results/benchmarks/estimate.json")
WANTED = 0.2  # the largest relative miss

# Images a step, and their side.
NETWORKS = {
    "mnist_cnn_28": (128, 28),
    "mnist_ses_scalar_28": (128, 28),
    "mnist_ses_vector_28": (128, 28),
    "mnist_ses_vector_56": (128, 28),
    "mnist_dss_vector_28": (128, 28),
    "wrn_10_1": (64, 96),
    "wrn_10_1_ses_b": (32, 96),
}
REPEATS = 2


def measure(name: str, patience: float) -> dict[str, object]:
    batch, size = NETWORKS[name]
    channels = model_entry(name).settings.in_channels
    torch.manual_seed(0)
    model = create_model(name)
    before = taken(model, name)
    started = time.perf_counter()
    found = estimate(
        model, (batch, channels, size, size), options=EstimateOptions(device="cpu", patience=patience)
    )
    after = taken(model, name)
    row: dict[str, object] = {
        "model": name,
        "batch": batch,
        "size": size,
        "estimated_in": time.perf_counter() - started,
        "modes": {},
    }
    for mode, estimated in (("train", found.train), ("evaluate", found.evaluate)):
        fastest = min(before[mode], after[mode])
        step = real_step(model, name, mode)
        row["modes"][mode] = {
            "measured_images": estimated.measured_images,
            "estimated_seconds": estimated.seconds,
            "seconds": fastest,
            "estimated_bytes": estimated.peak_bytes,
            "bytes": peak_bytes(step),
            "bytes_with_gaps": peak_bytes(step, gaps=True),
        }
    return row


def real_step(model: nn.Module, name: str, mode: Mode) -> StepTask:
    batch, size = NETWORKS[name]
    shape = model_entry(name).settings.in_channels, size, size
    return StepTask(model, shape, batch, batch, mode, "cpu", Numerics(), OptimizerSettings())


def taken(model: nn.Module, name: str) -> dict[str, float]:
    """Seconds of both steps; before and after the estimate, as the machine has slow moments."""
    steps = [make_step(real_step(model, name, mode)) for mode in get_args(Mode)]
    return dict(zip(get_args(Mode), seconds(steps, REPEATS, "cpu"), strict=True))


def markdown(record: dict) -> str:
    lines = [
        "| network | batch | step | timed with | time, estimated | measured | ratio "
        "| memory, estimated | measured | ratio | with gaps |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    ratios = []
    for result in record["results"]:
        for mode, found in result["modes"].items():
            time_ratio = found["estimated_seconds"] / found["seconds"]
            memory_ratio = found["estimated_bytes"] / found["bytes"]
            ratios += [time_ratio, memory_ratio]
            lines.append(
                f"| `{result['model']}` | {result['batch']} | {mode} | {found['measured_images']} "
                f"| {1e3 * found['estimated_seconds']:.0f} ms | {1e3 * found['seconds']:.0f} ms "
                f"| {shown(time_ratio)} | {found['estimated_bytes'] / 1e6:.0f} MB "
                f"| {found['bytes'] / 1e6:.0f} MB | {shown(memory_ratio)} "
                f"| {found['bytes_with_gaps'] / 1e6:.0f} MB |"
            )
    near = sum(abs(ratio - 1) <= WANTED for ratio in ratios)
    rest = "" if near == len(ratios) else "; the others are in bold"
    lines.append(
        f"\n{near} of {len(ratios)} estimates are within {100 * WANTED:.0f} % of the measured{rest}."
    )
    return "\n".join(lines)


def shown(ratio: float) -> str:
    return f"{ratio:.2f}" if abs(ratio - 1) <= WANTED else f"**{ratio:.2f}**"


def measure_all(patience: float) -> dict:
    results = []
    for name in NETWORKS:
        results.append(measure(name, patience))
        print(f"measured {name} in {results[-1]['estimated_in']:.0f} s and more")
    return {"patience": patience, "results": results}


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument(
        "--patience", type=float, default=EstimateOptions.patience, help="as of EstimateOptions, in seconds"
    )
    arguments = parser.parse_args()
    if not arguments.read:
        torch.set_num_threads(1)
        keep_memory()  # as the runs of a suite, and as the command
        recording.measured("estimate", arguments.output, lambda: measure_all(arguments.patience))
    recording.show("estimate", arguments, markdown)


if __name__ == "__main__":
    main()
