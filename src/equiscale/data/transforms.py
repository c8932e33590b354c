"""Transforms of whole batches of tensors, on the device where they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from equiscale.errors import SettingError, ShapeError
from equiscale.functional.rescale import CUBIC_PILLOW, MNIST_SCALE_CENTER_OFFSET, rescale

ChannelValues: TypeAlias = float | tuple[float, ...]
"""One number for all channels, or one a channel."""

_WHITE: Final = 255
# Pillow truncates to whole grey levels in double precision. In single precision a whole level may come
# out a little below itself; this margin is far above that error and far below a grey level.
_ROUNDING_MARGIN: Final = 1e-3


@dataclass(frozen=True)
class BatchTransform:
    """A transform in two steps: numbers are drawn for a whole batch, and applied to any part of it.

    Of several processes that share a batch each draws the same numbers, and transforms its own images.

    Args:
        apply: From images and their rows of what was drawn to the transformed images.
        draw: From the shape of the whole batch, ``(B, C, H, W)``, and the epoch's generator to one row of
            numbers an image, ``(B, ...)``, on the CPU; None: nothing is drawn, and the rows are empty.

    Example:
        >>> halved = BatchTransform(lambda images, drawn: images / 2)
        >>> halved(torch.ones(1, 1, 1, 2)).tolist()
        [[[[0.5, 0.5]]]]
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[torch.Size, torch.Generator], Tensor] | None = None

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw for the images, and apply it to them."""
        return self.apply(images, self.drawn_for(images.shape, generator))

    def drawn_for(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        """What is drawn for a whole batch of a shape.

        Raises:
            SettingError: If something is to be drawn and there is no generator.
        """
        if self.draw is None:
            return torch.empty(shape[0], 0)
        if generator is None:
            raise SettingError("expected a generator for the augmentation, got None")
        return self.draw(shape, generator)


def normalize(images: Tensor, mean: ChannelValues, std: ChannelValues) -> Tensor:
    r"""Turn grey levels into normalised floats, :math:`(x / 255 - \mu) / \sigma`.

    Shapes:
        Any shape, kept; ``(..., C, H, W)`` where mean or deviation are one a channel.

    Args:
        images: Grey levels 0…255, uint8 or floating.
        mean: The mean :math:`\mu` of the values in 0…1, for all channels or one a channel.
        std: Their standard deviation :math:`\sigma`, likewise.

    Returns:
        float32 for integers, else the dtype of ``images``.

    Raises:
        SettingError: If ``std`` is not positive.
        ShapeError: If there is not one mean and deviation for each channel.

    Example:
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8), 0.5, 0.25)
        tensor([-2.,  2.])
        >>> normalize(torch.tensor([0.0, 255.0]).view(2, 1, 1), (0.0, 0.5), 1.0).flatten()
        tensor([0.0000, 0.5000])
    """
    deviations = std if isinstance(std, tuple) else (std,)
    if not all(deviation > 0 for deviation in deviations):
        raise SettingError(f"expected a positive standard deviation, got {std}")
    x = _as_float(images)
    return (x / _WHITE - _of_channels(mean, x)) / _of_channels(std, x)


def random_rescale(
    images: Tensor, *, low: float = 0.5, high: float = 2.0, generator: torch.Generator
) -> Tensor:
    r"""Scale each image by its own factor from :math:`U(\text{low}, \text{high})`, as Pillow does.

    Shapes:
        ``(B, ..., H, W)``, kept.

    Args:
        images: Grey levels 0…255, uint8 or floating.
        low: The smallest factor; below 1 makes the object smaller.
        high: The largest factor.
        generator: A generator of the CPU, from which alone the factors are drawn, so that they are the
            same on every device.

    Returns:
        Whole grey levels 0…255 as floats.

    Raises:
        ShapeError: If the images have no batch axis.
        SettingError: If not ``0 < low <= high``, or the generator is not of the CPU.

    Exactness:
        Within one grey level of Pillow's affine transform, and equal to it in nearly all pixels
        (``tests/data/test_transforms.py``).

    Source:
        The "+" of Sosnovik, Szmaja and Smeulders, 2020: factors U(0.5, 2) about MNIST-scale's centre.
    """
    if images.ndim < 3:
        raise ShapeError(f"expected a batch of images (B, ..., H, W), got shape {tuple(images.shape)}")
    return rescale_as_pillow(images, draw_factors(len(images), low=low, high=high, generator=generator))


def rescale_as_pillow(images: Tensor, factors: Tensor) -> Tensor:
    """Scale each image by its own given factor; the second step of `random_rescale`.

    Args:
        images: Grey levels 0…255, uint8 or floating, ``(B, ..., H, W)``.
        factors: ``(B,)``, as `draw_factors` gives them.
    """
    scaled = rescale(_as_float(images), factors, cubic=CUBIC_PILLOW, center_offset=MNIST_SCALE_CENTER_OFFSET)
    return (scaled + _ROUNDING_MARGIN).floor().clamp(0, _WHITE)


def draw_factors(count: int, *, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw scale factors from U(low, high), in double precision on the CPU.

    Raises:
        SettingError: If not ``0 < low <= high``, or the generator is not of the CPU.
    """
    if not 0 < low <= high:
        raise SettingError(f"expected 0 < low <= high as range of scale factors, got low={low}, high={high}")
    check_generator(generator)
    return low + (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)


def check_generator(generator: torch.Generator) -> None:
    """Refuse a generator of another device than the CPU.

    Raises:
        SettingError: If the generator is not of the CPU.
    """
    if generator.device.type != "cpu":
        raise SettingError(
            f"expected a generator of the CPU, got one of {generator.device}; "
            "draws on the CPU are the same for every device"
        )


def _of_channels(values: ChannelValues, x: Tensor) -> Tensor | float:
    """A number as it is; numbers a channel as ``(C, 1, 1)`` beside ``(..., C, H, W)``."""
    if not isinstance(values, tuple):
        return values
    if x.ndim < 3 or x.shape[-3] != len(values):
        raise ShapeError(
            f"expected images (..., {len(values)}, H, W) for a mean and deviation of {len(values)} channels, "
            f"got shape {tuple(x.shape)}"
        )
    return torch.tensor(values, dtype=x.dtype).view(-1, 1, 1).to(x.device, non_blocking=True)


def _as_float(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()
