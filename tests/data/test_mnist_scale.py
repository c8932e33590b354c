import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from equiscale.data import load, mnist_scale
from equiscale.data.digits_scale import _digit_pool
from equiscale.data.mnist import read_mnist_pool
from equiscale.data.mnist_scale import PUBLISHED_MD5, png_folder, prepare, realisation_path
from equiscale.data.scale_recipe import DRAW_ORDER, encode_pngs, make_splits, pngs_checksum, scale_image
from equiscale.errors import ChecksumError, DataError, SettingError


def test_the_six_realisations_have_the_published_checksums(prepared_root: Path) -> None:
    for realisation, published in enumerate(PUBLISHED_MD5):
        with safe_open(realisation_path(prepared_root, realisation), framework="numpy") as stored:
            metadata = stored.metadata()
        assert metadata["png_md5"] == metadata["published_md5"] == published
        assert metadata["realisation"] == str(realisation)
        assert (metadata["dataset"], metadata["format_version"]) == ("mnist-scale", "1")
    assert len(list(prepared_root.rglob("*"))) == 1 + 6


def test_finished_realisations_are_left_alone(prepared_root: Path, tmp_path: Path) -> None:
    before = [realisation_path(prepared_root, r).stat().st_mtime_ns for r in range(6)]
    told: list[str] = []
    results = prepare(prepared_root, source=tmp_path / "nothing", progress=told.append)
    assert [result.reused for result in results] == [True] * 6
    assert [realisation_path(prepared_root, r).stat().st_mtime_ns for r in range(6)] == before
    assert [line.split(":")[0] for line in told] == [f"mnist-scale {r}" for r in range(6)]


def test_the_splits_are_stratified_and_have_the_published_sizes(prepared_root: Path) -> None:
    shares = {}
    for split, size in {"train": 10_000, "val": 2_000, "test": 50_000}.items():
        data = load("mnist-scale", split=split, root=prepared_root)
        assert data.images.shape == (size, 1, 28, 28)
        assert (data.images.dtype, data.labels.dtype, data.factors.dtype) == (
            torch.uint8,
            torch.int64,
            torch.float64,
        )
        assert data.factors.min() >= 0.3
        assert data.factors.max() <= 1.0
        assert data.factors.mean().item() == pytest.approx(0.65, abs=0.01)
        assert data.checksum == mnist_scale.CHECKSUMS[0]
        shares[split] = torch.bincount(data.labels).double() / size
    assert len(shares["train"]) == 10
    for split in ("val", "test"):
        torch.testing.assert_close(shares[split], shares["train"], rtol=0, atol=5e-4)


def test_mnist_scale_is_normalised_by_the_published_constants(prepared_root: Path) -> None:
    data = load("mnist-scale", split="train", root=prepared_root)
    assert (data.mean, data.std) == (0.0607, 0.2161)
    values = data.images.double() / 255
    assert values.mean().item() == pytest.approx(data.mean, rel=0.01)
    assert values.std().item() == pytest.approx(data.std, rel=0.01)


def test_images_are_in_the_order_of_the_published_numbers(prepared_root: Path, mnist_source: Path) -> None:
    pool, labels = read_mnist_pool(mnist_source)
    draw = random.Random(0)
    for split, size in [("train", 10_000), ("test", 50_000), ("val", 2_000)]:
        data = load("mnist-scale", split=split, root=prepared_root)
        expected = [(draw.uniform(0, 0), draw.uniform(0.3, 1))[1] for _ in range(size)]
        assert data.factors.tolist() == expected
        first, label = data.images[0, 0].numpy(), data.labels[0].item()
        scaled = (scale_image(image, expected[0]) for image in pool[labels == label])
        assert any(np.array_equal(image, first) for image in scaled)


def test_the_png_layout_is_the_published_one(prepared_root: Path) -> None:
    (result,) = prepare(prepared_root, realisations=[0], png=True)
    assert result.png_md5 == PUBLISHED_MD5[0]
    folder = prepared_root / "mnist-scale-png" / "seed_0" / "scale_0.3_1.0"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*/*.png"))
    assert len(names) == 62_000
    for split, first in {"train": 0, "test": 10_000, "val": 60_000}.items():
        data = load("mnist-scale", split=split, root=prepared_root)
        for index in (0, 7, len(data) - 1):
            path = folder / split / str(data.labels[index].item()) / f"{first + index}.png"
            assert np.array_equal(np.asarray(Image.open(path)), data.images[index, 0].numpy())
    assert prepare(prepared_root, realisations=[0], png=True)[0].reused


def test_a_small_realisation_comes_back_as_it_was_made(small_mnist: Path) -> None:
    (result,) = prepare(small_mnist, source="unused", realisations=[0], png=True)
    assert (result.reused, result.png_md5) == (False, mnist_scale.PUBLISHED_MD5[0])
    expected = make_splits(*(a[:200] for a in _digit_pool()), sizes=mnist_scale.SPLIT_SIZES, seed=0)
    stored = mnist_scale.read_realisation(0, small_mnist)
    for name in DRAW_ORDER:
        for field in ("images", "labels", "factors"):
            assert np.array_equal(getattr(stored.splits[name], field), getattr(expected[name], field))
    folder = png_folder(small_mnist, 0)
    assert len(list(folder.glob("*/*/*.png"))) == 200
    next(folder.glob("*/*/*.png")).unlink()
    assert not prepare(small_mnist, source="unused", realisations=[0], png=True)[0].reused
    assert len(list(folder.glob("*/*/*.png"))) == 200


def test_png_numbers_run_through_the_splits_and_paths_sort_as_strings() -> None:
    images, labels = (array[:200] for array in _digit_pool())
    splits = make_splits(images, labels, sizes={"train": 100, "val": 20, "test": 80}, seed=3)
    names = list(encode_pngs(splits))
    assert names == sorted(names)
    numbers = {
        name: sorted(int(n.split("/")[2][:-4]) for n in names if n.startswith(name)) for name in splits
    }
    assert numbers == {
        "train": list(range(100)),
        "test": list(range(100, 180)),
        "val": list(range(180, 200)),
    }


def test_making_splits_neither_reads_nor_changes_global_random_states() -> None:
    images, labels = (array[:200] for array in _digit_pool())
    results = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        states = (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
        splits = make_splits(images, labels, sizes={"train": 100, "val": 20, "test": 80}, seed=0)
        assert (np.random.get_state()[1].tolist(), random.getstate()) == states  # type: ignore[index]
        results.append(pngs_checksum(encode_pngs(splits)))
    assert results[0] == results[1]


def test_a_damaged_file_is_refused_and_made_anew(small_mnist: Path) -> None:
    prepare(small_mnist, source="unused", realisations=[0])
    path = realisation_path(small_mnist, 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    mend = f"equiscale data prepare mnist-scale --root {small_mnist} --download"
    expected = mnist_scale.CHECKSUMS[0]
    with pytest.raises(
        ChecksumError,
        match=rf"SHA-256 {expected} of the arrays in {path}, found [0-9a-f]{{64}}: .* run: {mend}",
    ):
        load("mnist-scale", split="val", root=small_mnist)
    path.write_bytes(content[:1000])
    with pytest.raises(
        DataError, match=rf"expected a safetensors file of mnist-scale at {path}, got: .*{mend}"
    ):
        load("mnist-scale", split="val", root=small_mnist)
    assert not prepare(small_mnist, source="unused", realisations=[0])[0].reused
    assert len(load("mnist-scale", split="val", root=small_mnist)) == 20


def test_another_format_version_is_refused(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(small_mnist, source="unused", realisations=[0])
    monkeypatch.setattr(mnist_scale, "FORMAT_VERSION", "2")
    with pytest.raises(
        DataError, match=r"expected format version 2 in .*, got 1; run: equiscale data prepare"
    ):
        load("mnist-scale", split="val", root=small_mnist)


def test_the_same_bytes_in_another_shape_are_refused_and_made_anew(small_mnist: Path) -> None:
    """The checksum sees bytes only."""
    prepare(small_mnist, source="unused", realisations=[0])
    path = mnist_scale.realisation_path(small_mnist, 0)
    with safe_open(path, framework="numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["train.images"] = tensors["train.images"].reshape(-1, 1, 14, 56)
    save_file(tensors, path, metadata)
    with pytest.raises(
        DataError, match=r"expected train.images of U8 \(100, 1, 28, 28\) in .*\(100, 1, 14, 56\)"
    ):
        load("mnist-scale", split="val", root=small_mnist)
    assert not prepare(small_mnist, source="unused", realisations=[0])[0].reused
    assert load("mnist-scale", split="train", root=small_mnist).images.shape == (100, 1, 28, 28)


def test_a_crash_in_the_middle_leaves_nothing(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", crash)
    with pytest.raises(OSError, match="no space left"):
        prepare(small_mnist, source="unused", realisations=[0])
    assert [path.name for path in small_mnist.rglob("*")] == ["mnist-scale"]


def test_images_that_are_not_the_published_ones_are_never_stored(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (array[:200] for array in _digit_pool())
    monkeypatch.setattr(mnist_scale, "read_mnist_pool", lambda _: (255 - images, labels))
    with pytest.raises(
        ChecksumError,
        match=rf"published realisation 0, with the PNG MD5 {mnist_scale.PUBLISHED_MD5[0]} .*constraints",
    ):
        prepare(small_mnist, source="unused", realisations=[0])
    assert not realisation_path(small_mnist, 0).exists()


def test_png_files_that_are_packed_differently_are_told_and_accepted(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_scale, "PUBLISHED_MD5", ("0" * 32,) * 6)
    told: list[str] = []
    prepare(small_mnist, source="unused", realisations=[0], png=True, progress=told.append)
    assert "holds the published images; this Pillow packs their PNG files differently" in told[0]
    assert prepare(small_mnist, realisations=[0], png=True)[0].reused


def test_missing_mnist_is_named_with_the_mending_command(tmp_path: Path) -> None:
    for realisations in ([0], [0, 1]):
        with pytest.raises(
            DataError, match=rf"train-images-idx3-ubyte.gz or .* in {tmp_path}/mnist, got neither"
        ):
            prepare(tmp_path, realisations=realisations)


def test_refuses_settings_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"expected realisations of \[0, 1, 2, 3, 4, 5\], got 6"):
        prepare(tmp_path, realisations=[5, 6])
    with pytest.raises(SettingError, match=r"either a source or a download, got both"):
        prepare(tmp_path, source=tmp_path, download=True)
