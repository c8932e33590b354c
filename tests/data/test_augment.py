"""The augmentation against one image at a time in NumPy, and the distribution of its draws."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equiscale.data.augment import (
    crop_flip_cutout,
    random_crop,
    random_cutout,
    random_flip,
    recipe_for,
    steps,
)
from equiscale.errors import SettingError, ShapeError

MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(generator: torch.Generator, *choices: int, count: int) -> list[np.ndarray]:
    return [torch.randint(n, (count,), generator=generator).numpy() for n in choices]


def photographs(count: int = 7, height: int = 96, width: int = 96) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def cropped_one_by_one(images: np.ndarray, size: int, pad: int, generator: torch.Generator) -> np.ndarray:
    height, width = images.shape[2] + 2 * pad, images.shape[3] + 2 * pad
    rows, columns = draws(generator, height - size + 1, width - size + 1, count=len(images))
    kept = []
    for image, row, column in zip(images, rows, columns, strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        kept.append(padded[:, row : row + size, column : column + size])
    return np.stack(kept)


def flipped_one_by_one(images: np.ndarray, generator: torch.Generator) -> np.ndarray:
    (mirrored,) = draws(generator, 2, count=len(images))
    pairs = zip(images, mirrored, strict=True)
    return np.stack([image[:, :, ::-1] if wanted else image for image, wanted in pairs])


def cut_one_by_one(images: np.ndarray, size: int, generator: torch.Generator) -> np.ndarray:
    height, width = images.shape[2:]
    rows, columns = draws(generator, height, width, count=len(images))
    images = images.copy()
    for image, row, column in zip(images, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return images


@pytest.mark.parametrize(
    ("height", "width", "size", "pad"), [(96, 96, 96, 12), (20, 31, 24, 3), (9, 9, 5, 0)]
)
def test_crop_equals_slicing_padded_images(height: int, width: int, size: int, pad: int) -> None:
    images = photographs(9, height, width)
    found = random_crop(images, size, pad=pad, generator=seeded(1))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), cropped_one_by_one(images.numpy(), size, pad, seeded(1)))


def test_flip_equals_mirroring_some_images() -> None:
    images = photographs(20, 8, 5)
    found = random_flip(images, generator=seeded(2))
    expected = flipped_one_by_one(images.numpy(), seeded(2))
    assert np.array_equal(found.numpy(), expected)
    assert not np.array_equal(found.numpy(), images.numpy())
    assert not np.array_equal(found.numpy(), images.flip(3).numpy())


@pytest.mark.parametrize("size", [32, 5, 1, 0, 300])
def test_cutout_equals_filling_a_clipped_square(size: int) -> None:
    images = photographs(40, 96, 70).float()
    found = random_cutout(images, size, generator=seeded(3))
    assert np.array_equal(found.numpy(), cut_one_by_one(images.numpy(), size, seeded(3)))


def test_all_steps_in_the_published_order() -> None:
    """Padding is black before the normalisation, the hole is grey after it."""
    images, generator = photographs(), seeded(4)
    found = crop_flip_cutout(images, mean=MEAN, std=STD, generator=seeded(4))
    x = cropped_one_by_one(images.numpy(), 96, 12, generator)
    x = flipped_one_by_one(x, generator)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    x = cut_one_by_one((x / np.float32(255) - mean) / std, 32, generator)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), x, rtol=0, atol=1e-6)
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
    assert ((found - black).abs() < 1e-5).all(1).any(), "some crop reaches into the frame"
    assert (found == 0).all(1).any()


def test_the_steps_one_by_one_lead_to_the_same_batch() -> None:
    shown = steps(photographs(), mean=MEAN, std=STD, seed=5)
    assert torch.equal(shown.cut, crop_flip_cutout(photographs(), mean=MEAN, std=STD, generator=seeded(5)))
    assert torch.equal(shown.padded[:, :, 12:-12, 12:-12], photographs())
    assert shown.padded.long().sum() == photographs().long().sum()
    assert torch.equal(shown.cropped, random_crop(photographs(), 96, pad=12, generator=seeded(5)))
    (row, column), padded = shown.corners[0].tolist(), shown.padded[0]
    assert torch.equal(padded[:, row : row + 96, column : column + 96], shown.cropped[0])
    for mirrored, before, after in zip(shown.mirrored, shown.cropped, shown.flipped, strict=True):
        assert torch.equal(after, before.flip(2) if mirrored else before)


@pytest.mark.parametrize(("side", "pad", "cutout"), [(64, 8, 21), (28, 3, 9), (96, 12, 32)])
def test_the_steps_of_other_sizes_keep_the_published_proportion(side: int, pad: int, cutout: int) -> None:
    images = photographs()[..., :side, :side]
    assert recipe_for(side) == (pad, cutout)
    shown = steps(images, mean=MEAN, std=STD, seed=5)
    trained = crop_flip_cutout(
        images, pad=pad, crop=side, cutout=cutout, mean=MEAN, std=STD, generator=seeded(5)
    )
    assert torch.equal(shown.cut, trained)
    assert shown.padded.shape[-1] == side + 2 * pad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_floating_dtypes(dtype: torch.dtype) -> None:
    images = photographs()
    found = crop_flip_cutout(images.to(dtype), mean=MEAN, std=STD, generator=seeded())
    exact = crop_flip_cutout(images.double(), mean=MEAN, std=STD, generator=seeded())
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 0.0}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)


def test_draws_are_the_generators_and_nobody_elses() -> None:
    state = torch.get_rng_state()
    first = crop_flip_cutout(photographs(), mean=MEAN, std=STD, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, crop_flip_cutout(photographs(), mean=MEAN, std=STD, generator=seeded()))
    assert not torch.equal(first, crop_flip_cutout(photographs(), mean=MEAN, std=STD, generator=seeded(1)))


def test_every_corner_mirroring_and_centre_is_equally_likely() -> None:
    count = 25_000
    numbers = torch.arange(25.0).view(1, 1, 5, 5).expand(count, 1, 5, 5)
    corners = torch.bincount(random_crop(numbers, 1, generator=seeded()).long().flatten(), minlength=25)
    centres = random_cutout(torch.ones(count, 1, 5, 5), 1, generator=seeded())
    mirrored = random_flip(torch.arange(2.0).expand(count, 1, 1, 2), generator=seeded())[:, 0, 0, 0]
    for seen in (corners.double(), (1 - centres).double().sum((0, 1)).flatten()):
        assert seen.sum() == count
        assert ((seen - 1000).abs() < 5 * 31).all()  # binomial: standard deviation 31
    assert abs(mirrored.sum().item() - count / 2) < 5 * 79


def test_the_hole_covers_what_its_clipping_leaves() -> None:
    cut = random_cutout(torch.ones(4000, 1, 96, 96), 32, generator=seeded())
    one_axis = np.mean([min(c + 16, 96) - max(c - 16, 0) for c in range(96)])
    share = 1 - cut.mean().item()
    assert share == pytest.approx((one_axis / 96) ** 2, rel=0.02)
    assert share < (32 / 96) ** 2 * 0.9


def test_refuses_settings_that_cannot_work() -> None:
    images = torch.zeros(2, 3, 8, 10)
    with pytest.raises(
        SettingError, match=r"a crop of 1 to 10 pixels for images of 8×10 with pad=1, got a crop of 11"
    ):
        random_crop(images, 11, pad=1, generator=seeded())
    with pytest.raises(SettingError, match=r"expected pad >= 0 .* with pad=-1"):
        random_crop(images, 4, pad=-1, generator=seeded())
    with pytest.raises(SettingError, match=r"expected a cutout of at least 0 pixels, got -1"):
        random_cutout(images, -1, generator=seeded())
    other = SimpleNamespace(device=torch.device("cuda"))
    for step in (lambda x, g: random_crop(x, 4, generator=g), lambda x, g: random_cutout(x, 4, generator=g)):
        with pytest.raises(SettingError, match=r"expected a generator of the CPU, got one of cuda"):
            step(images, other)
        with pytest.raises(ShapeError, match=r"images \(B, C, H, W\), got shape \(3, 8, 10\)"):
            step(images[0], seeded())
    with pytest.raises(SettingError, match=r"expected a generator of the CPU"):
        random_flip(images, generator=other)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"images \(B, C, H, W\)"):
        random_flip(images[0], generator=seeded())
    with pytest.raises(ShapeError, match=r"images \(..., 2, H, W\) for a mean and deviation of 2 channels"):
        crop_flip_cutout(images, crop=8, mean=(0.5, 0.5), std=(1.0, 1.0), generator=seeded())
