"""Products of transforms: periods, tiles, what is shared, and products of complex matrices."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from equiscale.functional import ConvGeometry, scale_conv2d
from equiscale.functional.algorithms import Convolution, FilterCache, algorithm, fourier_blocked
from equiscale.functional.algorithms import fourier as module
from equiscale.functional.algorithms.fourier import Cut, fourier, tiling
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.scales import ScaleGrid


def convolution(
    size: tuple[int, int] = (12, 11), *, kernel: int = 5, channels: int = 4, slots: int = 1, **geometry: Any
) -> Convolution:
    generator = torch.Generator().manual_seed(0)
    groups = geometry.get("groups", 1)
    return Convolution(
        torch.randn(2, channels * groups, 2, *size, dtype=torch.float64, generator=generator),
        torch.randn(channels * groups, channels, slots, 3, dtype=torch.float64, generator=generator),
        torch.randn(3, 2, kernel, kernel, dtype=torch.float64, generator=generator),
        None,
        ConvGeometry(**geometry),
        (kernel, kernel),
        FilterCache(),
    )


GEOMETRIES = [
    {},
    {"padding": "same"},
    {"padding": 1, "stride": 2},
    {"padding": 4},
    {"padding": "same", "padding_mode": "reflect", "stride": 3},
]


# --- cuts ---


@pytest.mark.parametrize("results", [None, 4, 8])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_window_of_a_cut_lies_where_it_should(results: int | None, geometry: dict) -> None:
    """Result r sees the pixels from r·stride − margin on, and zeros beyond the image."""
    operands = convolution((23, 23), **geometry)
    margin, stride, count = operands.margin(5), operands.geometry.stride, operands.output_size[0]
    if operands.geometry.padding_mode != "zeros":
        margin = 0
        count = (23 - 5) // stride + 1
    cut = module._cut(23, 5, margin, count, stride, results)
    image = torch.arange(1, 24)
    seen = []
    for tile in range(cut.tiles):
        memory = torch.zeros(cut.period, dtype=image.dtype)
        there, here = cut.overlap(tile, 23)
        memory[there] = image[here]
        seen += [[int(memory[(start + tap) % cut.period]) for tap in range(5)] for start in cut.starts]
    padded = torch.nn.functional.pad(image, [margin, margin + stride + 5])
    expected = [padded[result * stride :][:5].tolist() for result in range(count)]
    assert seen[:count] == expected
    assert cut.tiles * len(cut.starts) - count < len(cut.starts)


def test_the_period_of_one_tile_is_the_smallest_without_overlap() -> None:
    cut = module._cut(20, 5, 2, 20, 1, None)
    assert cut.period == 22
    shorter = replace(cut, period=21)
    first, last = cut.starts[0] % shorter.period, cut.starts[-1] + 4
    assert last % shorter.period >= first % shorter.period or last >= 20
    assert module._cut(20, 5, 0, 16, 1, None).period == 20


def test_small_images_are_one_tile_and_large_ones_many() -> None:
    (rows, columns), _ = tiling(convolution((12, 11), padding="same"), 5)
    assert rows.tiles == columns.tiles == 1
    (rows, columns), _ = tiling(convolution((200, 11), padding="same"), 5)
    assert rows.tiles > 1
    assert columns.tiles == 1
    assert isinstance(rows, Cut)


def test_the_cut_of_least_arithmetic_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = convolution((60, 50), padding="same", channels=8)
    cuts, operations = tiling(operands, 5)
    assert operations == module._operations(operands, *cuts)
    for results in (None, *module._TILES):
        others = [module._cut(side, 5, 2, side, 1, results) for side in (60, 50)]
        assert operations <= module._operations(operands, *others)
    monkeypatch.setattr(module, "_TILES", ())
    assert tiling(operands, 5)[1] > operations


def test_work_grows_with_the_image_and_not_with_its_square() -> None:
    small, large = (tiling(convolution((size, size), padding="same"), 5)[1] for size in (100, 200))
    assert 3 < large / small < 5


@pytest.mark.parametrize("tile", [2, 3, 7])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("geometry", [*GEOMETRIES, {"groups": 2, "padding": "same"}], ids=str)
def test_any_tiles_give_the_same(
    tile: int, slots: int, geometry: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = convolution((17, 14), slots=slots, **geometry)

    def as_tiles(side: int, window: int, margin: int, count: int, stride: int, results: int | None) -> Cut:
        return cut(side, window, margin, count, stride, tile)

    cut = module._cut
    monkeypatch.setattr(module, "_cut", as_tiles)
    (rows, columns), _ = tiling(operands, 5)
    assert (rows.tiles, columns.tiles) == tuple(-(-count // tile) for count in operands.output_size)
    x, weight = (operand.requires_grad_() for operand in (operands.x, operands.weight))
    results = []
    for name in ("dense", "fourier"):
        with algorithm(name):  # type: ignore[arg-type]
            y = scale_conv2d(x, weight, operands.basis, geometry=operands.geometry)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, weight))))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_second_derivatives_through_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = module._cut
    monkeypatch.setattr(module, "_cut", lambda *args: cut(*args[:-1], 2))
    operands = convolution((5, 4), kernel=3, channels=1, padding="same")
    assert tiling(operands, 3)[0][0].tiles == 3

    def function(x: Tensor, weight: Tensor) -> Tensor:
        with algorithm("fourier"):
            return scale_conv2d(x, weight, operands.basis, geometry=operands.geometry)

    inputs = operands.x.requires_grad_(), operands.weight.requires_grad_()
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# --- sharing ---


class Transforms:
    """How often images were transformed, and at which periods."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.periods: list[Any] = []
        original = module.spectrum

        def spy(x: Tensor, periods: Any, *band: slice) -> Any:
            self.periods.append(periods)
            return original(x, periods, *band)

        monkeypatch.setattr(module, "spectrum", spy)
        monkeypatch.setattr(fourier_blocked, "spectrum", spy)


def test_an_image_is_transformed_once_for_all_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = Transforms(monkeypatch)
    layer = LiftConv2d(2, 3, kernel_size=9, grid=ScaleGrid([0.9, 1.3, 1.8]), padding="same")
    assert len(set(layer.windows)) == 3
    with algorithm("fourier"):
        layer(torch.randn(1, 2, 12, 12))
    assert len(transforms.periods) == 1


def test_a_scale_is_transformed_once_for_all_that_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = Transforms(monkeypatch)
    layer = ScaleConv2d(2, 3, kernel_size=9, grid=ScaleGrid([0.9, 1.3, 1.8]), scale_size=3)
    with algorithm("fourier"):
        layer(torch.randn(1, 2, 3, 12, 12))
    assert len(transforms.periods) == 3
    assert len(set(transforms.periods)) == 1


def test_scales_that_do_not_mix_have_periods_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = Transforms(monkeypatch)
    layer = ScaleConv2d(2, 3, kernel_size=9, grid=ScaleGrid([0.9, 1.3, 1.8]), padding="same")
    with algorithm("fourier"):
        layer(torch.randn(1, 2, 3, 12, 12))
    assert len(set(transforms.periods)) == 3


def test_spectra_are_given_up_when_no_scale_needs_them_any_more() -> None:
    operands = convolution()
    with torch.no_grad():
        images = fourier(operands)
        for _ in range(2):
            next(images)
            assert not images.gi_frame.f_locals["spectra"]  # type: ignore[attr-defined]
        mixing = fourier(convolution(slots=2))
        next(mixing)
        assert list(mixing.gi_frame.f_locals["spectra"]) == [1]  # type: ignore[attr-defined]


# --- products of complex matrices ---


def test_products_are_those_of_complex_numbers(generator: torch.Generator) -> None:
    a, b = (
        torch.randn(shape, dtype=torch.complex128, generator=generator) for shape in ((5, 2, 3), (5, 3, 4))
    )
    parts = a.real.contiguous(), a.imag.contiguous(), b.real.contiguous(), b.imag.contiguous()
    real, imaginary = module._ComplexProduct.apply(*parts)
    torch.testing.assert_close(torch.complex(real, imaginary), a @ b)
    conjugate = module.multiply(parts[:2], parts[2:], signs=(-1, 1))
    torch.testing.assert_close(torch.complex(*conjugate), a.conj() @ b)
    conjugate = module.multiply(parts[:2], parts[2:], signs=(1, -1))
    torch.testing.assert_close(torch.complex(*conjugate), a @ b.conj())
    inputs = tuple(part.requires_grad_() for part in parts)
    assert torch.autograd.gradcheck(module._ComplexProduct.apply, inputs)
    assert torch.autograd.gradgradcheck(module._ComplexProduct.apply, inputs, fast_mode=True)


# --- precision ---


def test_half_precision_is_computed_in_single() -> None:
    """In bfloat16 itself a sum over frequencies would lose much more than the result's own rounding."""
    operands = convolution((24, 24), channels=16, kernel=9, padding="same")
    half = [operand.bfloat16() for operand in (operands.x, operands.weight, operands.basis)]
    with algorithm("fourier"):
        y = scale_conv2d(*half, geometry=operands.geometry)
        exact = scale_conv2d(*(operand.double() for operand in half), geometry=operands.geometry)
    rounded = exact.bfloat16()
    assert (y != rounded).float().mean() < 0.01
