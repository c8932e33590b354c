"""One task of a job, with the environment variables of Slurm and without Slurm."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from equiscale.experiments.element import Element, ElementState, command_environment, read_state
from tests.cluster.slurm import wait_for

JOB = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0"}
STOPPED, FAILED = "raise SystemExit(143)", "raise SystemExit(1)"
PREEMPTED = "JobId=12 JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-02 PreemptTime=2026-01-02"
SCONTROL = """#!/bin/sh
echo "$@" >> asked
[ "$1" = show ] && cat shown
"""
LEAVES_WHEN_TOLD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
open("ready", "w").close()
time.sleep(60)
"""
TELLS_AN_ELEMENT = """
import os, signal, sys
from pathlib import Path
from equiscale.experiments.element import Element
element = Element((sys.executable, "-c", sys.argv[1]), Path("."))
def requeue(*_):
    again = element.checkpoint()
    print("again", again.function.command == element.command, flush=True)
    sys.exit(7)
signal.signal(signal.SIGUSR2, requeue)
element()
"""


@pytest.fixture(autouse=True)
def _job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)


def run(program: str) -> int:
    with pytest.raises(SystemExit) as ended:
        Element((sys.executable, "-c", program), Path())()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("program", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_an_element_ends_as_its_command(program: str, code: int) -> None:
    assert run(program) == code
    state = read_state(Path(), "12")
    assert (state.exit_code, state.starts, state.host) == (code, 1, socket.gethostname())
    run("")
    assert read_state(Path(), "12").starts == 2


def test_of_many_tasks_only_the_first_says_that_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (run(STOPPED), run(FAILED)) == (143, 1)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert (run(STOPPED), run(FAILED)) == (0, 1)
    assert read_state(Path(), "12", 1).exit_code == 1


def asked_of_slurm(program: str, shown: str) -> list[str]:
    """What an element asks of scontrol when its command has ended, and Slurm says this about the job."""
    Path("scontrol").write_text(SCONTROL)
    Path("scontrol").chmod(0o755)
    Path("shown").write_text(shown)
    Path("asked").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join((str(Path().resolve()), os.environ["PATH"])))
        run(program)
    return Path("asked").read_text().splitlines()


def test_a_preempted_element_asks_for_the_queue_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_slurm(STOPPED, PREEMPTED) == ["show job --oneliner 12", "requeue 12"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")  # the number of the whole array too
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert asked_of_slurm("raise SystemExit(130)", PREEMPTED)[1] == "requeue 12_1"


@pytest.mark.parametrize(
    "shown",
    [
        PREEMPTED.replace("RUNNING", "CANCELLED"),
        PREEMPTED.replace("RUNNING", "COMPLETING"),
        PREEMPTED.replace(" PreemptTime=2026-01-02", " PreemptTime=None"),
        PREEMPTED.replace(" PreemptTime=2026-01-02", ""),
        "",
    ],
)
def test_an_element_that_was_cancelled_or_sent_a_signal_ends_for_good(shown: str) -> None:
    assert asked_of_slurm(STOPPED, shown) == ["show job --oneliner 12"]


def test_only_the_first_task_of_a_stopped_command_asks_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_slurm("", PREEMPTED) == asked_of_slurm(FAILED, PREEMPTED) == []
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert asked_of_slurm(STOPPED, PREEMPTED) == []


def test_without_scontrol_a_stopped_command_is_a_stopped_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(STOPPED) == 143


def test_the_command_does_not_hear_that_the_time_is_over_but_is_told_to_stop() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TELLS_AN_ELEMENT, LEAVES_WHEN_TOLD],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(Path("ready").exists, "the command")
        os.killpg(process.pid, signal.SIGUSR2)  # as Slurm does: to all processes
        output, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert output == "again True\n"
    assert process.returncode == 7
    state = read_state(Path(), "12")
    assert state.exit_code == 143, "it left when it was told, and was waited for"
    with pytest.raises(ProcessLookupError):
        os.kill(state.pid, 0)


def test_an_element_that_is_stopped_before_its_command_starts_asks_for_the_same_again() -> None:
    element = Element(("true",), Path())
    assert element.checkpoint().function.command == ("true",)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"element": 1}'])
def test_a_damaged_last_word_is_none(text: str) -> None:
    Path("12_0_state.json").write_text(text)
    assert read_state(Path(), "12") is None
    ElementState("12", 0, "here", 1, 1).write(Path())
    assert read_state(Path(), "12") is not None


def test_torchruns_variables_come_from_slurms_and_are_gone_with_one_task() -> None:
    many = {
        **JOB, "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": "no-such-node[3-4]", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.3", "RANK": "stray",
    }  # fmt: skip
    found = command_environment(many)
    assert {name: found[name] for name in found.keys() - many.keys() | {"RANK"}} == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "10.0.0.3",
        "MASTER_PORT": "20012",
    }
    named = command_environment({**many, "SLURM_JOB_NODELIST": "localhost,x"})
    assert named["MASTER_ADDR"] == "localhost"
    assert "RANK" not in command_environment({**JOB, "RANK": "stray", "WORLD_SIZE": "2"})
