"""``equiscale export``: the file it writes and what it prints."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.deploy import exporting
from equiscale.models import create_model
from equiscale.models.weights import save

SMALL = ("--set", "channels=2,2,2", "--set", "hidden=4")
NAMED = ("mnist_ses_scalar_28", *SMALL)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "_ROUNDS", 1)


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.output


def test_named_networks_have_random_weights_and_it_says_so() -> None:
    code, output = invoke(*NAMED)
    assert code == 0, output
    path = Path("mnist_ses_scalar_28.onnx")
    wrote, given, error, speed, read, warning = output.splitlines()
    assert wrote == f"Wrote  {path} ({path.stat().st_size / 1e6:.1f} MB)"
    assert given == "input  ? × 1 × 28 × 28; any batch"
    assert error.startswith("error  ")
    assert error.endswith("e-07 of the largest output, in 3 shapes") or "e-08" in error
    assert "× PyTorch's, for batches of 2" in speed
    assert read == f"read   onnxruntime.InferenceSession('{path}')"
    assert warning == "The weights are random: give a .safetensors file, or --pretrained."
    assert all(len(line) <= 80 for line in output.splitlines())


def test_files_keep_their_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = create_model("scale_cnn", channels=(2, 2)).eval()
    save(network, "trained.safetensors")
    code, output = invoke("trained.safetensors", "--size", 32)
    assert code == 0, output
    assert "random" not in output
    assert "input  ? × 1 × ? × ?; any batch, height, width" in output
    x = torch.randn(3, 1, 40, 37)
    got = onnxruntime.InferenceSession("trained.onnx").run(None, {"input": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), network(x).detach(), rtol=1e-5, atol=1e-5)


def test_format_output_and_norms() -> None:
    code, output = invoke(*NAMED, "--format", "torch-export", "--output", "new/net.pt2")
    assert code == 0, output
    assert "read   torch.export.load('new/net.pt2').module()" in output
    assert torch.export.load("new/net.pt2").module()(torch.zeros(4, 1, 28, 28)).shape == (4, 10)
    assert invoke(*NAMED, "--no-batch-norm", "--output", "norms.onnx")[0] == 0
    kinds = [node.op_type for node in onnx.load("norms.onnx").graph.node]
    assert "BatchNormalization" in kinds


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no_such_network",), "expected a model of list_models()"),
        (("missing.safetensors",), "missing.safetensors"),
        (("missing.safetensors", *SMALL), "expected no --set for a file, which holds its settings"),
        (("missing.safetensors", "--pretrained"), "expected no --pretrained for a file, which holds its"),
        (("mnist_xu_28", "--pretrained"), "there are no trained weights; use pretrained=False"),
        ((*NAMED, "--output", "a.txt"), "expected a path that ends in .onnx for onnx, got a.txt"),
        ((*NAMED, "--size", "0"), "expected a size of at least 1 pixel, got 0"),
        ((*NAMED, "--size", "40"), "MnistNetwork: expected images (B, 1, 28, 28), got (2, 1, 40, 40)"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], text: str, tmp_path: Path) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert text in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
