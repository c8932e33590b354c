"""Is a sweep as dependable as it says? Two commands work on one folder while everything goes wrong.

A small sweep is done twice: quietly, and while its processes are killed at random instants (a worker, or
a whole command with its worker), stopped by SIGTERM and SIGINT, and left without room on the disk; one
command finds the folder read-only. Every command that ends is started again, until all runs are finished.
Then each run must have been finished once, with the bits of the quiet sweep, and no file may be unsound or
left over.

The disk is a small file system in memory, for which Linux and root are needed; without them full disks and
read-only folders are left out, and the table says so. Writes one JSON record, and with --into a table. Ends
with 1 if a promise is broken.
"""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import recording
import torch
from safetensors.torch import load_file

from equiscale.experiments.execute import weights_path
from equiscale.experiments.index import record_files
from equiscale.experiments.maintenance import collect, garbage, verify
from equiscale.experiments.plan import plan_runs
from equiscale.experiments.records import RunSettings, read_record, record_path
from equiscale.experiments.spec import load_suite

DEFAULT_OUTPUT = Path("results/benchmarks/chaos.json")
DISK_MEGABYTES = 256
COMMANDS = 2
MOST_SECONDS = 450.0
REFUSED = 2
SUITE = """
name = "chaos"
title = "A small sweep, to be disturbed"
dataset = "digits-scale"
realisations = [{realisations}]
columns = ["28×28"]

[protocol]
epochs = 10
batch_size = 125
learning_rate = 0.01
lr_steps = [5]
lr_gamma = 0.1

[[methods]]
name = "CNN"
[methods.cells."28×28"]
model = "mnist_cnn_28"
augment = "none"
overrides = {{ channels = [4, 8, 8], hidden = 16 }}

[[methods]]
name = "SESN"
[methods.cells."28×28"]
model = "mnist_ses_vector_28"
augment = "none"
overrides = {{ channels = [2, 4, 4], hidden = 16 }}

[[methods]]
name = "Pyramid"
[methods.cells."28×28"]
model = "mnist_pyramid_28"
augment = "none"
overrides = {{ channels = [2, 4, 4], hidden = 16 }}
"""


class Command:
    """`equiscale reproduce` on one core, started again whenever it has ended."""

    def __init__(self, suite: Path, results: Path, core: int) -> None:
        self.suite, self.results, self.core = suite, results, core
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the command)
        self.starts = 1
        self.statuses: list[int] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "equiscale", "reproduce", str(self.suite), "--jobs", "1"]
        return subprocess.Popen(
            [*command, "--results", str(self.results)],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {self.core}),
            env=os.environ | {"COLUMNS": "200"},
        )

    def is_running(self) -> bool:
        """Whether it runs; the status of one that has ended is kept."""
        status = self.process.poll()
        if status is not None and len(self.statuses) < self.starts:
            self.statuses.append(status)
        return status is None

    def revive(self) -> None:
        """Start it again, unless it refuses again and again: a full disk is refused once or twice."""
        if self.statuses[-5:] == [REFUSED] * 5:
            raise RuntimeError(f"expected a command that can be carried out, got: {self.printed()}")
        self.starts += 1
        self.process = self._start()

    def worker(self) -> int | None:
        """The process that does its run, if there is one."""
        with suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for child in children:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return None

    def end(self) -> str:
        """Kill what is left; everything that was ever printed."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return self.printed()

    def printed(self) -> str:
        """What all its starts have printed."""
        self.output.seek(0)
        return self.output.read()


@dataclass
class Chaos:
    """What is done to the commands, at random but repeatable instants.

    Args:
        kills: How many processes to kill.
        random: The source of all choices.
        disk: The folder whose disk can be filled; None: none can.
        counts: What has been done.
    """

    kills: int
    random: random.Random
    disk: Path | None
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def killed(self) -> int:
        """How many processes have been killed so far."""
        return self.counts["workers killed"] + self.counts["commands killed"]

    def strike(self, command: Command) -> None:
        """Do something to a running command."""
        worker = command.worker()
        what = self.random.choices(("worker", "command", "SIGTERM", "SIGINT", "disk"), (5, 4, 1, 1, 1))[0]
        if what == "disk":
            self._fill_disk()
        elif what == "worker" and worker is not None:
            self._kill(worker, "workers killed")
        elif what == "command":
            with suppress(ProcessLookupError):
                os.killpg(command.process.pid, signal.SIGKILL)
                self.counts["commands killed"] += 1
        elif what.startswith("SIG"):
            command.process.send_signal(getattr(signal, what))
            self.counts[f"stopped by {what}"] += 1

    def _kill(self, process: int, what: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            self.counts[what] += 1

    def _fill_disk(self) -> None:
        """Take all room for a few seconds."""
        if self.disk is None:
            return
        ballast = self.disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
        time.sleep(self.random.uniform(1, 4))
        ballast.unlink()
        self.counts["times the disk was full"] += 1


@contextmanager
def small_disk() -> Iterator[tuple[Path, bool]]:
    """A folder on a small disk of its own, where that can be had; and whether it is one."""
    with tempfile.TemporaryDirectory(prefix="equiscale-chaos-") as name:
        mounted = _mount("-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", name)
        try:
            yield Path(name), mounted
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", name], check=False)


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def until_finished(commands: list[Command], is_finished: Callable[[], bool], end: float) -> None:
    """Start again what has ended, until no run is open."""
    while not is_finished():
        if time.monotonic() > end:
            raise TimeoutError(f"expected all runs to end within {MOST_SECONDS:.0f} s")
        for command in commands:
            if not command.is_running():
                command.revive()
        time.sleep(0.2)


def all_finished(results: Path, runs: list[RunSettings]) -> bool:
    """Whether every run has its record, and no failed one."""
    paths = [record_path(results, run) for run in runs]
    return all(path.exists() and read_record(path).status == "finished" for path in paths)


def disturb(commands: list[Command], chaos: Chaos, is_finished: Callable[[], bool], end: float) -> None:
    """Strike at random instants until all kills are done."""
    while chaos.killed < chaos.kills:
        if time.monotonic() > end:
            raise TimeoutError(f"expected {chaos.kills} kills in {MOST_SECONDS:.0f} s, got {chaos.killed}")
        time.sleep(chaos.random.uniform(0.5, 4.0))
        for command in commands:
            if not command.is_running():
                command.revive()
        before, had_open_runs = chaos.killed, not is_finished()
        chaos.strike(chaos.random.choice(commands))
        chaos.counts["kills while runs were open"] += had_open_runs * (chaos.killed - before)
        print(f"\r{chaos.killed} of {chaos.kills} processes killed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def refused_when_read_only(suite: Path, results: Path, disk: Path) -> bool:
    """Whether a command on a read-only folder ends at once, with one line, and changes nothing."""
    before = sorted(disk.rglob("*"))
    if not _mount("-o", "remount,ro", str(disk)):
        return False
    try:
        command = [sys.executable, "-m", "equiscale", "reproduce", str(suite), "--results", str(results)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        _mount("-o", "remount,rw", str(disk))
    told = os.strerror(errno.EROFS) in done.stderr and "Traceback" not in done.stderr
    return done.returncode == 2 and told and sorted(disk.rglob("*")) == before


def sweep(suite: Path, results: Path, chaos: Chaos | None) -> tuple[float, str, list[int]]:
    """All runs of the suite by two commands; the seconds, what they printed, and how they ended."""
    runs = plan_runs(load_suite(str(suite)))
    begun = time.monotonic()
    end = begun + MOST_SECONDS
    is_finished = partial(all_finished, results, runs)
    cores = sorted(os.sched_getaffinity(0))
    commands = [Command(suite, results, cores[number % len(cores)]) for number in range(COMMANDS)]
    try:
        if chaos is not None:
            disturb(commands, chaos, is_finished, end)
        until_finished(commands, is_finished, end)
        for command in commands:
            while command.is_running():
                time.sleep(0.1)
        seconds = time.monotonic() - begun
    finally:
        printed = "".join(command.end() for command in commands)
    return seconds, printed, [status for command in commands for status in command.statuses]


def same_bits(runs: list[RunSettings], quiet: Path, disturbed: Path) -> int:
    """How many runs have the same weights, losses and predictions in both folders."""
    same = 0
    for run in runs:
        records = [read_record(record_path(folder, run)) for folder in (quiet, disturbed)]
        first, second = (load_file(weights_path(folder, run)) for folder in (quiet, disturbed))
        losses = [[epoch.train_loss for epoch in record.epochs] for record in records]
        same += (
            all(torch.equal(first[name], second[name]) for name in first | second)
            and losses[0] == losses[1]
            and records[0].test == records[1].test
        )
    return same


def times_finished(printed: str) -> Counter[str]:
    """How often each run was said to have finished."""
    lines = (line.split() for line in printed.splitlines() if line.startswith("finished "))
    return Counter(" ".join(words[1:4]) for words in lines)


def tracebacks(printed: str) -> list[str]:
    """Every traceback, from its first line to the one that is not indented."""
    return re.findall(r"^Traceback .*\n(?:[ \t].*\n)*.*", printed, flags=re.MULTILINE)


def measure(kills: int, seed: int, realisations: int) -> dict:
    with small_disk() as (disk, has_disk), tempfile.TemporaryDirectory() as other:
        suite = Path(other) / "chaos.toml"
        suite.write_text(SUITE.format(realisations=", ".join(map(str, range(realisations)))))
        runs = plan_runs(load_suite(str(suite)))
        quiet, disturbed = Path(other) / "quiet", disk / "results"
        quiet_seconds, _, _ = sweep(suite, quiet, None)
        print(f"quiet sweep of {len(runs)} runs: {quiet_seconds:.0f} s", file=sys.stderr)
        chaos = Chaos(kills, random.Random(seed), disk if has_disk else None)
        disturbed.mkdir()
        refused = refused_when_read_only(suite, disturbed, disk) if has_disk else None
        seconds, printed, statuses = sweep(suite, disturbed, chaos)
        collect(list(garbage(disturbed)))
        problems = [problem for _, found in verify(disturbed) for problem in found]
        expected = {path for run in runs for path in _files_of(disturbed, run)}
        left = {path for path in disturbed.rglob("*") if path.is_file()} - expected
        return {
            "runs": len(runs),
            "records": len(record_files(disturbed)),
            "counts": dict(sorted(chaos.counts.items())),
            "has_disk": has_disk,
            "refused_when_read_only": refused,
            "same_bits": same_bits(runs, quiet, disturbed),
            "finished_twice": sum(count > 1 for count in times_finished(printed).values()),
            "tracebacks": tracebacks(printed),
            "problems": problems,
            "left_over": sorted(str(path.relative_to(disturbed)) for path in left),
            "starts": len(statuses),
            "seconds": {"quiet": quiet_seconds, "disturbed": seconds},
            "seed": seed,
        }


def _files_of(folder: Path, run: RunSettings) -> list[Path]:
    record = record_path(folder, run)
    return [record, record.with_suffix(".npz"), weights_path(folder, run)]


def broken_promises(record: dict) -> list[str]:
    """What did not hold."""
    runs = record["runs"]
    checks = {
        "every run has one record": record["records"] == runs,
        "every run has the bits of the quiet sweep": record["same_bits"] == runs,
        "no run is finished twice": record["finished_twice"] == 0,
        "nothing is unsound": not record["problems"],
        "nothing is left over": not record["left_over"],
        "no traceback": not record["tracebacks"],
        "a read-only folder is refused": record["refused_when_read_only"] in (True, None),
    }
    return [promise for promise, holds in checks.items() if not holds]


def markdown(record: dict) -> str:
    counts, runs = record["counts"], record["runs"]
    full = counts.get("times the disk was full", 0) if record["has_disk"] else "not tried: needs root"
    read_only = {True: "refused, nothing changed", False: "not refused", None: "not tried: needs root"}
    rows = [
        ("workers killed", counts.get("workers killed", 0)),
        ("commands killed, with their workers", counts.get("commands killed", 0)),
        ("of all kills, while runs were open", counts.get("kills while runs were open", 0)),
        (
            "stopped by SIGTERM or SIGINT",
            sum(counts.get(f"stopped by {s}", 0) for s in ("SIGTERM", "SIGINT")),
        ),
        ("times the disk was full", full),
        ("start on a read-only folder", read_only[record["refused_when_read_only"]]),
        ("commands started, two at a time", record["starts"]),
        ("**runs with one finished record**", f"**{record['records']} of {runs}**"),
        ("**runs with the bits of a quiet sweep**", f"**{record['same_bits']} of {runs}**"),
        ("**runs that were finished twice**", f"**{record['finished_twice']}**"),
        ("unsound or left-over files", len(record["problems"]) + len(record["left_over"])),
        (
            "seconds, and of the quiet sweep",
            f"{record['seconds']['disturbed']:.0f}, {record['seconds']['quiet']:.0f}",
        ),
    ]
    return "\n".join(
        ["| disturbed sweep | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    )


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--realisations", type=int, default=6, help="runs of each of three networks")
    arguments = parser.parse_args()
    if arguments.read:
        recording.show("chaos", arguments, markdown)
        return
    record = recording.measured(
        "chaos",
        arguments.output,
        lambda: measure(arguments.kills, arguments.seed, arguments.realisations),
    )
    recording.show("chaos", arguments, markdown)
    broken = broken_promises(record)
    for promise in broken:
        print(f"BROKEN: {promise}")
    print("\n".join(record["tracebacks"]))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
