"""What was submitted to Slurm, and what has become of it."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equiscale._files import atomic_path
from equiscale.errors import RecordError, SettingError
from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.element import read_state

FOLDER: Final = "jobs"  # beside the records of a suite
OVER: Final = frozenset(
    (
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "DEADLINE",
        "PREEMPTED",
        "NODE_FAIL",
        "BOOT_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
    )
)
"""The states in which Slurm does no more for a job."""

_MAX_BYTES = 2**20
_PATIENCE_S = 60


class Submission(BaseModel):
    """One job, or one array of them.

    Args:
        job: Slurm's number.
        command: What every element runs.
        logs: The folder of the elements' logs.
        submitted: The time, in ISO 8601.
        elements: How many there are.
        tasks: Processes of each element.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: int = Field(ge=1)
    command: tuple[str, ...]
    logs: Path
    submitted: str
    elements: int = Field(ge=1, le=100_000)
    tasks: int = Field(ge=1, le=100_000)

    @property
    def names(self) -> list[str]:
        """The elements' numbers as Slurm writes them."""
        if self.elements == 1:
            return [str(self.job)]
        return [f"{self.job}_{index}" for index in range(self.elements)]

    def log(self, element: str, *, task: int = 0, errors: bool = False) -> Path:
        """The file of what a task of an element has said."""
        return self.logs / f"{element}_{task}_log.{'err' if errors else 'out'}"

    def write(self, folder: Path) -> Path:
        """Write it into a folder, whole or not at all."""
        target = folder / f"{self.job}.json"
        with atomic_path(target) as path:
            path.write_text(self.model_dump_json(indent=1))
        return target


@dataclass(frozen=True)
class JobState:
    """What is known of one element.

    Args:
        element: Its number as Slurm writes it.
        state: Slurm's word for its state, such as RUNNING; UNKNOWN where nobody remembers it.
        node: Where it runs, or ran last.
        time: How long it has run since its last start, as Slurm writes it.
        exit: How it ended: a status, or "signal" and its number; empty while it has not.
        starts: How often it was started.
        host: The machine of its last start, as it calls itself.
    """

    element: str
    state: str
    node: str = ""
    time: str = ""
    exit: str = ""
    starts: int = 0
    host: str = ""

    @property
    def over(self) -> bool:
        """Whether Slurm does no more for it."""
        return self.state in OVER or (self.state == "UNKNOWN" and self.exit != "")


def read_submissions(results: Path) -> list[Submission]:
    """All submissions of a results folder, the oldest first.

    Raises:
        RecordError: If a file of one cannot be read.
    """
    found = [_read(path) for path in sorted(results.glob(f"*/{FOLDER}/*.json"))]
    return sorted(found, key=lambda submission: (submission.submitted, submission.job))


def find_submission(results: Path, job: int) -> Submission:
    """The submission with a number.

    Raises:
        SettingError: If there is none.
        RecordError: If a file of one cannot be read.
    """
    submissions = {submission.job: submission for submission in read_submissions(results)}
    if job not in submissions:
        known = ", ".join(map(str, submissions)) or "none"
        raise SettingError(
            f"expected a job that was submitted with --results {results}, got {job}; there: {known}"
        )
    return submissions[job]


def _read(path: Path) -> Submission:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecordError(f"expected a submission of at most {_MAX_BYTES} bytes, got more in {path}")
        return Submission.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(
            f"expected a submission as equiscale writes it, got {first['msg']} in {path}; delete the file"
        ) from error


def job_states(submission: Submission) -> list[JobState]:
    """Every element's state, as Slurm knows it or, where it has forgotten it, from its own last word."""
    known = _accounted(submission.job) | _controlled(submission.job)
    return [
        _with_last_word(known.get(name, JobState(name, "UNKNOWN")), submission) for name in submission.names
    ]


def runs_under_way(submission: Submission, states: Sequence[JobState]) -> dict[str, list[str]]:
    """Machine -> runs that are claimed there, of the machines on which elements of a submission run.

    A claim names its machine; of several elements on one machine it is not known which of them has it.
    """
    suite = submission.logs.parent.parent
    hosts = {state.host for state in states if state.state == "RUNNING"}
    found: dict[str, list[str]] = {}
    for run, holder in sorted(Claims(claims_of(suite.parent, suite.name)).held().items()):
        if holder is not None and holder.host in hosts:
            found.setdefault(holder.host, []).append(run)
    return found


def _with_last_word(state: JobState, submission: Submission) -> JobState:
    """Fill in what the element itself has written down."""
    word = read_state(submission.logs, state.element)
    if word is None:
        return state
    own = "" if word.exit_code is None else str(word.exit_code)
    return JobState(
        state.element,
        state.state,
        node=state.node or (word.host if state.state == "UNKNOWN" else ""),
        time=state.time,
        exit=(state.exit or own) if state.state in OVER or state.state == "UNKNOWN" else "",
        starts=word.starts,
        host=word.host,
    )


def _controlled(job: int) -> dict[str, JobState]:
    """From scontrol: all that live, and for some minutes those that ended."""
    found = {}
    for line in _ask("scontrol", "show", "job", "--oneliner", str(job)).splitlines():
        fields = dict(re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", line))
        for name in _elements(fields):
            found[name] = JobState(
                name,
                fields.get("JobState", "UNKNOWN"),
                node=fields.get("NodeList", "").replace("(null)", ""),
                time=fields.get("RunTime", ""),
                exit=_exit(fields.get("ExitCode", "")) if fields.get("JobState") in OVER else "",
            )
    return found


def _elements(fields: Mapping[str, str]) -> list[str]:
    if "JobId" not in fields:
        return []
    if "ArrayTaskId" not in fields:
        return [fields["JobId"]]
    array = fields.get("ArrayJobId", fields["JobId"])
    return [f"{array}_{index}" for index in expand_indices(fields["ArrayTaskId"])]


def expand_indices(text: str) -> Iterator[int]:
    """The indices of a part of an array, as Slurm writes those that still wait.

    Example:
        >>> list(expand_indices("0,2-4%2"))
        [0, 2, 3, 4]
    """
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from range(int(first), int(last or first) + 1)


def _accounted(job: int) -> dict[str, JobState]:
    """From sacct, which many clusters have and some have not: all that ever ended."""
    found = {}
    wanted = "JobID,State,NodeList,Elapsed,ExitCode"
    for line in _ask("sacct", "-n", "-P", "-X", "-j", str(job), "-o", wanted).splitlines():
        fields = line.split("|")
        if len(fields) == len(wanted.split(",")):
            name, state, node, time, code = fields
            state = state.split()[0] if state else "UNKNOWN"  # of "CANCELLED by 1000"
            found[name] = JobState(
                name, state, node=node, time=time, exit=_exit(code) if state in OVER else ""
            )
    return found


def _exit(code: str) -> str:
    """Of Slurm's status:signal.

    Example:
        >>> _exit("1:0"), _exit("0:9")
        ('1', 'signal 9')
    """
    status, _, number = code.partition(":")
    return f"signal {number}" if number not in ("", "0") else status


def _ask(*command: str) -> str:
    """What a command of Slurm prints; nothing where it is missing or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def cancel(submission: Submission) -> None:
    """Take all elements of a submission out of the queue, and stop those that run.

    Raises:
        SettingError: If it is over already, or Slurm refuses.
    """
    states = job_states(submission)
    if all(state.over for state in states):
        ended = ", ".join(sorted({state.state for state in states}))
        raise SettingError(f"expected a job that waits or runs, got {submission.job}, which is over: {ended}")
    try:
        done = subprocess.run(("scancel", str(submission.job)), capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SettingError(
            "expected Slurm's command scancel, got none on PATH; log in to the cluster"
        ) from error
    if done.returncode:
        said = done.stderr.strip()
        raise SettingError(f"expected Slurm to cancel job {submission.job}, got {said!r}; see jobs status")


def as_text(command: Sequence[str]) -> str:
    """A command as one would type it.

    Example:
        >>> as_text(["equiscale", "--models", "mnist_*"])
        "equiscale --models 'mnist_*'"
    """
    return shlex.join(command)


class LogReader:
    """The lines of a log that grows, each of them once.

    Args:
        path: The file; it need not exist yet.
        name: Of the element whose log it is.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._seen = 0

    def new_lines(self, *, last: bool = False) -> list[str]:
        """What has come since the last call: whole lines, and with ``last`` the beginning of one too."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._seen)
                text = file.read()
        except OSError:  # not started yet
            return []
        whole = text if last else text[: text.rfind(b"\n") + 1]
        self._seen += len(whole)
        return whole.decode(errors="replace").splitlines()
