"""The documents' code runs as printed, their commands exist, their tables are those of the records."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.experiments.benchmark.record import read_benchmark
from equiscale.experiments.records import read_records
from equiscale.experiments.spec import load_suite
from equiscale.report.aggregate import aggregate
from equiscale.report.benchmark import insert_tables
from equiscale.report.benchmark_plots import roofline_plot, speed_plot
from equiscale.report.tables import render

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) > 3


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
            assert any(path.exists() for path in made_from(document, link)), f"{document}: {link}"


def made_from(document: str, link: str) -> list[Path]:
    """What a link leads to, or what the page is made from when the documentation is built."""
    page = Path(link)
    if page.parent.name == "gallery":
        name = "README.rst" if page.stem == "index" else f"{page.stem}.py"
        return [ROOT / "examples" / name]
    if page.parent.name == "generated":
        return [ROOT / "docs/generate.py"] if page.stem in ("methods", "results") else []
    return [(ROOT / document).parent / link]


def test_the_python_code_runs_as_printed_one_block_after_the_other() -> None:
    names: dict[str, object] = {}
    output = io.StringIO()
    torch.manual_seed(0)  # the error depends a little on the weights, which are drawn
    with contextlib.redirect_stdout(output):
        for block in blocks("README.md", "python"):
            exec(compile(block, "README.md", "exec"), names)
    assert names["features"].shape == (2, 16, 5, 96, 96)
    worst = float(re.findall(r"worst +(\S+)", output.getvalue())[0])
    assert 0.01 < worst < 0.025, "the README says about 2 %"


def commands() -> list[list[str]]:
    texts = [block.replace("\\\n", " ") for document in DOCUMENTS for block in blocks(document, "bash")]
    lines = [line.partition("#")[0] for text in texts for line in text.splitlines()]
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


@pytest.mark.parametrize(
    ("document", "name"),
    [("README.md", "speed"), ("docs/benchmarks.md", "speed"), ("docs/benchmarks.md", "wrn")],
)
def test_tables_of_speed_are_those_of_the_committed_records(document: str, name: str, tmp_path: Path) -> None:
    copy = tmp_path / "document.md"
    copy.write_text((ROOT / document).read_text())
    insert_tables(copy, name, read_benchmark(ROOT / "results" / "benchmarks" / f"{name}.json"))
    assert copy.read_text() == (ROOT / document).read_text(), "run 'make readme'"


def test_the_plots_of_speed_are_those_of_the_committed_record() -> None:
    folder = ROOT / "results" / "benchmarks"
    record = read_benchmark(folder / "speed.json")
    for name, plot in (("speed", speed_plot), ("speed-roofline", roofline_plot)):
        assert texts((folder / f"{name}.svg").read_text()) == texts(plot(record)), (
            "draw them anew: make readme"
        )


def texts(svg: str) -> list[str]:
    """Not the bytes: they depend on matplotlib's version."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize(
    ("document", "script"),
    [
        ("docs/bases.md", "equivariance.py"),
        ("docs/speed.md", "startup.py"),
        ("docs/experiments.md", "throughput.py"),
        ("docs/convert.md", "convert.py"),
        ("docs/convert.md", "convert_published.py"),
        ("README.md", "convert.py"),
        ("docs/choosing-scales.md", "estimate.py"),
        ("docs/promises.md", "chaos.py"),
        ("docs/distributed.md", "scaling.py"),
        ("docs/distributed.md", "scaling_plan.py"),
    ],
)
def test_tables_of_benchmarks_are_those_of_the_committed_records(
    document: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "document.md"
    copy.write_text((ROOT / document).read_text())
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [script, "--read", "--into", str(copy)])
    runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    assert copy.read_text() == (ROOT / document).read_text(), "run 'make readme'"
