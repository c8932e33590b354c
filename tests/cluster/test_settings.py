"""What is asked of Slurm, what is refused before anything is submitted, and the command line's options."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.cli.engine import Engine, given_arguments, with_engine
from equiscale.errors import DataError, MissingExtraError, ModelError, RecordError, SettingError
from equiscale.experiments import cluster
from equiscale.experiments.cluster import (
    SlurmSettings,
    check_slurm,
    node_local,
    parse_other,
    parse_time,
    sbatch_parameters,
    submit_sweep,
    submit_training,
)
from equiscale.experiments.jobs import (
    JobState,
    LogReader,
    Submission,
    expand_indices,
    find_submission,
    read_submissions,
)
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.records import RunSettings
from equiscale.experiments.spec import load_suite

SUBMISSION = Submission(job=7, command=("x",), logs=Path("logs"), submitted="2026", elements=2, tasks=1)


@pytest.fixture
def runs() -> list[RunSettings]:
    return plan_runs(load_suite("digits-scale"), Selection(models="mnist_cnn_28"))


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been submitted, where there is no Slurm."""
    calls: list[dict[str, Any]] = []

    def submit(command: object, settings: SlurmSettings, **options: Any) -> Submission:
        calls.append({"command": command, "settings": settings, **options})
        return SUBMISSION

    monkeypatch.setattr(cluster, "check_slurm", lambda: None)
    monkeypatch.setattr(cluster, "submit", submit)
    return calls


# --- settings ---


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1", 1), ("0:01", 1), ("90:00", 90), ("4:00:00", 240), ("0:00:59", 1), ("1-0", 1440), ("1-2:30", 1590)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert parse_time(text) == minutes


@pytest.mark.parametrize(
    "text", ["", "0", "0:00:00", "-5", "4h", "1:2:3:4", "1-", "UNLIMITED", "4:00:00\n", "٣"]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"expected --time as minutes, h:mm:ss.* got "):
        SlurmSettings(time=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"array": 0}, "expected --array of 1 or more, got 0"),
        ({"nodes": -1}, "expected --nodes of 1 or more, got -1"),
        ({"gpus_per_node": 0}, "expected --gpus-per-node of 1 or more, got 0"),
        ({"cpus_per_task": 0}, "expected --cpus-per-task of 1 or more, got 0"),
        ({"mem": "lots"}, "expected --mem such as 32G or 500M, got 'lots'"),
        ({"other": ("qos",)}, "expected --slurm NAME=VALUE, got 'qos'"),
        ({"other": ("a b=1",)}, "expected --slurm NAME=VALUE, got 'a b=1'"),
        ({"other": ("qos=x\n#SBATCH --wrap=y",)}, "expected --slurm NAME=VALUE, got"),
        ({"other": ("qos=a", "qos=b")}, "expected --slurm qos once, got it twice"),
        ({"other": ("time=5",)}, "got 'time'; it has an option of its own"),
        ({"other": ("cpus-per-task=5",)}, "got 'cpus_per_task'; it has an option of its own"),
        ({"other": ("no-requeue=true",)}, "got 'no_requeue'; equiscale sets it itself"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        SlurmSettings(**settings)
    assert message in str(error.value)


def test_settings_reach_sbatch_and_srun() -> None:
    settings = SlurmSettings(
        partition="gpu", gpus_per_node=4, cpus_per_task=6, mem="32G", time="2", nodes=2,
        other=("qos=low", "exclusive=true", "setup=load a", "setup=load b", "array-parallelism=3"),
    )  # fmt: skip
    assert sbatch_parameters(settings, name="sweep", tasks=4) == {
        "job_name": "sweep",
        "time": 2,
        "nodes": 2,
        "ntasks_per_node": 4,
        "partition": "gpu",
        "gpus_per_node": 4,
        "cpus_per_task": 6,
        "signal_delay_s": 30,
        "array_parallelism": 3,
        "setup": ["load a", "load b"],
        "srun_args": ["--kill-on-bad-exit=1", "--cpus-per-task=6"],
        "additional_parameters": {"requeue": True, "mem": "32G", "qos": "low", "exclusive": True},
    }


def test_values_with_an_equals_sign_are_kept_whole() -> None:
    assert parse_other(["comment=a=b"]) == {"comment": "a=b"}


# --- before anything is submitted ---


def test_without_submitit_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r'install it with: pip install "equiscale\[cluster\]"'):
        check_slurm()


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        SettingError, match="expected Slurm's command sbatch for --engine slurm, got none on PATH"
    ):
        check_slurm()


def test_the_array_has_an_element_for_each_open_run_at_most(
    tmp_path: Path, runs: list[RunSettings], submitted: list[dict[str, Any]]
) -> None:
    common = {"command": ("x",), "folder": tmp_path, "data_root": None, "device": "auto"}
    for array in (None, 2, 50):
        assert submit_sweep(runs, SlurmSettings(array=array), **common) is SUBMISSION
    twenty = [
        run.model_copy(update={"protocol": run.protocol.cut(epochs)})
        for run in runs
        for epochs in range(1, 8)
    ]
    submit_sweep(twenty, SlurmSettings(), **common)
    submit_sweep(twenty, SlurmSettings(array=12), **common)
    assert [call["elements"] for call in submitted] == [3, 2, 3, 8, 12]
    assert {call["folder"] for call in submitted} == {tmp_path / "digits-scale"}


def test_finished_runs_are_not_submitted(
    tmp_path: Path, runs: list[RunSettings], submitted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"command": ("x",), "folder": tmp_path, "data_root": None, "device": "cpu"}
    finished = {runs[0]}
    monkeypatch.setattr(cluster, "is_finished", lambda run, options: run in finished)
    submit_sweep(runs, SlurmSettings(), **common)
    finished.update(runs)
    assert submit_sweep(runs, SlurmSettings(), **common) is None
    assert submit_training(runs[0], SlurmSettings(), **common) is None
    assert [call["elements"] for call in submitted] == [2]


def test_a_training_has_a_task_for_each_gpu(
    tmp_path: Path, runs: list[RunSettings], submitted: list[dict[str, Any]]
) -> None:
    common = {"command": ("x",), "folder": tmp_path, "data_root": None, "device": "cuda"}
    submit_training(runs[0], SlurmSettings(nodes=2), **common)
    submit_training(runs[0], SlurmSettings(nodes=2, gpus_per_node=8), **common)
    assert [(call["elements"], call["tasks"]) for call in submitted] == [(1, 1), (1, 8)]


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        (SlurmSettings(nodes=2), "cpu", "expected --nodes 1 for a sweep, got 2; --array says"),
        (SlurmSettings(), "tpu", "expected a device of auto, cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_wrong_sweeps_are_refused(
    tmp_path: Path, runs: list[RunSettings], submitted: list[dict[str, Any]],
    settings: SlurmSettings, device: str, message: str,
) -> None:  # fmt: skip
    with pytest.raises(SettingError) as error:
        submit_sweep(runs, settings, command=("x",), folder=tmp_path, data_root=None, device=device)
    assert message in str(error.value)
    assert submitted == []


def test_a_training_takes_no_array(
    tmp_path: Path, runs: list[RunSettings], submitted: list[dict[str, Any]]
) -> None:
    with pytest.raises(SettingError, match="expected no --array for one training, got 2; --nodes says"):
        submit_training(
            runs[0], SlurmSettings(array=2), command=("x",), folder=tmp_path, data_root=None, device="cpu"
        )
    assert submitted == []


def test_networks_and_data_are_checked_before_submission(
    tmp_path: Path, runs: list[RunSettings], submitted: list[dict[str, Any]]
) -> None:
    common = {"command": ("x",), "folder": tmp_path, "data_root": tmp_path, "device": "cpu"}
    unknown = runs[0].model_copy(update={"model": "mnist_cnn_29"})
    with pytest.raises(ModelError, match="mnist_cnn_29"):
        submit_sweep([unknown], SlurmSettings(), **common)
    unprepared = runs[0].model_copy(update={"dataset": "mnist-scale"})
    with pytest.raises(DataError, match="equiscale data prepare mnist-scale"):
        submit_sweep([unprepared], SlurmSettings(), **common)
    assert submitted == []


def test_disks_of_one_machine_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/local")
    assert node_local(Path("/scratch/local/runs")) == "/scratch/local"
    assert node_local(Path("/dev/shm/runs")) == "/dev/shm"
    assert node_local(Path("/home/me/runs")) is None
    assert node_local(Path("/tmpfiles/runs")) is None


def test_what_slurm_has_set_for_a_job_is_hidden_from_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    for inside in (False, True):
        if inside:
            monkeypatch.setenv("SLURM_JOB_ID", "3")
        with cluster._outside_of_jobs():
            assert ("SLURM_CPUS_PER_TASK" in os.environ) is not inside
            assert "SLURM_JOB_ID" not in os.environ
            assert (os.environ["SLURM_CONF"], os.environ["SBATCH_ACCOUNT"]) == ("/etc/slurm.conf", "mine")
    assert (os.environ["SLURM_CPUS_PER_TASK"], os.environ["SLURM_JOB_ID"]) == ("8", "3")


# --- submissions ---


def test_submissions_are_found_again_and_others_are_not(tmp_path: Path) -> None:
    SUBMISSION.write(tmp_path / "small" / "jobs")
    SUBMISSION.model_copy(update={"job": 9, "submitted": "2025"}).write(tmp_path / "other" / "jobs")
    assert [found.job for found in read_submissions(tmp_path)] == [9, 7]
    assert find_submission(tmp_path, 7) == SUBMISSION
    with pytest.raises(SettingError, match="got 8; there: 9, 7"):
        find_submission(tmp_path, 8)


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"job": -1}', SUBMISSION.model_dump_json()[:-1]])
def test_damaged_submissions_are_refused(tmp_path: Path, text: str) -> None:
    path = SUBMISSION.write(tmp_path / "small" / "jobs")
    path.write_text(text)
    with pytest.raises(RecordError, match=r"expected a submission as equiscale writes it, got .*7\.json"):
        read_submissions(tmp_path)


def test_a_growing_log_is_read_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path, "7_0")
    assert reader.new_lines() == []
    path.write_bytes(b"one\ntw")
    assert reader.new_lines() == ["one"]
    path.write_bytes(b"one\ntwo\n\xff")
    assert reader.new_lines() == ["two"]
    assert reader.new_lines(last=True) == ["\ufffd"]
    assert reader.new_lines(last=True) == []


@pytest.mark.parametrize(
    ("text", "indices"), [("0-3%2", [0, 1, 2, 3]), ("7", [7]), ("N/A", []), ("1,3-4", [1, 3, 4])]
)
def test_indices_of_an_array(text: str, indices: list[int]) -> None:
    assert list(expand_indices(text)) == indices


# --- the command line ---


def run_command(*arguments: str) -> tuple[Engine, list[str]]:
    """What a command with all kinds of parameters is given, and what an element would be."""
    seen: list[Any] = []
    program = typer.Typer()

    @program.callback()
    def main() -> None: ...

    @program.command()
    @with_engine
    def work(
        context: typer.Context,
        suite: str,
        engine: Engine,
        lr: float = 0.1,
        settings: Annotated[list[str] | None, typer.Option("--set")] = None,
        resume: bool = True,
        results: Path = Path("runs"),
        compile: Annotated[bool | None, typer.Option("--compile/--no-compile")] = None,
    ) -> None:
        seen.extend([engine, given_arguments(context), (suite, lr, settings, resume, results, compile)])

    done = CliRunner().invoke(program, ["work", *arguments])
    assert done.exit_code == 0, done.output
    return seen[0], seen[1]


def test_an_element_is_given_what_the_command_was_given_but_for_the_engine() -> None:
    arguments = ["a suite", "--lr", "0.5", "--set", "a=1", "--set", "b=x y", "--no-resume"]
    arguments += ["--results", "r", "--compile"]
    engine, given = run_command(
        *arguments, "--engine", "slurm", "--time", "5", "--slurm", "qos=a", "--slurm", "x=b"
    )
    assert given == ["work", *arguments]
    assert engine.submits
    assert engine.settings() == SlurmSettings(time="5", other=("qos=a", "x=b"))
    assert run_command("s") == (Engine(), ["work", "s"]), "defaults are left to the element"


@pytest.mark.parametrize(
    ("command", "suite"),
    [
        (("reproduce", "digits-scale", "--models", "mnist_cnn_28"), "digits-scale"),
        (("train", "mnist_cnn_28", "--data", "digits-scale"), "train"),
    ],
)
def test_runs_that_every_requeue_would_begin_again_are_not_submitted(
    tmp_path: Path, submitted: list[dict[str, Any]], command: tuple[str, ...], suite: str
) -> None:
    options = ("--engine", "slurm", "--results", str(tmp_path))
    refused = CliRunner().invoke(app, [*command, *options, "--no-resume"])
    assert refused.exit_code == 2
    assert "expected --engine slurm without --no-resume, got both" in refused.output
    assert f"delete their checkpoints in {tmp_path / suite / 'checkpoints'}, or use" in refused.output
    assert submitted == []
    accepted = CliRunner().invoke(app, [*command, *options])
    assert accepted.exit_code == 0, accepted.output
    assert "--no-resume" not in submitted[0]["command"]


@pytest.mark.parametrize(
    ("states", "over"),
    [
        ("COMPLETED FAILED CANCELLED TIMEOUT DEADLINE PREEMPTED", True),
        ("NODE_FAIL BOOT_FAIL OUT_OF_MEMORY REVOKED", True),
        ("PENDING RUNNING SUSPENDED COMPLETING CONFIGURING REQUEUED REQUEUE_HOLD STOPPED UNKNOWN", False),
    ],
)
def test_the_states_in_which_slurm_does_no_more(states: str, over: bool) -> None:
    assert {JobState("7", state).over for state in states.split()} == {over}


def test_options_of_slurm_need_its_engine() -> None:
    assert not Engine().submits
    with pytest.raises(
        SettingError, match="expected --engine slurm with --gpus-per-node, got --engine local"
    ):
        Engine(gpus_per_node=1).submits  # noqa: B018


def test_every_setting_of_slurm_has_an_option() -> None:
    options = {field.name for field in dataclasses.fields(Engine)} - {"engine", "slurm"}
    assert options == {field.name for field in dataclasses.fields(SlurmSettings)} - {"other"}


def test_the_nodes_load_no_torch_before_the_command_starts() -> None:
    code = "import sys; import equiscale.experiments.element; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "pydantic", "submitit"}.isdisjoint(done.stdout.split())
