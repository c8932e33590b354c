import itertools
import math

import pytest
import torch

from equiscale import HermiteBasis, ScaleGrid
from equiscale.basis import GaussianDerivativeBasis
from equiscale.errors import BasisError
from equiscale.functional import support_windows
from equiscale.nn import LiftConv2d
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"GaussianDerivativeBasis"}


def derivatives(order: int, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """By automatic differentiation of the Gaussian itself."""
    x = x.clone().requires_grad_()
    y = torch.exp(-(x**2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    for _ in range(order):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y.detach() * sigma**order


def test_is_the_derivative_of_a_gaussian_rows_first_columns_fastest() -> None:
    grid = ScaleGrid([1.2, 2.0])
    sampled = GaussianDerivativeBasis(3, radius=3.6).sample(15, grid)
    for function, (n, m) in enumerate(itertools.product(range(3), repeat=2)):
        values = []
        for sigma in grid:
            x = torch.arange(-7, 8, dtype=torch.float64)
            value = torch.outer(derivatives(n, x, sigma), derivatives(m, x, sigma))
            inside = x.abs() <= 3.6 * sigma
            values.append(value * inside[:, None] * inside)
        expected = torch.stack(values) / values[0].norm()
        torch.testing.assert_close(sampled[function], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("max_order", "count"), [(None, 9), (4, 9), (2, 6), (1, 3), (0, 1)])
def test_the_jet_holds_the_orders_up_to_a_total(max_order: int | None, count: int) -> None:
    basis = GaussianDerivativeBasis(3, max_order=max_order)
    assert basis.num_functions == count
    every = GaussianDerivativeBasis(3).sample(13, ScaleGrid([2.0]))
    orders = list(itertools.product(range(3), repeat=2))
    kept = [i for i, (n, m) in enumerate(orders) if max_order is None or n + m <= max_order]
    assert torch.equal(basis.sample(13, ScaleGrid([2.0])), every[kept])


def test_a_jet_is_closed_under_quarter_turns_and_reflections() -> None:
    jet = GaussianDerivativeBasis(3, max_order=2).sample(13, ScaleGrid([2.0]))[:, 0].flatten(1)
    turned = jet.view(-1, 13, 13).rot90(1, (1, 2)).flatten(1)
    solution = torch.linalg.lstsq(jet.T, turned.T).solution
    torch.testing.assert_close(jet.T @ solution, turned.T, rtol=0, atol=1e-12)


def test_the_window_follows_its_own_scale_and_nothing_else() -> None:
    alone = GaussianDerivativeBasis(3).sample(13, ScaleGrid([1.4]))
    in_company = GaussianDerivativeBasis(3).sample(21, ScaleGrid([1.4, 1.9, 3.0]))
    torch.testing.assert_close(in_company[:, :1, 4:17, 4:17], alone, rtol=0, atol=1e-15)
    assert support_windows(in_company) == (9, 11, 19)  # 2 * floor(3 s) + 1
    hermite = HermiteBasis(3).sample(21, ScaleGrid([1.4, 1.9, 3.0]))
    assert support_windows(hermite) == (9, 13, 21)


def test_without_a_radius_the_functions_are_those_of_hermite_up_to_signs() -> None:
    grid = ScaleGrid([1.4, 1.9, 3.0])
    ours = GaussianDerivativeBasis(3, radius=None).sample(21, grid)
    theirs = HermiteBasis(3).sample(21, grid).transpose(2, 3)  # published with rows carrying the x-order
    sign = torch.tensor([1, -1, 1, -1, 1, -1, 1, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs * sign[:, None, None, None], rtol=0, atol=1e-14)


@pytest.mark.usefixtures("float64")
def test_the_error_falls_with_the_radius_like_the_gaussian(generator: torch.Generator) -> None:
    step = 2**0.5
    image = BandLimitedImage.random(1, 1, size=(49, 49), generator=generator)
    errors = []
    for radius in (2.0, 3.0, 4.0):
        basis = GaussianDerivativeBasis(3, radius=radius)
        lift = LiftConv2d(
            1, 4, kernel_size=25, grid=ScaleGrid.geometric(1.5, step, 3), basis=basis, padding="same"
        )
        lift.reset_parameters(torch.Generator().manual_seed(1))
        errors.append(equivariance_error(lift, image, [0.5, 2.0], margin=14).worst)
    assert 0.04 < errors[0] < 0.2
    assert 3e-3 < errors[1] < 2e-2
    assert 1e-4 < errors[2] < 1.2e-3


def test_refuses_a_kernel_that_does_not_hold_the_window() -> None:
    text = (
        r"a kernel that holds 3 standard deviations of the largest scale 2, 13 pixels, got 11; "
        r"use kernel_size=13, a smaller radius, or radius=None"
    )
    with pytest.raises(BasisError, match="expected " + text):
        GaussianDerivativeBasis(3).sample(11, ScaleGrid([1.0, 2.0]))
    assert GaussianDerivativeBasis(3).sample(13, ScaleGrid([1.0, 2.0])).shape == (9, 2, 13, 13)


def test_dependent_functions_are_refused_with_a_way_out() -> None:
    text = r"rank 9 of 25 at scale 0\.5 \(window 3 .* no kernel up to 65 works; .* or a larger radius"
    with pytest.raises(BasisError, match=text):
        GaussianDerivativeBasis(5).sample(9, ScaleGrid([0.5, 1.0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_order": -1}, "max_order of at least 0 or None, got -1"),
        ({"radius": 0.0}, r"a positive finite radius, got 0\.0"),
    ],
)
def test_refuses_illegal_arguments(options: dict, text: str) -> None:
    with pytest.raises(BasisError, match="expected " + text):
        GaussianDerivativeBasis(3, **options)
