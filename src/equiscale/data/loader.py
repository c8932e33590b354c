"""Batches of tensors that stay on their device, or are moved there a batch at a time."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from equiscale.data.transforms import BatchTransform
from equiscale.errors import SettingError, ShapeError

Transform: TypeAlias = Callable[[Tensor, torch.Generator | None], Tensor]
Share: TypeAlias = Callable[[int], Tensor]
"""From the size of a batch to the places in it, counted from 0, of the images that are wanted."""


class TensorBatches:
    """Batches of images and labels, without any work for single images.

    Args:
        images: ``(N, ...)``.
        labels: ``(N,)``, on the same device.
        batch_size: The size of the batches; the last one holds the rest.
        transform: Called with each batch of images and the epoch's generator. Of a shared batch a
            `BatchTransform` sees the images of the share alone; any other function sees the whole batch.
        shuffle: Whether each epoch visits the images in a new order.
        device: Where the batches are wanted, and transformed; None: where the images lie. To a GPU they
            travel from page-locked memory, while it computes.

    Raises:
        ShapeError: If there are not as many labels as images.
        SettingError: If the batch size is not positive, or the tensors lie on different devices.

    Example:
        >>> batches = TensorBatches(torch.zeros(5, 1, 2, 2), torch.arange(5), batch_size=2)
        >>> [labels.tolist() for _, labels in batches.epoch()]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        transform: Transform | None = None,
        shuffle: bool = False,
        device: torch.device | None = None,
    ) -> None:
        if len(images) != len(labels):
            raise ShapeError(
                f"expected one label for each image, got {len(images)} images and {len(labels)} labels"
            )
        if images.device != labels.device:
            raise SettingError(
                f"expected images and labels on one device, got {images.device} and {labels.device}"
            )
        if batch_size < 1:
            raise SettingError(f"expected a positive batch size, got {batch_size}")
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.transform = transform
        self.shuffle = shuffle
        self.device = images.device if device is None else device

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.images) // self.batch_size)

    @property
    def sizes(self) -> list[int]:
        """The number of images of each batch."""
        starts = range(0, len(self.images), self.batch_size)
        return [min(self.batch_size, len(self.images) - start) for start in starts]

    def epoch(
        self, generator: torch.Generator | None = None, *, share: Share | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the data.

        Args:
            generator: A generator of the CPU, from which alone the order and the transform draw.
            share: Which images of each batch are wanted; None: all. What is drawn does not depend on it.

        Yields:
            Of each batch the images that are wanted, and the labels of all.

        Raises:
            SettingError: If the data are shuffled and there is no generator of the CPU.
        """
        order = self._order(generator)
        return self._batches(order, generator, share)

    def _batches(
        self, order: Tensor | None, generator: torch.Generator | None, share: Share | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.images), self.batch_size):
            stop = start + self.batch_size
            chosen = slice(start, stop) if order is None else order[start:stop]
            labels = self._moved(self.labels[chosen])
            if share is None:
                images = self._transformed(self._moved(self.images[chosen]), generator)
            else:
                places = (torch.arange(len(self.images)) if order is None else order)[start:stop]
                images = self._shared(places, share(len(labels)), generator)
            yield images, labels

    def _transformed(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return images if self.transform is None else self.transform(images, generator)

    def _shared(self, places: Tensor, own: Tensor, generator: torch.Generator | None) -> Tensor:
        """The transformed images of a share, of a batch whose images lie at these places."""
        if self.transform is not None and not isinstance(self.transform, BatchTransform):
            return self._transformed(self._moved(self.images[places]), generator)[own]
        images = self._moved(self.images[places[own]])
        if self.transform is None:
            return images
        drawn = self.transform.drawn_for(torch.Size([len(places), *images.shape[1:]]), generator)
        return self.transform.apply(images, drawn[own])

    def _moved(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device:
            return tensor
        to_gpu = tensor.device.type == "cpu" and self.device.type == "cuda"
        # Only a copy from page-locked memory goes on while the processor prepares the next batch.
        return (tensor.pin_memory() if to_gpu else tensor).to(self.device, non_blocking=to_gpu)

    def _order(self, generator: torch.Generator | None) -> Tensor | None:
        if not self.shuffle:
            return None
        if generator is None or generator.device.type != "cpu":
            raise SettingError(
                f"expected a generator of the CPU for a shuffled epoch, got "
                f"{generator if generator is None else generator.device}; "
                "give torch.Generator().manual_seed(seed)"
            )
        # Drawn on the CPU, so that the order is the same for every device.
        return torch.randperm(len(self.images), generator=generator).to(self.images.device)
