"""Digits-scale: MNIST-scale's recipe on the small digits that come with scikit-learn, without a download.

Source:
    Alpaydin and Kaynak, 1998, "Optical recognition of handwritten digits", UCI machine learning repository.
    Not a published benchmark: it shows the whole path from data to report in seconds.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equiscale._extras import needs_extra
from equiscale.citations import DIGITS
from equiscale.data.dataset import DatasetInfo, Realisation
from equiscale.data.scale_recipe import make_splits, splits_checksum

NAME: Final = "digits-scale"
SPLIT_SIZES: Final = {"train": 1_000, "val": 197, "test": 600}

# SHA-256 over the arrays of the realisations 0…5. There is no published original to be faithful to, and
# nothing that a user could mend, so that other packages' versions may give others: a test notices, and every
# loaded data set carries the checksum that it has, for the record of the run.
CHECKSUMS: Final = (
    "ad10ae16951bc1a44fe1339023b62a90f17aadf57ff27a96672fe5a9a55ddc4f",
    "13fe5ddfdbb6529406ee4a6680979f63c03f8b2d501ec123241de0d7ee18ca3f",
    "aa9d6575a1ff9526cf5ef2f47f92a65bcadc80a90eec795966b16d6822c3654b",
    "9bd6e50b4fa946df792738093c57173f135f6dd2c05544abd69553e5aaf64be9",
    "14f239f1e9c824456205e4406da0df29eaa0d71fccf168836bdb22a586af1880",
    "a5a5c0b3c4cce61b00c6416ff807919e12c2f3f87c203b28a3d743fb4966b214",
)

# Of the pixel values in 0…1 of realisation 0's training images.
MEAN: Final = 0.0734
STD: Final = 0.2146

_CANVAS: Final = 28
_DIGIT: Final = 20  # MNIST's digits fill a box of 20×20 pixels in the same way
_LARGEST_VALUE: Final = 16  # of load_digits


def read_realisation(realisation: int, root: Path) -> Realisation:
    """Make a realisation in memory, in about a tenth of a second; ``root`` is not used."""
    splits = make_splits(*_digit_pool(), sizes=SPLIT_SIZES, seed=realisation)
    return Realisation(splits, splits_checksum(splits))


INFO: Final = DatasetInfo(
    name=NAME,
    title="scikit-learn's small digits, scaled by the recipe of MNIST-scale",
    citation=DIGITS,
    licence="CC BY 4.0",
    image_shape=(1, _CANVAS, _CANVAS),
    num_classes=10,
    split_sizes=SPLIT_SIZES,
    realisations=len(CHECKSUMS),
    mean=MEAN,
    std=STD,
    read=read_realisation,
)


def _digit_pool() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 1,797 digits, enlarged from 8×8 to 20×20 and put in the middle of MNIST's canvas."""
    with needs_extra("data"):
        from PIL import Image
        from sklearn.datasets import load_digits
    digits = load_digits()
    grey = np.rint(digits.images * (255 / _LARGEST_VALUE)).astype(np.uint8)
    pool = np.zeros((len(grey), _CANVAS, _CANVAS), np.uint8)
    start = (_CANVAS - _DIGIT) // 2
    middle = slice(start, start + _DIGIT)
    for canvas, image in zip(pool, grey, strict=True):
        enlarged = Image.fromarray(image).resize((_DIGIT, _DIGIT), Image.Resampling.BICUBIC)
        canvas[middle, middle] = np.asarray(enlarged)
    return pool, digits.target.astype(np.uint8)
