"""The size of what stands out: blobs of known size, and how wrong it is elsewhere."""

import math

import pytest
import torch

from equiscale.choose import factor_range, strongest_scales
from equiscale.errors import SettingError, ShapeError


def blob(
    deviation: float, size: tuple[int, int] = (64, 64), at: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 - c for n, c in zip(size, at, strict=True))
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * deviation**2))[None]


@pytest.mark.parametrize("size", [(64, 64), (61, 64), (64, 61), (61, 90)])
def test_a_blob_has_its_own_scale(size: tuple[int, int]) -> None:
    deviations = [2.5, 3.3, 5.0, 8.0]
    found = strongest_scales(torch.stack([blob(d, size) for d in deviations]))
    assert found.tolist() == pytest.approx(deviations, rel=0.03)
    assert strongest_scales(blob(1.5, size)[None]).item() == pytest.approx(1.5, rel=0.08)


def test_place_contrast_background_and_sign_do_not_matter() -> None:
    reference = strongest_scales(blob(4.0)[None])
    for other in (blob(4.0, at=(9, -7)), 3 + 0.1 * blob(4.0), 1 - blob(4.0)):
        assert torch.allclose(strongest_scales(other[None]), reference, rtol=0.01)
    assert strongest_scales((255 * blob(4.0)[None]).to(torch.uint8)).item() == pytest.approx(4.0, rel=0.03)


def test_the_stronger_of_two_blobs_counts() -> None:
    small, large = blob(2.0, at=(-16, -16)), blob(6.0, at=(10, 10))
    assert strongest_scales((3 * small + large)[None]).item() == pytest.approx(2.0, rel=0.05)
    assert strongest_scales((small + 3 * large)[None]).item() == pytest.approx(6.0, rel=0.05)


def test_the_known_spread_of_generated_blobs_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    deviations = 2.0 * 4.0 ** torch.rand(60, generator=generator, dtype=torch.float64)
    places = (20 * torch.rand(60, 2, generator=generator) - 10).tolist()
    images = torch.stack(
        [blob(d, (96, 96), (y, x)) for d, (y, x) in zip(deviations.tolist(), places, strict=True)]
    )
    truth = factor_range(deviations.tolist())
    assert 3.0 < truth[1] / truth[0] < 4.0
    noisy = images + 0.02 * torch.randn(images.shape, generator=generator)
    for shown in (images, noisy):
        low, high = factor_range(strongest_scales(shown).tolist())
        assert high / low == pytest.approx(truth[1] / truth[0], rel=0.05)


def test_a_part_that_stands_out_more_is_taken_for_the_object() -> None:
    """The weakness that the documentation tells of: a bright spot hides the large shape it lies on."""
    found = strongest_scales((blob(8.0) + 2 * blob(1.5, at=(3, 3)))[None]).item()
    assert found < 2.5


def test_constant_images_and_other_shapes_are_refused() -> None:
    with pytest.raises(SettingError, match="expected images that show something, got a constant one"):
        strongest_scales(torch.stack([blob(3.0), torch.ones(1, 64, 64)]))
    for shape in [(1, 64, 64), (1, 1, 15, 64), (0, 1, 64, 64)]:
        with pytest.raises(ShapeError, match=r"expected images \(N, C, H, W\) of at least 16 pixels a side"):
            strongest_scales(torch.zeros(shape))


def test_scales_end_at_a_quarter_of_the_shorter_side() -> None:
    assert strongest_scales(blob(30.0, (32, 80))[None]).item() <= 8.0 * (1 + 1e-9)
    assert math.isclose(strongest_scales(blob(0.3, (32, 32))[None]).item(), 1.0)
