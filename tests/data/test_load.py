import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from equiscale.data import (
    check_available,
    data_root,
    dataset_info,
    digits_scale,
    list_datasets,
    load,
    mnist_large_scale,
)
from equiscale.errors import DataError, MissingExtraError, SettingError


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_digits_scale_needs_no_preparation(split: str, tmp_path: Path) -> None:
    data = load("digits-scale", split=split, realisation=2, root=tmp_path)
    size = {"train": 1000, "val": 197, "test": 600}[split]
    assert data.images.shape == (size, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert (data.labels.shape, data.labels.dtype) == ((size,), torch.int64)
    assert (data.factors.shape, data.factors.dtype) == ((size,), torch.float64)
    assert (data.name, data.split, data.realisation) == ("digits-scale", split, 2)
    assert torch.bincount(data.labels).min() >= size // 10 - size // 100 - 1
    assert list(tmp_path.iterdir()) == []


def test_digits_scale_is_what_it_was() -> None:
    """Fails when a version of Pillow, NumPy or scikit-learn gives other images: then say so and renew."""
    found = [load("digits-scale", split="val", realisation=r).checksum for r in range(6)]
    assert found == list(digits_scale.CHECKSUMS)
    assert len(set(found)) == 6


def test_smaller_factors_make_smaller_digits() -> None:
    data = load("digits-scale", split="train")
    ink = data.images.double().sum((1, 2, 3))
    small, large = ink[data.factors < 0.4].mean(), ink[data.factors > 0.9].mean()
    assert large / small == pytest.approx((0.95 / 0.35) ** 2, rel=0.1)  # ink is proportional to the area


def test_digits_scale_is_normalised_by_its_own_constants() -> None:
    data = load("digits-scale", split="train")
    values = data.images.double() / 255
    assert values.mean().item() == pytest.approx(data.mean, abs=5e-5)
    assert values.std(correction=0).item() == pytest.approx(data.std, abs=5e-5)


def test_the_registry_describes_every_data_set() -> None:
    assert {"digits-scale", "mnist-scale"} <= set(list_datasets())
    for name in list_datasets():
        info = dataset_info(name)
        assert info.name == name
        assert info.citation
        assert info.licence
        assert info.num_classes == 10
        assert info.realisations >= 1
        channels = info.image_shape[0]
        assert channels in (1, 3)
        natural = channels == 3
        assert set(info.split_sizes) == ({"train", "test"} if natural else {"train", "val", "test"})
        assert len(info.class_names) == (10 if natural else 0)
        for values in (info.mean, info.std):
            assert isinstance(values, tuple) == natural
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.mean = 0.0  # type: ignore[misc]


def test_refuses_what_does_not_exist_and_lists_what_does() -> None:
    with pytest.raises(
        SettingError,
        match=r"data set of \['digits-scale', .*'mnist-scale', .*\] or 'image-folder:PATH', got 'mnist'",
    ):
        load("mnist", split="train")
    with pytest.raises(SettingError, match=r"split of digits-scale of \['train', 'val', 'test'\], got 'dev'"):
        load("digits-scale", split="dev")
    with pytest.raises(
        SettingError, match=r"split of stl10 of \['train', 'test'\], got 'val'; it has no validation images"
    ):
        load("stl10", split="val")
    with pytest.raises(SettingError, match=r"realisation of mnist-scale of \[0, 1, 2, 3, 4, 5\], got 6"):
        load("mnist-scale", split="train", realisation=6)


def test_an_unprepared_data_set_is_told_with_the_command(tmp_path: Path) -> None:
    command = f"equiscale data prepare mnist-scale --root {tmp_path} --download"
    with pytest.raises(
        DataError, match=rf"realisation 3 of mnist-scale at {tmp_path}.*, got no file; run: {command}"
    ):
        load("mnist-scale", split="train", realisation=3, root=tmp_path)


def test_what_is_there_is_known_without_making_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mnist-large-scale-4"
    with pytest.raises(
        DataError, match=rf"MNIST's files in {tmp_path}.*run: equiscale data prepare {name} --"
    ):
        check_available(name, realisation=2, root=tmp_path)
    pool = np.broadcast_to(np.uint8(0), (70_000, 28, 28)), np.broadcast_to(np.uint8(0), 70_000)
    monkeypatch.setattr(mnist_large_scale, "read_digits", lambda *_: pool)
    monkeypatch.setattr(mnist_large_scale, "make_split", lambda *_, **__: pytest.fail("images were made"))
    check_available(name, realisation=2, root=tmp_path)
    with pytest.raises(SettingError, match=rf"realisation of {name} of \[0, 1, 2, 3, 4, 5\], got 6"):
        check_available(name, realisation=6, root=tmp_path)


@pytest.mark.parametrize(
    "name", ["digits-scale", "mnist-scale", "stl10", "imagenette96", "image-folder:nowhere"]
)
def test_what_is_not_there_is_told_as_by_loading(name: str, tmp_path: Path) -> None:
    told = []
    for ask in (check_available, lambda *a, **options: load(*a, split="test", **options)):
        try:
            ask(name, root=tmp_path)
        except DataError as error:
            told.append(str(error))
    assert len(told) == (0 if name == "digits-scale" else 2)
    assert len(set(told)) <= 1


def test_the_root_is_the_argument_or_the_environment_or_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUISCALE_DATA_DIR", "/from/environment")
    monkeypatch.setenv("XDG_CACHE_HOME", "/from/cache")
    assert data_root("/given") == Path("/given")
    assert data_root() == Path("/from/environment")
    monkeypatch.delenv("EQUISCALE_DATA_DIR")
    assert data_root() == Path("/from/cache/equiscale")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert data_root() == Path("/home/somebody/.cache/equiscale")
    assert data_root("~/data") == Path("/home/somebody/data")


@pytest.mark.parametrize("package", ["sklearn", "PIL"])
def test_a_missing_extra_is_told_with_the_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=rf"package '{package}.*pip install \"equiscale\[data\]\""):
        load("digits-scale", split="train")


def test_importing_the_data_sets_imports_neither_pillow_nor_scikit_learn() -> None:
    code = "import sys, equiscale.data; print([m for m in ('PIL', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
