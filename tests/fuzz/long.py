"""A fuzzer that watches coverage, on every target in turn: ``make fuzz``.

Each target has a process of its own, with bounded memory and time, that starts from the valid bytes. What
makes a target raise anything but its typed errors, take far too much memory or never end stays in the folder
of finds, by the target's name, and the exit status is 1. ``python -m tests.fuzz.long --replay FILE TARGET``
runs one find again.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SECONDS_AN_INPUT = 30
_LONGEST_INPUT = 1 << 16
_INSTRUMENTED = ("equiscale", "zipfile", "tarfile", "tomllib", "gzip")


@dataclass(frozen=True)
class Outcome:
    """What one target's process told: how many inputs it tried, and the coverage before and after."""

    inputs: int
    before: int
    after: int
    seconds: float
    failed: bool


def main() -> int:
    """All targets, or those that are named; 1 if any of them failed."""
    asked = _arguments()
    if asked.replay:
        from tests.fuzz.targets import TARGETS, check

        check(TARGETS[asked.targets[0]], asked.replay.read_bytes())
        return 0
    if asked.work:
        _fuzz(asked.targets[0], asked.rest)
        return 0
    return _all(asked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="names of targets (default: all)")
    parser.add_argument("--runs", type=int, default=4_000, help="inputs a target")
    parser.add_argument("--minutes", type=float, default=15.0, help="of all targets together, at most")
    parser.add_argument("--memory", type=int, default=2_048, help="MiB a process, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--finds", type=Path, default=_ROOT / "runs" / "fuzz", help="where finds are kept")
    parser.add_argument("--replay", type=Path, help="run one input again")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked, asked.rest = parser.parse_known_args()
    return asked


def _all(asked: argparse.Namespace) -> int:
    from tests.fuzz.targets import TARGETS

    names = asked.targets or list(TARGETS)
    seconds = max(5, round(60 * asked.minutes / len(names)))
    _tell(f"{'target':<22}{'inputs':>9}{'coverage':>10}{'new':>7}{'seconds':>9}")
    outcomes = []
    for name in names:
        outcome = _run(name, TARGETS[name].examples(), asked, seconds)
        outcomes.append(outcome)
        new, told = outcome.after - outcome.before, "  FAILED" if outcome.failed else ""
        counts = f"{outcome.inputs:>9,}{outcome.after:>10,}{new:>7,}{outcome.seconds:>9.0f}"
        _tell(f"{name:<22}{counts}{told}")
    total = sum(outcome.inputs for outcome in outcomes)
    _tell(f"{'all':<22}{total:>9,}{'':>17}{sum(outcome.seconds for outcome in outcomes):>9.0f}")
    if failed := [name for name, outcome in zip(names, outcomes, strict=True) if outcome.failed]:
        _tell(f"Inputs and output of {', '.join(failed)} are kept in {asked.finds}")
    return int(any(outcome.failed for outcome in outcomes))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(name: str, examples: list[bytes], asked: argparse.Namespace, seconds: int) -> Outcome:
    """One target in a process of its own."""
    finds = asked.finds / re.sub(r"\W+", "-", name)
    finds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for index, example in enumerate(examples):
            (Path(corpus) / str(index)).write_bytes(example)
        options = {
            "runs": asked.runs, "max_total_time": seconds, "rss_limit_mb": asked.memory, "seed": asked.seed,
            "timeout": _SECONDS_AN_INPUT, "max_len": _LONGEST_INPUT, "artifact_prefix": f"{finds}/",
            "print_final_stats": 1, "len_control": 0,
        }  # fmt: skip
        flags = [f"-{option}={value}" for option, value in options.items()]
        command = [sys.executable, "-m", "tests.fuzz.long", "--work", name, *flags, corpus]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, cwd=_ROOT, check=False)
    text = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    if done.returncode:
        (finds / "output.txt").write_text(text)
    coverage = [int(found) for found in re.findall(r" cov: (\d+)", text)] or [0]
    inputs = [int(found) for found in re.findall(r"stat::number_of_executed_units:\s*(\d+)", text)] or [0]
    started = re.search(r"INITED cov: (\d+)", text)
    before = int(started[1]) if started else coverage[0]
    return Outcome(inputs[-1], before, coverage[-1], time.monotonic() - start, done.returncode != 0)


def _fuzz(name: str, flags: list[str]) -> None:
    """Of the child: torch and others are too large to be instrumented."""
    import atheris

    with atheris.instrument_imports(include=list(_INSTRUMENTED), enable_loader_override=False):
        from tests.fuzz.mutations import damaged
        from tests.fuzz.targets import TARGETS, check
    import torch

    torch.set_num_threads(1)
    target = TARGETS[name]
    check(target, target.examples()[0])  # what is made once is not made under the fuzzer's clock

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        changed = damaged([content], seed) if seed % 2 else atheris.Mutate(content, most)
        return bytes(changed[:most])

    atheris.Setup([sys.argv[0], *flags], lambda content: check(target, content), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
