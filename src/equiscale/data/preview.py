"""Some images of a data set after each step of the augmentation, as arrays to be drawn."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equiscale.data.augment import recipe_for, steps
from equiscale.data.dataset import Dataset
from equiscale.errors import SettingError

MAX_IMAGES = 64


@dataclass(frozen=True)
class Preview:
    """What is drawn, a row an image.

    Args:
        dataset: The data set's name.
        split: The split.
        names: The class of each row.
        stages: The name of each step, and its images ``(N, H, W, 3)``.
        corners: ``(N, 2)``, the row and column of each crop's corner in the padded image.
        mirrored: ``(N,)``, which are mirrored.
        pad: Width of the frame of the padded images, in pixels.
    """

    dataset: str
    split: str
    names: tuple[str, ...]
    stages: dict[str, NDArray[np.uint8]]
    corners: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    pad: int


def preview(data: Dataset, *, images: int, seed: int = 0) -> Preview:
    """Augment a few images, of as many classes as there are.

    Args:
        data: Images of square shape.
        images: How many.
        seed: Of the choice of images and of the augmentation.

    Raises:
        SettingError: If that many images are not there, or they are not square.
    """
    height, width = data.images.shape[2:]
    if not 1 <= images <= min(MAX_IMAGES, len(data)) or height != width:
        raise SettingError(
            f"expected 1 to {min(MAX_IMAGES, len(data))} square images of {data.name}, "
            f"got {images} of {height}×{width}"
        )
    chosen = _choose(data.labels, images, seed)
    originals = data.images[chosen]
    shown = steps(originals, mean=data.mean, std=data.std, seed=seed)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    stages = {
        "original": originals,
        "padded": shown.padded,
        "cropped": shown.cropped,
        "flipped": shown.flipped,
        "cut out": ((shown.cut * std + mean) * 255).round().clamp(0, 255),
    }
    return Preview(
        dataset=data.name,
        split=data.split,
        names=tuple(_class_name(data, int(label)) for label in data.labels[chosen]),
        stages={name: _colour(batch) for name, batch in stages.items()},
        corners=shown.corners.numpy(),
        mirrored=shown.mirrored.numpy(),
        pad=recipe_for(height)[0],
    )


def load_preview(name: str, *, images: int, root: Path | None, seed: int = 0) -> Preview:
    """The preview of a data set's training images."""
    from equiscale.data import load

    return preview(load(name, split="train", root=root), images=images, seed=seed)


def _choose(labels: Tensor, count: int, seed: int) -> Tensor:
    """Images at random, every class once before any comes again."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turns = torch.zeros(len(labels), dtype=torch.int64)
    for label in range(int(labels.max()) + 1):
        of_class = labels[order] == label
        turns[of_class] = torch.arange(int(of_class.sum()))
    keys = turns * (int(labels.max()) + 1) + labels[order]
    return order[keys.argsort()[:count]]


def _class_name(data: Dataset, label: int) -> str:
    return data.info.class_names[label] if data.info.class_names else str(label)


def _colour(batch: Tensor) -> NDArray[np.uint8]:
    """``(N, C, H, W)`` to ``(N, H, W, 3)``; grey images get three equal channels."""
    colour: NDArray[np.uint8] = batch.to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return colour
