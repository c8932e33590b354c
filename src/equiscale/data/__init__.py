"""Data sets, loaded as tensors that are checked against the published checksums."""

from pathlib import Path
from typing import Final

from equiscale.data import (
    digits_scale,
    image_folder,
    imagenette,
    mnist_large_scale,
    mnist_scale,
    mnist_stir,
    stl10,
)
from equiscale.data.dataset import Dataset, DatasetInfo, load_split, read_checked
from equiscale.data.loader import TensorBatches
from equiscale.data.root import data_root
from equiscale.data.transforms import normalize, random_rescale
from equiscale.errors import SettingError

__all__ = [
    "Dataset",
    "DatasetInfo",
    "TensorBatches",
    "check_available",
    "data_root",
    "dataset_info",
    "list_datasets",
    "load",
    "normalize",
    "random_rescale",
]

# A new data set is one file with an INFO, and one entry here.
_INFOS: Final = (
    mnist_scale.INFO,
    digits_scale.INFO,
    *mnist_large_scale.INFOS,
    *mnist_stir.INFOS,
    stl10.INFO,
    stl10.FOLDS_INFO,
    imagenette.INFO,
)
_REGISTRY: Final = {info.name: info for info in _INFOS}


def list_datasets() -> list[str]:
    """The names of all data sets.

    Example:
        >>> [name for name in list_datasets() if name.endswith("-scale")]
        ['digits-scale', 'mnist-scale']
    """
    return sorted(_REGISTRY)


def dataset_info(name: str, *, root: Path | str | None = None) -> DatasetInfo:
    """The description of a data set: citation, licence, sizes and normalisation.

    Args:
        name: A name that ``list_datasets`` gives, or ``"image-folder:PATH"`` for a folder of images
            (``equiscale.data.image_folder``).
        root: The folder of prepared data, which a folder of images needs; ``None`` as for ``data_root``.

    Raises:
        SettingError: If there is no data set of this name.
        DataError: If a folder of images cannot be read.

    Example:
        >>> dataset_info("mnist-scale").split_sizes["test"]
        50000
    """
    if name.startswith(image_folder.PREFIX):
        return image_folder.folder_info(image_folder.parse_name(name), root)
    if name not in _REGISTRY:
        raise SettingError(f"expected a data set of {list_datasets()} or 'image-folder:PATH', got {name!r}")
    return _REGISTRY[name]


def load(name: str, *, split: str, realisation: int = 0, root: Path | str | None = None) -> Dataset:
    """Load one split of one realisation and check it.

    Args:
        name: A name that ``list_datasets`` gives, or ``"image-folder:PATH"`` for a folder of images.
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
    info = dataset_info(name, root=root)
    return load_split(info, split=split, realisation=realisation, root=data_root(root))


def check_available(name: str, *, realisation: int = 0, root: Path | str | None = None) -> None:
    """Find out before any work whether ``load`` will find a realisation, as cheaply as the data set allows.

    Images that are made on demand are not made, and prepared ones that lie in mapped files are not read.

    Args:
        name: A name that ``list_datasets`` gives, or ``"image-folder:PATH"`` for a folder of images.
        realisation: The number of the realisation.
        root: The folder of prepared data; ``None`` as for ``data_root``.

    Raises:
        SettingError: If the data set or the realisation does not exist.
        DataError: If the data set has not been prepared; the message holds the command that prepares it.
        ChecksumError: If the prepared file is damaged.
        MissingExtraError: If the data set is made from packages of which one is missing.

    Example:
        >>> check_available("digits-scale", realisation=5)
    """
    read_checked(dataset_info(name, root=root), realisation, data_root(root))
