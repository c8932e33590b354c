"""MNIST Large Scale: the recipe against slow loops, exact arithmetic, and the published layout."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from equiscale.data import dataset_info, load, mnist_large_scale
from equiscale.data import rescaled_digits as recipe
from equiscale.data.dataset import Preparation
from equiscale.data.mnist import FILES
from equiscale.data.mnist_large_scale import TEST_SIZES, make_split
from equiscale.errors import DataError, SettingError

# Realisation 0, made with NumPy 2.4: renew them only with a word on why the images changed.
CHECKSUMS = {
    "mnist-large-scale-1": "ad15540f4549ca324d0efa08a0f427c6d47e9b9ad2df0b5750c4d34b853937bf",
    "mnist-large-scale-2": "c472130a70ba56837d22d4655af3c814e8f3d3c9ee7bbdc01cc635c2c7bd88ee",
    "mnist-large-scale-4": "34e4ded6a0109270602809321fcc3137294fd9dbb7d4c87b38f29bbc92e825f7",
    "mnist-large-scale-1-te1000": "07fbb1ebdf1d80bb04afb637c9aced4579cece8c982f61ac02894e26c9b32968",
}
TEN_TEST_IMAGES = "2299bf45045c0f2360382c328e8d66a25f958576178bf6c695312c6e98814c61"


@pytest.fixture
def root(mnist_source: Path, tmp_path: Path) -> Path:
    (tmp_path / "mnist").symlink_to(mnist_source.resolve())
    return tmp_path


@pytest.fixture
def digits() -> np.ndarray:
    """Twenty made-up digits: blobs and strokes away from the border."""
    draw = np.random.default_rng(0)
    images = np.zeros((20, 28, 28), np.uint8)
    images[:, 6:22, 8:20] = draw.integers(0, 256, (20, 16, 12))
    return images


def keys(distance: float) -> float:
    d = abs(distance)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def slow_pixel(digit: np.ndarray, row: float, column: float, factor: float) -> float:
    """Interpolate on a lattice around a point given by its distance from the centre, then smooth."""
    sigma, width = 7 / 8 * factor, max(1.0, 1 / factor)
    reach = math.ceil(4 * sigma)
    gaussian = {k: math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)}
    total = sum(gaussian.values())

    def along(point: float) -> list[float]:
        weights = [0.0] * 28
        for k, g in gaussian.items():
            source = (point + k) / factor + 13.5
            near = [j for j in range(-60, 90) if abs(source - j) < 2 * width]
            norm = sum(keys((source - j) / width) for j in near)
            for j in near:
                if 0 <= j < 28:
                    weights[j] += g / total * keys((source - j) / width) / norm
        return weights

    rows, columns = along(row), along(column)
    return sum(rows[i] * columns[j] * float(digit[i, j]) for i in range(28) for j in range(28))


@pytest.mark.parametrize("factor", [0.5, 2**-0.25, 1.0, 2.0, 8.0])
def test_pixels_equal_the_loops(digits: np.ndarray, factor: float) -> None:
    points = np.arange(9) - 3.0
    (chosen, grey), *_ = recipe.scale_digits(digits[:1], recipe.resampling_weights(points, factor))
    assert (chosen, grey.shape) == (slice(0, 1), (1, 9, 9))
    for i, j in [(0, 0), (4, 2), (8, 7)]:
        expected = min(max(slow_pixel(digits[0], points[i], points[j], factor), 0.0), 255.0)
        assert grey[0, i, j] / 16 == pytest.approx(expected, abs=1 / 16)


def test_sums_are_exact_in_any_order(digits: np.ndarray) -> None:
    """The negative control: the same product of weights that were not rounded depends on the order."""
    weights = recipe.resampling_weights(np.arange(40) - 19.5, 1.3)
    x = digits[0].astype(np.float64)
    assert np.array_equal(weights, np.rint(weights))

    def both(w: np.ndarray) -> list[np.ndarray]:
        last_first = np.ascontiguousarray(w[:, ::-1])
        return [(w @ x) @ w.T, last_first @ (x[::-1, ::-1] @ last_first.T)]

    one, other = both(weights)
    assert np.abs(one).max() < 2**53
    assert np.array_equal(one, other)
    assert not np.array_equal(*both(weights / 3))


def test_every_row_of_weights_inside_the_digit_sums_to_one() -> None:
    for factor in (0.5, 0.7, 1.0, 3.0):
        sums = recipe.resampling_weights(np.arange(-2, 3) * 1.0, factor).sum(1) / 2**16
        np.testing.assert_allclose(sums, 1, atol=2e-4)


def test_the_threshold_is_the_published_one() -> None:
    """2/π·atan(0.02·(I − 128)): −0.76…0.76, as the published notebook prints of its files."""
    values = recipe.soft_threshold() / 2**30
    low = 2 / math.pi * math.atan(0.02 * -128)
    assert f"{low:.2f} {low + values[-1]:.2f}" == "-0.76 0.76"
    assert values[128 * 16] + low == pytest.approx(0, abs=1e-8)
    table = recipe.grey_levels()
    assert (table[0], table[-1], table[128 * 16]) == (0, 255, 128)
    assert (np.diff(table.astype(int)) >= 0).all()


def test_the_digit_grows_with_the_size(digits: np.ndarray) -> None:
    labels = np.arange(20, dtype=np.uint8) % 10
    split = make_split(digits, labels, indices=np.array([3, 7]), sizes=TEST_SIZES)
    assert split.images.shape == (2 * 17, 112, 112)
    assert split.labels.tolist() == [3] * 17 + [7] * 17
    assert split.factors.tolist() == list(TEST_SIZES) * 2
    assert (TEST_SIZES[0], TEST_SIZES[4], TEST_SIZES[-1]) == (0.5, 1.0, 8.0)
    ink = split.images.sum((1, 2), dtype=np.int64)[:13] / np.array(TEST_SIZES[:13]) ** 2
    assert ink.max() / ink.min() < 1.1  # a surface, as long as the whole digit is on the canvas
    sides = [np.ptp(np.flatnonzero((image > 127).any(0))) + 1 for image in split.images[:13]]
    assert sides[12] / sides[8] == pytest.approx(2, rel=0.1)


def test_a_symmetric_digit_stays_symmetric_about_the_canvas(digits: np.ndarray) -> None:
    symmetric = np.maximum(digits, digits[:, ::-1, ::-1])
    made = make_split(symmetric, np.zeros(20, np.uint8), indices=np.arange(2), sizes=(0.5, 1.0, 2**0.25, 8.0))
    assert np.array_equal(made.images, made.images[:, ::-1, ::-1])


@pytest.mark.parametrize("name", [info.name for info in mnist_large_scale.INFOS])
def test_the_registry_describes_what_is_made(name: str) -> None:
    info = dataset_info(name)
    edges = info.factor_edges
    assert edges is not None
    assert len(edges) == 18
    counts, _ = np.histogram(TEST_SIZES, edges)
    assert counts.tolist() == [1] * 17
    np.testing.assert_allclose(np.sqrt(np.multiply(edges[1:], edges[:-1])), TEST_SIZES, rtol=1e-12)
    a_size = 1_000 if name.endswith("-te1000") else 10_000
    assert info.split_sizes == {"train": 50_000, "val": 10_000, "test": 17 * a_size}


def test_realisation_0_is_the_published_split(root: Path) -> None:
    val = load("mnist-large-scale-1", split="val", root=root)
    assert val.images.shape == (10_000, 1, 112, 112)
    assert val.factors.unique().tolist() == [1.0]
    labels = recipe.read_digits("mnist-large-scale-1", root)[1]
    assert val.labels.tolist() == labels[50_000:60_000].tolist()
    values = val.images[:2000].double() / 255  # another 10,000 digits than those of the constants
    assert values.mean().item() == pytest.approx(val.mean, rel=0.03)
    assert values.std().item() == pytest.approx(val.std, rel=0.03)


def test_other_realisations_divide_the_same_images_otherwise() -> None:
    train, val = mnist_large_scale._train_and_val(1)
    assert (len(train), len(val)) == (50_000, 10_000)
    assert sorted([*train, *val]) == list(range(60_000))
    assert val.tolist() != mnist_large_scale._train_and_val(2)[1].tolist()


def test_realisation_0_is_what_it_was(root: Path) -> None:
    for name, checksum in CHECKSUMS.items():
        assert dataset_info(name).read(0, root).checksum == checksum
    assert dataset_info("mnist-large-scale-1").read(1, root).checksum not in CHECKSUMS.values()


def test_the_pixels_are_what_they_were(root: Path) -> None:
    """The checksum is of what makes the images; this one is of images: ten test digits at every size."""
    images, labels = recipe.read_digits("mnist-large-scale-1", root)
    split = make_split(images, labels, indices=np.arange(60_000, 60_010), sizes=TEST_SIZES)
    assert hashlib.sha256(split.images.tobytes()).hexdigest() == TEN_TEST_IMAGES


def test_the_fingerprint_sees_every_part() -> None:
    weights = np.ones((2, 3))
    seen = {
        recipe.fingerprint("a", weights),
        recipe.fingerprint("b", weights),
        recipe.fingerprint("a", weights.T),
        recipe.fingerprint("a", weights.astype(np.float32)),
        recipe.fingerprint("a", weights, weights),
        recipe.fingerprint("a", weights * 2),
    }
    assert len(seen) == 6
    assert recipe.fingerprint("a", weights) in seen


def test_without_mnist_the_command_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=rf"expected MNIST's files in {tmp_path}/mnist, of which mnist-large-scale-2 is made .* run: "
        rf"equiscale data prepare mnist-large-scale-2 --root {tmp_path} --download",
    ):
        load("mnist-large-scale-2", split="train", root=tmp_path)


def test_preparing_copies_mnist_and_nothing_else(mnist_source: Path, tmp_path: Path) -> None:
    told: list[str] = []
    prepare = dataset_info("mnist-large-scale-4").prepare
    assert prepare is not None
    for _ in range(2):
        prepare(Preparation(root=tmp_path, source=mnist_source, progress=told.append))
    assert {path.name.removesuffix(".gz") for path in (tmp_path / "mnist").iterdir()} == {
        file.name for file in FILES
    }
    assert told == [f"mnist-large-scale-4: made when it is loaded, from MNIST in {tmp_path}/mnist"] * 2
    prepare(Preparation(root=tmp_path))
    prepare(Preparation(root=tmp_path, source=tmp_path / "mnist"))
    with pytest.raises(SettingError, match="expected either a source or a download, got both"):
        prepare(Preparation(root=tmp_path, source=mnist_source, download=True))


def test_preparing_from_nothing_is_refused(tmp_path: Path) -> None:
    prepare = dataset_info("mnist-large-scale-1").prepare
    assert prepare is not None
    with pytest.raises(DataError, match="expected MNIST's train-images-idx3-ubyte"):
        prepare(Preparation(root=tmp_path / "root", source=tmp_path))
    assert not (tmp_path / "root").exists()
