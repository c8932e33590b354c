"""How long is a training step, against the published formulation and the plain CNN of the same size?

The three are interleaved in one process, so that a slow moment of the machine hits all of them; the
ratios of medians are what counts. Writes one JSON record, and with --into the README's table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from equiscale import create_model
from equiscale._files import atomic_path
from equiscale._machine import available_cores
from equiscale.experiments import provenance
from equiscale.functional import synthesize_filters
from equiscale.nn import LiftConv2d, ScaleConv2d, SteerableConv2d
from equiscale.report.tables import insert_into

MODELS = ("mnist_ses_scalar_28", "mnist_ses_vector_28", "mnist_ses_scalar_56", "mnist_ses_vector_56")
DEFAULT_OUTPUT = Path("results/benchmarks/training_step.json")


class PublishedFormulation(nn.Module):
    """The same layer as the public code computes it: all scales at the largest window, in one
    convolution; for scale maps a grouped one between two permuted copies."""

    def __init__(self, layer: SteerableConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight = layer.weight if layer.weight.ndim == 3 else layer.weight[:, :, 0]
        filters = synthesize_filters(weight, layer.basis)  # (C', C, S, K, K)
        scales, padding = len(layer.grid), layer.kernel_size // 2
        if isinstance(layer, LiftConv2d):
            stacked = filters.transpose(1, 2).flatten(0, 1)  # (C'*S, C, K, K)
            y = conv2d(x, stacked, padding=padding)
            y = y.view(len(x), layer.out_channels, scales, *y.shape[2:])
        else:
            stacked = filters.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (S*C', C, K, K)
            y = conv2d(x.transpose(1, 2).flatten(1, 2), stacked, padding=padding, groups=scales)
            y = y.view(len(x), scales, layer.out_channels, *y.shape[2:]).transpose(1, 2)
        return y.contiguous() + layer.bias.view(1, -1, 1, 1, 1)


def as_published(model: nn.Module) -> nn.Module:
    for index, layer in enumerate(model.main):
        if isinstance(layer, LiftConv2d | ScaleConv2d):
            model.main[index] = PublishedFormulation(layer)
    return model


def make_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def measure(name: str, rounds: int, batch_size: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (batch_size,), generator=generator)
    models = {"ours": create_model(name), "published": create_model(name)}
    models["published"].load_state_dict(models["ours"].state_dict())
    models["published"] = as_published(models["published"])
    models["cnn"] = create_model("mnist_cnn_56" if "56" in name else "mnist_cnn_28")
    check_equal(models["ours"], models["published"], images)
    steps = {kind: make_step(model, images, labels) for kind, model in models.items()}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for round_ in range(rounds + 1):
        for kind, step in steps.items():
            started = time.perf_counter()
            step()
            if round_:  # the first one warms up
                times[kind].append(time.perf_counter() - started)
    median = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "model": name,
        "seconds": {kind: summary(values) for kind, values in times.items()},
        "published_over_ours": median["published"] / median["ours"],
        "ours_over_cnn": median["ours"] / median["cnn"],
        "published_over_cnn": median["published"] / median["cnn"],
    }


def check_equal(ours: nn.Module, published: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        first, second = ours.eval()(images), published.eval()(images)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    ours.train()
    published.train()


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "quartile_1": low, "quartile_3": high, "n": len(values)}


def markdown(results: list[dict]) -> str:
    rows = [
        f"| `{result['model']}` | {result['published_over_ours']:.1f}× faster "
        f"| {result['ours_over_cnn']:.1f}× | {result['published_over_cnn']:.1f}× |"
        for result in results
    ]
    head = (
        "| network | ours against the published formulation | ours, cost against the plain CNN | published |"
    )
    return "\n".join([head, "|---|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--into", type=Path, help="write the table into this document")
    parser.add_argument("--read", action="store_true", help="do not measure, read the record")
    arguments = parser.parse_args()
    if not arguments.read:
        torch.set_num_threads(available_cores())
        results = []
        for name in MODELS:
            results.append(measure(name, arguments.rounds, arguments.batch_size))
            print(markdown(results[-1:]).splitlines()[-1], flush=True)
        commit, clean = provenance.commit()
        record = {
            "benchmark": "training_step",
            "batch_size": arguments.batch_size,
            "results": results,
            "machine": provenance.machine(torch.device("cpu")),
            "versions": provenance.versions(),
            "commit": commit,
            "clean": clean,
            "finished": provenance.now(),
        }
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        print(f"Wrote {arguments.output}")
    if arguments.into:
        insert_into(
            arguments.into, "training-step", markdown(json.loads(arguments.output.read_text())["results"])
        )
        print(f"Wrote the table into {arguments.into}")


if __name__ == "__main__":
    main()
