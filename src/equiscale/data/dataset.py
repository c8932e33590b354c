"""What a data set is: the description that the registry holds, and the tensors that loading returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from equiscale.data.scale_recipe import Split


@dataclass(frozen=True)
class Realisation:
    """The arrays of one realisation and their checksum.

    Args:
        splits: The splits by name.
        checksum: SHA-256 over all arrays, as hex digits.
    """

    splits: Mapping[str, Split]
    checksum: str


@dataclass(frozen=True)
class DatasetInfo:
    """One row of the registry.

    Args:
        name: The name by which the data set is loaded.
        citation: Where it was published.
        licence: The licence of its images.
        image_shape: ``(C, H, W)``.
        num_classes: The number of classes.
        split_sizes: The number of images of each split.
        realisations: How many realisations there are, numbered from 0.
        mean: The mean of the pixel values in 0…1 that normalises the images.
        std: Their standard deviation.
        read: Returns a realisation, given its number and the folder of prepared data.
    """

    name: str
    citation: str
    licence: str
    image_shape: tuple[int, int, int]
    num_classes: int
    split_sizes: Mapping[str, int]
    realisations: int
    mean: float
    std: float
    read: Callable[[int, Path], Realisation]


@dataclass(frozen=True)
class Dataset:
    """One split of one realisation.

    Args:
        images: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64.
        factors: ``(N,)``, float64: the scale factor of each image.
        info: The row of the registry.
        split: The split.
        realisation: The number of the realisation.
        checksum: SHA-256 over the arrays of the whole realisation, as hex digits.
    """

    images: Tensor
    labels: Tensor
    factors: Tensor
    info: DatasetInfo
    split: str
    realisation: int
    checksum: str

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.info.name

    @property
    def mean(self) -> float:
        """The mean that normalises the images."""
        return self.info.mean

    @property
    def std(self) -> float:
        """The standard deviation that normalises the images."""
        return self.info.std

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.info.num_classes

    def __len__(self) -> int:
        return len(self.labels)
