"""Interpolation about the true centre, and the transposed scale convolution."""

import pytest
import torch
from torch import Tensor

from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    scale_avg_pool2d,
    scale_conv2d,
    scale_conv_transpose2d,
    scale_upsample2d,
    support_windows,
)
from equiscale.functional.rescale import rescale
from equiscale.testing import BandLimitedImage

COVERS = {"scale_conv_transpose2d", "scale_upsample2d"}

ALIGNMENTS = pytest.mark.parametrize("alignment", ["areas", "points"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- interpolation ---


@pytest.mark.parametrize("factor", [1, 2, 3])
@ALIGNMENTS
def test_is_linear_interpolation_at_the_documented_positions(factor: int, alignment) -> None:
    x = drawn(1, 2, 2, 4, 5)
    y = scale_upsample2d(x, factor, alignment=alignment)
    areas = alignment == "areas"
    assert y.shape[3:] == ((4 * factor, 5 * factor) if areas else (3 * factor + 1, 4 * factor + 1))
    for i in range(y.shape[3]):
        for j in range(y.shape[4]):
            place = [((p + 0.5) / factor - 0.5) if areas else p / factor for p in (i, j)]
            expected = 0.0
            for row in range(4):
                for column in range(5):
                    row_at, column_at = min(max(place[0], 0), 3), min(max(place[1], 0), 4)
                    near = max(0, 1 - abs(row_at - row)) * max(0, 1 - abs(column_at - column))
                    expected = expected + near * x[..., row, column]
            torch.testing.assert_close(y[..., i, j], expected, rtol=0, atol=1e-12)


def test_nearest_repeats_every_pixel() -> None:
    x = drawn(2, 3, 2, 4, 5)
    y = scale_upsample2d(x, 3, method="nearest")
    assert torch.equal(y, x.repeat_interleave(3, 3).repeat_interleave(3, 4))
    torch.testing.assert_close(scale_avg_pool2d(y, 3), x, rtol=0, atol=1e-14)


def test_points_are_kept_at_every_third_pixel() -> None:
    x = drawn(2, 3, 2, 4, 5)
    kept = scale_upsample2d(x, 3, alignment="points")[..., ::3, ::3]
    torch.testing.assert_close(kept, x, rtol=0, atol=1e-14)
    not_kept = scale_upsample2d(x, 3)[..., ::3, ::3]
    assert not torch.allclose(not_kept, x)


@ALIGNMENTS
def test_commutes_with_shifts_of_scales_reflections_and_transposition(alignment) -> None:
    x = drawn(2, 3, 4, 6, 5)
    for change in (lambda t: t.roll(1, 2), lambda t: t.flip(3), lambda t: t.flip(4), lambda t: t.mT):
        torch.testing.assert_close(
            scale_upsample2d(change(x), 2, alignment=alignment),
            change(scale_upsample2d(x, 2, alignment=alignment)),
            rtol=0,
            atol=1e-13,
        )


@ALIGNMENTS
def test_shifts_before_are_shifts_by_the_factor_after_it(alignment) -> None:
    x = drawn(1, 1, 2, 8, 8)
    y = scale_upsample2d(x, 3, alignment=alignment)
    shifted = scale_upsample2d(x.roll(1, 3), 3, alignment=alignment)
    inside = slice(6, 18)
    torch.testing.assert_close(shifted[..., inside, :], y.roll(3, 3)[..., inside, :], rtol=0, atol=1e-13)
    assert not torch.allclose(shifted[..., inside, :], y.roll(2, 3)[..., inside, :])


@pytest.mark.parametrize(("alignment", "wrong"), [("areas", "points"), ("points", "areas")])
@pytest.mark.parametrize("factor", [2**-0.5, 2**0.5])
def test_commutes_with_scaling_about_the_same_centre(alignment, wrong, factor: float) -> None:
    """Rescaling before and after it agree to interpolation's error; about another centre they do not."""
    image = BandLimitedImage.random(1, 3, size=(32, 33), generator=torch.Generator().manual_seed(0))
    small, smaller = image.render(), image.render(scale=factor)
    expected = rescale(scale_upsample2d(small[:, :, None], 2, alignment=alignment)[:, :, 0], factor)
    actual = scale_upsample2d(smaller[:, :, None], 2, alignment=alignment)[:, :, 0]
    inside = (..., slice(20, -20), slice(20, -20))
    error = float((actual[inside] - expected[inside]).norm() / expected[inside].norm())
    assert 1e-4 < error < 0.03
    off = scale_upsample2d(smaller[:, :, None], 2, alignment=wrong)[:, :, 0]
    off = off[..., : expected.shape[2], : expected.shape[3]] if wrong == "areas" else off
    same = expected[..., : off.shape[2], : off.shape[3]]
    assert float((off[inside] - same[inside]).norm() / same[inside].norm()) > 2 * error


def test_gradient_of_upsampling() -> None:
    x = drawn(1, 2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: scale_upsample2d(t, 2), (x,), fast_mode=True)


# --- the transposed convolution ---

GRID = ScaleGrid([0.8, 1.2, 1.8])
BASIS = HermiteBasis(2).sample(7, GRID)


@pytest.mark.parametrize("windows", [None, support_windows(BASIS)])
@pytest.mark.parametrize("scale_padding", ["zeros", "replicate"])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (8, 9)),
        ({"padding": "same"}, (8, 9)),
        ({"padding": "same", "stride": 2}, (9, 11)),
        ({"padding": "same", "stride": 2}, (8, 10)),
        ({"padding": "same", "stride": 3, "groups": 2}, (9, 9)),
        ({"padding": 1, "stride": 2, "groups": 2}, (8, 12)),
        ({"padding": 5}, (7, 8)),
    ],
)
def test_is_the_adjoint_of_the_scale_convolution(windows, scale_padding, options: dict, size) -> None:
    geometry = ConvGeometry(scale_padding=scale_padding, **options)
    weight = drawn(6, 4 // geometry.groups, 2, 4, seed=1)
    x = drawn(2, 4, 3, *size)
    there = scale_conv2d(x, weight, BASIS, geometry=geometry)
    y = drawn(*there.shape, seed=2)
    margin = geometry.margin(7)
    missing = [(side + 2 * margin - 7) % geometry.stride for side in size]
    assert len(set(missing)) == 1
    back = scale_conv_transpose2d(
        y, weight, BASIS, geometry=geometry, output_padding=missing[0], windows=windows
    )
    assert back.shape == x.shape
    left, right = float((there * y).sum()), float((x * back).sum())
    assert left == pytest.approx(right, rel=1e-11)
    assert abs(left) > 1


def test_is_the_gradient_of_the_scale_convolution() -> None:
    """The adjoint entry by entry, and where it differs between the scales."""
    geometry = ConvGeometry(padding="same", stride=2)
    weight, x = drawn(5, 3, 2, 4), drawn(2, 3, 3, 9, 7).requires_grad_()
    y = drawn(2, 5, 3, 5, 4, seed=1)
    scale_conv2d(x, weight, BASIS, geometry=geometry).backward(y)
    back = scale_conv_transpose2d(y, weight, BASIS, geometry=geometry)
    torch.testing.assert_close(back, x.grad, rtol=0, atol=1e-12)


def test_a_bias_is_added_once_and_gradients_are_right() -> None:
    geometry = ConvGeometry(padding="same", stride=2)
    x, weight, bias = drawn(1, 2, 3, 3, 3), drawn(2, 3, 2, 4, seed=1), drawn(3, seed=2)
    bare = scale_conv_transpose2d(x, weight, BASIS, geometry=geometry)
    with_bias = scale_conv_transpose2d(x, weight, BASIS, bias, geometry=geometry)
    torch.testing.assert_close(with_bias - bare, bias.view(-1, 1, 1, 1).expand_as(bare))
    operands = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: scale_conv_transpose2d(x, weight, BASIS, bias, geometry=geometry),
        operands,
        fast_mode=True,
    )


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scale_upsample2d(zeros(2, 3, 4, 4), 2), ShapeError, r"a scale map .* got \(2, 3, 4, 4\)"),
        (lambda: scale_upsample2d(zeros(2, 3, 4, 4, 4), 0), SettingError, "a whole factor .* got 0"),
        (
            lambda: scale_upsample2d(zeros(2, 3, 4, 4, 4), 2, method="nearest", alignment="points"),
            SettingError,
            "scale_upsample2d: expected method='bilinear' with alignment='points', got 'nearest'",
        ),
        (
            lambda: scale_conv_transpose2d(zeros(2, 3, 2, 4, 4), zeros(3, 2, 1, 4), zeros(4, 2, 3, 5)),
            ShapeError,
            r"a basis \(F, S, K, K\) with odd K, got \(4, 2, 3, 5\)",
        ),
        (
            lambda: scale_conv_transpose2d(zeros(2, 3, 2, 4, 4), zeros(3, 2, 1, 5), zeros(4, 2, 5, 5)),
            ShapeError,
            r"weights \(C, C' / groups, N, F\) with F=4 .*, got \(3, 2, 1, 5\)",
        ),
        (
            lambda: scale_conv_transpose2d(zeros(2, 3, 1, 4, 4), zeros(3, 2, 1, 4), zeros(4, 2, 5, 5)),
            ShapeError,
            r"an input \(B, 3, 2, H, W\), got \(2, 3, 1, 4, 4\)",
        ),
        (
            lambda: scale_conv_transpose2d(
                zeros(2, 3, 2, 4, 4), zeros(3, 2, 1, 4), zeros(4, 2, 5, 5), zeros(3)
            ),
            ShapeError,
            r"a bias \(2,\), one number an output channel, got \(3,\)",
        ),
        (
            lambda: scale_conv_transpose2d(
                zeros(2, 3, 2, 2, 2),
                zeros(3, 2, 1, 4),
                zeros(4, 2, 3, 3),
                geometry=ConvGeometry(padding=2),
            ),
            ShapeError,
            r"at least one pixel, got a result of \(0, 0\) from \(2, 2\) pixels",
        ),
        (
            lambda: scale_conv_transpose2d(
                zeros(2, 3, 2, 4, 4), zeros(3, 2, 1, 4), zeros(4, 2, 5, 5), output_padding=1
            ),
            SettingError,
            "an output_padding of 0 to 0, below the stride, got 1",
        ),
        (
            lambda: scale_conv_transpose2d(
                zeros(2, 3, 2, 4, 4),
                zeros(3, 2, 1, 4),
                zeros(4, 2, 5, 5),
                geometry=ConvGeometry(padding_mode="circular"),
            ),
            SettingError,
            "no padding_mode, since the transpose of other than zeros folds the border back, got 'circular'",
        ),
    ],
)
def test_errors_say_what_was_expected(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
