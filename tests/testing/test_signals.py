import math
from dataclasses import replace

import pytest
import torch

from equiscale.errors import SettingError
from equiscale.functional.rescale import rescale
from equiscale.testing import BandLimitedImage

COVERS = {"BandLimitedImage"}


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(2, 3, size=(33, 40), generator=generator)


def one_blob(**changes) -> BandLimitedImage:
    values = {
        "size": (9, 12),
        "centers": torch.tensor([[[[1.0, -2.5]]]], dtype=torch.float64),
        "widths": torch.tensor([[[3.0]]], dtype=torch.float64),
        "frequencies": torch.tensor([[[[0.4, 0.1]]]], dtype=torch.float64),
        "phases": torch.tensor([[[0.7]]], dtype=torch.float64),
        "amplitudes": torch.tensor([[[-2.0]]], dtype=torch.float64),
    }
    return BandLimitedImage(**{**values, **changes})


@pytest.mark.parametrize("scale", [1.0, 0.8, 1.7])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 7), (8, 11)])
def test_a_blob_is_its_formula(scale: float, row: int, column: int) -> None:
    y, x = (row - 4.0) / scale - 1.0, (column - 5.5) / scale + 2.5
    expected = -2 * math.exp(-(x**2 + y**2) / 18) * math.cos(0.4 * y + 0.1 * x + 0.7)
    rendered = one_blob().render(scale=scale)
    assert rendered.shape == (1, 1, 9, 12)
    assert rendered[0, 0, row, column].item() == pytest.approx(expected, abs=1e-15)


def test_blobs_add_up(image: BandLimitedImage) -> None:
    def part(blobs: slice) -> BandLimitedImage:
        names = ("centers", "widths", "frequencies", "phases", "amplitudes")
        return replace(image, **{name: getattr(image, name)[:, :, blobs] for name in names})

    total = part(slice(0, 3)).render() + part(slice(3, None)).render()
    torch.testing.assert_close(image.render(), total, rtol=0, atol=1e-13)
    assert (image.render() - part(slice(0, 7)).render()).abs().max() > 1e-3


def test_doubling_is_exact_at_every_second_pixel(image: BandLimitedImage) -> None:
    small, large = image.render((17, 21)), image.render((33, 41), scale=2.0)
    torch.testing.assert_close(large[..., ::2, ::2], small, rtol=0, atol=1e-12)


def test_agrees_with_resampling_up_to_interpolation(image: BandLimitedImage) -> None:
    inner = (..., slice(8, -8), slice(8, -8))
    resampled, rendered = rescale(image.render(), 1.3)[inner], image.render(scale=1.3)[inner]
    error = ((resampled - rendered).norm() / rendered.norm()).item()
    assert 1e-6 < error < 2e-3


def test_the_seed_decides_the_image() -> None:
    def draw(seed: int) -> torch.Tensor:
        return BandLimitedImage.random(
            1, 2, size=(8, 8), generator=torch.Generator().manual_seed(seed)
        ).render()

    state = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0)[:, 0], draw(0)[:, 1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("band", [0.15, 0.5])
def test_the_spectrum_ends_where_the_band_does(band: float, generator: torch.Generator) -> None:
    image = BandLimitedImage.random(1, 4, size=(128, 128), generator=generator, band=band)
    assert 0.5 * band * math.pi < image.highest_frequency <= band * math.pi * (1 + 1e-12)
    spectrum = torch.fft.fft2(image.render((256, 256))).abs().square()
    rate = torch.fft.fftfreq(256) * 2 * math.pi
    outside = (rate[:, None] ** 2 + rate**2).sqrt() > band * math.pi
    assert spectrum[..., outside].sum() < 1e-6 * spectrum.sum()
    assert spectrum[..., ~outside].sum() > 0.99 * spectrum.sum()


def test_refuses_scales_the_pixel_grid_cannot_hold(image: BandLimitedImage) -> None:
    smallest = image.highest_frequency / math.pi
    assert 0.15 < smallest <= 0.25
    assert torch.isfinite(image.render(scale=smallest * 1.0001)).all()
    for scale in (smallest * 0.99, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(
            SettingError, match=rf"finite scale of at least 0\.\d+, .*, got {scale}; use a lower"
        ):
            image.render(scale=scale)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": 0}, "got batch=0, channels=1"),
        ({"channels": 0}, "got batch=1, channels=0"),
        ({"size": (8, 0)}, r"size=\(8, 0\)"),
        ({"blobs": 0}, "blobs=0"),
        ({"band": 0.0}, r"band=0\.0"),
        ({"band": 1.5}, r"band=1\.5"),
    ],
)
def test_refuses_illegal_arguments(changes: dict, text: str, generator: torch.Generator) -> None:
    options = {"batch": 1, "channels": 1, "size": (8, 8), "generator": generator, **changes}
    with pytest.raises(SettingError, match=r"positive counts and a band in \(0, 1\], .*" + text):
        BandLimitedImage.random(options.pop("batch"), options.pop("channels"), **options)
