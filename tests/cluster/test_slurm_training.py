"""One training over two nodes of a real Slurm, and the same again after a requeue.

A minute long: `make slurm-test` runs it.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.experiments.jobs import job_states, read_submissions
from equiscale.experiments.records import read_record
from tests.cluster.slurm import LONG, ask, wait_for

pytestmark = [LONG, pytest.mark.usefixtures("slurm"), pytest.mark.timeout(900)]

# Without dropout, which draws other numbers on each process.
TRAIN = ("train", "mnist_cnn_28", "--set", "dropout=0", "--data", "digits-scale", "--batch-size", "250")
SLURM = ("--engine", "slurm", "--device", "cpu", "--nodes", "2", "--cpus-per-task", "1", "--time", "10")


def losses(folder: Path) -> list[float]:
    (path,) = (folder / "train").glob("*.json")
    record = read_record(path)
    assert record.status == "finished"
    return [epoch.train_loss for epoch in record.epochs]


def test_a_training_over_two_nodes_that_is_requeued_has_the_losses_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = (*TRAIN, "--epochs", "3", "--results", "two")
    done = CliRunner().invoke(app, [*train, *SLURM])
    assert done.exit_code == 0, done.output
    (submission,) = read_submissions(Path("two"))
    assert f"submitted one job of 2 processes as {submission.job}" in done.output
    log = submission.log(submission.names[0])
    wait_for(lambda: list(Path("two/train/checkpoints").glob("*")), "a checkpoint", seconds=300)
    ask("scancel", "--signal=USR2", str(submission.job))
    wait_for(lambda: all(state.over for state in job_states(submission)), "the end", seconds=300)
    (state,) = job_states(submission)
    assert (state.state, state.starts) == ("COMPLETED", 2), log.read_text()
    assert log.read_text().count("training in 2 processes") == 2

    alone = CliRunner().invoke(app, [*TRAIN, "--epochs", "3", "--results", "one", "--device", "cpu"])
    assert alone.exit_code == 0, alone.output
    assert losses(Path("two")) == pytest.approx(losses(Path("one")), rel=1e-2)
    assert losses(Path("two")) != losses(Path("one")), "rounding shows that there were two"
