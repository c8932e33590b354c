"""MNIST-STIR: sizes, places and splits of small made-up pools, and of MNIST where it is there."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from equiscale.data import dataset_info, load, mnist_stir
from equiscale.data.mnist_stir import DIGITS_A_CLASS, SIZES, TRAIN_SIZES, draw_digits, draw_places, make_split
from equiscale.errors import DataError

# Made with NumPy 2.4: renew them only with a word on why the images changed.
CHECKSUMS = {
    ("small", 0): "cf9f052cef870f83c59a86ddcfe4f4ff928484787a6af76027952ff4c7f2ad70",
    ("medium", 0): "647b1edfcdc749f5597c0dd3fe7951a0d401d8738369a616924f731c859dea8d",
    ("large", 0): "53359113887c7a0dadb375ccd937642a51ed69a20261fe955c3073c01b04fc70",
}
VALIDATION = "6d270c43e20ce4d74e49bbd497825271f9c397508889736be3f43ed76e7e1713"


@pytest.fixture
def root(mnist_source: Path, tmp_path: Path) -> Path:
    (tmp_path / "mnist").symlink_to(mnist_source.resolve())
    return tmp_path


@pytest.fixture
def squares() -> np.ndarray:
    """Four white squares of 16 pixels in the middle of MNIST's canvas."""
    images = np.zeros((4, 28, 28), np.uint8)
    images[:, 6:22, 6:22] = 255
    return images


def extent(image: np.ndarray, axis: int) -> tuple[int, int]:
    lit = np.flatnonzero((image > 127).any(axis=axis))
    return int(lit[0]), int(lit[-1]) + 1


def test_the_box_lies_where_the_table_says(squares: np.ndarray) -> None:
    places = np.array([[0, 28, 5, 30], [1, 56, 8, 0], [2, 17, 47, 0], [3, 64, 0, 0]])
    split = make_split(squares, np.arange(4, dtype=np.uint8), indices=np.arange(4), places=places)
    assert split.labels.tolist() == [0, 1, 2, 3]
    assert split.factors.tolist() == [1.0, 2.0, 17 / 28, 64 / 28]
    for image, (_, size, row, column) in zip(split.images, places, strict=True):
        low, high = size * 6 / 28, size * 22 / 28
        assert extent(image, 1) == pytest.approx((row + low, row + high), abs=1)
        assert extent(image, 0) == pytest.approx((column + low, column + high), abs=1)


def test_a_moved_digit_is_the_same_digit(squares: np.ndarray) -> None:
    places = np.array([[0, 40, 3, 20], [0, 40, 13, 7]])
    one, other = make_split(squares, np.zeros(4, np.uint8), indices=np.arange(4), places=places).images
    assert np.array_equal(np.roll(one, (10, -13), (0, 1)), other)
    assert not np.array_equal(one, other)


def test_the_brightest_pixel_of_every_image_is_white_and_the_corners_are_black(squares: np.ndarray) -> None:
    places = draw_places(4, SIZES, seed=[0])
    images = make_split(squares // 2, np.zeros(4, np.uint8), indices=np.arange(4), places=places).images
    assert (images.max((1, 2)) == 255).all()
    assert (images.min((1, 2)) == 0).all()


def test_every_digit_stands_once_at_every_size_inside_the_canvas() -> None:
    table = draw_places(5, range(17, 33), seed=[3])
    assert sorted(map(tuple, table[:, :2].tolist())) == [(d, s) for d in range(5) for s in range(17, 33)]
    assert (table[:, 2:] >= 0).all()
    assert (table[:, 1:2] + table[:, 2:] <= 64).all()
    assert table[:, 0].tolist() != sorted(table[:, 0])
    assert np.array_equal(table, draw_places(5, range(17, 33), seed=[3]))
    assert not np.array_equal(table, draw_places(5, range(17, 33), seed=[4]))


def test_places_are_uniform_over_those_where_the_box_fits() -> None:
    corners = draw_places(4000, [61], seed=[0])[:, 2:]
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(corners.T), 1)
    assert counts.sum() == 4000
    assert ((counts - 250) ** 2 / 250).sum() < 37.7  # χ² with 15 degrees of freedom, p = 0.001


def test_the_largest_size_has_one_place() -> None:
    assert draw_places(10, [64], seed=[0])[:, 2:].any() == np.False_


def test_the_draw_leaves_the_global_generator_alone() -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    draw_places(3, [20], seed=[0])
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_the_splits_are_balanced_and_share_no_digit() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 70_000).astype(np.uint8)
    drawn = draw_digits(labels, 0)
    for split, indices in drawn.items():
        assert np.bincount(labels[indices]).tolist() == [DIGITS_A_CLASS] * 10
        assert ((indices >= 60_000) == (split == "test")).all()
    assert len(set(np.concatenate(list(drawn.values())).tolist())) == 1500
    assert not np.array_equal(draw_digits(labels, 1)["train"], drawn["train"])


@pytest.mark.parametrize("kind", TRAIN_SIZES)
def test_the_registry_describes_what_is_made(kind: str, root: Path) -> None:
    info = dataset_info(f"mnist-stir-{kind}")
    train = load(info.name, split="train", root=root)
    assert tuple(train.images.shape) == (info.split_sizes["train"], 1, 64, 64)
    sizes = (train.factors * 28).round().long()
    assert (
        sizes.bincount()[17:].tolist()
        == [500 * (size in TRAIN_SIZES[kind]) for size in SIZES][: int(sizes.max()) - 16]
    )
    values = train.images.double() / 255
    assert values.mean().item() == pytest.approx(train.mean, abs=5e-5)
    assert values.std(correction=0).item() == pytest.approx(train.std, abs=5e-5)


def test_one_bin_a_pixel() -> None:
    edges = dataset_info("mnist-stir-small").factor_edges
    assert edges is not None
    counts, _ = np.histogram(np.array(SIZES) / 28, edges)
    assert counts.tolist() == [1] * 48
    np.testing.assert_allclose(np.diff(edges), 1 / 28)


def test_all_sizes_are_tested(root: Path) -> None:
    test = load("mnist-stir-medium", split="test", root=root)
    assert tuple(test.images.shape) == (24_000, 1, 64, 64)
    assert (test.factors * 28).round().long().bincount()[17:].tolist() == [500] * 48
    assert test.labels.bincount().tolist() == [2400] * 10


def test_the_three_are_tested_on_the_same_images(root: Path) -> None:
    small, large = (dataset_info(f"mnist-stir-{kind}").read(0, root).splits for kind in ("small", "large"))
    for made in ("indices", "places"):
        one, other = (splits.makers["test"].keywords[made] for splits in (small, large))  # type: ignore[attr-defined]
        assert np.array_equal(one, other)


def test_it_is_what_it_was(root: Path) -> None:
    for (kind, realisation), checksum in CHECKSUMS.items():
        assert dataset_info(f"mnist-stir-{kind}").read(realisation, root).checksum == checksum
    other = dataset_info("mnist-stir-small").read(1, root)
    assert other.checksum not in CHECKSUMS.values()
    pixels = mnist_stir.read_realisation(0, root, name="small").splits["val"].images
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == VALIDATION


def test_without_mnist_the_command_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"data prepare mnist-stir-large --root {tmp_path} --download"):
        load("mnist-stir-large", split="test", root=tmp_path)
