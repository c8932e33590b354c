"""Exported files: what they compute is what the network computes, and a wrong file is never left."""

import builtins
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid, create_model, list_models
from equiscale._machine import has_compiler
from equiscale.deploy import Export, export, exporting
from equiscale.deploy.folding import example_input, takes_other_sizes
from equiscale.errors import ExportError, MissingExtraError, ModelError, SettingError
from equiscale.nn import (
    InputPyramid,
    LiftConv1d,
    LiftConv2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleProjection,
    ScaleProjection1d,
)

GRID = ScaleGrid.geometric(1.0, 1.5, 3)
STEERABLE = {"kernel_size": 7, "grid": GRID, "basis": HermiteBasis(2), "padding": "same"}
RECORD = Path(__file__).parents[2] / "results" / "benchmarks" / "exporting.json"


def stirred(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.running_mean.normal_(std=0.3)
    return model.eval()


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return stirred(
        nn.Sequential(
            LiftConv2d(1, 4, **STEERABLE),
            ScaleBatchNorm2d(4),
            nn.ReLU(),
            ScaleConv2d(4, 3, **STEERABLE, scale_size=2, stride=2),
            ScaleProjection(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )


IMAGES = torch.randn(2, 1, 12, 13, generator=torch.Generator().manual_seed(0))


def in_onnxruntime(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def in_torch(path: Path, x: Tensor) -> Tensor:
    return torch.export.load(path).module()(x)


def assert_close(got: Tensor, model: nn.Module, x: Tensor) -> None:
    expected = model(x)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- the formats ---


@pytest.mark.parametrize(
    ("format", "suffix", "read"), [("onnx", ".onnx", in_onnxruntime), ("torch-export", ".pt2", in_torch)]
)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_files_are_read_for_any_batch_and_size(
    format: Any, suffix: str, read: Callable[[Path, Tensor], Tensor], batch_norm: bool, tmp_path: Path
) -> None:
    model, path = tiny().train(), tmp_path / "new" / f"net{suffix}"
    made = export(model, path, format=format, example=IMAGES, batch_norm=batch_norm)
    assert (made.path, made.format, made.free) == (path, format, ("batch", "height", "width"))
    assert 0 < made.error < 1e-5
    assert made.speed > 0
    assert {(1, 1, 12, 13), (5, 1, 12, 13), (2, 1, 28, 13), (2, 1, 12, 18)} <= set(made.checked)
    assert all(module.training for module in model.modules())
    model.eval()
    for shape in ((3, 1, 12, 13), (2, 1, 17, 11), (1, 1, 30, 23)):
        x = torch.randn(shape)
        assert_close(read(path, x), model, x)
    assert f"{path}: {format}, any batch, height, width; differs by" in str(made)


def test_onnx_files_name_their_axes_and_no_path_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(tiny(), path, example=IMAGES)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (given,) = model.graph.input
    sizes = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, "height", "width"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    for file in (path, tmp_path / "net.pt2"):
        if file.suffix == ".pt2":
            export(tiny(), file, format="torch-export", example=IMAGES)
        written = file.read_bytes()
        assert b"site-packages" not in written
        assert str(Path(exporting.__file__).parents[1]).encode() not in written


@pytest.mark.skipif(not has_compiler("cpu"), reason="needs a C++ compiler")
def test_compiled_libraries(tmp_path: Path) -> None:
    model = nn.Sequential(LiftConv2d(1, 2, **STEERABLE), ScaleProjection()).eval()
    made = export(model, tmp_path / "net.pt2", format="aoti", example=IMAGES)
    assert made.free == ("batch", "height", "width")
    x = torch.randn(3, 1, 19, 16)
    assert_close(torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))(x), model, x)


def test_networks_of_one_size(tmp_path: Path) -> None:
    model = stirred(create_model("mnist_ses_scalar_28", channels=(2, 3, 4), hidden=8))
    made = export(model, tmp_path / "net.onnx")
    assert made.free == ("batch",)
    assert made.checked == ((1, 1, 28, 28), (2, 1, 28, 28), (5, 1, 28, 28))
    assert made.error < 1e-5


def test_sizes_that_torch_cannot_leave_free_are_fixed_and_not_promised(tmp_path: Path) -> None:
    """The network takes images of any size; the graph of one of its layers is for the example's."""
    pyramid = InputPyramid(nn.Conv2d(1, 2, 3, padding=1), [0.5, 1.0])
    model = nn.Sequential(pyramid, nn.AdaptiveAvgPool2d(1)).eval()
    assert takes_other_sizes(model, IMAGES)
    made = export(model, tmp_path / "net.onnx", example=IMAGES)
    assert made.free == ("batch",)
    x = torch.randn(4, 1, 12, 13)
    assert_close(in_onnxruntime(made.path, x), model, x)


def test_signals(tmp_path: Path) -> None:
    model = nn.Sequential(
        LiftConv1d(2, 3, kernel_size=7, grid=GRID), ScaleProjection1d(), nn.AdaptiveAvgPool1d(1)
    )
    made = export(model.eval(), tmp_path / "net.onnx", example=torch.randn(2, 2, 20))
    assert made.free in (("batch", "length"), ("batch",))
    x = torch.randn(3, 2, 20)
    assert_close(in_onnxruntime(made.path, x), model, x)


def test_columns_of_numbers(tmp_path: Path) -> None:
    made = export(nn.Linear(3, 2), tmp_path / "net.onnx", example=torch.randn(1, 3))
    assert made.free == ("batch",)


SMALL = {"channels": (2, 3, 4), "hidden": 8}
METHODS = {
    "mnist_cnn_28": SMALL,
    "mnist_ses_vector_28": SMALL,
    "mnist_learnable_28": SMALL,
    "mnist_disco": SMALL,
    "mnist_rescaled_28": SMALL,
    "mnist_ss_28": SMALL,
    "mnist_dss_vector_28": SMALL,
    "mnist_kanazawa_28": {**SMALL, "scales": (0.67, 1.0)},
    "mnist_xu_28": {**SMALL, "scales": (0.67, 1.0)},
    "mnist_sevf_vector_28": SMALL,
    "mnist_pyramid_28": SMALL,
    "scale_ses_vector": {"channels": (2, 3)},
}


@pytest.mark.parametrize("name", METHODS)
def test_networks_of_every_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_ROUNDS", 1)
    torch.manual_seed(0)
    model = stirred(create_model(name, **METHODS[name]))
    made = export(model, tmp_path / "net.onnx")
    assert made.error <= 1e-5
    x = torch.randn(7, *example_input(model).shape[1:])
    assert_close(in_onnxruntime(made.path, x), model, x)


# --- what is refused ---


def off_by(difference: Callable[[Tensor], Tensor]) -> Any:
    """A writer of files that compute something else."""

    def write(program: torch.export.ExportedProgram, path: Path, free: tuple[str, ...]) -> Any:
        path.write_text("wrong")
        loaded = program.module()
        return lambda x: loaded(x) + difference(x)

    return write


def not_a_number_for_single_images(x: Tensor) -> Tensor:
    return torch.tensor(float("nan") if len(x) > 2 else 0.0)


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (lambda x: torch.tensor(0.01), r"agree to 0\.0001 of the largest, got [0-9.]+e-0[1-3]; nothing was"),
        (not_a_number_for_single_images, r"agree to 0\.0001 of the largest, got nan; nothing was written"),
        (
            lambda x: torch.zeros(2, 1, 1),
            r"expected outputs \(1, 3\) in torch.float32 of the file for .*, got",
        ),
        (lambda x: torch.zeros(1, dtype=torch.float64), r"got \(1, 3\) in torch.float64"),
        (lambda x: x.view(-1, 7), r"expected a file that computes \(1, 1, 12, 13\), got"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_left(
    difference: Callable[[Tensor], Tensor], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporting._WRITERS, "torch-export", off_by(difference))
    path = tmp_path / "net.pt2"
    for older in (None, "older"):
        if older is not None:
            path.write_text(older)
        with pytest.raises(ExportError, match=text):
            export(tiny(), path, format="torch-export", example=IMAGES)
        assert [p.name for p in tmp_path.iterdir()] == ([] if older is None else ["net.pt2"])
    assert path.read_text() == "older"


def test_files_that_are_wrong_for_other_sizes_alone_are_made_for_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(program: torch.export.ExportedProgram, path: Path, free: tuple[str, ...]) -> Any:
        path.write_text(" ".join(free))
        loaded = program.module()
        return lambda x: loaded(x) + (x.shape[2:] != (12, 13))

    monkeypatch.setitem(exporting._WRITERS, "torch-export", write)
    made = export(tiny(), tmp_path / "net.pt2", format="torch-export", example=IMAGES)
    assert made.free == ("batch",)
    assert made.path.read_text() == "batch"


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


@pytest.mark.parametrize(
    ("model", "arguments", "error", "text"),
    [
        (
            tiny(),
            {"path": "a.onnx", "format": "coreml"},
            SettingError,
            "a format of onnx, torch-export, aoti",
        ),
        (tiny(), {"path": "a.pt2"}, SettingError, r"a path that ends in \.onnx for onnx, got .*a\.pt2"),
        (
            tiny(),
            {"path": "a", "format": "aoti"},
            SettingError,
            r"a path that ends in \.pt2 for aoti, got .*a$",
        ),
        (tiny(), {"path": "folder.onnx"}, SettingError, "the path of a file, got the folder .*folder.onnx"),
        (
            tiny(),
            {"path": "a.onnx", "example": None},
            ModelError,
            "an example, since Sequential has no example_shape",
        ),
        (Pair(), {"path": "a.onnx"}, ExportError, "whose output is one tensor, got tuple; wrap it"),
        (tiny().double(), {"path": "a.onnx"}, ExportError, "export it in float32, or in another format"),
    ],
)
def test_refuses(
    model: nn.Module, arguments: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    like = next(model.parameters(), torch.empty(()))
    path = tmp_path / arguments.pop("path")
    with pytest.raises(error, match=f"expected .*{text}"):
        export(model, path, **{"example": IMAGES.to(like), **arguments})
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


def test_says_which_package_is_missing_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("onnxruntime"):
            raise ModuleNotFoundError("no", name="onnxruntime")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(exporting, "fold", None)
    with pytest.raises(MissingExtraError, match=r'pip install "equiscale\[export\]"'):
        export(tiny(), tmp_path / "net.onnx", example=IMAGES)


def test_an_export_is_shown_in_a_line() -> None:
    made = Export(Path("a.onnx"), "onnx", ("batch",), 2e-7, 3.14, ((1, 1, 4, 4),))
    assert str(made) == "a.onnx: onnx, any batch; differs by 2.0e-07 at most, 3.1× as fast as in PyTorch"


# --- the page ---


def test_the_code_of_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (RECORD.parents[2] / "docs" / "deployment.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/deployment.md", "exec"), names)
    assert len(blocks) == 5
    assert names["outputs"].shape == (2, 10)
    (quantised,) = onnxruntime.InferenceSession("int8.onnx").run(None, {"input": names["images"].numpy()})
    assert quantised.shape == (2, 10)


@pytest.mark.parametrize("name", ["exporting", "matrix", "quantisation"])
def test_the_tables_of_the_page_are_those_of_the_records(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECORD.parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    benchmark = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    page = (RECORD.parents[2] / "docs" / "deployment.md").read_text()
    table = page.split(f"<!-- table:{name} -->")[1].split(f"<!-- /table:{name} -->")[0]
    record = json.loads((RECORD.parent / f"{name}.json").read_text())
    assert table.strip() == benchmark.markdown(record).strip()


# --- the record ---


def test_every_published_network_of_mnist_and_every_small_wide_one_is_exported_to_1e_5() -> None:
    results = {result["network"]: result for result in json.loads(RECORD.read_text())["results"]}
    wanted = {
        *list_models("mnist_*"),
        *list_models("scale_*"),
        *list_models("wrn_10_1"),
        *list_models("wrn_10_1_*"),
    }
    assert wanted - set(results) == set(), "run benchmarks/exporting.py"
    for name, result in results.items():
        assert result["error"] <= 1e-5, name
        assert "batch" in result["free"], name
