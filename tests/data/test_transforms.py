from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from equiscale.data import load, normalize, random_rescale
from equiscale.data.transforms import draw_factors
from equiscale.errors import SettingError, ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pillow_rescale(image: torch.Tensor, factor: float) -> np.ndarray:
    center, inverse = 14.5, 1 / factor
    matrix = (inverse, 0, center - inverse * center, 0, inverse, center - inverse * center)
    scaled = Image.fromarray(image.numpy()).transform(
        (28, 28), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(scaled).astype(int)


def test_random_rescale_equals_pillow_within_one_grey_level() -> None:
    images = load("digits-scale", split="train").images[:200]
    scaled = random_rescale(images, generator=seeded())
    factors = draw_factors(200, low=0.5, high=2.0, generator=seeded())
    expected = np.stack(
        [pillow_rescale(image[0], factor.item()) for image, factor in zip(images, factors, strict=True)]
    )
    difference = np.abs(scaled[:, 0].numpy() - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.999


def test_random_rescale_gives_whole_grey_levels_as_floats() -> None:
    images = load("digits-scale", split="train").images[:50]
    scaled = random_rescale(images, generator=seeded())
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, scaled.round())
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert torch.equal(random_rescale(images.float(), generator=seeded()), scaled)


def test_random_rescale_at_factor_one_changes_nothing() -> None:
    images = load("digits-scale", split="train").images[:50]
    assert torch.equal(random_rescale(images, low=1.0, high=1.0, generator=seeded()), images.float())


def test_random_rescale_keeps_whole_levels_whole() -> None:
    images = torch.full((64, 1, 28, 28), 255, dtype=torch.uint8)
    scaled = random_rescale(images, low=1.1, high=2.0, generator=seeded())
    assert torch.equal(scaled[:, :, 4:24, 4:24], torch.full((64, 1, 20, 20), 255.0))


def test_factors_come_from_the_generator_alone_and_fill_the_range() -> None:
    torch.manual_seed(1)
    first = draw_factors(2000, low=0.5, high=2.0, generator=seeded())
    state = torch.get_rng_state()
    second = draw_factors(2000, low=0.5, high=2.0, generator=seeded())
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, draw_factors(2000, low=0.5, high=2.0, generator=seeded(1)))
    assert 0.5 <= first.min() < 0.51
    assert 1.99 < first.max() <= 2.0
    assert first.mean().item() == pytest.approx(1.25, abs=0.03)


def test_normalize_is_the_formula() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = (images.double() / 255 - 0.0607) / 0.2161
    torch.testing.assert_close(normalize(images, 0.0607, 0.2161).double(), expected, rtol=1e-5, atol=1e-6)
    assert normalize(images, 0.0607, 0.2161).dtype == torch.float32
    assert normalize(images.double(), 0.0607, 0.2161).dtype == torch.float64


def test_normalize_takes_one_mean_and_deviation_a_channel() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=seeded())
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    found = normalize(images, mean, std)
    for channel in range(3):
        expected = normalize(images[:, channel], mean[channel], std[channel])
        assert torch.equal(found[:, channel], expected)
    assert normalize(images.double(), mean, 0.5).dtype == torch.float64
    with pytest.raises(ShapeError, match=r"expected images \(..., 2, H, W\) for a mean .* got shape \(2, 3,"):
        normalize(images, (0.1, 0.2), 1.0)
    with pytest.raises(SettingError, match=r"positive standard deviation, got \(1.0, 0.0, 1.0\)"):
        normalize(images, mean, (1.0, 0.0, 1.0))


def test_refuses_settings_that_cannot_work() -> None:
    images = torch.zeros(2, 1, 4, 4)
    for low, high in [(0.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)]:
        with pytest.raises(
            SettingError, match=r"expected 0 < low <= high as range of scale factors, got low="
        ):
            random_rescale(images, low=low, high=high, generator=seeded())
    with pytest.raises(ShapeError, match=r"expected a batch of images \(B, ..., H, W\), got shape \(4, 4\)"):
        random_rescale(images[0, 0], generator=seeded())
    with pytest.raises(SettingError, match=r"expected a positive standard deviation, got 0"):
        normalize(images, 0.0, 0.0)


def test_a_generator_of_another_device_is_refused() -> None:
    other = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(SettingError, match=r"expected a generator of the CPU, got one of cuda"):
        random_rescale(torch.zeros(2, 1, 4, 4), generator=other)  # type: ignore[arg-type]
