"""``equiscale suggest`` and ``equiscale estimate``: what they print, write and refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from equiscale.choose import estimate, suggest
from equiscale.cli import app
from equiscale.errors import SettingError
from equiscale.report.trade_off import Option, draw_trade_off

SMALL = ("--kernel-sizes", "5", "--bases", "disco-a", "--images", "2", "--budget", "6")


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of blobs of known sizes."""
    generator = np.random.default_rng(0)
    x = np.arange(48) - 23.5
    for number in range(6):
        deviation = 2.0 * 2.0 ** (number / 5)
        blob = 200 * np.exp(-(x[:, None] ** 2 + x**2) / (2 * deviation**2))
        pixels = blob + generator.uniform(0, 2, (48, 48))
        path = tmp_path / "pictures" / "train" / f"kind-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "pictures"


def test_suggest_prints_a_table_and_a_line_that_works_and_writes_both_files(tmp_path: Path) -> None:
    record, plot = tmp_path / "out.json", tmp_path / "out.svg"
    code, output, error = invoke(
        "suggest",
        "--data",
        "digits-scale",
        "--factor-range",
        0.5,
        1,
        *SMALL,
        "--json",
        record,
        "--plot",
        plot,
    )
    assert code == 0, error
    assert "sizes of objects from 0.50 to 1.00 (given)" in output
    lines = output.strip().splitlines()
    scope: dict[str, object] = {}
    exec("\n".join(lines[-2:]), scope)
    assert "DiscoBasis" in repr(scope["lift"])
    assert json.loads(record.read_text())["code"] == "\n".join(lines[-2:])
    assert plot.read_text().lstrip().startswith("<?xml")
    assert f"Wrote {record}" in error
    assert f"Wrote {plot}" in error


def test_suggest_estimates_the_range_of_a_folder_of_images(pictures: Path, tmp_path: Path) -> None:
    name = f"image-folder:{pictures}?size=48"
    code, output, error = invoke("suggest", "--data", name, "--root", tmp_path / "root", *SMALL)
    assert code == 0, error
    assert "estimated from the images" in output.splitlines()[0]


def test_suggest_reads_the_sizes_of_objects(tmp_path: Path) -> None:
    boxes = [{"image_id": 0, "bbox": [0, 0, side, side]} for side in (10, 14, 20)]
    content = {"images": [{"id": 0, "width": 100, "height": 100}], "annotations": boxes}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    code, output, error = invoke("suggest", "--data", "digits-scale", "--objects", tmp_path, *SMALL)
    assert code == 0, error
    assert "sizes of objects from 0.74 to 1.38 (given)" in output


def test_suggest_fails_and_says_so_where_nothing_is_affordable() -> None:
    code, output, _ = invoke("suggest", "--data", "digits-scale", "--factor-range", 1, 2, *SMALL[:-1], "1")
    assert code == 1
    assert "at most 1 plain convolutions, got 2.00 as the least; raise the budget" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--factor-range", 1, 2, "--objects", "."), "expected --objects or --factor-range, got both"),
        (("--plot", "a.bmp"), "expected a plot of .png, .svg, .pdf, got a.bmp"),
        (("--objects", "no-such-folder"), "expected a folder of masks (.png) or boxes (.json)"),
        (("--bases", "no-such"), "expected a basis of"),
        (("--kernel-sizes", "6"), "expected odd positive kernel_sizes, got 6"),
    ],
)
def test_suggest_refuses(arguments: tuple[object, ...], message: str) -> None:
    code, _, error = invoke("suggest", "--data", "digits-scale", *arguments)
    assert code == 2
    assert message in error


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the command asks of malloc would stay with the process of the tests."""
    asked: list[bool] = []
    monkeypatch.setattr("equiscale._machine.keep_memory", lambda: asked.append(True))
    return asked


def test_estimate_prints_time_and_arithmetic_for_the_networks_own_settings(kept: list[bool]) -> None:
    small = ("--set", "channels=2,2,2", "--set", "hidden=4", "--size", 28, "--no-memory", "--device", "cpu")
    code, output, error = invoke("estimate", "mnist_cnn_28", "--batch", 4, *small)
    assert code == 0, error
    assert "steps of 4 images of 1×28×28" in output
    assert "training" in output
    code, output, error = invoke(
        "estimate", "mnist_cnn_28", "--batch", 4, *small, "--evaluation", "--in-channels", 2
    )
    assert code == 0, error
    assert "steps of 4 images of 2×28×28" in output
    assert kept == [True, True], "as the runs"
    assert "training" not in output


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no_such_model", "--size", 28), "expected a model of list_models()"),
        (("mnist_cnn_28", "--size", 30), "MnistNetwork: expected images (B, 1, 28, 28)"),
        (("mnist_cnn_28", "--size", 28, "--batch", 1), "expected a shape (B, C, H, W) of at least 2 images"),
        (("mnist_cnn_28", "--size", 28, "--set", "wings=2"), "expected overrides of"),
    ],
)
def test_estimate_refuses(arguments: tuple[object, ...], message: str) -> None:
    code, _, error = invoke("estimate", *arguments, "--no-memory", "--device", "cpu")
    assert code == 2
    assert message in error


def test_help_names_both() -> None:
    code, output, _ = invoke("--help")
    assert code == 0
    assert "suggest" in output
    assert "estimate" in output
    assert callable(suggest)
    assert callable(estimate)


def test_the_plot_names_the_chosen_one_and_the_budget(tmp_path: Path) -> None:
    options = [
        Option("disco-a", "first", 2.0, 0.2, on_front=True),
        Option("disco-a", "the chosen one", 3.5, 0.1, on_front=True, chosen=True),
        Option("bspline", "not on the front", 3.0, 0.4),
        Option("bspline", "too near", 3.6, 0.0999, on_front=True),
    ]
    text = draw_trade_off(options, tmp_path / "plot.svg", budget=4.0).read_text()
    for shown in ("the chosen one", "first", "budget: 4", "bspline", "disco-a"):
        assert f"<!-- {shown} -->" in text
    for hidden in ("not on the front", "too near"):
        assert hidden not in text
    with pytest.raises(SettingError, match="expected at least one option to draw, got none"):
        draw_trade_off([], tmp_path / "plot.svg", budget=4.0)
    with pytest.raises(SettingError, match=r"expected a file of \.png, \.svg, \.pdf, got plot\.bmp"):
        draw_trade_off(options, Path("plot.bmp"), budget=4.0)


def test_the_documents_code_works() -> None:
    page = (Path(__file__).parents[1] / "docs" / "choosing-scales.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(block, "docs/choosing-scales.md", "exec"), {})
