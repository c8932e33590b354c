import itertools
from math import comb, factorial

import pytest
import torch

from equiscale import ScaleGrid
from equiscale.basis import BSplineBasis
from equiscale.errors import BasisError
from tests.golden import GoldenCase, golden_case, golden_names

COVERS = {"BSplineBasis"}


def effective_scales(config: dict) -> list[float]:
    """The scales at which the published knots really lie: whole pixels of half a window."""
    scales = config["scales"]
    halves = [int(config["size"] * scale / scales[-1]) // 2 for scale in scales]
    return [half * scales[0] * 2 / (config["effective_size"] - 1) for half in halves]


def published(case: GoldenCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours on the effective scales, and the ratio of amplitudes that rounding the scales leaves."""
    config, scales = case.config, effective_scales(case.config)
    spread = (config["effective_size"] - 1) / 2 / config["mult"]
    basis = BSplineBasis(
        config["effective_size"], degree=config["max_order"], spread=spread, degenerate="allow"
    )
    asked, real = torch.tensor([config["scales"], scales], dtype=torch.float64)
    ratio = (asked[0] / asked) ** 2 / (real[0] / real) ** 2
    return basis.sample(config["size"], ScaleGrid(scales)), ratio[:, None, None]


@pytest.mark.parametrize("name", golden_names("basis_bspline"))
def test_equals_the_published_basis_but_for_its_rounded_scales(name: str) -> None:
    case = golden_case(name)
    ours, ratio = published(case)
    torch.testing.assert_close(ours * ratio, case["basis"], rtol=0, atol=1e-13)
    assert 1.05 < float(ratio.max()) < 1.4  # what is wrong with the published amplitudes


def truncated_powers(degree: int, u: float) -> float:
    """The other textbook formula of the centred cardinal B-spline."""
    half = (degree + 1) / 2
    terms = [(-1) ** k * comb(degree + 1, k) * max(u + half - k, 0.0) ** degree for k in range(degree + 2)]
    return sum(terms) / factorial(degree)


@pytest.mark.parametrize(("degree", "spread"), [(1, 1.0), (2, 1.5), (3, 0.7), (4, 1.0)])
def test_is_the_formula_with_the_row_of_the_knot_fastest(degree: int, spread: float) -> None:
    sampled = BSplineBasis(2, degree=degree, spread=spread).sample(17, ScaleGrid([1.7, 2.6]))
    values = torch.zeros(4, 17, 17, dtype=torch.float64)
    for function, (column, row) in enumerate(itertools.product((-0.5, 0.5), repeat=2)):
        for y, x in itertools.product(range(17), repeat=2):
            along_x = truncated_powers(degree, ((x - 8) / 2.6 - column) / spread)
            values[function, y, x] = along_x * truncated_powers(degree, ((y - 8) / 2.6 - row) / spread)
    shape = sampled[:, 1] / sampled[:, 1].square().sum((1, 2), keepdim=True).sqrt()
    values /= values.square().sum((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(shape, values, rtol=0, atol=1e-11)


@pytest.mark.parametrize("degree", [0, 1])
def test_at_scale_one_the_hats_are_the_ordinary_filter(degree: int) -> None:
    sampled = BSplineBasis(3, degree=degree).sample(3, ScaleGrid([1.0]))[:, 0]
    pixels = torch.eye(9, dtype=torch.float64).view(3, 3, 3, 3).transpose(0, 1).reshape(9, 3, 3)
    assert torch.equal(sampled, pixels)


def test_with_an_even_number_of_knots_the_hats_lie_between_the_pixels() -> None:
    sampled = BSplineBasis(4, degree=1).sample(9, ScaleGrid([1.0]))
    assert (sampled != 0).sum((2, 3)).flatten().tolist() == [4] * 16


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splines_sum_to_one_between_the_outer_knots(degree: int) -> None:
    """Partition of unity: the sum over all knots does not depend on the place."""
    sampled = BSplineBasis(9, degree=degree, degenerate="allow")._padded(9, ScaleGrid([1.3]))[:, 0].sum(0)
    inside = sampled[3:6, 3:6] * 1.3**2
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"degree": -1}, "a degree of 0 to 9, got -1"),
        ({"degree": 10}, "a degree of 0 to 9, got 10"),
        ({"spread": 0.0}, r"a positive finite spread, got 0\.0"),
        ({"spread": float("nan")}, "a positive finite spread, got nan"),
    ],
)
def test_refuses_illegal_arguments(options: dict, text: str) -> None:
    with pytest.raises(BasisError, match="expected " + text):
        BSplineBasis(3, **options)


def test_too_wide_splines_are_refused_with_a_way_out() -> None:
    text = r"rank \d+ of 9 at scale 2 .* no kernel up to 65 works; .* or a smaller spread"
    with pytest.raises(BasisError, match=text):
        BSplineBasis(3, degree=3, spread=90.0).sample(9, ScaleGrid([2.0, 3.0]))
