"""The preview: what it shows, and that a picture of it is drawn for every kind of data set."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.data import load, stl10
from equiscale.data.preview import preview
from equiscale.errors import SettingError
from equiscale.report.drawing import ACCENT
from equiscale.report.preview import draw_preview


@pytest.fixture
def root(small_stl10: SimpleNamespace) -> Path:
    folder = small_stl10.root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, content in small_stl10.files.items():
        (folder / name).write_bytes(content)
    stl10.prepare(small_stl10.root)
    return small_stl10.root


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "preview", *(str(argument) for argument in arguments)])
    return result.exit_code, result.output


def test_every_step_follows_from_the_one_before(root: Path) -> None:
    data = load("stl10", split="train", root=root)
    shown = preview(data, images=12, seed=3)
    assert list(shown.stages) == ["original", "padded", "cropped", "flipped", "cut out"]
    assert shown.names[:10] == data.info.class_names, "every class once before any comes again"
    assert len(set(shown.names[10:])) == 2
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)
    }
    for row in range(12):
        original, padded, cropped, flipped, cut = (stage[row] for stage in shown.stages.values())
        label = known[np.ascontiguousarray(original.transpose(2, 0, 1)).tobytes()]
        assert shown.names[row] == data.info.class_names[label]
        assert padded.shape == (120, 120, 3)
        assert np.array_equal(padded[12:-12, 12:-12], original)
        top, left = shown.corners[row]
        assert np.array_equal(cropped, padded[top : top + 96, left : left + 96])
        assert np.array_equal(flipped, cropped[:, ::-1] if shown.mirrored[row] else cropped)
        changed = (cut != flipped).any(2)
        grey = np.round(np.array(data.mean) * 255)
        assert (cut[changed] == grey).all()
        assert 16 * 16 * 0.9 < changed.sum() <= 32 * 32
    assert shown.mirrored.any()
    assert not shown.mirrored.all()


def test_smaller_images_are_shown_with_the_frame_and_the_hole_of_their_training() -> None:
    shown = preview(load("digits-scale", split="train"), images=12, seed=3)
    assert (shown.pad, shown.stages["padded"].shape) == (3, (12, 34, 34, 3))
    for flipped, cut in zip(shown.stages["flipped"], shown.stages["cut out"], strict=True):
        rows, columns = np.nonzero((cut != flipped).any(2))
        assert max(np.ptp(rows), np.ptp(columns)) < 9


def test_the_same_seed_shows_the_same_and_another_does_not(root: Path) -> None:
    data = load("stl10", split="train", root=root)
    first, again, other = (preview(data, images=4, seed=seed).stages["cut out"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_draws_a_picture_with_the_images_and_the_frame_of_the_crop(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "steps.png"
    code, output = invoke("stl10", "--root", root, "--output", target, "--images", 3)
    assert (code, output) == (0, f"Wrote {target}\n")
    with Image.open(target) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    assert 1200 < picture.shape[1] < 2400
    accent = np.array([int(ACCENT[index : index + 2], 16) for index in (1, 3, 5)])
    assert (np.abs(picture - accent).sum(2) < 30).sum() > 3 * 4 * 200, "three frames of the crop"
    assert (picture == 255).all(2).mean() > 0.2, "paper"
    assert (picture < 3).all(2).mean() > 0.03, "the frame of zeros"
    assert list(target.parent.iterdir()) == [target]


def test_every_kind_of_data_set_can_be_shown(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (40, 50), "teal").save(tmp_path / "pets" / "train" / name / "a.png")
    for name, file in {
        "stl10-folds": "stl10-folds-preview.png",
        f"image-folder:{tmp_path / 'pets'}?size=64": "pets-preview.png",
        "digits-scale": "digits-scale-preview.png",
    }.items():
        assert invoke(name, "--root", root, "--images", 2) == (0, f"Wrote {file}\n")
        with Image.open(tmp_path / file) as picture:
            assert picture.size[1] > 300
    assert invoke("stl10", "--root", root, "--images", 2, "--output", "steps.svg")[0] == 0
    assert (tmp_path / "steps.svg").read_text().count("<image") == 10


def test_errors_are_one_line(root: Path, tmp_path: Path) -> None:
    for arguments, message in {
        ("stl10", "--images", 0): "equiscale: expected 1 to 60 square images of stl10, got 0 of 96×96",
        ("stl10", "--images", 61): "equiscale: expected 1 to 60 square images",
        ("stl10", "--output", "a.gif"): "equiscale: expected a file of .png, .svg, .pdf, got a.gif",
        ("cifar",): "equiscale: expected a data set of",
        ("imagenette96",): "equiscale: expected prepared data in",
    }.items():
        code, output = invoke(*arguments, "--root", root)
        assert (code, output.count("\n")) == (2, 1), output
        assert output.startswith(message)


def test_images_that_are_not_square_are_refused(root: Path) -> None:
    data = load("stl10", split="train", root=root)
    with pytest.raises(SettingError, match=r"expected 1 to 60 square images of stl10, got 2 of 96×95"):
        preview(replace(data, images=data.images[..., 1:]), images=2)


def test_the_readers_settings_do_not_change_the_picture(root: Path, tmp_path: Path) -> None:
    import matplotlib

    shown = preview(load("stl10", split="train", root=root), images=2)
    first = draw_preview(shown, tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "red", "axes.facecolor": "red"}):
        assert draw_preview(shown, tmp_path / "b.png").read_bytes() == first
