"""The command line: what it prints, what it refuses, how fast it starts to help."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.experiments.benchmark.record import write_benchmark
from equiscale.experiments.estimate import Estimate
from tests.benchmark_records import benchmark_record, model_result


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sweep of one tiny run, made by the real command."""
    folder = tmp_path_factory.mktemp("cli") / "results"
    command = [sys.executable, "-m", "equiscale", "reproduce", "digits-scale", "--models", "mnist_cnn_28"]
    done = subprocess.run(
        [*command, "--realisations", "0", "--epochs", "1", "--results", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "finished mnist_cnn_28" in done.stdout
    assert f"1 of 1 runs are finished; records in {folder}/digits-scale" in done.stdout.replace("\n", "")
    return folder


def test_list_names_models_data_and_suites() -> None:
    code, output = invoke("list")
    assert code == 0
    for name in ("mnist_ses_vector_56p", "digits-scale", "mnist-scale", "Sosnovik"):
        assert name in output


def test_a_dry_run_lists_the_runs() -> None:
    code, output = invoke(
        "reproduce",
        "mnist-scale",
        "--dry-run",
        "--no-estimate",
        "--models",
        "mnist_cnn_*",
        "--augment",
        "scale",
    )
    assert code == 0
    assert output.splitlines()[0].startswith("mnist_cnn_28+-r0-s0-e60-")
    assert output.splitlines()[-1] == "12 runs"


def test_a_dry_run_of_the_comparison_counts_the_published_runs() -> None:
    code, output = invoke("reproduce", "mnist-scale", "--dry-run", "--no-estimate")
    lines = output.splitlines()
    assert code == 0
    assert lines[-1] == "288 runs, and 144 of methods that the published table does not have"
    assert len([line for line in lines if line.startswith("mnist_")]) == 288 + 144


def test_a_dry_run_estimates_the_time() -> None:
    code, output = invoke("reproduce", "digits-scale", "--dry-run", "--models", "mnist_cnn_28")
    assert code == 0
    assert re.search(r"^mnist_cnn_28 +3 +[\d.]+ (s|min) +[\d.]+ (s|min|h)$", output, re.MULTILINE)
    assert "one run after the other" in output


def test_the_automatic_device_is_timed_where_the_runs_would_go(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "equiscale.experiments.estimate.estimate_runs",
        lambda runs, *, device, **_: timed.append(device) or [],
    )
    code, output = invoke("reproduce", "digits-scale", "--dry-run")
    assert (code, timed) == (0, ["cuda"])
    assert "at a time" not in output, "one run after the other, however many cores there are"


def test_a_dry_run_divides_by_the_cores_and_not_by_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equiscale.experiments.estimate.available_cores", lambda: 2)
    monkeypatch.setattr(
        "equiscale.experiments.estimate.estimate_runs", lambda runs, **_: [Estimate(runs[0], 100, 3600.0)]
    )
    options = ("--device", "cpu", "--jobs-per-device", 8)
    _, output = invoke("reproduce", "digits-scale", "--dry-run", *options)
    assert "; 2.1 days with 2 at a time" in " ".join(output.split())


def test_the_table_of_one_schedule_leaves_the_others_out(results: Path) -> None:
    epochs = {
        json.loads(path.read_text())["settings"]["protocol"]["epochs"] for path in results.rglob("*.json")
    }
    (run,) = epochs
    shown = [
        invoke("table", "digits-scale", "--results", results, "--format", "csv", "--epochs", chosen)[1]
        for chosen in (str(run), f"{run + 1}-{run + 9}")
    ]
    every = invoke("table", "digits-scale", "--results", results, "--format", "csv")[1]
    assert shown[0] == every
    assert shown[1] != every


def test_the_table_in_all_formats(results: Path, tmp_path: Path) -> None:
    for format in ("terminal", "markdown", "csv", "latex"):
        code, output = invoke("table", "digits-scale", "--results", results, "--format", format)
        assert code == 0
        assert "SESN scalar" in output
    document = tmp_path / "README.md"
    document.write_text("<!-- table:digits-scale -->\n<!-- /table:digits-scale -->\n")
    assert invoke("table", "digits-scale", "--results", results, "--into", document)[0] == 0
    assert "| CNN" in document.read_text()


def test_export_and_report(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "results.yml"
    assert invoke("export-yaml", "digits-scale", "--results", results, "--output", target)[0] == 0
    assert [run["model"] for run in yaml.safe_load(target.read_text())] == ["mnist_cnn_28"]
    code, output = invoke("report", "digits-scale", "--results", results)
    assert code == 0
    assert output.strip() == f"Wrote {results / 'digits-scale' / 'report.html'}"


def test_a_file_that_cannot_be_written_is_one_line(results: Path, tmp_path: Path) -> None:
    for arguments in (
        ["report", "digits-scale", "--results", results, "--output", tmp_path],
        ["export-yaml", "digits-scale", "--results", results, "--output", "/proc/results.yml"],
        ["table", "digits-scale", "--results", results, "--into", tmp_path / "missing.md"],
    ):
        code, output = invoke(*arguments)
        assert (code, output.count("\n")) == (2, 1), output
        assert output.startswith("equiscale: ")


def test_a_missing_extra_is_one_line(results: Path) -> None:
    program = (
        "import sys; sys.modules['jinja2'] = None\n"
        f"sys.argv = ['equiscale', 'report', 'digits-scale', '--results', {str(results)!r}]\n"
        "from equiscale.cli import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("equiscale: expected the package 'jinja2', got none; install it with")


def test_the_version() -> None:
    assert invoke("--version") == (0, "equiscale 0.1.0\n")


def test_digits_need_no_preparation() -> None:
    assert invoke("data", "prepare", "digits-scale") == (
        0,
        "digits-scale needs no preparation: it is made when it is loaded.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "mnist"], "expected a suite of digits-scale, "),
        (
            ["reproduce", "mnist-scale", "--augment", "flip"],
            "expected augmentations of none, scale, crop-flip-cutout, got 'flip'",
        ),
        (["reproduce", "mnist-scale", "--realisations", "7"], "expected realisations of [0, 1, 2, 3, 4, 5]"),
        (["reproduce", "mnist-scale", "--root", "/nowhere"], "equiscale data prepare mnist-scale"),
        (["reproduce", "digits-scale", "--device", "cuda"], "expected a CUDA device"),
        (["reproduce", "digits-scale", "--dry-run", "--device", "bogus"], "expected a device of auto, cpu"),
        (["reproduce", "digits-scale", "--dry-run", "--device", "cuda:x"], "expected a device of auto, cpu"),
        (["reproduce", "digits-scale", "--dry-run", "--device", "cuda"], "expected a CUDA device"),
        (["reproduce", "digits-scale", "--dry-run", "--jobs", "-1"], "expected 0 jobs (automatic) or more"),
        (
            ["table", "mnist-scale", "--results", "/nowhere"],
            "'equiscale reproduce mnist-scale --results /nowhere'",
        ),
        (["reproduce", "mnist-scale", "--realisations", "0-999999999"], "expected numbers and ranges"),
        (["reproduce", "digits-scale", "--results", "/proc/nowhere"], "/proc/nowhere"),
        (["data", "prepare", "cifar"], "expected a data set of"),
        (["data", "prepare", "mnist-scale", "--source", "/nowhere", "--root", "/tmp"], "/nowhere"),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, output = invoke(*arguments)
    assert code == 2
    assert output.startswith("equiscale: ")
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--engine", "slurm")], ids=" ".join)
@pytest.mark.parametrize("size", ["2", "one"])
def test_reproduce_is_not_started_by_torchrun(
    more: tuple[str, ...], size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    # Not even the suite is read.
    code, output = invoke("reproduce", "no-such-suite", "--results", tmp_path / "runs", *more)
    assert code == 2
    assert output == (
        "equiscale: expected 'equiscale reproduce' to be started once, got one of several processes of "
        f"torchrun (WORLD_SIZE={size}); start it without torchrun, which is for 'equiscale train': it starts "
        "its own processes, and several of it share a results folder\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variables", [{"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "4"}, {}], ids=str)
def test_reproduce_starts_as_the_only_process(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, output = invoke(
        "reproduce", "digits-scale", "--models", "mnist_cnn_28", "--dry-run", "--no-estimate"
    )
    assert code == 0, output


def test_help_starts_without_torch_or_other_heavy_packages() -> None:
    program = (
        "import sys; sys.argv = ['equiscale', '--help']\n"
        "from equiscale.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "reproduce" in done.stdout


def test_bench_refuses_unknown_networks_and_records_before_it_measures(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    for arguments, message in (
        (("mnist_ses_scaler_28",), "mnist_ses_scalar_28"),
        (("mnist_cnn_28", "--peer", tmp_path), "expected a checkout of the public SESN code"),
        (("mnist_cnn_28", "--compare", tmp_path / "no.json"), "expected the record of a benchmark"),
        (("mnist_cnn_28", "--rounds", 0), "rounds"),
    ):
        code, text = invoke("bench", *arguments, "--output", output)
        assert (code, "Traceback" in text) == (2, False)
        assert text.startswith("equiscale: expected")
        assert message in text
    assert list(tmp_path.iterdir()) == []


def test_bench_does_not_overwrite_what_it_compares_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equiscale.cli.bench._measure", lambda *_, **__: pytest.fail("it was measured"))
    write_benchmark(tmp_path / "speed.json", benchmark_record())
    before = (tmp_path / "speed.json").read_bytes()
    (tmp_path / "same.json").symlink_to(tmp_path / "speed.json")
    for output in (tmp_path / "speed.json", tmp_path / "same.json"):
        code, text = invoke("bench", "--compare", tmp_path / "speed.json", "--output", output)
        assert code == 2
        assert text.startswith("equiscale: expected an output beside the older record")
        assert "--output" in text
    assert (tmp_path / "speed.json").read_bytes() == before


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in ("drawing", "benchmark_plots"):
        monkeypatch.delitem(sys.modules, f"equiscale.report.{module}", raising=False)


def test_bench_compares_without_the_packages_for_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_matplotlib: None
) -> None:
    monkeypatch.setattr(
        "equiscale.experiments.benchmark.progress.bench_with_progress",
        lambda *_, **__: benchmark_record(model_result(), settings={"device": "cpu"}),
    )
    older, output = tmp_path / "older.json", tmp_path / "speed.json"
    write_benchmark(older, benchmark_record(model_result(), settings={"device": "cpu"}))
    code, text = invoke("bench", "--compare", older, "--output", output)
    assert "no plots were drawn: expected the package 'matplotlib', got none; install it with" in text
    assert (code, text.splitlines()[-1]) == (0, "0 of 16 worse, 0 better, beyond 5 % and the noise")


def test_bench_asked_for_plots_that_cannot_be_drawn_ends_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_matplotlib: None
) -> None:
    monkeypatch.setattr("equiscale.cli.bench._measure", lambda *_, **__: pytest.fail("it was measured"))
    code, text = invoke("bench", "mnist_cnn_28", "--into", tmp_path / "page.md")
    assert code == 2
    assert text.startswith("equiscale: expected the package 'matplotlib'")


def test_bench_shows_why_something_cannot_be_compared(tmp_path: Path) -> None:
    for name, notes in (("older", ()), ("speed", ("its process died",))):
        write_benchmark(tmp_path / f"{name}.json", benchmark_record(model_result(notes=notes)))
    code, text = invoke("bench", "--read", tmp_path / "speed.json", "--compare", tmp_path / "older.json")
    assert code == 0
    assert "mnist_ses_scalar_28: its process died" in text


def test_bench_measures_compares_and_writes_tables_and_plots(tmp_path: Path) -> None:
    output, older, document = tmp_path / "speed.json", tmp_path / "older.json", tmp_path / "page.md"
    options = ("--batch-size", 2, "--rounds", 1, "--threads", 1, "--device", "cpu", "--no-memory")
    code, text = invoke("bench", "mnist_cnn_28", *options, "--output", output)
    assert code == 0
    assert "ours" in text
    assert {path.name for path in tmp_path.iterdir()} == {"speed.json", "speed.svg", "speed-roofline.svg"}
    record = json.loads(output.read_text())
    assert record["settings"]["rounds"] == 1

    assert invoke("bench", "--read", output, "--compare", output)[0] == 0
    for timing in (mode["seconds"] for mode in record["models"][0]["kinds"][0].values() if mode != "ours"):
        timing |= {name: timing[name] / 2 for name in ("median", "quartile_1", "quartile_3")}
    older.write_text(json.dumps(record))
    code, text = invoke("bench", "--read", output, "--compare", older)
    assert (code, text.splitlines()[-1]) == (1, "2 of 2 worse, 0 better, beyond 5 % and the noise")

    document.write_text("<!-- table:speed -->\n<!-- /table:speed -->\n")
    assert invoke("bench", "--read", output, "--into", document)[0] == 0
    assert "| `mnist_cnn_28`, 2 images |" in document.read_text()
    older.write_text("{}")
    assert invoke("bench", "--read", older)[0] == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "equiscale", "reproduce", "mnist-scale", "--dry-run", "--no-estimate"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_ctrl_c_while_the_interpreter_leaves_says_nothing() -> None:
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "from equiscale.cli import main\n"
        "sys.argv = ['equiscale', '--version']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("equiscale ")
    assert done.stderr == ""
    assert done.returncode == -signal.SIGINT
