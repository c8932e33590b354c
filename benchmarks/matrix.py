"""Which layer runs how? Runs tests/deploy/test_matrix.py, and makes a table of what it found.

The record is written by the tests themselves: what is not tested has no "yes". With --into the table is
written into a document.
"""

import os
import subprocess
import sys
from pathlib import Path

import recording

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
    arguments = recording.parser(__doc__, DEFAULT_OUTPUT).parse_args()
    if not arguments.read:
        run(arguments.output)
    recording.show("matrix", arguments, markdown)


if __name__ == "__main__":
    main()
