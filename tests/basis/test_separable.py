"""The families in one and three dimensions: products of functions of one axis, DISCO fitted as a whole."""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import HermiteE

from equiscale import HermiteBasis, ScaleGrid
from equiscale.basis import (
    BSplineBasis,
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    LogRadialBasis,
    sample_nd,
)
from equiscale.basis.separable import products
from equiscale.errors import BasisError

COVERS = {"sample_nd"}

GRID = ScaleGrid([1.0, 1.5, 2.0])
KERNEL = 13

FORMULAS = {
    "hermite-a": HermiteBasis(3),
    "hermite-b": HermiteBasis(3, kind="B", max_order=2, mult=1.4),
    "bspline": BSplineBasis(3),
    "gaussian-derivative": GaussianDerivativeBasis(3),
    "jet": GaussianDerivativeBasis(3, max_order=2),
}
DISCO = {
    "disco": DiscoBasis(3),
    "pixel": DiscoBasis(3, kind="pixel"),
}
ALL = {**FORMULAS, **DISCO}
EVERY_BASIS = pytest.mark.parametrize("basis", ALL.values(), ids=ALL)
EVERY_FORMULA = pytest.mark.parametrize("basis", FORMULAS.values(), ids=FORMULAS)


@EVERY_BASIS
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_shape_norm_and_independence(basis, ndim: int) -> None:
    sampled = sample_nd(basis, KERNEL, GRID, ndim=ndim)
    count = math.comb(3 + ndim - 1, ndim) if basis is FORMULAS["jet"] else 3**ndim
    assert sampled.shape == (count, 3, *[KERNEL] * ndim)
    assert sampled.dtype == torch.float64
    norms = sampled.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms[:, 0], torch.ones(count, dtype=torch.float64), rtol=0, atol=1e-12)
    for scale in range(3):
        assert int(torch.linalg.matrix_rank(sampled[:, scale].flatten(1))) == count


@EVERY_BASIS
def test_two_dimensions_are_those_of_sample_bit_for_bit(basis) -> None:
    assert torch.equal(sample_nd(basis, KERNEL, GRID, ndim=2), basis.sample(KERNEL, GRID))
    assert torch.equal(basis.sample_nd(KERNEL, GRID, 2), basis.sample(KERNEL, GRID))


@EVERY_FORMULA
def test_the_way_of_all_dimensions_gives_the_same_in_two(basis) -> None:
    """Order of the functions, order of the axes and amplitudes of `_profiles` are those of two dimensions."""
    sampled = basis._padded_nd(KERNEL, GRID, 2)
    expected = basis._padded(KERNEL, GRID)
    torch.testing.assert_close(sampled, expected, rtol=1e-13, atol=1e-15)


@EVERY_FORMULA
def test_a_function_of_three_dimensions_has_rank_one_along_every_axis(basis) -> None:
    sampled = sample_nd(basis, KERNEL, GRID, ndim=3).flatten(0, 1)
    for axis in (1, 2, 3):
        matrices = sampled.movedim(axis, 1).flatten(2)
        singular = torch.linalg.svdvals(matrices)
        assert float((singular[:, 1] / singular[:, 0]).max()) < 1e-12


def test_hermite_functions_of_three_dimensions_equal_the_formula() -> None:
    sampled = sample_nd(HermiteBasis(2), KERNEL, GRID, ndim=3)
    for function, orders in enumerate(itertools.product(range(2), repeat=3)):
        values = []
        for sigma in GRID:
            half = int(KERNEL * sigma / 2.0) // 2
            value = torch.zeros(KERNEL, KERNEL, KERNEL, dtype=torch.float64)
            for place in itertools.product(range(-half, half + 1), repeat=3):
                # the order that is listed first is that of the last axis, as published in two dimensions
                factors = [
                    HermiteE.basis(order)(x / sigma) * math.exp(-(x**2) / (2 * sigma**2)) / sigma
                    for order, x in zip(orders[::-1], place, strict=True)
                ]
                value[tuple(x + KERNEL // 2 for x in place)] = math.prod(factors)
            values.append(value)
        expected = torch.stack(values) / values[0].norm()
        torch.testing.assert_close(sampled[function], expected, rtol=0, atol=1e-13)


@EVERY_FORMULA
def test_one_dimension_is_the_profile_of_two(basis) -> None:
    """The first e functions of the product have the constant order, or the first knot, along one axis."""
    one, two = sample_nd(basis, KERNEL, GRID, ndim=1), basis.sample(KERNEL, GRID)
    for s in range(3):
        profile = one[0, s] / one[0, s].norm()
        for other in range(len(one) if basis is not FORMULAS["jet"] else 1):
            matrix = two[other, s]
            inside = matrix / matrix.norm()
            along = (profile @ inside).norm(), (inside @ profile).norm()
            assert max(map(float, along)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@EVERY_FORMULA
def test_amplitudes_fall_as_a_density_does(basis, ndim: int) -> None:
    """At twice the scale every second pixel of the doubled window holds the pixel, over two to the n."""
    wide = replace(basis, radius=None) if isinstance(basis, GaussianDerivativeBasis) else basis
    sampled = sample_nd(wide, 25, ScaleGrid([1.5, 3.0]), ndim=ndim)
    small, large = sampled[:, 0], sampled[:, 1]
    half, every_second = slice(6, 19), slice(0, 25, 2)
    inner, outer = small[(..., *[half] * ndim)], large[(..., *[every_second] * ndim)]
    inside = (..., *[slice(1, -1)] * ndim)  # the windows are odd: the last pixel is cut on one scale alone
    torch.testing.assert_close(outer[inside] * 2**ndim, inner[inside], rtol=1e-12, atol=1e-15)


# --- DISCO ---


@pytest.mark.parametrize("ndim", [1, 3])
def test_whole_ratios_are_dilated_copies(ndim: int) -> None:
    sampled = sample_nd(DiscoBasis(3), 7, ScaleGrid([1.0, 2.0, 3.0]), ndim=ndim)
    for s, step in enumerate((1, 2, 3)):
        kept = slice(3 - step, 3 + step + 1, step)
        inside = sampled[:, s][(..., *[kept] * ndim)]
        smallest = sampled[:, 0][(..., *[slice(2, 5)] * ndim)]
        assert torch.equal(inside, smallest)
        assert int((sampled[:, s] != 0).sum()) == int((smallest != 0).sum())


def test_fitted_filters_minimise_the_error() -> None:
    """Against the same objective in another way: images of noise, rescaled by matrices, least squares."""
    ratio, kernel, correlation = 2**0.5, 5, 0.0
    sampled = sample_nd(
        DiscoBasis(3, kind="pixel", correlation=correlation), kernel, ScaleGrid([1.0, ratio]), ndim=1
    )
    size, generator = 4001, torch.Generator().manual_seed(0)
    images = torch.rand(60, size, dtype=torch.float64, generator=generator)
    center = (size - 1) / 2
    target = torch.arange(200, 2400, dtype=torch.float64)
    source = (target - 1300) * ratio + center  # both centres; the fraction runs through all positions
    taps = torch.arange(-2, 4)
    index = source.floor().long()[:, None] + taps
    weights = torch.tensor(cubic((source[:, None] - index).numpy()))

    def rescaled(x: torch.Tensor) -> torch.Tensor:
        return (x[:, index] * weights).sum(-1)

    small, seen = rescaled(images), images.unfold(1, kernel, 1)  # (images, positions, taps)
    padded = torch.nn.functional.pad(seen, (0, 0, 2, 2))
    of_taps = torch.stack([rescaled(padded[..., tap]) for tap in range(kernel)], -1)
    for function in range(3):
        left = torch.nn.functional.conv1d(small[:, None], sampled[None, function : function + 1, 0])[:, 0]
        expected = torch.linalg.lstsq(of_taps[:, 2:-2].flatten(0, 1), left.flatten()[:, None]).solution[:, 0]
        torch.testing.assert_close(sampled[function, 1], expected, rtol=0, atol=0.03)
        assert float((sampled[function, 1] - sampled[function, 0]).norm()) > 0.3 or function == 1


def cubic(distance: np.ndarray) -> np.ndarray:
    d = np.abs(distance)
    near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def test_filters_fitted_in_three_dimensions_are_not_products_of_fitted_profiles() -> None:
    """The error of all axes together is minimised, which is not that of each axis alone, but near it."""
    basis, grid = DiscoBasis(3, kind="pixel"), ScaleGrid([1.0, 1.5])
    one, three = (sample_nd(basis, 5, grid, ndim=ndim) for ndim in (1, 3))
    profiles = np.stack([*itertools.product(one[:, 1].numpy(), repeat=3)])
    whole, product = three[:, 1], torch.from_numpy(products(profiles))
    distance = float((whole - product).norm() / whole.norm())
    assert 1e-3 < distance < 0.3


# --- refusals ---


@pytest.mark.parametrize("basis", [FourierBesselBasis(2), LogRadialBasis(2)], ids=["bessel", "log-radial"])
@pytest.mark.parametrize("ndim", [1, 3])
def test_families_of_the_plane_are_refused(basis, ndim: int) -> None:
    message = (
        rf"a basis that exists in {ndim} dimensions, got .*, whose functions are two-dimensional; use Herm"
    )
    with pytest.raises(BasisError, match=message):
        sample_nd(basis, KERNEL, GRID, ndim=ndim)
    assert sample_nd(basis, KERNEL, ScaleGrid([3.0, 4.0]), ndim=2).shape == (4, 2, KERNEL, KERNEL)


@dataclass(frozen=True)
class Broken:
    """A family of a user's own whose samples are wrong."""

    what: torch.Tensor = field(repr=False)
    num_functions: int = 2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> torch.Tensor:
        return self.what

    def sample_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> torch.Tensor:
        return self.what


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_nd(HermiteBasis(3), 13, GRID, ndim=0), "expected at least 1 dimension, got 0"),
        (
            lambda: sample_nd(HermiteBasis(3), 12, GRID, ndim=3),
            "an odd kernel_size, got 12; a centred filter",
        ),
        (lambda: sample_nd(DiscoBasis(3), 12, GRID, ndim=3), "an odd kernel_size, got 12; a centred filter"),
        (
            lambda: sample_nd(DiscoBasis(3), 3, GRID, ndim=3),
            "a kernel_size of at least 5, since the 3 pixels a side are 2 apart",
        ),
        (
            lambda: sample_nd(HermiteBasis(5), 5, ScaleGrid([0.5, 1.0]), ndim=3),
            "125 independent functions on every scale .* got rank 27 of 125 at scale 0.5 in 3 dimensions; "
            'use a larger kernel, .* with degenerate="allow"',
        ),
        (
            lambda: sample_nd(HermiteBasis(3), 5, ScaleGrid([0.01, 1.0]), ndim=1),
            "not zero on the smallest scale, got 1 of 3 that vanish at scale 0.01 in 1 dimensions",
        ),
        (
            lambda: sample_nd(Broken(torch.zeros(2, 3, 5, 7)), 5, GRID, ndim=3),
            r"Broken.* to sample \(F, 3, 5, 5, 5\), got \(2, 3, 5, 7\)",
        ),
        (
            lambda: sample_nd(Broken(torch.full((2, 3, 5), math.nan)), 5, GRID, ndim=1),
            r"finite basis functions, got 30 values of Broken\(num_functions=2\) that are not finite",
        ),
    ],
)
def test_errors_say_what_was_expected(call, message: str) -> None:
    with pytest.raises(BasisError, match=message):
        call()


def test_dependent_functions_are_warned_of_or_allowed() -> None:
    grid = ScaleGrid([0.5, 1.0])
    with pytest.warns(UserWarning, match="got rank 27 of 125 at scale 0.5 in 3 dimensions"):
        sample_nd(HermiteBasis(5, degenerate="warn"), 5, grid, ndim=3)
    assert sample_nd(HermiteBasis(5, degenerate="allow"), 5, grid, ndim=3).shape == (125, 2, 5, 5, 5)


def test_what_is_returned_is_the_callers_own() -> None:
    first = sample_nd(HermiteBasis(2), 5, GRID, ndim=1)
    first.zero_()
    assert float(sample_nd(HermiteBasis(2), 5, GRID, ndim=1).abs().sum()) > 1
