"""A real Slurm of two nodes on this machine: a controller, two slurmd and munge, from Debian's packages.

Everything lies in one temporary folder, listens on ports of its own, and is gone afterwards. Accounting is
off, as on many small clusters. A node says that it has two cores and 4 GB, whatever the machine has; all its
jobs share one real core.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from pathlib import Path

import pytest

LONG = pytest.mark.skipif(
    os.environ.get("EQUISCALE_SLURM_TEST") != "long", reason="minutes long; run it with: make slurm-test"
)
PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("node1", "node2")
PARTITIONS = ("main", "graceful", "cancelled")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A job that was requeued waits for as long as a credential is valid: by default two minutes.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdParameters=config_overrides
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=2 RealMemory=4000
# Jobs of main take the nodes of the other two: after a grace time, or at once and for good.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT MaxTime=INFINITE State=UP
PartitionName=main Nodes=node1,node2 Default=YES PriorityTier=2 PreemptMode=OFF
PartitionName=graceful Nodes=node1,node2 PriorityTier=1 GraceTime=40
PartitionName=cancelled Nodes=node1,node2 PriorityTier=1 PreemptMode=CANCEL
"""


def missing_commands() -> list[str]:
    """What of Slurm is not installed."""
    wanted = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
    return [command for command in wanted if shutil.which(command, path=_PATH) is None]


def wait_for(condition: Callable[[], object], what: str, *, seconds: float = 60) -> None:
    """Until it holds; there is no event for what another program does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)


def ask(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@contextmanager
def running_slurm() -> Iterator[Path]:
    """Start everything, yield slurm.conf, and end everything."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: munge's socket lies in it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        conf = _configured(folder)
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", _PATH)
        stack.callback(_kill_those_of, conf)
        key, socket_path = folder / "munge.key", folder / "munge.sock"
        files = [f"--{what}-file={folder}/munge.{what}" for what in ("log", "pid", "seed")]
        _daemon(
            stack,
            conf,
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={socket_path}",
            *files,
        )
        wait_for(socket_path.exists, "munge")
        _daemon(stack, conf, "slurmctld", "-D", "-i")
        for node, core in zip(NODES, cycle(sorted(os.sched_getaffinity(0))), strict=False):
            _daemon(stack, conf, "slurmd", "-D", "-N", node, core=core)
        wait_for(lambda: idle_nodes() == len(NODES), "nodes")
        yield conf


def _configured(folder: Path) -> Path:
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=_free_ports(3))
    )
    return conf


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _daemon(stack: ExitStack, conf: Path, name: str, *arguments: str, core: int | None = None) -> None:
    """A child in a session of its own, so that Ctrl-C leaves its end to the stack; all of it on one core."""
    program = shutil.which(name, path=_PATH)
    assert program is not None
    log = stack.enter_context((conf.parent / f"{name}{arguments[-1]}.out".replace("/", "_")).open("wb"))
    bound = () if core is None else ("taskset", "--cpu-list", str(core))
    process = subprocess.Popen(
        (*bound, program, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def idle_nodes() -> int:
    """How many nodes are up and have nothing to do; none while the controller starts."""
    done = subprocess.run(
        ("sinfo", "-N", "--partition=main", "--noheader", "--format=%T"), capture_output=True, text=True
    )
    return done.stdout.split().count("idle")


def drained() -> list[str]:
    """The nodes that take no more jobs."""
    lines = ask("sinfo", "-N", "--partition=main", "--noheader", "--format=%N %T").splitlines()
    return [line.split()[0] for line in lines if "drain" in line]


def _kill_those_of(conf: Path) -> None:
    """Kill what is left of jobs: processes that were given this cluster's slurm.conf."""
    mark = f"SLURM_CONF={conf}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)
