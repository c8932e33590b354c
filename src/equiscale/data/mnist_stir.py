"""MNIST-STIR: digits of 17 to 64 pixels anywhere in 64×64; train on some sizes, test on all.

Source:
    Altstidl et al., 2022, "Just a matter of scale? Reevaluating scale equivariance in convolutional neural
    networks". As there: fifty digits of each class a split, each at every size, training and validation from
    MNIST's training images, places drawn uniformly, the recipe of MNIST Large Scale for the pixels, the
    brightest pixel of every image white. Otherwise: the sizes that train, the resampling's filter against
    aliasing, every digit smoothed as if the canvas had no border, our own draws, and six realisations.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equiscale.citations import RESCALED_KERNELS
from equiscale.data.dataset import DatasetInfo, Realisation
from equiscale.data.rescaled_digits import (
    TRAIN_IMAGES,
    Images,
    SplitsOnDemand,
    fingerprint,
    prepare_digits,
    read_digits,
    resampling_weights,
    scale_digits,
    soft_threshold,
)
from equiscale.data.scale_recipe import Split

CANVAS: Final = 64
SIZES: Final = range(17, 65)
TRAIN_SIZES: Final = {"small": range(17, 33), "medium": range(25, 49), "large": range(33, 65)}
DIGITS_A_CLASS: Final = 50
CLASSES: Final = 10
OWN_SIZE: Final = 28  # of MNIST's digits: factor 1
REALISATIONS: Final = 6

# Of the pixel values in 0…1 of realisation 0's training images.
MEAN_AND_STD: Final = {"small": (0.0198, 0.1196), "medium": (0.0439, 0.1748), "large": (0.0774, 0.2264)}

_MARGIN: Final = 8  # around the digit's box: beyond the Gaussian's reach of the largest size, 4 · 7/8 · 64/28
_WHITE: Final = 255


def read_realisation(realisation: int, root: Path, *, name: str) -> Realisation:
    """A realisation whose splits are made when they are asked for, in about a second."""
    images, labels = read_digits(f"mnist-stir-{name}", root)
    digits = draw_digits(labels, realisation)
    sizes: dict[str, Sequence[int]] = {"train": TRAIN_SIZES[name], "val": TRAIN_SIZES[name], "test": SIZES}
    places = {
        split: draw_places(len(digits[split]), sizes[split], seed=(realisation, number))
        for number, split in enumerate(sizes)
    }
    makers = {
        split: partial(make_split, images, labels, indices=digits[split], places=places[split])
        for split in sizes
    }
    weights = [_weights(size) for size in SIZES]
    checksum = fingerprint(
        "mnist-stir 1", *weights, soft_threshold(), *digits.values(), *(places[split] for split in sizes)
    )
    return Realisation(SplitsOnDemand(makers), checksum)


def draw_digits(labels: Images, realisation: int) -> dict[str, NDArray[np.intp]]:
    """Fifty digits of each class for each split: training and validation share none.

    Args:
        labels: Of MNIST's pool.
        realisation: Seeds the draw.

    Returns:
        Under each split, indices into the pool, class by class.
    """
    draw = np.random.RandomState(realisation)
    first, second, tested = [], [], []
    for label in range(CLASSES):
        of_class = np.flatnonzero(labels == label)
        train = draw.permutation(of_class[of_class < TRAIN_IMAGES])
        test = draw.permutation(of_class[of_class >= TRAIN_IMAGES])
        first.append(train[:DIGITS_A_CLASS])
        second.append(train[DIGITS_A_CLASS : 2 * DIGITS_A_CLASS])
        tested.append(test[:DIGITS_A_CLASS])
    return {
        "train": np.concatenate(first),
        "val": np.concatenate(second),
        "test": np.concatenate(tested),
    }


def draw_places(count: int, sizes: Sequence[int], *, seed: Sequence[int]) -> NDArray[np.int64]:
    """Every digit at every size once, each somewhere in the canvas, in a random order.

    Args:
        count: The number of digits.
        sizes: The sizes, in pixels.
        seed: Of the places and the order.

    Returns:
        ``(count * len(sizes), 4)``: the digit's number, its size, and the first row and column of its box,
        uniform over all places where the box fits.
    """
    draw = np.random.RandomState(list(seed))
    digit, size = (axis.ravel() for axis in np.meshgrid(np.arange(count), sizes, indexing="ij"))
    corner = draw.randint(0, CANVAS - size[:, None] + 1, size=(len(size), 2))
    table = np.column_stack([digit, size, corner]).astype(np.int64)
    return table[draw.permutation(len(table))]


def make_split(
    images: Images, labels: Images, *, indices: NDArray[np.intp], places: NDArray[np.int64]
) -> Split:
    """The images of a table of places.

    Args:
        images: The pool, ``(N, 28, 28)``.
        labels: ``(N,)``.
        indices: Which images of the pool.
        places: A table of `draw_places`.

    Returns:
        One image ``(64, 64)`` for each row of the table.
    """
    made = np.zeros((len(places), CANVAS, CANVAS), np.uint8)
    digits = indices[places[:, 0]]
    for size in np.unique(places[:, 1]):
        rows = np.flatnonzero(places[:, 1] == size)
        for chosen, grey in scale_digits(images[digits[rows]], _weights(int(size))):
            made[rows[chosen]] = _placed(_thresholded(grey), places[rows[chosen], 2:])
    return Split(images=made, labels=labels[digits], factors=places[:, 1] / OWN_SIZE)


def _thresholded(grey: NDArray[np.int32]) -> Images:
    """Softly thresholded, then stretched so that the brightest pixel of every image is white."""
    values = soft_threshold()[grey]
    brightest = np.maximum(values.max(axis=(1, 2), keepdims=True), 1)
    stretched: Images = (_WHITE * values // brightest).astype(np.uint8)
    return stretched


def _placed(boxes: Images, corners: NDArray[np.int64]) -> Images:
    """Boxes with their margins ``(n, P, P)``, cut and moved to their corners in the canvas."""
    side = boxes.shape[1]
    framed = np.pad(boxes, ((0, 0), (1, 1), (1, 1)))  # what lies beyond a box is taken from this frame
    pixels = np.arange(CANVAS) - corners[:, :, None] + _MARGIN + 1  # (n, 2, 64)
    rows, columns = np.clip(pixels, 0, side + 1).transpose(1, 0, 2)
    moved: Images = framed[np.arange(len(boxes))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def _weights(size: int) -> NDArray[np.float64]:
    pixels = np.arange(-_MARGIN, size + _MARGIN) - (size - 1) / 2
    return resampling_weights(pixels, size / OWN_SIZE)


def _info(kind: str) -> DatasetInfo:
    name = f"mnist-stir-{kind}"
    mean, std = MEAN_AND_STD[kind]
    digits, trained = DIGITS_A_CLASS * CLASSES, TRAIN_SIZES[kind]
    return DatasetInfo(
        name=name,
        title=f"MNIST at 17 to 64 pixels on 64×64, trained on {trained[0]} to {trained[-1]}",
        citation=RESCALED_KERNELS,
        licence="MNIST: CC BY-SA 3.0",
        image_shape=(1, CANVAS, CANVAS),
        num_classes=CLASSES,
        split_sizes={
            "train": digits * len(TRAIN_SIZES[kind]),
            "val": digits * len(TRAIN_SIZES[kind]),
            "test": digits * len(SIZES),
        },
        realisations=REALISATIONS,
        mean=mean,
        std=std,
        read=partial(read_realisation, name=kind),
        prepare=partial(prepare_digits, name),
        factor_edges=tuple((size - 0.5) / OWN_SIZE for size in (*SIZES, SIZES[-1] + 1)),
    )


INFOS: Final = tuple(_info(kind) for kind in TRAIN_SIZES)
