"""Data sets, loaded as tensors that are checked against the published checksums."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equiscale.data import digits_scale, mnist_large_scale, mnist_scale, mnist_stir
from equiscale.data.dataset import Dataset, DatasetInfo
from equiscale.data.loader import TensorBatches
from equiscale.data.root import data_root
from equiscale.data.transforms import normalize, random_rescale
from equiscale.errors import SettingError

__all__ = [
    "Dataset",
    "DatasetInfo",
    "TensorBatches",
    "data_root",
    "dataset_info",
    "list_datasets",
    "load",
    "normalize",
    "random_rescale",
]

# A new data set is one file with an INFO, and one entry here.
_INFOS: Final = (mnist_scale.INFO, digits_scale.INFO, *mnist_large_scale.INFOS, *mnist_stir.INFOS)
_REGISTRY: Final = {info.name: info for info in _INFOS}


def list_datasets() -> list[str]:
    """The names of all data sets.

    Example:
        >>> [name for name in list_datasets() if name.endswith("-scale")]
        ['digits-scale', 'mnist-scale']
    """
    return sorted(_REGISTRY)


def dataset_info(name: str) -> DatasetInfo:
    """The description of a data set: citation, licence, sizes and normalisation.

    Raises:
        SettingError: If there is no data set of this name.

    Example:
        >>> dataset_info("mnist-scale").split_sizes["test"]
        50000
    """
    if name not in _REGISTRY:
        raise SettingError(f"expected a data set of {list_datasets()}, got {name!r}")
    return _REGISTRY[name]


def load(name: str, *, split: str, realisation: int = 0, root: Path | str | None = None) -> Dataset:
    """Load one split of one realisation and check it.

    Args:
        name: A name that ``list_datasets`` gives.
        split: ``"train"``, ``"val"`` or ``"test"``.
        realisation: The number of the realisation; not the training seed.
        root: The folder of prepared data; ``None`` as for ``data_root``.

    Returns:
        Images ``(N, C, H, W)`` in uint8, labels, scale factors, and the checksum of the realisation.

    Raises:
        SettingError: If the data set, split or realisation does not exist.
        DataError: If the data set has not been prepared; the message holds the command that prepares it.
        ChecksumError: If the prepared file is damaged.
        MissingExtraError: If the data set is made on demand and Pillow or scikit-learn is missing.

    Example:
        >>> train = load("digits-scale", split="train")
        >>> tuple(train.images.shape), train.num_classes
        ((1000, 1, 28, 28), 10)
    """
    info = dataset_info(name)
    if split not in info.split_sizes:
        raise SettingError(
            f"expected a split of {name} of {list(info.split_sizes)}, got {split!r}{_hint(split)}"
        )
    if realisation not in range(info.realisations):
        raise SettingError(
            f"expected a realisation of {name} of {list(range(info.realisations))}, got {realisation!r}"
        )
    read = info.read(realisation, data_root(root))
    arrays = read.splits[split]
    return Dataset(
        images=_image_tensor(arrays.images),
        labels=torch.tensor(arrays.labels, dtype=torch.int64),
        factors=torch.tensor(arrays.factors),
        info=info,
        split=split,
        realisation=realisation,
        checksum=read.checksum,
    )


def _image_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``(N, C, H, W)`` over the memory of the array, which may be mapped from a file."""
    tensor = torch.from_numpy(images)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor  # (N, H, W) -> (N, C, H, W)


def _hint(split: str) -> str:
    return "; it has no validation images: train without them" if split == "val" else ""
