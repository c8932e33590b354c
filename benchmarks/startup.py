"""How long until one can begin? What imports take beyond torch's own, and what building networks takes.

Each part runs in a process of its own, with one thread; the parts take turns, so that a slow moment of the
machine hits all of them. Times are of the processor (time.process_time), medians; torch is imported before
the clock starts, and is timed itself for comparison. Writes one JSON record, and with --into a table.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import recording
import torch

DEFAULT_OUTPUT = Path("results/benchmarks/startup.json")
BUILT = ("mnist_ses_scalar_28", "mnist_disco", "wrn_16_8_ses_b")
TARGETS = {"equiscale.HermiteBasis": 0.3, "build wrn_16_8_ses_b": 1.0}

# What is made ready before the clock starts, and what is timed.
PARTS = {
    "import torch": ("", "import torch"),
    "equiscale.HermiteBasis": ("import torch", "import equiscale; equiscale.HermiteBasis"),
    "equiscale.nn": ("import torch", "import equiscale.nn"),
    "equiscale.create_model": ("import torch", "import equiscale; equiscale.create_model"),
} | {
    f"build {name}": (
        "import torch, equiscale; torch.set_num_threads(1); equiscale.create_model",
        f"equiscale.create_model({name!r})",
    )
    for name in BUILT
}


def seconds(part: str) -> float:
    ready, timed = PARTS[part]
    code = f"import time; {ready}\nbegun = time.process_time(); {timed}\nprint(time.process_time() - begun)"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout)


def measure(rounds: int) -> list[dict[str, object]]:
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for round_ in range(rounds + 1):
        for part, taken in times.items():
            once = seconds(part)
            if round_:  # the first one reads files from the disk
                taken.append(once)
    return [{"part": part, "seconds": summary(taken)} for part, taken in times.items()]


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "quartile_1": low, "quartile_3": high, "n": len(values)}


def markdown(record: dict) -> str:
    lines = ["| | seconds | wanted |", "|---|---|---|"]
    for result in record["results"]:
        wanted = TARGETS.get(result["part"])
        bound = "" if wanted is None else f"at most {wanted}"
        lines.append(f"| `{result['part']}` | {result['seconds']['median']:.2f} | {bound} |")
    return "\n".join(lines)


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not arguments.read:
        torch.set_num_threads(1)
        recording.measured("startup", arguments.output, lambda: {"results": measure(arguments.rounds)})
    recording.show("startup", arguments, markdown)


if __name__ == "__main__":
    main()
