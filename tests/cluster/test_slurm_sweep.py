"""A sweep on two nodes that finishes although elements are preempted and killed and a node is drained.

Minutes long: `make slurm-test` runs it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.cluster import SlurmSettings, own_command, submit_sweep
from equiscale.experiments.element import read_state
from equiscale.experiments.execute import weights_path
from equiscale.experiments.jobs import Submission, job_states
from equiscale.experiments.plan import plan_runs
from equiscale.experiments.records import read_record, record_path
from equiscale.experiments.spec import load_suite
from tests.cluster.slurm import LONG, ask, wait_for
from tests.experiments.conftest import SMALL_SUITE

pytestmark = [LONG, pytest.mark.usefixtures("slurm"), pytest.mark.timeout(1200)]

MORE = """
[[methods]]
name = "CNN+"
cells = { "28×28" = { model = "mnist_cnn_28", augment = "scale" } }
"""
SECONDS = 300


def until(condition: Callable[[], object], what: str) -> None:
    wait_for(condition, what, seconds=SECONDS)


def quiet_sweep(suite: Path, folder: Path) -> None:
    """On one core, as on a node, and nobody disturbs it."""
    command = ("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable, "-m", "equiscale")
    done = subprocess.run(
        (*command, "reproduce", str(suite), "--results", str(folder)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def descendants(pid: int) -> list[int]:
    """A process and all that it has started."""
    children = subprocess.run(("pgrep", "--parent", str(pid)), capture_output=True, text=True).stdout.split()
    return [pid, *(each for child in children for each in descendants(int(child)))]


def pid_of(submission: Submission, element: int) -> int:
    state = read_state(submission.logs, submission.names[element])
    return state.pid if state is not None and state.exit_code is None else 0


def works(submission: Submission, element: int, claims: Claims) -> bool:
    """Whether a process of an element holds a claim."""
    pid = pid_of(submission, element)
    holders = {holder.pid for holder in claims.held().values() if holder is not None}
    return pid != 0 and not holders.isdisjoint(descendants(pid))


def test_a_sweep_finishes_although_elements_are_preempted_and_killed_and_a_node_is_drained(
    tmp_path: Path,
) -> None:
    suite = tmp_path / "small.toml"
    suite.write_text(SMALL_SUITE.replace("[0, 1]", "[0, 1, 2]") + MORE)
    runs = plan_runs(load_suite(str(suite)))
    quiet, folder = tmp_path / "quiet", tmp_path / "shared"
    quiet_sweep(suite, quiet)

    submission = submit_sweep(
        runs,
        SlurmSettings(array=3, cpus_per_task=2, time="30"),
        command=own_command("reproduce", str(suite), "--results", str(folder), "--no-wait"),
        folder=folder,
        data_root=None,
        device="cpu",
    )
    assert submission is not None
    claims = Claims(claims_of(folder, "small"))
    until(lambda: works(submission, 0, claims) and works(submission, 1, claims), "work on both nodes")
    assert {state.node for state in job_states(submission)[:2]} == {"node1", "node2"}

    until(lambda: list((folder / "small" / "checkpoints").glob("*")), "a checkpoint")
    ask("scancel", "--signal=USR2", submission.names[0])  # its time is nearly over
    until(lambda: works(submission, 2, claims), "the third element, where the first one was")
    for pid in reversed(descendants(pid_of(submission, 1))):
        os.kill(pid, signal.SIGKILL)
    until(lambda: job_states(submission)[1].state == "FAILED", "the end of the killed element")
    node = job_states(submission)[2].node
    ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")

    until(lambda: all(state.over for state in job_states(submission)), "the end")
    states = job_states(submission)
    assert [state.state for state in states] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [state.starts for state in states] == [2, 1, 1]
    assert states[0].node != node, "a drained node takes no more jobs"
    assert list((folder / "small" / "checkpoints").glob("*")) == []
    assert claims.held() == {}
    records = sorted(path.name for path in (folder / "small").glob("*.json"))
    assert records == sorted(record_path(folder, run).name for run in runs)
    for run in runs:
        assert read_record(record_path(folder, run)).status == "finished"
        expected, found = (load_file(weights_path(place, run)) for place in (quiet, folder))
        assert all(torch.equal(expected[name], found[name]) for name in expected), run.run_id
    said = "".join(submission.log(name).read_text() for name in submission.names)
    assert sum(line.startswith("finished ") for line in said.splitlines()) == len(runs), (
        "each run is done once"
    )
