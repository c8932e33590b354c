"""Transforms of whole batches of tensors, on the device where they lie."""

from typing import Final

import torch
from torch import Tensor

from equiscale.errors import SettingError, ShapeError
from equiscale.functional.rescale import CUBIC_PILLOW, MNIST_SCALE_CENTER_OFFSET, rescale

_WHITE: Final = 255
# Pillow truncates to whole grey levels in double precision. In single precision a whole level may come
# out a little below itself; this margin is far above that error and far below a grey level.
_ROUNDING_MARGIN: Final = 1e-3


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    r"""Turn grey levels into normalised floats, :math:`(x / 255 - \mu) / \sigma`.

    Shapes:
        Any shape, kept.

    Args:
        images: Grey levels 0…255, uint8 or floating.
        mean: The mean :math:`\mu` of the values in 0…1.
        std: Their standard deviation :math:`\sigma`.

    Returns:
        float32 for integers, else the dtype of ``images``.

    Raises:
        SettingError: If ``std`` is not positive.

    Example:
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8), 0.5, 0.25)
        tensor([-2.,  2.])
    """
    if not std > 0:
        raise SettingError(f"expected a positive standard deviation, got {std}")
    return (_as_float(images) / _WHITE - mean) / std


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
    factors = draw_factors(len(images), low=low, high=high, generator=generator)
    scaled = rescale(_as_float(images), factors, cubic=CUBIC_PILLOW, center_offset=MNIST_SCALE_CENTER_OFFSET)
    return (scaled + _ROUNDING_MARGIN).floor().clamp(0, _WHITE)


def draw_factors(count: int, *, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw scale factors from U(low, high), in double precision on the CPU.

    Raises:
        SettingError: If not ``0 < low <= high``, or the generator is not of the CPU.
    """
    if not 0 < low <= high:
        raise SettingError(f"expected 0 < low <= high as range of scale factors, got low={low}, high={high}")
    if generator.device.type != "cpu":
        raise SettingError(
            f"expected a generator of the CPU, got one of {generator.device}; "
            "draws on the CPU are the same for every device"
        )
    return low + (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)


def _as_float(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()
