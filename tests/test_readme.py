"""The README's code runs as printed, its commands exist, its tables are those of the records."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.experiments.records import read_records
from equiscale.experiments.spec import load_suite
from equiscale.report.aggregate import aggregate
from equiscale.report.tables import render

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_python_code_runs_as_printed_one_block_after_the_other() -> None:
    names: dict[str, object] = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
    assert names["features"].shape == (2, 16, 5, 96, 96)
    worst = float(output.getvalue().split("worst")[1])
    assert 0.01 < worst < 0.025, "the README says about 2 %"


def commands() -> list[list[str]]:
    lines = [line.partition("#")[0] for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(("equiscale ", "make "))]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_exist(command: list[str]) -> None:
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    result = CliRunner().invoke(app, [*command[1:], "--help"])  # parses all options, then stops
    assert result.exit_code == 0, result.output


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert (
        CliRunner().invoke(app, ["reproduce", "mnist-scale", "--realisation", "0", "--help"]).exit_code == 2
    )


@pytest.mark.parametrize(
    ("document", "suite", "epochs"),
    [
        ("README.md", "mnist-scale", range(30, 61)),
        ("README.md", "digits-scale", range(1, 100)),
        ("docs/first-epochs.md", "mnist-scale", range(1, 2)),
        ("docs/first-epochs.md", "imagenette96", range(1, 100)),
    ],
)
def test_tables_are_those_of_the_committed_records(document: str, suite: str, epochs: range) -> None:
    plan = load_suite(suite)
    records = [
        record
        for record in read_records(ROOT / "results", suite)
        if record.settings.protocol.epochs in epochs
    ]
    table = render(aggregate(plan, records), "markdown")
    text = (ROOT / document).read_text()
    printed = text.split(f"<!-- table:{suite} -->")[1].split(f"<!-- /table:{suite} -->")[0]
    assert printed.strip() == table.strip(), "run 'make readme'"
