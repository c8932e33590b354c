"""Submissions to a real Slurm of two nodes: elements, signals, requeues, many tasks, status, logs, cancel."""

import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.errors import SettingError
from equiscale.experiments.cluster import SlurmSettings, submit
from equiscale.experiments.element import first_of_nodes, read_state
from equiscale.experiments.jobs import Submission, cancel, find_submission, job_states, read_submissions
from equiscale.experiments.records import read_record
from tests.cluster.slurm import ask, wait_for
from tests.experiments.conftest import SMALL_SUITE

pytestmark = pytest.mark.usefixtures("slurm")

SETTINGS = SlurmSettings(time="10")
GRACEFUL = SlurmSettings(time="10", partition="graceful")
CANCELLED = SlurmSettings(time="10", partition="cancelled")
LEAVES_WHEN_TOLD = """
import os, signal, sys, time
if os.path.exists("second"):
    print("second start on", os.environ["SLURMD_NODENAME"])
    sys.exit(0)
def leave(*_):
    print("leaving")
    open("second", "w").close()
    sys.exit(130)
signal.signal(signal.SIGTERM, leave)
print("first start on", os.environ["SLURMD_NODENAME"])
time.sleep(300)
"""
LEAVES_WHEN_TOLD_TWICE = """
import signal, sys, time
def leave(*_):
    print("told")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGTERM, leave)
print("start")
time.sleep(300)
"""
IN_A_GROUP = """
import os, torch
from torch import distributed
distributed.init_process_group("gloo")
mine = torch.tensor([distributed.get_rank() + 1.0])
distributed.all_reduce(mine)
print(os.environ["SLURMD_NODENAME"], os.environ["LOCAL_RANK"], distributed.get_world_size(), mine.item())
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # of the jobs too


def submit_python(program: str, *, elements: int = 1, settings: SlurmSettings = SETTINGS) -> Submission:
    command = (sys.executable, "-u", "-c", program)
    return submit(command, settings, folder=Path("runs/small"), elements=elements)


def states(submission: Submission) -> list[str]:
    return [state.state for state in job_states(submission)]


def wait_for_states(submission: Submission, *expected: str) -> None:
    wait_for(lambda: states(submission) == list(expected), f"{expected} of {submission.job}")


def log(submission: Submission, element: int = 0, *, task: int = 0) -> list[str]:
    """What the command said, without what submitit says."""
    path = submission.log(submission.names[element], task=task)
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if not line.startswith("submitit")]


def jobs(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["jobs", *map(str, arguments)])
    return result.exit_code, result.output


def preempt(submission: Submission) -> str:
    """Take the node of its only element for a second, with a job of higher priority; that job's number."""
    (state,) = job_states(submission)
    own = ("--partition=main", f"--nodelist={state.node}", "--exclusive", "--output=/dev/null")
    return ask("sbatch", "--parsable", *own, "--wrap=sleep 1")


def test_every_element_ends_as_its_command_ends() -> None:
    program = (
        "import os; index = int(os.environ['SLURM_ARRAY_TASK_ID']); print(index); raise SystemExit(3 * index)"
    )
    submission = submit_python(program, elements=3)
    wait_for_states(submission, "COMPLETED", "FAILED", "FAILED")
    assert [state.exit for state in job_states(submission)] == ["0", "3", "6"]
    assert {state.node for state in job_states(submission)} <= {"node1", "node2"}
    assert [log(submission, index) for index in range(3)] == [["0"], ["1"], ["2"]]
    assert find_submission(Path("runs"), submission.job) == submission


def test_an_element_whose_time_is_nearly_over_stops_its_command_and_starts_it_again() -> None:
    submission = submit_python(LEAVES_WHEN_TOLD)
    wait_for(lambda: log(submission), "the first start")
    ask("scancel", "--signal=USR2", str(submission.job))  # as at the time limit, to all processes
    wait_for(lambda: len(log(submission)) == 3, "the second start")
    wait_for_states(submission, "COMPLETED")
    first, left, second = log(submission)
    assert first.startswith("first start")
    assert left == "leaving"
    assert second.startswith("second start")
    assert job_states(submission)[0].starts == 2


def test_an_element_that_slurm_requeues_leaves_a_drained_node() -> None:
    submission = submit_python(LEAVES_WHEN_TOLD)
    wait_for(lambda: log(submission), "the first start")
    node = job_states(submission)[0].node
    ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    ask("scontrol", "requeue", str(submission.job))
    wait_for_states(submission, "COMPLETED")
    other = {"node1": "node2", "node2": "node1"}[node]
    assert log(submission) == [f"first start on {node}", "leaving", f"second start on {other}"]


def test_an_element_that_is_preempted_with_a_grace_time_starts_again() -> None:
    submission = submit_python(LEAVES_WHEN_TOLD, settings=GRACEFUL)
    wait_for(lambda: log(submission), "the first start")
    preempt(submission)
    wait_for_states(submission, "COMPLETED")
    first, left, second = log(submission)
    assert first.startswith("first start")
    assert left == "leaving"
    assert second.startswith("second start")
    (state,) = job_states(submission)
    assert (state.starts, state.exit) == (2, "0")


def test_a_preempted_element_that_is_cancelled_in_its_grace_time_ends_for_good() -> None:
    submission = submit_python(LEAVES_WHEN_TOLD_TWICE, settings=GRACEFUL)
    wait_for(lambda: log(submission), "the start")
    preempt(submission)
    wait_for(lambda: log(submission) == ["start", "told"], "the grace time")
    assert states(submission) == ["RUNNING"]
    cancel(submission)
    wait_for_states(submission, "CANCELLED")
    assert job_states(submission)[0].starts == 1


def test_an_element_that_is_only_told_to_stop_ends_for_good_although_it_was_preempted_before() -> None:
    program = LEAVES_WHEN_TOLD.replace("sys.exit(0)", "")
    submission = submit_python(program, settings=GRACEFUL)
    wait_for(lambda: log(submission), "the first start")
    preempt(submission)
    wait_for(lambda: len(log(submission)) == 4, "the second start")
    ask("scancel", "--signal=TERM", str(submission.job))
    wait_for_states(submission, "FAILED")
    (state,) = job_states(submission)
    assert (state.starts, state.exit) == (2, "130")


def test_the_log_of_a_job_that_slurm_preempted_for_good_is_followed_to_its_end() -> None:
    submission = submit_python("import time; print('here'); time.sleep(300)", settings=CANCELLED)
    wait_for(lambda: log(submission), "the start")
    preempt(submission)
    wait_for_states(submission, "PREEMPTED")
    assert job_states(submission)[0].over, "or what follows would never end"
    code, output = jobs("logs", submission.job, "--follow", "--results", "runs")
    assert code == 0
    assert "here" in output.splitlines()


def test_a_killed_command_is_a_failure_and_is_not_started_again() -> None:
    submission = submit_python("import time; print('here'); time.sleep(300)")
    wait_for(lambda: log(submission), "the start")
    os.kill(read_state(submission.logs, submission.names[0]).pid, signal.SIGKILL)
    wait_for_states(submission, "FAILED")
    (state,) = job_states(submission)
    assert (state.exit, state.starts) == ("137", 1)


def test_the_tasks_of_a_training_find_each_other() -> None:
    settings = SlurmSettings(time="10", nodes=2)
    command = (sys.executable, "-u", "-c", IN_A_GROUP)
    submission = submit(command, settings, folder=Path("runs/train"), elements=1, tasks=1)
    wait_for_states(submission, "COMPLETED")
    said = [log(submission, task=task)[-1] for task in range(2)]
    assert said == ["node1 0 2 3.0", "node2 0 2 3.0"]


def test_a_refusal_is_told_as_slurm_says_it() -> None:
    with pytest.raises(
        SettingError, match=r"settings that Slurm accepts, got its refusal: .*partition"
    ) as error:
        submit_python("pass", settings=SlurmSettings(partition="gold", time="10"))
    assert "\n" not in str(error.value)
    assert list(Path("runs/small/jobs").glob("*.json")) == []


def test_status_logs_and_cancel() -> None:
    submission = submit_python("import time; print('here'); time.sleep(300)", elements=6)
    number, results = submission.job, ("--results", "runs")
    wait_for(lambda: states(submission).count("RUNNING") == 4, "four elements on two cores of each node")
    wait_for(lambda: all(log(submission, index) for index in range(4)), "their logs")

    code, output = jobs("status", number, *results)
    assert code == 0
    assert f"{number}: {sys.executable} -u -c" in output
    assert len(re.findall(rf"^{number}_[0-3] +RUNNING +node[12] +00:00:\d\d +1", output, re.MULTILINE)) == 4
    assert len(re.findall(rf"^{number}_[45] +PENDING", output, re.MULTILINE)) == 2
    code, output = jobs("status", *results)
    assert code == 0
    assert re.search(rf"^{number}  20.*  small  4 RUNNING, 2 PENDING$", output, re.MULTILINE)

    code, output = jobs("logs", number, *results)
    assert code == 0
    assert [f"{number}_{index}  here" in output.splitlines() for index in range(6)] == [True] * 4 + [
        False
    ] * 2
    assert "here" in jobs("logs", number, "--element", 0, *results)[1].splitlines()

    code, output = jobs("cancel", number, *results)
    assert (code, output.splitlines()[0][: len("cancelled")]) == (0, "cancelled")
    wait_for_states(submission, *["CANCELLED"] * 6)
    assert jobs("logs", number, "--follow", *results)[0] == 0, "it ends with the job"


def test_what_slurm_has_forgotten_is_known_from_the_elements_own_last_word() -> None:
    submission = submit_python("raise SystemExit(4)")
    wait_for_states(submission, "FAILED")
    renumbered = submission.model_copy(update={"job": submission.job + 1_000_000})
    word = read_state(submission.logs, submission.names[0])
    replace(word, element=renumbered.names[0]).write(submission.logs)
    (state,) = job_states(renumbered)
    assert (state.state, state.exit, state.node, state.over) == ("UNKNOWN", "4", word.host, True)


def test_a_job_that_is_over_cannot_be_cancelled() -> None:
    submission = submit_python("pass")
    wait_for_states(submission, "COMPLETED")
    with pytest.raises(SettingError, match=rf"waits or runs, got {submission.job}, which is over: COMPLETED"):
        cancel(submission)


@pytest.mark.parametrize("nodes", ["node1", "gpu[03-05,9],login", "a[1-2]b[7-9]", "x,y[1-2]"])
def test_the_first_node_is_that_which_slurm_names_first(nodes: str) -> None:
    assert first_of_nodes(nodes) == ask("scontrol", "show", "hostnames", nodes).split()[0]


def test_the_command_line_submits_itself_and_what_is_finished_is_not_submitted_again() -> None:
    Path("small.toml").write_text(SMALL_SUITE)
    command = ["reproduce", "small.toml", "--realisations", "0", "--epochs", "1", "--engine", "slurm"]
    options = ["--time", "10", "--cpus-per-task", "1"]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    (submission,) = read_submissions(Path("runs"))
    assert submission.command[1:] == (
        "-m", "equiscale", "reproduce", "small.toml", "--realisations", "0", "--epochs", "1", "--no-wait",
    )  # fmt: skip
    assert f"submitted one job as {submission.job}; logs in {submission.logs}" in done.output
    assert "expected a results folder that all nodes share, got runs under /tmp" in done.output
    wait_for(lambda: "under way on" in jobs("status", submission.job)[1], "its claim", seconds=120)
    assert "mnist_cnn_28-r0-s0-e1-" in jobs("status", submission.job)[1]
    wait_for(lambda: states(submission) == ["COMPLETED"], "the end", seconds=120)
    (record,) = Path("runs/small").glob("*.json")
    assert read_record(record).status == "finished"

    again = CliRunner().invoke(app, [*command, *options])
    assert again.exit_code == 0
    assert "all of 1 runs have records in runs/small; nothing was submitted" in again.output
    assert len(read_submissions(Path("runs"))) == 1
