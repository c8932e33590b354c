"""What the scripts beside it share: options, what a record says of its making, the table in a document."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from equiscale._files import atomic_path
from equiscale.experiments import provenance
from equiscale.report.tables import insert_into


def parser(description: str | None, output: Path) -> argparse.ArgumentParser:
    """The options of every script; each adds its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, default=output)
    made.add_argument("--into", type=Path, help="write the table into this document")
    made.add_argument("--read", action="store_true", help="do not measure, read the record")
    return made


def measured(name: str, output: Path, measure: Callable[[], dict]) -> dict:
    """Measure, and write the record, with the commit as it was before."""
    commit, clean = provenance.commit()
    record = {
        "benchmark": name,
        "machine": provenance.machine(torch.device("cpu")),
        "versions": provenance.versions(),
        "commit": commit,
        "clean": clean,
        **measure(),
        "finished": provenance.now(),
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Wrote {output}")
    return record


def show(name: str, arguments: argparse.Namespace, markdown: Callable[[dict], str]) -> None:
    """Print the record's table, and write it into a document where one is given."""
    record = json.loads(arguments.output.read_text())
    print(markdown(record))
    if arguments.into:
        insert_into(arguments.into, name, markdown(record))
        print(f"Wrote the table into {arguments.into}")
