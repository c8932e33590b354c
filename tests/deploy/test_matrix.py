"""The matrix of docs/deployment.md: every layer through every way of running it.

Where EQUISCALE_MATRIX names a file, what was found is written there; `benchmarks/matrix.py` does that.
Elsewhere the ways that take seconds a layer are tried on one layer of every kind.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from equiscale._files import atomic_path
from equiscale._machine import has_compiler
from tests.deploy import matrix
from tests.deploy.matrix import APART, HERE, layer_and_input
from tests.nn.test_contracts import ROWS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "benchmarks" / "matrix.json"
GPU = ("CUDA", "DataParallel")
COLUMNS = (*HERE, *APART, *GPU)

WITHOUT_WEIGHTS = [name for name in ROWS if not list(layer_and_input(name)[0].parameters())]
# What is known not to work: what is said of it in the table, and in the error, which must come.
LIMITS: dict[tuple[str, str], tuple[str, str]] = {
    ("ONNX", "ValueDropout"): ("identity", "Duplicate definition of name"),
    **{
        ("DDP", name): ("no weights", "not needed when a module doesn't have any") for name in WITHOUT_WEIGHTS
    },
    **{("int8", name): ("no weights", "no weights") for name in WITHOUT_WEIGHTS},
}

found: dict[str, dict[str, str]] = {name: {} for name in ROWS}


@pytest.fixture(scope="module", autouse=True)
def _record() -> Iterator[None]:
    """Write what was found; what did not run this time keeps what was written before."""
    yield
    target = os.environ.get("EQUISCALE_MATRIX")
    if target is None:
        return
    path = Path(target)
    before = json.loads(path.read_text())["layers"] if path.exists() else {}
    layers = {name: {**before.get(name, {}), **cells} for name, cells in found.items()}
    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"layers": layers, "versions": versions}, indent=1) + "\n")


def judge(column: str, name: str, problem: str) -> None:
    """A cell that fails must be a known limit, with its error, and a known limit must fail."""
    shown, text = LIMITS.get((column, name), ("yes", ""))
    found[name][column] = shown if bool(problem) == bool(text) and text in problem else f"fails: {problem}"
    if text:
        assert text in problem, f"expected the limit {shown!r}, got {problem or 'success'}; change LIMITS"
    else:
        assert not problem, problem


EVERY_LAYER = pytest.mark.parametrize("name", ROWS)
SLOW = ("ONNX", "int8", "torch.compile")
KINDS = (
    "LiftConv2d",
    "ScaleConv2d",
    "ScaleBatchNorm2d",
    "ScaleMaxPool2d",
    "ScaleProjection",
    "ScaleWise",
    "ScaleSteeredConv2d",
    "ValueDropout",
    "LiftConv1d",
)


def cells(columns: Iterable[str]) -> list[tuple[str, str]]:
    return [
        (column, name)
        for column in columns
        for name in ROWS
        if column not in SLOW or name in KINDS or "EQUISCALE_MATRIX" in os.environ
    ]


@pytest.mark.parametrize(("column", "name"), cells(HERE))
def test_runs_here(column: str, name: str) -> None:
    judge(column, name, matrix._outcome(HERE[column], name))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The outcomes of the columns that run in processes of their own."""
    outcomes = {}
    for column in APART:
        path = tmp_path_factory.mktemp("matrix") / "outcomes.json"
        layers = [name for _, name in cells([column])]
        command = [sys.executable, "-W", "ignore", "-m", "tests.deploy.matrix", column, str(path), *layers]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        outcomes[column] = json.loads(path.read_text())
    return outcomes


@pytest.mark.parametrize(("column", "name"), cells(APART))
@pytest.mark.timeout(600)
def test_runs_in_a_process_of_its_own(name: str, column: str, apart: dict[str, dict[str, str]]) -> None:
    if column == "torch.compile" and name in matrix.INDUCTOR and not has_compiler("cpu"):
        pytest.skip("needs a C++ compiler")
    judge(column, name, apart[column][name])


def test_a_column_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is not compared with itself."""
    wrong = lambda name: (layer_and_input(name)[0], torch.full(ROWS[name].input, 2.0))  # noqa: E731
    monkeypatch.setattr(matrix, "run_onnx", lambda model, x: torch.zeros(6, 4, 3, 8, 9))
    assert "differs by" in matrix._outcome(HERE["ONNX"], "ScaleBatchNorm2d")
    monkeypatch.setattr(matrix, "assert_close", lambda got, expected, tolerance: 1 / 0)
    monkeypatch.setattr(matrix, "layer_and_input", wrong)
    for column in ("torch.export", "autocast bf16", "autocast fp16"):
        assert matrix._outcome(HERE[column], "PointwiseScaleConv2d") == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("problem", "ok"), [("", False), ("other", False), ("Duplicate definition of name", True)]
)
def test_known_limits_are_strict(problem: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "found", {"ValueDropout": {}})
    if ok:
        judge("ONNX", "ValueDropout", problem)
    else:
        with pytest.raises(AssertionError, match="change LIMITS"):
            judge("ONNX", "ValueDropout", problem)


# --- on a GPU ---

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_gpu
@EVERY_LAYER
def test_runs_on_a_gpu(name: str) -> None:
    def column(name: str) -> None:
        layer, x = layer_and_input(name)
        expected = layer.double()(x.double())
        got = layer.cuda()(x.double().cuda()).cpu()
        matrix.assert_close(got.detach(), expected.detach(), 1e-9)

    judge("CUDA", name, matrix._outcome(column, name))


@pytest.mark.gpu
@on_gpu
@EVERY_LAYER
def test_replicas_of_a_layer(name: str) -> None:
    """On the same device twice, where there is one alone."""

    def column(name: str) -> None:
        layer, x = layer_and_input(name)
        expected = layer(x)
        devices = [0, 1 if torch.cuda.device_count() > 1 else 0]
        layer = layer.cuda()
        replicas = nn.parallel.replicate(layer, devices, detach=True)
        parts = nn.parallel.parallel_apply(
            replicas, [(part.to(f"cuda:{at}"),) for part, at in zip(x.chunk(2), devices, strict=True)]
        )
        matrix.assert_close(torch.cat([part.cpu() for part in parts]), expected.detach(), 1e-4)

    judge("DataParallel", name, matrix._outcome(column, name))


# --- the record ---


def test_the_record_holds_every_layer_and_column() -> None:
    layers = json.loads(RECORD.read_text())["layers"]
    assert list(layers) == list(ROWS), "run benchmarks/matrix.py"
    wanted = set(HERE) | set(APART)
    for name, cells in layers.items():
        assert wanted <= set(cells), name
        for column, cell in cells.items():
            assert cell == LIMITS.get((column, name), ("yes", ""))[0], f"{name}, {column}: {cell}"
