import itertools

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e

from equiscale import HermiteBasis, ScaleGrid, SteerableBasis
from equiscale.basis import diagnose
from equiscale.errors import BasisError
from tests.golden import golden_case, golden_names

COVERS = {"HermiteBasis"}

PUBLISHED = golden_names("basis_hermite")


def from_golden(config: dict) -> HermiteBasis:
    kind = "A" if config["kind"] == "hermite_a" else "B"
    extra = {key: config[key] for key in ("max_order", "mult") if key in config}
    return HermiteBasis(config["effective_size"], kind=kind, degenerate="allow", **extra)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_basis(name: str) -> None:
    case = golden_case(name)
    sampled = from_golden(case.config).sample(case.config["size"], ScaleGrid(case.config["scales"]))
    torch.testing.assert_close(sampled, case["basis"].double(), rtol=0, atol=1e-6)


def formula(order_y: int, order_x: int, sigma: float, half: int) -> torch.Tensor:
    """Pixel by pixel; rows carry the x-order, as published."""
    values = torch.zeros(2 * half + 1, 2 * half + 1, dtype=torch.float64)
    for row, column in itertools.product(range(-half, half + 1), repeat=2):
        polynomials = [
            hermite_e.HermiteE.basis(order)(u / sigma) for order, u in ((order_x, row), (order_y, column))
        ]
        values[row + half, column + half] = (
            polynomials[0] * polynomials[1] * np.exp(-(row**2 + column**2) / (2 * sigma**2)) / sigma**2
        )
    return values


def test_kind_a_is_the_formula_with_the_x_order_fastest() -> None:
    grid = ScaleGrid([1.2, 2.0])
    sampled = HermiteBasis(3).sample(13, grid)
    for function, (order_y, order_x) in enumerate(itertools.product(range(3), repeat=2)):
        norm = formula(order_y, order_x, 1.2, 3).norm()
        expected = [torch.zeros(13, 13, dtype=torch.float64), formula(order_y, order_x, 2.0, 6) / norm]
        expected[0][3:10, 3:10] = formula(order_y, order_x, 1.2, 3) / norm  # the window of 13 * 0.6: 7
        torch.testing.assert_close(sampled[function], torch.stack(expected), rtol=0, atol=1e-12)


def test_kind_b_is_the_formula_over_internal_scales() -> None:
    grid = ScaleGrid([2.0, 4.0])
    sampled = HermiteBasis(3, kind="B", max_order=1, mult=1.6).sample(17, grid)
    orders = [(0, 0), (0, 1), (1, 0)]
    for function, (level, (order_y, order_x)) in enumerate(itertools.product(range(3), orders)):
        norm = formula(order_y, order_x, 2.0 / 1.6**level, 4).norm()
        expected = formula(order_y, order_x, 4.0 / 1.6**level, 8) / norm
        torch.testing.assert_close(sampled[function, 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("basis", [HermiteBasis(3), HermiteBasis(4, kind="B", max_order=3, mult=1.5)])
def test_every_function_has_norm_one_on_the_smallest_scale_alone(basis: HermiteBasis) -> None:
    norms = basis.sample(15, ScaleGrid([1.8, 3.0])).square().sum((2, 3)).sqrt()
    torch.testing.assert_close(norms[:, 0], torch.ones_like(norms[:, 0]), rtol=0, atol=1e-14)
    assert ((norms[:, 1] < 0.9) & (norms[:, 1] > 0.3)).all()  # 1 / ratio = 0.6 in the continuum


@pytest.mark.parametrize("basis", [HermiteBasis(3), HermiteBasis(3, kind="B", max_order=2, mult=1.4)])
def test_the_family_is_closed_under_scaling(basis: HermiteBasis) -> None:
    """psi(x / 2; sigma) = 4 psi(x; 2 sigma), exact at the even pixels where no window cuts."""
    sampled = basis.sample(25, ScaleGrid([1.5, 3.0]))
    small, large = sampled[:, 0, 6:19, 6:19], sampled[:, 1]
    torch.testing.assert_close(small, 4 * large[:, ::2, ::2], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kernel", "scales", "windows"),
    [(7, [0.9, 1.269, 1.78929], [3, 5, 7]), (13, [1.5, 2.6, 4.5], [5, 7, 13]), (9, [1.0], [9])],
)
def test_windows_are_odd_and_centred(kernel: int, scales: list[float], windows: list[int]) -> None:
    sampled = HermiteBasis(2, degenerate="allow").sample(kernel, ScaleGrid(scales))
    for scale, window in enumerate(windows):
        margin = (kernel - window) // 2
        assert (sampled[0, scale, margin : kernel - margin, margin : kernel - margin] != 0).all()
        assert int((sampled[:, scale] != 0).any(0).sum()) == window**2


def test_the_axes_are_functions_scales_rows_columns() -> None:
    """F = S = 4: a wrong reshape would keep the shape and mix functions with scales."""
    grid = ScaleGrid.geometric(1.5, 1.5, 4)
    sampled = HermiteBasis(2).sample(21, grid)
    assert sampled.shape == (4, 4, 21, 21)
    assert sampled.dtype == torch.float64
    even = HermiteBasis(1).sample(21, grid)  # order 0 alone
    torch.testing.assert_close(sampled[0], even[0], rtol=0, atol=0)
    total = sampled.sum((2, 3)).abs()  # only the Gaussian, function 0, has a mean
    assert (total[0] > 1).all()
    assert (total[1:] < 1e-12).all()
    spread = (sampled[0] > sampled[0].amax((1, 2), keepdim=True) / 2).sum((1, 2))
    assert (spread.diff() > 0).all()  # each scale is wider than the one before
    along_rows = sampled[1]  # order 1 in x, which the row axis carries
    torch.testing.assert_close(along_rows, -along_rows.flip(1), rtol=0, atol=1e-14)
    torch.testing.assert_close(along_rows, along_rows.flip(2), rtol=0, atol=1e-14)


def test_known_degenerate_settings() -> None:
    """Rank 9 of 25, silently, in the published code."""
    grid = ScaleGrid([0.3, 0.6])
    lowest = diagnose(HermiteBasis(5, degenerate="allow").sample(7, grid), grid)[0]
    assert (lowest.rank, lowest.num_functions, lowest.degenerate) == (9, 25, True)
    with pytest.raises(BasisError, match=r"rank 9 of 25 at scale 0\.3 \(window 3 of kernel 7\)"):
        HermiteBasis(5).sample(7, grid)


@pytest.mark.parametrize("policy", ["error", "warn", "allow"])
def test_functions_that_vanish_on_the_smallest_scale_are_refused_whatever_the_policy(policy) -> None:
    """NaN in the published code."""
    text = (
        r"not zero on the smallest scale, got 5 of 9 that vanish at scale 1 \(window 1\); the smallest kernel"
    )
    with pytest.raises(BasisError, match=text):
        HermiteBasis(3, degenerate=policy).sample(7, ScaleGrid([1.0, 4.0]))


REMEDIES = [
    (HermiteBasis(3), 7, [1.0, 4.0]),
    (HermiteBasis(4), 5, [1.0, 1.5]),
    (HermiteBasis(5), 7, [1.0, 1.4, 2.0]),
    (HermiteBasis(7, kind="B", mult=1.5), 15, [1.7, 2.45, 3.54, 5.1]),
]


@pytest.mark.parametrize(("basis", "kernel", "scales"), REMEDIES)
def test_the_kernel_the_error_names_works_and_the_next_smaller_does_not(
    basis: HermiteBasis, kernel: int, scales: list[float]
) -> None:
    grid = ScaleGrid(scales)
    with pytest.raises(
        BasisError, match=rf"at scale {scales[0]:g} .*the smallest kernel that works is \d+"
    ) as caught:
        basis.sample(kernel, grid)
    words = str(caught.value).split("the smallest kernel that works is ")[1]
    remedy = int("".join(itertools.takewhile(str.isdigit, words)))
    assert remedy > kernel
    assert not any(diagnosis.degenerate for diagnosis in diagnose(basis.sample(remedy, grid), grid))
    with pytest.raises(BasisError, match="expected"):
        basis.sample(remedy - 2, grid)


def test_where_no_kernel_helps_the_error_says_so() -> None:
    text = r"no kernel up to 65 works; use larger scales, a smaller effective_size \(now 5\) or another kind"
    with pytest.raises(BasisError, match=text):
        HermiteBasis(5).sample(7, ScaleGrid([0.1, 0.2]))


def test_a_published_network_needs_its_degenerate_basis_allowed() -> None:
    config = golden_case("basis_hermite_b_mnist_ses_scalar_28").config
    grid, options = ScaleGrid(config["scales"]), {"kind": "B", "mult": config["mult"]}
    text = r'rank 25 of 49 at scale 1\.7 \(window 5 of kernel 15\).* or accept it with degenerate="allow"'
    with pytest.raises(BasisError, match=text):
        HermiteBasis(7, **options).sample(config["size"], grid)
    with pytest.warns(UserWarning, match=text):
        warned = HermiteBasis(7, degenerate="warn", **options).sample(config["size"], grid)
    allowed = HermiteBasis(7, degenerate="allow", **options).sample(config["size"], grid)
    assert torch.equal(warned, allowed)


@pytest.mark.parametrize("kernel", [0, -3, 4])
def test_refuses_even_kernels(kernel: int) -> None:
    text = f"expected an odd kernel_size, got {kernel}; a centred filter needs a central pixel"
    with pytest.raises(BasisError, match=text):
        HermiteBasis(2).sample(kernel, ScaleGrid([1.0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"effective_size": 0}, "effective_size of at least 1, got 0"),
        ({"kind": "C"}, "kind 'A' or 'B', got 'C'"),
        ({"max_order": -1}, "max_order of at least 0, got -1"),
        ({"mult": 1.0}, r"mult larger than 1, got 1\.0; internal scales are s / mult\*\*i"),
        ({"degenerate": "ignore"}, "degenerate 'error', 'warn' or 'allow', got 'ignore'"),
    ],
)
def test_refuses_illegal_arguments(options: dict, text: str) -> None:
    with pytest.raises(BasisError, match="expected " + text):
        HermiteBasis(**{"effective_size": 3, **options})


def test_is_a_steerable_basis_and_a_value() -> None:
    assert isinstance(HermiteBasis(3), SteerableBasis)
    assert HermiteBasis(3).num_functions == 9
    assert HermiteBasis(3, kind="B") == HermiteBasis(3, kind="B") != HermiteBasis(3)
