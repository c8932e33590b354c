import math

import numpy as np
import pytest
import torch
from scipy import special

from equiscale import ScaleGrid
from equiscale.basis import FourierBesselBasis
from equiscale.basis.fourier_bessel import bessel, bessel_zeros
from equiscale.errors import BasisError
from tests.golden import golden_case, golden_names

COVERS = {"FourierBesselBasis"}


@pytest.mark.parametrize("name", golden_names("basis_fourier_bessel"))
def test_equals_the_published_basis(name: str) -> None:
    case = golden_case(name)
    config = case.config
    basis = FourierBesselBasis(config["effective_size"], radius=config["size"] / 2, degenerate="allow")
    sampled = basis.sample(config["size"], ScaleGrid(config["scales"]))
    torch.testing.assert_close(sampled, case["basis"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2, 7, 19])
def test_bessel_functions_and_zeros_are_those_of_scipy(order: int) -> None:
    x = np.linspace(0, 60, 301)
    np.testing.assert_allclose(bessel(order, x), special.jv(order, x), rtol=0, atol=1e-14)
    zeros = bessel_zeros(order, 40.0)
    expected = special.jn_zeros(order, len(zeros) + 1)
    np.testing.assert_allclose(zeros, expected[:-1], rtol=0, atol=1e-13)
    assert expected[-1] > 40  # none is missing


@pytest.mark.parametrize("effective_size", [1, 3, 7, 12])
def test_functions_run_from_slow_to_fast_and_none_is_left_out(effective_size: int) -> None:
    """The k-th sine and cosine of every zero of all orders below the next one."""
    count = effective_size**2
    zeros = sorted(
        zero
        for order in range(40)
        for zero in special.jn_zeros(order, 40)
        for _ in range(1 if order == 0 else 2)
    )
    sampled = FourierBesselBasis(effective_size, radius=20.0).sample(41, ScaleGrid([1.0]))[:, 0]
    # -∆ψ = (j / ρ)² ψ: the average of the five-point Laplacian over the disc gives j.
    laplacian = torch.nn.functional.conv2d(
        sampled[:, None],
        torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]], dtype=torch.float64),
        padding=1,
    )[:, 0]
    rows = torch.arange(41) - 20
    inside = rows[:, None] ** 2 + rows**2 < 18**2
    measured = (-(laplacian * sampled)[:, inside].sum(1) / sampled[:, inside].square().sum(1)).sqrt() * 20
    expected = torch.tensor(zeros[:count], dtype=torch.float64)
    torch.testing.assert_close(measured, expected, rtol=0.06, atol=0)


def test_functions_are_orthonormal_on_a_fine_grid() -> None:
    sampled = FourierBesselBasis(4, radius=1.0).sample(129, ScaleGrid([64.0]))[:, 0].flatten(1)
    torch.testing.assert_close(sampled @ sampled.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=5e-3)


def test_angles_run_from_the_rows_to_the_columns_and_the_disc_is_round() -> None:
    sampled = FourierBesselBasis(3, radius=5.0).sample(13, ScaleGrid([1.0]))[:, 0]
    slow, cosine, sine = sampled[:3]
    assert torch.equal(slow, slow.T)
    assert (cosine[7:11] > 0).any(1).all()  # rows below the centre
    torch.testing.assert_close(cosine, -cosine.flip(0), rtol=0, atol=1e-15)
    torch.testing.assert_close(sine, cosine.T, rtol=0, atol=1e-15)
    rows = torch.arange(13) - 6
    outside = rows[:, None] ** 2 + rows**2 >= 25
    assert not sampled[:, outside].any()
    assert (slow[~outside] > 0).all()


def test_the_default_disc_has_the_side_of_the_ordinary_filter() -> None:
    grid = ScaleGrid([2.0, 3.0])
    assert torch.equal(
        FourierBesselBasis(3).sample(11, grid), FourierBesselBasis(3, radius=1.5).sample(11, grid)
    )
    assert not torch.equal(
        FourierBesselBasis(3).sample(11, grid), FourierBesselBasis(3, radius=1.6).sample(11, grid)
    )


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf])
def test_refuses_illegal_radii(radius: float) -> None:
    with pytest.raises(BasisError, match=f"expected a positive finite radius, got {radius}"):
        FourierBesselBasis(3, radius=radius)


def test_more_functions_than_pixels_are_refused_with_a_way_out() -> None:
    text = r"no kernel up to 65 works; use larger scales, .* or a larger radius"
    with pytest.raises(BasisError, match=text):
        FourierBesselBasis(5).sample(7, ScaleGrid([1.0, 1.2]))
