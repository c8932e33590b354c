"""Add a finished run's weights to the pretrained ones: a float16 file in weights/, a row in the manifest.

    python tools/add_pretrained.py add WEIGHTS RECORD --root DATA
    python tools/add_pretrained.py table --into docs/weights.md

WEIGHTS is the run's safetensors file, RECORD its JSON record in results/. The file as stored is evaluated on
the run's test images before anything is written: its predictions must be the record's but for a few that
float16 turns. A network that is there already is replaced.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from equiscale._files import atomic_path
from equiscale.data import TensorBatches, load, normalize
from equiscale.errors import CheckpointError, SettingError
from equiscale.experiments.records import RunRecord, decode_predictions, read_record
from equiscale.models import create_model
from equiscale.models.pretrained import MANIFEST, PretrainedWeights
from equiscale.models.weights import load as load_network
from equiscale.models.weights import save
from equiscale.models.weights_file import FORMAT
from equiscale.report.tables import insert_into
from equiscale.train import evaluate
from equiscale.train.loop import error_percent

ROOT = Path(__file__).parents[1]
# Predictions that float16 may turn, of all.
MOST_TURNED = 0.002


def add(weights: Path, record_path: Path, arguments: argparse.Namespace) -> PretrainedWeights:
    """Convert, evaluate, compare with the record, and write file and manifest."""
    record = read_record(record_path)
    check_record(record)
    settings = record.settings
    target = arguments.weights / f"{settings.model}.safetensors"
    train = load(settings.dataset, split="train", realisation=settings.realisation, root=arguments.root)
    normalisation = {"mean": train.mean, "std": train.std}
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / target.name
        save(
            read_network(weights, record),
            stored,
            dtype=torch.float16,
            notes={"run": settings.run_id, **normalisation},
        )
        error = stored_error(stored, record, arguments.root)
        content = stored.read_bytes()
    row = PretrainedWeights(
        model=settings.model,
        file=target.name,
        sha256=hashlib.sha256(content).hexdigest(),
        run=settings.run_id,
        suite=settings.suite,
        dataset=settings.dataset,
        realisation=settings.realisation,
        epochs=settings.protocol.epochs,
        augment=settings.augment,
        test_error=record.test.error,
        stored_error=error,
        **normalisation,
    )
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    write_manifest(arguments.manifest, row)
    return row


def check_record(record: RunRecord) -> None:
    if record.status != "finished" or record.test is None:
        raise SettingError("expected the record of a finished run, got one that failed; choose another")
    if record.settings.overrides:
        raise SettingError(
            "expected a run of the published settings, got overrides "
            f"{dict(record.settings.overrides)}; pretrained weights have none"
        )


def read_network(weights: Path, record: RunRecord) -> nn.Module:
    """The run's network, from a file of `save` or, of earlier runs, from tensors alone."""
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") == FORMAT:
        network = load_network(weights)
        if network.registered.name != record.settings.model:
            raise SettingError(f"expected weights of {record.settings.model}, got {network.registered.name}")
        return network
    network = create_model(record.settings.model)
    network.load_state_dict(load_file(weights))
    return network


def stored_error(path: Path, record: RunRecord, root: Path | None) -> float:
    """The error of the file as it is; raises where its predictions are not the record's."""
    settings = record.settings
    test = load(settings.dataset, split="test", realisation=settings.realisation, root=root)
    network = load_network(path)

    def normalized(images: torch.Tensor, _: torch.Generator | None = None) -> torch.Tensor:
        return normalize(images, test.mean, test.std)

    batches = TensorBatches(test.images, test.labels, batch_size=128, transform=normalized, shuffle=False)
    predictions, labels = evaluate(network, batches)
    turned = int((predictions.numpy() != decode_predictions(record.test.predictions)).sum())
    if turned > MOST_TURNED * len(test):
        raise CheckpointError(
            f"expected the predictions of {settings.run_id}, got {turned} others of {len(test)}; these are "
            "not the weights of this record"
        )
    tell(f"{turned} of {len(test)} predictions are not the record's")
    return error_percent(predictions, labels)


def write_manifest(path: Path, row: PretrainedWeights) -> None:
    manifest = json.loads(path.read_text())
    rows = [other for other in manifest["weights"] if other["model"] != row.model] + [asdict(row)]
    manifest["weights"] = sorted(rows, key=lambda entry: entry["model"])
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")


def markdown(manifest: Path) -> str:
    lines = [
        "| network | data | training | test error, % | as stored, % | file |",
        "|---|---|---|--:|--:|---|",
    ]
    for row in json.loads(manifest.read_text())["weights"]:
        training = f"{row['epochs']} epochs" + ("" if row["augment"] == "none" else f", {row['augment']}")
        lines.append(
            f"| `{row['model']}` | {row['dataset']}, realisation {row['realisation']} | {training} | "
            f"{row['test_error']:.2f} | {row['stored_error']:.2f} | `weights/{row['file']}` |"
        )
    return "\n".join(lines)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="add or replace the weights of a run")
    adding.add_argument("file", type=Path)
    adding.add_argument("record", type=Path)
    adding.add_argument("--root", type=Path, help="the folder of prepared data")
    adding.add_argument("--weights", type=Path, default=ROOT / "weights", help="the folder of weights")
    table = commands.add_parser("table", help="show the table of the manifest")
    table.add_argument("--into", type=Path, help="write the table into this document")
    arguments = parser.parse_args()
    if arguments.command == "add":
        row = add(arguments.file, arguments.record, arguments)
        tell(f"{row.model}: {row.test_error:.3f} % in the record, {row.stored_error:.3f} % as stored")
        return
    tell(markdown(arguments.manifest))
    if arguments.into:
        insert_into(arguments.into, "pretrained", markdown(arguments.manifest))


if __name__ == "__main__":
    main()
