"""``equiscale check``: what it prints, writes, and returns."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.models import create_model
from equiscale.models.weights import save
from equiscale.testing import equivariance_report

SMALL = ("mnist_ses_scalar_28", "--set", "channels=2,2,2", "--set", "hidden=4")


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.output


def test_prints_the_report_and_writes_numbers_and_plot(tmp_path: Path) -> None:
    numbers, plot = tmp_path / "a.json", tmp_path / "a.png"
    code, output = invoke(*SMALL, "--json", numbers, "--plot", plot, "--seed", 3)
    assert code == 0
    torch.manual_seed(3)
    network = create_model("mnist_ses_scalar_28", channels=(2, 2, 2), hidden=4)
    report = equivariance_report(network, generator=torch.Generator().manual_seed(3))
    for line in str(report).splitlines():
        assert line in output
        assert len(line) <= 80
    assert json.loads(numbers.read_text()) == {"model": "mnist_ses_scalar_28", **report.as_dict()}
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(("tolerance", "code"), [(10, 0), (1e-6, 1)])
def test_the_tolerance_decides_the_exit_status(tolerance: float, code: int) -> None:
    found, output = invoke(*SMALL, "--tolerance", tolerance, "--factors", "1.44")
    assert found == code
    assert ("expected an error of at most 1e-06, got 0." in output) == bool(code)


def test_factors_and_size_are_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    settings = ("--set", "channels=2,2", "--size", 33, "--factors", "0.8,1.25")
    code, _ = invoke("scale_cnn", *settings, "--json", path)
    assert code == 0
    written = json.loads(path.read_text())
    assert (written["factors"], written["size"]) == ([0.8, 1.25], [33, 33])


def test_networks_from_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("scale_cnn", channels=(2, 2))
    path, numbers = tmp_path / "network.safetensors", tmp_path / "a.json"
    save(network, path)
    code, output = invoke(path, "--size", 33, "--json", numbers)
    assert code == 0
    assert "Conv2d is not scale-equivariant" in " ".join(output.split())
    assert (
        json.loads(numbers.read_text())["layers"] == equivariance_report(network, size=33).as_dict()["layers"]
    )
    code, output = invoke(path, "--set", "hidden=3")
    assert code == 2
    assert "expected no --set for a file, which holds its settings, got 'hidden=3'" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no_such_network",), "expected a model of list_models()"),
        ((*SMALL, "--factors", "1,x"), "expected scale factors such as 0.5,2, got '1,x'"),
        ((*SMALL, "--factors", "1.2"), "powers of the grid's step, got 1.2"),
        ((*SMALL, "--tolerance", "-1"), "expected a tolerance of at least 0, got -1.0"),
        ((*SMALL, "--plot", "a.txt"), "expected a plot that ends in .png, .svg or .pdf, got a.txt"),
        ((*SMALL, "--size", "40"), "MnistNetwork: expected images (B, 1, 28, 28), got (1, 1, 40, 40)"),
    ],
)
def test_refuses(arguments: tuple[str, ...], text: str) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert text in output
    assert "Traceback" not in output
