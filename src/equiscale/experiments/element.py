"""What runs in a Slurm job: one task, which starts a command, hands signals on, and ends as the command ends.

Imported on the nodes before anything else: neither torch nor the rest of the library is loaded here.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from equiscale._files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from submitit.helpers import DelayedSubmission

STOPPED: Final = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""How a command ends that was told to stop, and has written its checkpoints."""

# Slurm tells all processes of a task that its time is nearly over; only the element is to act on it. An
# ignored signal stays ignored in what the shell becomes, and in what that starts.
_DEAF: Final = ("/bin/sh", "-c", 'trap "" USR2; exec "$@"', "sh")
_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 20_000, 40_000
_PATIENCE_S = 60
# In its grace time a preempted job is still running; a cancelled one never is, whatever came before.
_PREEMPTED = re.compile(r"\sJobState=RUNNING\s(?:.*\s)?PreemptTime=\d")


@dataclass(frozen=True)
class ElementState:
    """The last word of one task of a submission, in a file beside its logs.

    Args:
        element: The job's number as Slurm writes it, such as 12 or 12_3.
        task: The task's number within the job; 0 but in a training over several processes.
        host: The machine.
        pid: The process of the command on it.
        starts: How often the element was started, requeues included.
        exit_code: How the command ended; None: it has not, or nobody could write it down.
    """

    element: str
    task: int
    host: str
    pid: int
    starts: int
    exit_code: int | None = None

    def write(self, folder: Path) -> None:
        """Write it under its own name into a folder, whole or not at all."""
        with atomic_path(state_path(folder, self.element, self.task)) as path:
            path.write_text(json.dumps(asdict(self)))


def state_path(folder: Path, element: str, task: int) -> Path:
    """Where the last word of a task stands."""
    return folder / f"{element}_{task}_state.json"


def read_state(folder: Path, element: str, task: int = 0) -> ElementState | None:
    """The last word of a task; None where it never said one that can be read."""
    try:
        return ElementState(**json.loads(state_path(folder, element, task).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Element:
    """A command, as submitit runs it in one task of a job.

    When Slurm says that the time is nearly over, the command gets SIGTERM: it writes its checkpoints, gives
    up its claims and leaves; then the job is put back into the queue, and starts the same command again.
    A preemption with a grace time sends the command SIGTERM itself; what follows is the same.

    Args:
        command: What to run.
        folder: Of the logs, and of the element's own state.
    """

    def __init__(self, command: "Sequence[str]", folder: Path) -> None:
        self.command = tuple(command)
        self.folder = folder
        self._state: ElementState | None = None

    def __call__(self) -> None:
        """Run the command and end the process with its exit status."""
        sys.exit(self._run(os.environ))

    def _run(self, variables: "Mapping[str, str]") -> int:
        process = subprocess.Popen(
            (*_DEAF, *self.command), env=command_environment(variables), stdin=subprocess.DEVNULL
        )
        self._state = _started(variables, self.folder, process.pid)
        self._state.write(self.folder)
        code = process.wait()
        code = 128 - code if code < 0 else code  # as a shell counts
        replace(self._state, exit_code=code).write(self.folder)
        if code not in STOPPED:
            return code
        if self._state.task:
            return 0  # the first task speaks for all; Slurm would take another's word for a failure
        _requeue_if_preempted(self._state.element)
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """Stop the command, wait until it has left, and ask for the same again; submitit calls it."""
        from submitit.helpers import DelayedSubmission

        if self._state is not None:
            replace(self._state, exit_code=_stop(self._state.pid)).write(self.folder)
        return DelayedSubmission(Element(self.command, self.folder))


def _started(variables: "Mapping[str, str]", folder: Path, pid: int) -> ElementState:
    element, task = element_name(variables), int(variables.get("SLURM_PROCID", 0))
    before = read_state(folder, element, task)
    starts = before.starts + 1 if before else 1
    return ElementState(element, task, host=socket.gethostname(), pid=pid, starts=starts)


def _stop(pid: int) -> int | None:
    """Ask a child to leave, and wait until it has; None if it had left before.

    It stays to be waited for: this runs in a signal's handler, and what the signal interrupted is a wait for
    the same child, which holds its lock.
    """
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if ended is not None:
            return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
    return None


def _requeue_if_preempted(element: str) -> None:
    """Put a job back into the queue that was told to make room and has done so before its grace time is over.

    Slurm itself requeues only what is still there at the end of that time. A requeue sets the job's state
    before it ends the job's processes: how this one exits no longer counts, nor that scontrol may be killed.
    """
    if _PREEMPTED.search(_scontrol("show", "job", "--oneliner", element)):
        _scontrol("requeue", element)


def _scontrol(*arguments: str) -> str:
    """What scontrol prints; nothing where it is missing or refuses."""
    try:
        done = subprocess.run(("scontrol", *arguments), capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def element_name(variables: "Mapping[str, str]") -> str:
    """A job's number as Slurm writes it: with that of the element, where it is of an array.

    Example:
        >>> element_name({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"})
        '12_1'
    """
    array = variables.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{variables['SLURM_ARRAY_TASK_ID']}" if array else variables["SLURM_JOB_ID"]


def command_environment(variables: "Mapping[str, str]") -> dict[str, str]:
    """A task's environment variables for its command: with several tasks in the job, torchrun's among them.

    Example:
        >>> slurm = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2"}
        >>> slurm |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "localhost"}
        >>> found = command_environment(slurm)
        >>> [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
        ['1', '2', '0', 'localhost', '20012']
    """
    kept = {name: value for name, value in variables.items() if name not in _TORCHRUN}
    tasks = int(variables.get("SLURM_NTASKS", 1))
    if tasks == 1:
        return kept
    return kept | {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks // int(variables["SLURM_JOB_NUM_NODES"])),
        "MASTER_ADDR": _first_node(variables),
        "MASTER_PORT": str(_FIRST_PORT + int(variables["SLURM_JOB_ID"]) % _PORTS),
    }


def _first_node(variables: "Mapping[str, str]") -> str:
    """The node of the first task: by its name, or where no resolver knows that, by its address."""
    name = first_of_nodes(variables["SLURM_JOB_NODELIST"])
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return variables.get("SLURM_LAUNCH_NODE_IPADDR", name)
    return name


def first_of_nodes(text: str) -> str:
    """The first name of a list of nodes as Slurm writes it.

    Example:
        >>> first_of_nodes("gpu[03-05,9]-ib,login")
        'gpu03-ib'
    """
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", text).split(",")[0]
