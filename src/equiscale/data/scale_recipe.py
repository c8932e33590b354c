"""The recipe of MNIST-scale: a stratified split, one scale factor an image, Pillow's transform.

Source:
    Sosnovik, Szmaja and Smeulders, 2020, "Scale-equivariant steerable networks"; their public generator
    fixes the seeds, the order of the draws and the published checksums.
"""

import hashlib
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equiscale._extras import needs_extra
from equiscale.functional.rescale import MNIST_SCALE_CENTER_OFFSET

FACTOR_RANGE: Final = (0.3, 1.0)
DRAW_ORDER: Final = ("train", "test", "val")  # in which factors are drawn and images are numbered

# The published generator draws a rotation, always 0, before each scale factor.
_ANGLE_RANGE: Final = (0.0, 0.0)


@dataclass(frozen=True)
class Split:
    """The arrays of one split, in the order of the published numbers.

    Args:
        images: ``(N, H, W)``, the scaled images; of natural images ``(N, C, H, W)``.
        labels: ``(N,)``, the classes.
        factors: ``(N,)``, the scale factor of each image.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8] | NDArray[np.int64]
    factors: NDArray[np.float64]


def make_splits(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], *, sizes: Mapping[str, int], seed: int
) -> dict[str, Split]:
    """Split a pool of images and scale each by its own factor, as the published generator does.

    Args:
        images: The pool, ``(N, H, W)``.
        labels: The classes, ``(N,)``.
        sizes: The number of images of ``train``, ``test`` and ``val``.
        seed: The realisation; seeds NumPy's generator for the split and Python's for the factors.

    Returns:
        The three splits by name, in the order in which they are drawn.
    """
    indices = _split_indices(labels, sizes, seed)
    draw = random.Random(seed)
    splits = {}
    for name in DRAW_ORDER:
        factors = np.array([_draw_factor(draw) for _ in indices[name]])
        pairs = zip(images[indices[name]], factors, strict=True)
        scaled = np.stack([scale_image(image, factor) for image, factor in pairs])
        splits[name] = Split(scaled, labels[indices[name]], factors)
    return splits


def scale_image(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Scale one image with Pillow, about the published centre and on a canvas of the same size."""
    with needs_extra("data"):
        from PIL import Image
    height, width = image.shape
    inverse = 1.0 / factor
    # Pillow maps target to source points; the order of these operations is the published one, bit for bit.
    shift_x, shift_y = (
        inverse * -center + center
        for center in (side * 0.5 + MNIST_SCALE_CENTER_OFFSET for side in (width, height))
    )
    matrix = (inverse, 0.0, shift_x, 0.0, inverse, shift_y)
    scaled = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(scaled)


def splits_checksum(splits: Mapping[str, Split]) -> str:
    """SHA-256 over images, labels and factors of train, test and val, in this order, as hex digits."""
    digest = hashlib.sha256()
    for name in DRAW_ORDER:
        split = splits[name]
        for array in (split.images, split.labels, split.factors.astype("<f8", copy=False)):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def encode_pngs(splits: Mapping[str, Split]) -> dict[str, bytes]:
    """The published files: ``<split>/<label>/<number>.png`` to its bytes, in sorted order of the paths."""
    with needs_extra("data"):
        from PIL import Image
    files: dict[str, bytes] = {}
    for name in DRAW_ORDER:
        for image, label in zip(splits[name].images, splits[name].labels, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "png")
            files[f"{name}/{label}/{len(files)}.png"] = buffer.getvalue()
    return {path: files[path] for path in sorted(files)}


def pngs_checksum(files: Mapping[str, bytes]) -> str:
    """MD5 over the bytes of the files, in their order, as hex digits: the published checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    for content in files.values():
        digest.update(content)
    return digest.hexdigest()


def _draw_factor(draw: random.Random) -> float:
    draw.uniform(*_ANGLE_RANGE)
    return draw.uniform(*FACTOR_RANGE)


def _split_indices(
    labels: NDArray[np.uint8], sizes: Mapping[str, int], seed: int
) -> dict[str, NDArray[np.intp]]:
    """Test is split off first, then validation; one generator runs through both splits."""
    with needs_extra("data"):
        from sklearn.model_selection import train_test_split
    generator = np.random.RandomState(seed)
    rest, test = train_test_split(
        np.arange(len(labels)),
        train_size=sizes["train"] + sizes["val"],
        test_size=sizes["test"],
        stratify=labels,
        random_state=generator,
    )
    train, val = train_test_split(
        rest,
        train_size=sizes["train"],
        test_size=sizes["val"],
        stratify=labels[rest],
        random_state=generator,
    )
    return {"train": train, "val": val, "test": test}
