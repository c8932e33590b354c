"""What a data set is: the description that the registry holds, and the tensors that loading returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from equiscale.citations import Citation
from equiscale.data.scale_recipe import Split
from equiscale.data.transforms import ChannelValues
from equiscale.errors import SettingError


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
class Preparation:
    """What a user asks for when a data set is to be prepared.

    Args:
        root: The folder of prepared data; ``None`` as for ``equiscale.data.data_root``.
        source: Where the original files are; ``None`` for the data set's own place.
        download: Whether to download them.
        realisations: Which realisations; ``None`` for all.
        png: Whether to write the published PNG files too.
        progress: Called with a line of text after each step.
    """

    root: Path | None = None
    source: Path | None = None
    download: bool = False
    realisations: Sequence[int] | None = None
    png: bool = False
    progress: Callable[[str], None] | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """One row of the registry.

    Args:
        name: The name by which the data set is loaded.
        title: What it is, in a few words.
        citation: Where it was published; None for people's own images.
        licence: The licence of its images.
        image_shape: ``(C, H, W)``.
        num_classes: The number of classes.
        split_sizes: The number of images of each split; natural images have no ``"val"``.
        realisations: How many realisations there are, numbered from 0.
        mean: The mean of the pixel values in 0…1 that normalises the images; of colour images one a channel.
        std: Their standard deviation, likewise.
        read: Returns a realisation, given its number and the folder of prepared data.
        prepare: Makes the prepared files; None where the data set is made when it is loaded.
        class_names: The classes in the order of their labels, where they have names.
        factor_edges: Edges of the bins of scale factors in which test mistakes are counted; None for the
            bins of MNIST-scale, or where images have no factor.
        notes: What a record of a run on these data should say of them, such as images that were left out.
    """

    name: str
    title: str
    citation: Citation | None
    licence: str
    image_shape: tuple[int, int, int]
    num_classes: int
    split_sizes: Mapping[str, int]
    realisations: int
    mean: ChannelValues
    std: ChannelValues
    read: Callable[[int, Path], Realisation]
    prepare: Callable[[Preparation], object] | None = None
    class_names: tuple[str, ...] = ()
    factor_edges: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


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
    def mean(self) -> ChannelValues:
        """The mean that normalises the images."""
        return self.info.mean

    @property
    def std(self) -> ChannelValues:
        """The standard deviation that normalises the images."""
        return self.info.std

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.info.num_classes

    def __len__(self) -> int:
        return len(self.labels)


def load_split(info: DatasetInfo, *, split: str, realisation: int, root: Path) -> Dataset:
    """Read one split of a described data set; images that are mapped from a file stay there.

    Raises:
        SettingError: If the data set has no such split or realisation.
        DataError: If the data set has not been prepared, or is damaged.
    """
    if split not in info.split_sizes:
        hint = "; it has no validation images: train without them" if split == "val" else ""
        raise SettingError(
            f"expected a split of {info.name} of {list(info.split_sizes)}, got {split!r}{hint}"
        )
    read = read_checked(info, realisation, root)
    arrays = read.splits[split]
    images = torch.from_numpy(arrays.images)
    return Dataset(
        images=images.unsqueeze(1) if images.ndim == 3 else images,  # (N, H, W) -> (N, C, H, W)
        labels=torch.tensor(arrays.labels, dtype=torch.int64),
        factors=torch.tensor(arrays.factors),
        info=info,
        split=split,
        realisation=realisation,
        checksum=read.checksum,
    )


def read_checked(info: DatasetInfo, realisation: int, root: Path) -> Realisation:
    """Open a realisation; images that are made on demand are not made yet, mapped ones stay in their files.

    Raises:
        SettingError: If the data set has no such realisation.
        DataError: If the data set has not been prepared, or is damaged.
    """
    if realisation not in range(info.realisations):
        raise SettingError(
            f"expected a realisation of {info.name} of {list(range(info.realisations))}, got {realisation!r}"
        )
    return info.read(realisation, root)
