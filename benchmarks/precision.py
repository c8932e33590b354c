"""How accurate is bfloat16?

For each network the logits and gradients of one batch in bfloat16, and in float32, against float64, as
relative errors ‖a − b‖ / ‖b‖ of networks with the same first weights; and from the records of runs that
differ in nothing but the precision, the test errors. The figures of the machine's own rounding (float32)
stand beside those of bfloat16, whose numbers have 8 significant bits, 0.4 %.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale import create_model, list_models
from equiscale._files import atomic_path
from equiscale._machine import available_cores
from equiscale.experiments import provenance
from equiscale.experiments.records import RunRecord, read_records
from equiscale.train import Numerics

DEFAULT_OUTPUT = Path("results/benchmarks/precision.json")
SUITES = ("mnist-scale", "digits-scale", "imagenette96")


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Blurred random strokes, normalised as MNIST-scale."""
    generator = torch.Generator().manual_seed(0)
    strokes = (torch.rand(count, 1, 28, 28, generator=generator) > 0.9).double()
    images = nn.functional.avg_pool2d(strokes, 3, stride=1, padding=1).mul(3).clamp(max=1)
    return (images - 0.0607) / 0.2161, torch.randint(10, (count,), generator=generator)


def outputs(model: nn.Module, numerics: Numerics, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and all gradients of the loss in one vector, in training mode without dropout."""
    model.train().zero_grad()
    for module in model.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
    logits = numerics.logits(model, images)
    cross_entropy(logits, labels).backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach().double(), torch.cat(gradients).double()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def network(name: str, batch_size: int, device: torch.device) -> dict[str, Any]:
    images, labels = (tensor.to(device) for tensor in digits(batch_size))
    torch.manual_seed(0)
    model = create_model(name).to(device)
    results = {
        precision: outputs(model, Numerics(precision), images.float(), labels)
        for precision in ("float32", "bfloat16")
    }
    exact = outputs(model.double(), Numerics(), images, labels)
    found: dict[str, Any] = {"model": name}
    for precision, result in results.items():
        errors = [relative_error(*pair) for pair in zip(result, exact, strict=True)]
        found[precision] = dict(zip(("outputs", "gradients"), errors, strict=True))
    same = results["bfloat16"][0].argmax(1) == exact[0].argmax(1)
    found["same_class"] = float(same.double().mean())
    cosine = nn.functional.cosine_similarity(results["bfloat16"][1], exact[1], dim=0)
    found["gradient_cosine"] = float(cosine)
    return found


def pairs_of_runs(folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Finished runs whose settings differ in nothing but the precision."""
    alike: dict[str, dict[str, RunRecord]] = defaultdict(dict)
    for record in (
        record for folder in folders for suite in SUITES for record in read_records(folder, suite)
    ):
        if record.test is not None:
            protocol = record.settings.protocol.model_copy(update={"precision": "float32"})
            key = record.settings.model_copy(update={"protocol": protocol}).run_id
            alike[key][record.settings.protocol.precision] = record
    for key, records in sorted(alike.items()):
        if len(records) == 2:
            errors = {precision: record.test.error for precision, record in sorted(records.items())}
            yield {"run": key, "epochs": records["float32"].settings.protocol.epochs, "error": errors}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", help="(default: all of MNIST)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[Path("results")], help="folders of records"
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    settings = parser.parse_args()
    torch.set_num_threads(available_cores())
    device, results = torch.device(settings.device), []
    for name in settings.models or [name for name in list_models() if name.startswith("mnist")]:
        results.append(network(name, settings.batch_size, device))
        print(json.dumps(results[-1]), flush=True)
    runs = list(pairs_of_runs(settings.results))
    commit, clean = provenance.commit()
    differences = [run["error"]["bfloat16"] - run["error"]["float32"] for run in runs]
    record = {
        "benchmark": "precision",
        "batch_size": settings.batch_size,
        "results": results,
        "runs": runs,
        "median_difference_of_runs": statistics.median(differences) if differences else None,
        "machine": provenance.machine(device),
        "versions": provenance.versions(),
        "commit": commit,
        "clean": clean,
        "finished": provenance.now(),
    }
    with atomic_path(settings.output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    for run in runs:
        print(json.dumps(run))
    print(f"Wrote {settings.output}")


if __name__ == "__main__":
    main()
