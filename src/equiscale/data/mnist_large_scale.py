"""MNIST Large Scale: train on digits of one size, test on seventeen from half to eight times MNIST's own.

Source:
    Jansson and Lindeberg, 2022, "Scale-invariant scale-channel networks: deep networks that generalise to
    previously unseen scales". Its files are given out on request; here the images are made from MNIST by its
    recipe (see `equiscale.data.rescaled_digits` for what was checked). The first 50,000 of MNIST's training
    images train, the last 10,000 validate, and MNIST's 10,000 test images are tested at every size.
    Realisation 0 is the published split; realisations 1…5 divide the same 60,000 otherwise.
"""

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equiscale.citations import FOVEATED_PYRAMID
from equiscale.data.dataset import DatasetInfo, Realisation
from equiscale.data.rescaled_digits import (
    TRAIN_IMAGES,
    Images,
    SplitsOnDemand,
    fingerprint,
    geometric_edges,
    grey_levels,
    prepare_digits,
    read_digits,
    resampling_weights,
    scale_digits,
)
from equiscale.data.scale_recipe import Split

CANVAS: Final = 112
TRAIN_SIZES: Final = (1, 2, 4)
TEST_SIZES: Final = tuple(2 ** (step / 4) for step in range(-4, 13))
TRAIN: Final = 50_000
REALISATIONS: Final = 6

# A tenth of the test images, for machines without a GPU: the first ones, at every size.
FEW_TEST_IMAGES: Final = 1_000
ALL_TEST_IMAGES: Final = 10_000

# Of the pixel values in 0…1 of realisation 0's training images, by their size.
MEAN_AND_STD: Final = {1: (0.0079, 0.0758), 2: (0.0316, 0.1483), 4: (0.1265, 0.2757)}


def read_realisation(realisation: int, root: Path, *, size: int, test_images: int) -> Realisation:
    """A realisation whose splits are made when they are asked for; all test images in about 20 seconds."""
    images, labels = read_digits(_name(size, test_images), root)
    train, val = _train_and_val(realisation)
    test = np.arange(TRAIN_IMAGES, TRAIN_IMAGES + test_images)
    chosen: dict[str, tuple[NDArray[np.intp], tuple[float, ...]]] = {
        "train": (train, (float(size),)),
        "val": (val, (float(size),)),
        "test": (test, TEST_SIZES),
    }
    makers = {
        split: partial(make_split, images, labels, indices=indices, sizes=sizes)
        for split, (indices, sizes) in chosen.items()
    }
    weights = [_weights(float(one)) for one in (size, *TEST_SIZES)]
    checksum = fingerprint(
        "mnist-large-scale 1", *weights, grey_levels(), *(indices for indices, _ in chosen.values())
    )
    return Realisation(SplitsOnDemand(makers), checksum)


def make_split(
    images: Images, labels: Images, *, indices: NDArray[np.intp], sizes: tuple[float, ...]
) -> Split:
    """Every chosen image at every size; the sizes of an image follow each other.

    Args:
        images: The pool, ``(N, 28, 28)``.
        labels: ``(N,)``.
        indices: Which images of the pool.
        sizes: The scale factors.

    Returns:
        ``len(indices) * len(sizes)`` images ``(112, 112)``.
    """
    count, table = len(indices), grey_levels()
    made = np.zeros((count, len(sizes), CANVAS, CANVAS), np.uint8)
    for number, size in enumerate(sizes):
        weights = _weights(size)
        rows = np.flatnonzero(weights.any(axis=1))
        used = slice(int(rows[0]), int(rows[-1]) + 1)  # outside, the canvas stays black
        for chosen, grey in scale_digits(images[indices], weights[used]):
            made[chosen, number, used, used] = table[grey]
    return Split(
        images=made.reshape(count * len(sizes), CANVAS, CANVAS),
        labels=np.repeat(labels[indices], len(sizes)),
        factors=np.tile(np.array(sizes), count),
    )


def _train_and_val(realisation: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = np.arange(TRAIN_IMAGES)
    if realisation:
        order = np.random.RandomState(realisation).permutation(TRAIN_IMAGES)
    return order[:TRAIN], order[TRAIN:]


def _weights(size: float) -> NDArray[np.float64]:
    return resampling_weights(np.arange(CANVAS) - (CANVAS - 1) / 2, size)


def _name(size: int, test_images: int) -> str:
    return f"mnist-large-scale-{size}" + ("" if test_images == ALL_TEST_IMAGES else f"-te{test_images}")


def _info(size: int, test_images: int) -> DatasetInfo:
    name = _name(size, test_images)
    mean, std = MEAN_AND_STD[size]
    return DatasetInfo(
        name=name,
        title=f"MNIST on 112×112 pixels, trained at size {size}, tested at 1/2 to 8",
        citation=FOVEATED_PYRAMID,
        licence="MNIST: CC BY-SA 3.0",
        image_shape=(1, CANVAS, CANVAS),
        num_classes=10,
        split_sizes={
            "train": TRAIN,
            "val": TRAIN_IMAGES - TRAIN,
            "test": test_images * len(TEST_SIZES),
        },
        realisations=REALISATIONS,
        mean=mean,
        std=std,
        read=partial(read_realisation, size=size, test_images=test_images),
        prepare=partial(prepare_digits, name),
        factor_edges=geometric_edges(TEST_SIZES),
    )


INFOS: Final = tuple(
    _info(size, test_images) for test_images in (ALL_TEST_IMAGES, FEW_TEST_IMAGES) for size in TRAIN_SIZES
)
