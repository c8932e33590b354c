"""Slurm, through submitit: one array for a sweep, one job of many tasks for a large training.

An element of the array starts the same command line that a person would start on that machine. No element
owns runs: claims in the results folder keep them apart.
"""

import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from equiscale._extras import needs_extra
from equiscale.errors import SettingError
from equiscale.experiments.element import Element
from equiscale.experiments.execute import RunOptions
from equiscale.experiments.jobs import FOLDER, Submission
from equiscale.experiments.records import RunSettings
from equiscale.experiments.runner import check_device_name, check_runs, is_finished

DEFAULT_TIME: Final = "4:00:00"
MOST_ELEMENTS: Final = 8  # unless more are asked for

_SIGNAL_DELAY_S = 90  # to finish a step and to write a checkpoint
_LARGEST_SHARE_OF_TIME = 4  # of which the signal takes at most this part
_REQUEUES = 1_000  # a sweep goes on until it is finished
_TIME = re.compile(
    r"(?:(?P<days>\d{1,3})-(?P<hours>\d{1,2})(?::(?P<minutes>\d{1,2})(?::(?P<seconds>\d{1,2}))?)?"
    r"|(?P<h>\d{1,4}):(?P<m>\d{1,2}):(?P<s>\d{1,2})|(?P<only>\d{1,6})(?::(?P<sec>\d{1,2}))?)",
    re.ASCII,
)
_OPTIONS = ("partition", "gpus_per_node", "cpus_per_task", "mem", "time", "array", "nodes")
_FIXED = (
    "output",
    "error",
    "open_mode",
    "requeue",
    "no_requeue",
    "signal",
    "wrap",
    "ntasks",
    "ntasks_per_node",
)
_LISTS = ("setup", "teardown")  # commands of the shell, before and after
_OF_SUBMITIT = (*_LISTS, "signal_delay_s", "array_parallelism")  # all others are passed to sbatch as they are
_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass(frozen=True)
class SlurmSettings:
    """What is asked of Slurm, for every element.

    Args:
        partition: Its partition; None: the cluster's default.
        gpus_per_node: GPUs on each node.
        cpus_per_task: Cores of each task.
        mem: Memory of each node, such as 32G.
        time: Its time limit, as Slurm writes it: minutes, h:mm:ss, d-hh or d-hh:mm:ss.
        array: Elements of the array; None: one an open run, at most 8.
        nodes: Nodes of one job.
        other: Any other settings of sbatch, as NAME=VALUE.

    Raises:
        SettingError: For a value that Slurm would not understand.
    """

    partition: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str = DEFAULT_TIME
    array: int | None = None
    nodes: int = 1
    other: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counted = {
            "--gpus-per-node": self.gpus_per_node,
            "--cpus-per-task": self.cpus_per_task,
            "--array": self.array,
            "--nodes": self.nodes,
        }
        for option, number in counted.items():
            if number is not None and number < 1:
                raise SettingError(f"expected {option} of 1 or more, got {number}")
        if self.mem is not None and not re.fullmatch(r"[1-9][0-9]{0,8}[KMGT]?", self.mem):
            raise SettingError(f"expected --mem such as 32G or 500M, got {self.mem!r}")
        parse_time(self.time)
        parse_other(self.other)


def parse_time(text: str) -> int:
    """Slurm's notation of a time limit, in minutes, rounded up.

    Raises:
        SettingError: If it is no such notation, or no time at all.

    Example:
        >>> [parse_time(text) for text in ("30", "90:30", "1:30:00", "2-12", "1-00:00:01")]
        [30, 91, 90, 3600, 1441]
    """
    found = _TIME.fullmatch(text)
    parts = {name: int(value or 0) for name, value in found.groupdict().items()} if found else {}
    seconds = (
        86_400 * parts["days"]
        + 3_600 * (parts["hours"] + parts["h"])
        + 60 * (parts["minutes"] + parts["m"] + parts["only"])
        + (parts["seconds"] + parts["s"] + parts["sec"])
        if parts
        else 0
    )
    if not seconds:
        raise SettingError(
            f"expected --time as minutes, h:mm:ss, d-hh or d-hh:mm:ss, such as 4:00:00, got {text!r}"
        )
    return -(-seconds // 60)


def parse_other(assignments: Sequence[str]) -> dict[str, str | list[str]]:
    """Other settings of sbatch, by their names with underscores; ``setup`` and ``teardown`` may come often.

    Raises:
        SettingError: If one is no assignment, comes twice, or has an option of its own.

    Example:
        >>> parse_other(["qos=low", "setup=module load cuda", "exclude=n[1-2]"])
        {'qos': 'low', 'setup': ['module load cuda'], 'exclude': 'n[1-2]'}
    """
    found: dict[str, str | list[str]] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z_]*", name) or not equals or not value.isprintable():
            raise SettingError(f"expected --slurm NAME=VALUE, got {assignment!r}")
        if name in _OPTIONS or name in _FIXED:
            cure = "it has an option of its own" if name in _OPTIONS else "equiscale sets it itself"
            raise SettingError(f"expected another setting of sbatch with --slurm, got {name!r}; {cure}")
        if name in found and name not in _LISTS:
            raise SettingError(f"expected --slurm {name} once, got it twice")
        found[name] = [*found.get(name, []), value] if name in _LISTS else value
    return found


def check_slurm() -> None:
    """That submitit is installed, and that this machine can submit jobs.

    Raises:
        MissingExtraError: Without submitit.
        SettingError: Without Slurm's commands.
    """
    with needs_extra("cluster"):
        import submitit  # noqa: F401
    for command in ("sbatch", "srun", "scontrol", "scancel"):
        if shutil.which(command) is None:
            raise SettingError(
                f"expected Slurm's command {command} for --engine slurm, got none on PATH; log in to the "
                "cluster, or use --engine local"
            )


def node_local(folder: Path) -> str | None:
    """The local disk on which a folder seems to lie, where other nodes will not see it.

    Example:
        >>> node_local(Path("/tmp/runs"))
        '/tmp'
    """
    local = (*_NODE_LOCAL, tempfile.gettempdir(), os.environ.get("TMPDIR", "/tmp"))
    inside = folder.resolve()
    return next((place for place in local if inside.is_relative_to(Path(place).resolve())), None)


def submit_sweep(
    runs: Sequence[RunSettings],
    settings: SlurmSettings,
    *,
    command: Sequence[str],
    folder: Path,
    data_root: Path | None,
    device: str,
) -> Submission | None:
    """Submit one array that works through all runs without a record; None if there are none.

    Args:
        runs: Of one suite.
        settings: What is asked of Slurm.
        command: What does the runs on one machine, and leaves when the others have all that are open.
        folder: Of the results.
        data_root: Of the data.
        device: On which the elements compute.

    Raises:
        MissingExtraError: Without submitit.
        SettingError: Without Slurm, for several nodes, or for what the elements would refuse.
        ModelError: For an unknown model or override.
        DataError: If the data of a run are missing or damaged.
        OSError: If the results folder cannot be written.
    """
    if settings.nodes != 1:
        raise SettingError(
            f"expected --nodes 1 for a sweep, got {settings.nodes}; --array says how many jobs share its runs"
        )
    unfinished = _checked(runs, folder=folder, data_root=data_root, device=device)
    if not unfinished:
        return None
    elements = min(settings.array or MOST_ELEMENTS, len(unfinished))
    return submit(command, settings, folder=folder / runs[0].suite, elements=elements)


def submit_training(
    run: RunSettings,
    settings: SlurmSettings,
    *,
    command: Sequence[str],
    folder: Path,
    data_root: Path | None,
    device: str,
) -> Submission | None:
    """Submit one training, over all nodes and on each of them over all GPUs; None if it has a record.

    Arguments and errors are those of `submit_sweep`, but for an array, which is refused here.
    """
    if settings.array is not None:
        raise SettingError(
            f"expected no --array for one training, got {settings.array}; --nodes says how many share it"
        )
    if not _checked([run], folder=folder, data_root=data_root, device=device):
        return None
    tasks = settings.gpus_per_node or 1
    return submit(command, settings, folder=folder / run.suite, elements=1, tasks=tasks)


def _checked(
    runs: Sequence[RunSettings], *, folder: Path, data_root: Path | None, device: str
) -> list[RunSettings]:
    """Check all that can be checked on the machine that submits, which has other devices; the open runs."""
    check_slurm()
    check_device_name(device)
    check_runs(runs, data_root=data_root)
    options = RunOptions(folder, data_root)
    return [run for run in runs if not is_finished(run, options)]


def submit(
    command: Sequence[str], settings: SlurmSettings, *, folder: Path, elements: int, tasks: int = 1
) -> Submission:
    """Submit a command, once an element, and write down what was submitted.

    Args:
        command: What each element runs, or each of its tasks.
        settings: What is asked of Slurm.
        folder: Of the suite's records; submissions and logs lie in ``jobs`` under it.
        elements: Elements of the array.
        tasks: Processes on each node.

    Returns:
        The submission.

    Raises:
        MissingExtraError: Without submitit.
        SettingError: If Slurm refuses; the message says why.
        OSError: If the folder cannot be written.
    """
    check_slurm()
    jobs = folder.resolve() / FOLDER
    logs = jobs / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    executor = _executor(settings, logs=logs, name=f"equiscale-{folder.name}", tasks=tasks)
    with _outside_of_jobs(), _refusals():
        if elements == 1:
            submitted = [executor.submit(Element(command, logs))]
        else:
            with executor.batch():
                submitted = [executor.submit(Element(command, logs)) for _ in range(elements)]
    submission = Submission(
        job=int(submitted[0].job_id.partition("_")[0]),
        command=tuple(command),
        logs=logs,
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
        elements=elements,
        tasks=tasks * settings.nodes,
    )
    submission.write(jobs)
    return submission


def _executor(settings: SlurmSettings, *, logs: Path, name: str, tasks: int) -> Any:
    from submitit import SlurmExecutor

    executor = SlurmExecutor(logs, max_num_timeout=_REQUEUES)
    with _refusals():
        executor.update_parameters(**sbatch_parameters(settings, name=name, tasks=tasks))
    return executor


def sbatch_parameters(settings: SlurmSettings, *, name: str, tasks: int) -> dict[str, Any]:
    """The settings as submitit's executor takes them: those that it knows, and the rest as they are.

    Example:
        >>> found = sbatch_parameters(SlurmSettings(mem="4G", time="20"), name="sweep", tasks=1)
        >>> found["time"], found["signal_delay_s"], found["additional_parameters"]
        (20, 90, {'requeue': True, 'mem': '4G'})
    """
    minutes = parse_time(settings.time)
    srun = ["--kill-on-bad-exit=1"] if tasks * settings.nodes > 1 else []
    if settings.cpus_per_task is not None:  # srun does not take it from sbatch since 22.05
        srun.append(f"--cpus-per-task={settings.cpus_per_task}")
    found: dict[str, Any] = {
        "job_name": name,
        "time": minutes,
        "nodes": settings.nodes,
        "ntasks_per_node": tasks,
        "signal_delay_s": min(_SIGNAL_DELAY_S, minutes * 60 // _LARGEST_SHARE_OF_TIME),
        "srun_args": srun,
        "additional_parameters": {"requeue": True},
    }
    for option in ("partition", "gpus_per_node", "cpus_per_task"):
        if getattr(settings, option) is not None:
            found[option] = getattr(settings, option)
    if settings.mem is not None:
        found["additional_parameters"]["mem"] = settings.mem
    for option, value in parse_other(settings.other).items():
        place = found if option in _OF_SUBMITIT else found["additional_parameters"]
        place[option] = _as_number(value) if isinstance(value, str) else value
    return found


def _as_number(text: str) -> str | int | bool:
    """A number or true as submitit compares and writes them."""
    return int(text) if text.isdecimal() else text == "true" or text


@contextmanager
def _refusals() -> Iterator[None]:
    """What submitit or sbatch says against a submission, as an error of ours."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with redirect_stderr(io.StringIO()):  # submitit shows there what it raises too
            yield
    except (FailedSubmissionError, FailedJobError, ValueError) as error:
        said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise SettingError(f"expected settings that Slurm accepts, got its refusal: {said}") from error


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Within a job, without what Slurm has set for that job and sbatch would pass on to the new one."""
    hidden = _settings_of_a_job(os.environ)
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _settings_of_a_job(variables: Mapping[str, str]) -> dict[str, str]:
    if "SLURM_JOB_ID" not in variables:
        return {}
    return {
        name: value
        for name, value in variables.items()
        if name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"
    }


def own_command(*arguments: str) -> tuple[str, ...]:
    """The command line of this program, started as it was started here.

    Example:
        >>> own_command("list")[1:]
        ('-m', 'equiscale', 'list')
    """
    return (sys.executable, "-m", "equiscale", *arguments)
