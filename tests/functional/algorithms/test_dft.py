"""Transforms as products with matrices, against torch.fft in double precision."""

import math

import pytest
import torch
from torch import Tensor

from equiscale.functional.algorithms import dft
from equiscale.functional.algorithms.dft import (
    Periods,
    Pixels,
    add_spectrum_adjoint,
    add_synthesis,
    filter_spectrum,
    spectrum,
    synthesis,
    synthesis_adjoint,
)

PERIODS = [Periods(1, 1), Periods(6, 6), Periods(7, 9), Periods(8, 5), Periods(12, 11)]
every_period = pytest.mark.parametrize("periods", PERIODS, ids=lambda p: f"{p.height}x{p.width}")


def images(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)  # (B, C, H, W)


def in_order(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1).contiguous()  # (W, H, B, C)


def as_complex(parts: tuple[Tensor, Tensor], periods: Periods) -> Tensor:
    """(B, C, P, half) as torch.fft.rfft2 has it."""
    whole = torch.complex(*parts).unflatten(0, (periods.half, periods.height))
    return whole.permute(2, 3, 1, 0)


def every_pixel(periods: Periods) -> Pixels:
    return Pixels(periods, tuple(range(periods.height)), tuple(range(periods.width)))


def bands(periods: Periods, step: int) -> list[slice]:
    return [slice(start, min(start + step, periods.half)) for start in range(0, periods.half, step)]


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@every_period
def test_spectrum_equals_the_fast_transform_with_zeros_after(
    periods: Periods, generator: torch.Generator
) -> None:
    for lost in (0, 1):
        size = max(1, periods.height - lost), max(1, periods.width - 2 * lost)
        x = images(size, generator)
        expected = torch.fft.rfft2(x, s=(periods.height, periods.width))
        parts = spectrum(in_order(x), periods)
        assert parts[0].shape == (periods.frequencies, 2, 3)
        assert_equal(as_complex(parts, periods), expected)


@every_period
def test_synthesis_is_the_inverse_at_all_pixels(periods: Periods, generator: torch.Generator) -> None:
    x = images((periods.height, periods.width), generator)
    pixels = synthesis(spectrum(in_order(x), periods), every_pixel(periods))
    assert_equal(pixels, in_order(x))
    assert pixels.is_contiguous()


def test_synthesis_gives_the_pixels_asked_for_modulo_the_periods(generator: torch.Generator) -> None:
    periods, rows, columns = Periods(7, 8), (-2, 0, 6, 8), (3, -1, 9)
    x = images((7, 8), generator)
    pixels = synthesis(spectrum(in_order(x), periods), Pixels(periods, rows, columns))
    expected = x[:, :, [row % 7 for row in rows]][..., [column % 8 for column in columns]]
    assert_equal(pixels, in_order(expected))


def test_synthesis_takes_products_as_the_fast_transform_does(generator: torch.Generator) -> None:
    """Not the transform of any image by rounding alone: both parts of any frequencies."""
    periods = Periods(6, 8)
    parts = torch.randn(2, periods.frequencies, 2, 3, dtype=torch.float64, generator=generator).unbind()
    whole = torch.complex(*parts).unflatten(0, (periods.half, periods.height)).permute(2, 3, 1, 0)
    expected = torch.fft.irfft2(whole, s=(6, 8))
    assert_equal(synthesis(parts, Pixels(periods, tuple(range(6)), tuple(range(8)))), in_order(expected))


@every_period
def test_products_with_the_spectrum_of_filters_correlate(
    periods: Periods, generator: torch.Generator
) -> None:
    side = min(3, periods.height, periods.width)
    basis = torch.randn(4, side, side, dtype=torch.float64, generator=generator)
    x = images((periods.height, periods.width), generator)
    real, imaginary = filter_spectrum(basis, periods)
    assert real.shape == (periods.frequencies, 4)
    seen = torch.complex(*spectrum(in_order(x), periods))
    for function in range(4):
        product = seen * torch.complex(real, imaginary)[:, function, None, None]
        actual = synthesis((product.real, product.imag), every_pixel(periods))
        expected = sum(
            basis[function, row, column] * x.roll((-row, -column), (-2, -1))
            for row in range(side)
            for column in range(side)
        )
        assert_equal(actual, in_order(expected))


def test_derivatives() -> None:
    periods = Periods(5, 4)
    x = torch.randn(3, 4, 1, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x: Tensor) -> Tensor:
        real, imaginary = spectrum(x, periods)
        return synthesis((real * imaginary, imaginary), Pixels(periods, (0, 3), (1, -1, 2)))

    assert torch.autograd.gradcheck(there_and_back, x)
    assert torch.autograd.gradgradcheck(there_and_back, x)


def test_matrices_are_kept_for_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict = {}
    monkeypatch.setattr(dft, "_kept", kept)
    x = torch.randn(4, 5, 1, 1)
    spectrum(x, Periods(6, 6))
    count = len(kept)
    matrices = [id(matrix) for matrix in kept.values()]
    spectrum(x, Periods(6, 6))
    assert [id(matrix) for matrix in kept.values()] == matrices
    spectrum(x.double(), Periods(6, 6))
    assert len(kept) == 2 * count
    assert {matrix.dtype for matrix in kept.values()} == {torch.float32, torch.float64}


def test_matrices_kept_in_inference_mode_serve_training(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict = {}
    monkeypatch.setattr(dft, "_kept", kept)
    x = torch.randn(4, 5, 1, 1)
    with torch.inference_mode():
        spectrum(x, Periods(6, 6))
    assert kept
    assert not any(matrix.is_inference() or matrix.requires_grad for matrix in kept.values())
    real, imaginary = spectrum(x.requires_grad_(), Periods(6, 6))
    (real + imaginary).sum().backward()
    assert x.grad is not None


def test_phases_of_large_periods_are_not_rounded() -> None:
    """The product of frequency and position is reduced before it meets π."""
    size = 509
    x = torch.zeros(size, 1, 1, 1, dtype=torch.float64)
    x[-1] = 1
    real, _ = spectrum(x, Periods(1, size))
    expected = [math.cos(2 * math.pi * (frequency * (size - 1) % size / size)) for frequency in range(255)]
    torch.testing.assert_close(
        real.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_matrices_of_ever_new_sizes_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict = {}
    monkeypatch.setattr(dft, "_kept", kept)
    monkeypatch.setattr(dft, "_MOST", 10)
    for size in range(2, 12):
        x = torch.randn(size, 3, 1, 1)
        real, _ = spectrum(x, Periods(4, size))
        torch.testing.assert_close(real[0], x.sum((0, 1)))
        assert len(kept) <= 10


# --- bands of frequencies, and adjoints ---


@every_period
def test_a_band_has_its_part_of_the_spectrum(periods: Periods, generator: torch.Generator) -> None:
    x = in_order(images((periods.height, periods.width), generator))
    whole = spectrum(x, periods)
    for step in (1, 2, periods.half):
        parts = [spectrum(x, periods, band) for band in bands(periods, step)]
        for number in (0, 1):
            assert_equal(torch.cat([part[number] for part in parts]), whole[number])


@every_period
def test_bands_add_up_to_the_pixels(periods: Periods, generator: torch.Generator) -> None:
    """The first band overwrites what was there before."""
    x = in_order(images((periods.height, periods.width), generator))
    wanted = Pixels(periods, (0, -1, 2), (1, periods.width + 3))
    expected = synthesis(spectrum(x, periods), wanted)
    pixels = torch.full_like(expected, float("nan"))
    for band in bands(periods, 2):
        add_synthesis(spectrum(x, periods, band), wanted, band, pixels)
    assert_equal(pixels, expected)


def inner(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    return sum(((a * b).sum() for a, b in zip(left, right, strict=True)), torch.zeros(()))


@every_period
def test_adjoints(periods: Periods, generator: torch.Generator) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, band by band."""
    x = in_order(images((max(1, periods.height - 1), periods.width), generator))
    wanted = Pixels(periods, (0, -1, 2), (1, periods.width + 3))
    for band in bands(periods, 2):
        seen = spectrum(x, periods, band)
        other = tuple(torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in seen)
        of_x = torch.zeros_like(x)
        add_spectrum_adjoint((other[0], other[1]), periods, band, of_x)
        assert_equal((of_x * x).sum(), inner(seen, (other[0], other[1])))

        pixels = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
        add_synthesis(seen, wanted, band, pixels)
        given = torch.randn(pixels.shape, dtype=torch.float64, generator=generator)
        assert_equal((pixels * given).sum(), inner(seen, synthesis_adjoint(given, wanted, band)))
