"""The augmentation of natural images, on whole batches: padded, cropped, flipped, cut out.

Source:
    The published STL-10 training of Sosnovik, Szmaja and Smeulders, 2020, "Scale-equivariant steerable
    networks": pad by 12, crop 96, flip, normalise, and one hole of 32 pixels (DeVries and Taylor, 2017,
    "Improved regularization of convolutional neural networks with cutout").
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from equiscale.data.transforms import ChannelValues, check_generator, normalize
from equiscale.errors import SettingError, ShapeError

PAD: Final = 12
CROP: Final = 96
CUTOUT: Final = 32

_PAD_PART: Final = CROP // PAD
_CUTOUT_PART: Final = CROP // CUTOUT


@dataclass(frozen=True)
class Steps:
    """A batch after each step of the augmentation.

    Args:
        padded: ``(B, C, H + 2 pad, W + 2 pad)``, with zeros around.
        corners: ``(B, 2)``, the row and column of each crop's corner in the padded image.
        cropped: ``(B, C, crop, crop)``.
        mirrored: ``(B,)``, which are mirrored.
        flipped: Images as ``cropped``, some mirrored.
        cut: The same, normalised, each with one hole of zeros.
    """

    padded: Tensor
    corners: Tensor
    cropped: Tensor
    mirrored: Tensor
    flipped: Tensor
    cut: Tensor


def recipe_for(side: int) -> tuple[int, int]:
    """The frame and the hole for images of another side than STL-10's, in the published proportion.

    Args:
        side: Side of the images, in pixels.

    Returns:
        ``(pad, cutout)``, rounded down to whole pixels.

    Example:
        >>> recipe_for(96), recipe_for(28)
        ((12, 32), (3, 9))
    """
    return side // _PAD_PART, side // _CUTOUT_PART


def crop_flip_cutout(
    images: Tensor,
    *,
    pad: int = PAD,
    crop: int = CROP,
    cutout: int = CUTOUT,
    mean: ChannelValues,
    std: ChannelValues,
    generator: torch.Generator,
) -> Tensor:
    r"""Pad, crop, flip, normalise and cut out, as published for STL-10.

    Shapes:
        ``(B, C, H, W)`` to ``(B, C, crop, crop)``.

    Args:
        images: Grey levels 0…255, uint8 or floating, on any device.
        pad: Width of the frame of zeros that is put around each image, in pixels.
        crop: Side of the part that is kept, in pixels.
        cutout: Side of the hole, in pixels; 0 for none.
        mean: The mean :math:`\mu` of the values in 0…1, for all channels or one a channel.
        std: Their standard deviation :math:`\sigma`, likewise.
        generator: A generator of the CPU, from which alone corners, mirrorings and holes are drawn, so that
            they are the same on every device.

    Returns:
        float32 for integers, else the dtype of ``images``. The hole holds 0, the mean grey.

    Raises:
        ShapeError: If the images are not ``(B, C, H, W)``.
        SettingError: If a size does not fit, or the generator is not of the CPU.

    Exactness:
        Equal, bit for bit, to padding, slicing and filling each image by itself
        (``tests/data/test_augment.py``).

    Example:
        >>> images = torch.full((2, 3, 96, 96), 255, dtype=torch.uint8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> crop_flip_cutout(images, mean=0.5, std=0.25, generator=generator).shape
        torch.Size([2, 3, 96, 96])
    """
    _check_batch(images)
    drawn = draw_crop_flip_cutout(images.shape, pad=pad, crop=crop, generator=generator)
    return apply_crop_flip_cutout(images, drawn, pad=pad, crop=crop, cutout=cutout, mean=mean, std=std)


def draw_crop_flip_cutout(shape: torch.Size, *, pad: int, crop: int, generator: torch.Generator) -> Tensor:
    """The first step of `crop_flip_cutout`: what is drawn, for every image of a batch.

    Args:
        shape: ``(B, C, H, W)``, of the whole batch.
        pad: As there.
        crop: As there.
        generator: A generator of the CPU.

    Returns:
        ``(B, 5)`` whole numbers: row and column of the crop's corner, whether it is mirrored, row and column
        of the hole's centre.

    Raises:
        SettingError: If a size does not fit, or the generator is not of the CPU.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> shape = torch.Size([2, 3, 8, 8])
        >>> draw_crop_flip_cutout(shape, pad=0, crop=8, generator=generator)[:, :2].tolist()
        [[0, 0], [0, 0]]
    """
    check_generator(generator)
    corners = _draw_corners(shape, crop, pad, generator)
    mirrored = _draw(2, shape[0], generator)
    return torch.cat([corners, mirrored[:, None], _draw_centers(shape[0], (crop, crop), generator)], 1)


def apply_crop_flip_cutout(
    images: Tensor,
    drawn: Tensor,
    *,
    pad: int,
    crop: int,
    cutout: int,
    mean: ChannelValues,
    std: ChannelValues,
) -> Tensor:
    """The second step of `crop_flip_cutout`, for the images of a whole batch or of a part of it.

    Args:
        images: As there.
        drawn: The rows of these images of what `draw_crop_flip_cutout` gave.
        pad: As there.
        crop: As there.
        cutout: As there.
        mean: As there.
        std: As there.

    Raises:
        ShapeError: If the images are not ``(B, C, H, W)``.
        SettingError: If the size of the hole is negative.
    """
    _check_batch(images)
    corners, mirrored, centers = drawn[:, :2], drawn[:, 2].to(torch.bool), drawn[:, 3:]
    flipped = _flip(_crop(images, crop, pad, corners), mirrored)
    return _cut(normalize(flipped, mean, std), cutout, centers)


def steps(images: Tensor, *, mean: ChannelValues, std: ChannelValues, seed: int) -> Steps:
    """What ``crop_flip_cutout`` does to square images by ``recipe_for`` their side, one step after the other.

    Example:
        >>> shown = steps(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), mean=0.5, std=0.25, seed=0)
        >>> tuple(shown.padded.shape), tuple(shown.cut.shape)
        ((2, 3, 120, 120), (2, 3, 96, 96))
    """
    generator = torch.Generator().manual_seed(seed)
    side = images.shape[-1]
    pad, cutout = recipe_for(side)
    drawn = draw_crop_flip_cutout(images.shape, pad=pad, crop=side, generator=generator)
    corners, mirrored, centers = drawn[:, :2], drawn[:, 2].to(torch.bool), drawn[:, 3:]
    cropped = _crop(images, side, pad, corners)
    flipped = _flip(cropped, mirrored)
    cut = _cut(normalize(flipped, mean, std), cutout, centers)
    return Steps(F.pad(images, [pad] * 4), corners, cropped, mirrored, flipped, cut)


def random_crop(images: Tensor, size: int, *, pad: int = 0, generator: torch.Generator) -> Tensor:
    r"""Put a frame of zeros around each image and keep a square at a random place.

    .. math:: y_b = \hat x_b[:, i_b : i_b + n, j_b : j_b + n], \quad
        i_b \sim U\{0 \dots H + 2p - n\},\; j_b \sim U\{0 \dots W + 2p - n\}

    Shapes:
        ``(B, C, H, W)`` to ``(B, C, size, size)``.

    Args:
        images: Any dtype, on any device.
        size: Side :math:`n` of the square, in pixels.
        pad: Width :math:`p` of the frame, in pixels.
        generator: A generator of the CPU.

    Raises:
        ShapeError: If the images are not ``(B, C, H, W)``.
        SettingError: If the square does not fit into the padded image, or the generator is not of the CPU.

    Example:
        >>> random_crop(torch.ones(1, 1, 2, 2), 2, generator=torch.Generator()).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    _check_batch(images)
    check_generator(generator)
    return _crop(images, size, pad, _draw_corners(images.shape, size, pad, generator))


def random_flip(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Shapes:
        ``(B, C, H, W)``, kept.

    Args:
        images: Any dtype, on any device.
        generator: A generator of the CPU.

    Raises:
        ShapeError: If the images are not ``(B, C, H, W)``.
        SettingError: If the generator is not of the CPU.

    Example:
        >>> flipped = random_flip(torch.arange(2.0).expand(100, 1, 1, 2), generator=torch.Generator())
        >>> sorted({tuple(image.flatten().tolist()) for image in flipped})
        [(0.0, 1.0), (1.0, 0.0)]
    """
    _check_batch(images)
    check_generator(generator)
    return _flip(images, _draw(2, len(images), generator).to(torch.bool))


def random_cutout(images: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
    r"""Set a square of each image to 0; its centre is uniform over the image, its rest is clipped.

    .. math:: y_{b c h w} = 0 \text{ where } h - i_b,\, w - j_b \in [-\lfloor n/2 \rfloor,
        n - \lfloor n/2 \rfloor), \quad i_b \sim U\{0 \dots H - 1\},\; j_b \sim U\{0 \dots W - 1\}

    Shapes:
        ``(B, C, H, W)``, kept.

    Args:
        images: Any dtype, on any device; normalised, so that 0 is the mean grey.
        size: Side :math:`n` of the square, in pixels; 0 for none.
        generator: A generator of the CPU.

    Raises:
        ShapeError: If the images are not ``(B, C, H, W)``.
        SettingError: If the size is negative, or the generator is not of the CPU.

    Example:
        >>> random_cutout(torch.ones(1, 1, 3, 3), 2, generator=torch.Generator().manual_seed(1))[0, 0]
        tensor([[1., 0., 0.],
                [1., 0., 0.],
                [1., 1., 1.]])
    """
    _check_batch(images)
    check_generator(generator)
    height, width = images.shape[2:]
    return _cut(images, size, _draw_centers(len(images), (height, width), generator))


def _draw_centers(count: int, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Row and column of each hole's centre, ``(B, 2)``."""
    return torch.stack([_draw(side, count, generator) for side in sides], 1)


def _cut(images: Tensor, size: int, centers: Tensor) -> Tensor:
    if size < 0:
        raise SettingError(f"expected a cutout of at least 0 pixels, got {size}")
    rows, columns = (
        _inside(axis, size, side) for axis, side in zip(centers.unbind(1), images.shape[2:], strict=True)
    )
    rows, columns = (axis.to(images.device, non_blocking=True) for axis in (rows, columns))
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(hole, 0)  # (B, 1, H, W) on (B, C, H, W)


def _draw_corners(shape: torch.Size, size: int, pad: int, generator: torch.Generator) -> Tensor:
    """Row and column of each crop's corner in the padded image, ``(B, 2)``."""
    height, width = (side + 2 * pad for side in shape[2:])
    if pad < 0 or not 1 <= size <= min(height, width):
        raise SettingError(
            f"expected pad >= 0 and a crop of 1 to {min(height, width)} pixels for images of "
            f"{shape[2]}×{shape[3]} with pad={pad}, got a crop of {size}"
        )
    choices = (height - size + 1, width - size + 1)
    return torch.stack([_draw(count, shape[0], generator) for count in choices], 1)


def _crop(images: Tensor, size: int, pad: int, corners: Tensor) -> Tensor:
    rows, columns = corners.to(images.device, non_blocking=True).unbind(1)
    # A view of all squares, (B, C, rows, columns, size, size), of which each image keeps one.
    squares = F.pad(images, [pad] * 4).unfold(2, size, 1).unfold(3, size, 1)
    return squares[torch.arange(len(images), device=images.device), :, rows, columns]


def _flip(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(
        mirrored.to(images.device, non_blocking=True).view(-1, 1, 1, 1), images.flip(3), images
    )


def _inside(centers: Tensor, size: int, side: int) -> Tensor:
    """Which of the positions 0…side−1 lie in the square about each centre: ``(B, side)``."""
    offset = torch.arange(side) - centers[:, None]
    return (offset >= -(size // 2)) & (offset < size - size // 2)


def _draw(choices: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(choices, (count,), generator=generator)


def _check_batch(images: Tensor) -> None:
    if images.ndim != 4:
        raise ShapeError(f"expected a batch of images (B, C, H, W), got shape {tuple(images.shape)}")
