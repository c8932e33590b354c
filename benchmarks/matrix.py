"""Which layer runs how? Runs tests/deploy/test_matrix.py, and makes a table of what it found.

The record is written by the tests themselves: what is not tested has no "yes". With --into the table is
written into a document.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from equiscale.report.tables import insert_into

DEFAULT_OUTPUT = Path("results/benchmarks/matrix.json")
COLUMNS = (
    *("CPU", "CUDA", "torch.export", "ONNX", "int8", "torch.compile"),
    *("autocast bf16", "autocast fp16", "DataParallel", "DDP"),
)


def markdown(record: dict) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name, cells in record["layers"].items():
        shown = (cells.get(column, "not run") for column in COLUMNS)
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    lines += ["", f"PyTorch {record['versions']['torch']}."]
    return "\n".join(lines)


def run(output: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/deploy/test_matrix.py", "-k", "runs or replicas"]
    environment = os.environ | {"EQUISCALE_MATRIX": str(output.resolve())}
    if subprocess.run(command, env=environment).returncode:
        sys.exit("expected all cells as tests/deploy/test_matrix.py has them, got failures; see above")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--into", type=Path, help="write the table into this document")
    parser.add_argument("--read", action="store_true", help="do not run the tests, read the record")
    arguments = parser.parse_args()
    if not arguments.read:
        run(arguments.output)
    record = json.loads(arguments.output.read_text())
    print(markdown(record))
    if arguments.into:
        insert_into(arguments.into, "matrix", markdown(record))
        print(f"Wrote the table into {arguments.into}")


if __name__ == "__main__":
    main()
