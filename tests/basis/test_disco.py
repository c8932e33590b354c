"""DISCO: exact where scales are integer multiples, and elsewhere the least error there is."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from equiscale import HermiteBasis, ScaleGrid, SteerableBasis
from equiscale.basis import DiscoBasis, diagnose, rescaling_error
from equiscale.errors import BasisError
from equiscale.functional import support_windows
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.golden import golden_case, golden_names

COVERS = {"DiscoBasis", "rescaling_error"}

MNIST, WIDE_RESNET = ScaleGrid([1.0, 1.26, 1.59, 2.0]), ScaleGrid([1.0, 1.41, 2.0])
STEP = 2 ** (1 / 3)
PUBLISHED = golden_names("basis_disco_published")


def pixels(effective_size: int, kernel_size: int, grid: ScaleGrid, **options) -> Tensor:
    return DiscoBasis(effective_size, "pixel", **options).sample(kernel_size, grid)


def squared_errors(basis: Tensor, grid: ScaleGrid, correlation: float) -> float:
    """The objective: the sum of the squared errors over the pairs, each relative to white noise of one."""
    relative = rescaling_error(basis, grid, correlation=correlation)
    sizes = torch.stack([absolute_size(basis[:, t], correlation) for t in range(len(grid))])
    return float((relative.square() * sizes).sum())


def absolute_size(functions: Tensor, correlation: float) -> Tensor:
    """E ‖L[psi * f]‖² for images of variance one and mean² three; four nodes are exact for degree 6."""
    taps = torch.arange(functions.shape[-1], dtype=torch.float64)
    seen = torch.arange(-2.0, len(taps) + 2, dtype=torch.float64)
    covariance = torch.as_tensor(correlation, dtype=torch.float64) ** (seen[:, None] - seen).abs()
    gram = torch.zeros(len(taps), len(taps), dtype=torch.float64)
    for node, weight in zip(*np.polynomial.legendre.leggauss(4), strict=True):
        band = cubic((node + 1) / 2 + taps[:, None] - seen)
        gram += weight / 2 * band @ covariance @ band.T
    return (functions * (gram @ functions @ gram)).sum() + 3 * functions.sum((1, 2)).square().sum()


def cubic(distance: Tensor) -> Tensor:
    """PyTorch's kernel, a = -0.75."""
    d = distance.abs()
    far = torch.where(d < 2, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4), 0.0)
    return torch.where(d <= 1, 1.25 * d**3 - 2.25 * d**2 + 1, far)


# --- exact scales ---


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_integer_scales_are_dilated_copies(ratio: int) -> None:
    grid = ScaleGrid([1.0, 1.37, float(ratio)] if ratio > 1 else [1.0, 1.37])
    sampled = pixels(3, 9, grid)[:, grid.values.index(ratio)]
    for function, (row, column) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        expected = torch.zeros(9, 9, dtype=torch.float64)
        expected[4 + ratio * row, 4 + ratio * column] = 1
        assert torch.equal(sampled[function], expected)


@pytest.mark.parametrize(
    "basis", [DiscoBasis(5), DiscoBasis(5, "B", degenerate="allow"), DiscoBasis(5, "pixel")]
)
def test_integer_scales_commute_with_rescaling_to_rounding_and_others_do_not(basis: DiscoBasis) -> None:
    grid = ScaleGrid([1.0, 1.5, 2.0, 3.0])
    error = rescaling_error(basis.sample(15, grid), grid)
    assert max(error[0, 2], error[0, 3]) < 1e-6  # square roots of rounding errors
    assert all(5e-3 < error[pair] < 0.2 for pair in [(0, 1), (1, 2), (1, 3)]), error


def test_images_enlarged_by_repetition_are_seen_alike_on_dilated_scales(generator: torch.Generator) -> None:
    """Without interpolation: a response at an even pixel sees the even pixels only."""
    lift = LiftConv2d(1, 2, kernel_size=5, grid=ScaleGrid([1.0, 2.0]), basis=DiscoBasis(3)).double()
    image = torch.randn(1, 1, 12, 14, dtype=torch.float64, generator=generator)
    large = torch.randn(1, 1, 24, 28, dtype=torch.float64, generator=generator)
    large[..., ::2, ::2] = image
    small, enlarged = lift(image)[:, :, 0], lift(large)[:, :, :, 2:18:2, 2:22:2]  # centres at even pixels
    torch.testing.assert_close(enlarged[:, :, 1], small, rtol=0, atol=1e-6)  # the basis is single precision
    assert (enlarged[:, :, 0] - small).abs().max() > 0.1


@pytest.mark.parametrize(
    ("grid", "like"),
    [([0.9, 1.269, 1.78929], [1.0, 1.41, 2.0]), ([3.0, 4.23, 6.0], [1.0, 1.41, 2.0])],
)
def test_only_ratios_matter_and_rounded_integers_are_integers(grid: list[float], like: list[float]) -> None:
    expected = DiscoBasis(3).sample(7, ScaleGrid(like))
    torch.testing.assert_close(DiscoBasis(3).sample(7, ScaleGrid(grid)), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(DiscoBasis(3).sample(7, ScaleGrid([1.0, 1.41, 1.95])), expected)


# --- fitted scales ---


@pytest.mark.parametrize("correlation", [0.0, 0.95])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_objective_is_at_most_that_of_the_published_basis(name: str, correlation: float) -> None:
    """The published one was trained on white noise, on the sum of the roots of the errors."""
    case = golden_case(name)
    size, grid, published = case.config["size"], ScaleGrid(case.config["scales"]), case["basis"].double()
    solved = pixels(case.config["effective_size"], size, grid, correlation=correlation)
    ratio = squared_errors(solved, grid, correlation) / squared_errors(published, grid, correlation)
    assert 0.8 < ratio < 1.0, ratio


@pytest.mark.parametrize(("name", "bound"), [(PUBLISHED[0], 0.08), (PUBLISHED[1], 0.04)])
def test_white_noise_gives_nearly_the_published_basis(name: str, bound: float) -> None:
    case = golden_case(name)
    published = case["basis"].double()
    grid = ScaleGrid(case.config["scales"])
    solved = pixels(case.config["effective_size"], case.config["size"], grid, correlation=0.0)
    assert 0.01 < (solved - published).norm() / published.norm() < bound
    integer = [0, len(grid) - 1]
    torch.testing.assert_close(solved[:, integer], published[:, integer], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("effective_size", "kernel_size", "scales"),
    [(3, 5, [1.0, 1.41, 2.0]), (3, 9, [1.0, 1.3, 1.7, 2.2]), (5, 11, [1.0, 1.2, 2.0])],
)
def test_no_change_of_a_fitted_filter_lowers_the_objective(
    effective_size: int, kernel_size: int, scales: list[float], generator: torch.Generator
) -> None:
    """At the minimum of a quadratic a step to either side costs the same."""
    grid = ScaleGrid(scales)
    solved = pixels(effective_size, kernel_size, grid, correlation=0.5)
    fitted = [index for index, scale in enumerate(scales) if not scale.is_integer()]
    lowest = squared_errors(solved, grid, 0.5)
    for _ in range(4):
        step = torch.zeros_like(solved)
        noise = torch.randn(solved[:, fitted].shape, dtype=torch.float64, generator=generator)
        step[:, fitted] = 1e-3 * noise * (solved[:, fitted] != 0)
        up, down = (squared_errors(solved + sign * step, grid, 0.5) - lowest for sign in (1, -1))
        assert up > 0
        assert up == pytest.approx(down, rel=1e-5)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_expectation_is_the_average_over_random_images(
    correlation: float, generator: torch.Generator
) -> None:
    """As the published code measures it: convolve and shrink, shrink and convolve, on noisy images."""
    grid = ScaleGrid([1.0, 1.41])
    basis = DiscoBasis(3).sample(5, grid)
    noise = torch.randn(24, 1, 160, 160, dtype=torch.float64, generator=generator)
    for axis in (2, 3):
        noise = filtered(noise, correlation, axis)
    images = noise + 3**0.5
    small, large = (basis[:, scale, None] for scale in (0, 1))
    shrunk = conv2d(shrink(images, 1.41), small)
    convolved = shrink(conv2d(images, large, padding=2), 1.41)[..., 2:-2, 2:-2]
    difference, size = (shrunk - convolved)[..., 4:-4, 4:-4], convolved[..., 4:-4, 4:-4]
    measured = difference.norm() / size.norm()
    expected = rescaling_error(basis, grid, correlation=correlation)[0, 1]
    assert float(measured) == pytest.approx(float(expected), rel=0.03)


@pytest.mark.parametrize("ratio", [1.41, 1.5, 2.3])
def test_the_expectation_is_exact_in_the_position_of_the_pixels(ratio: float) -> None:
    """Pixel by pixel, averaged over many positions, in white noise of mean zero and one dimension."""
    small, large = torch.tensor([[1.0, -2.0, 1.0], [0.5, -1.0, 0.5]], dtype=torch.float64)
    taps, pixels = torch.arange(-1.0, 2).double(), torch.arange(-9.0, 10).double()
    moments = torch.zeros(3, dtype=torch.float64)
    for position in (torch.arange(800, dtype=torch.float64) + 0.5) / 800:
        seen = small @ cubic(position + ratio * taps[:, None] - pixels)
        other = large @ cubic(position + taps[:, None] - pixels)
        moments += torch.stack([seen @ seen, seen @ other, other @ other]) / 800
    expected = (moments[0] ** 2 - 2 * moments[1] ** 2 + moments[2] ** 2) / moments[2] ** 2
    basis = torch.stack([small.outer(small), large.outer(large)])[None]  # (1, S, K, K)
    error = rescaling_error(basis, ScaleGrid([1.0, ratio]), correlation=0.0)[0, 1]
    assert float(error**2) == pytest.approx(float(expected), rel=1e-5)


def filtered(noise: Tensor, correlation: float, axis: int) -> Tensor:
    """Unit variance, neighbours along the axis correlated."""
    rows = list(noise.unbind(axis))
    for i in range(1, len(rows)):
        rows[i] = correlation * rows[i - 1] + (1 - correlation**2) ** 0.5 * rows[i]
    return torch.stack(rows, axis)


def shrink(x: Tensor, ratio: float) -> Tensor:
    return interpolate(x, scale_factor=1 / ratio, mode="bicubic", align_corners=False)


def test_the_error_of_a_basis_is_zero_only_above_the_diagonal_and_relative() -> None:
    basis = HermiteBasis(3).sample(9, ScaleGrid([1.2, 1.5, 2.0]))
    error = rescaling_error(basis, ScaleGrid([1.2, 1.5, 2.0]))
    assert bool((error.triu(1) > 0).sum() == 3)
    assert torch.equal(error, error.triu(1))
    torch.testing.assert_close(rescaling_error(10 * basis, ScaleGrid([1.2, 1.5, 2.0])), error)
    wrong = rescaling_error(basis.flip(1), ScaleGrid([1.2, 1.5, 2.0]))
    assert 0.05 < float(error[0, 2]) < float(wrong[0, 2]) / 2.5
    nothing = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    assert float(rescaling_error(nothing, ScaleGrid([1.0, 2.0])).sum()) == 0


def test_rescaling_error_refuses_what_does_not_fit() -> None:
    grid = ScaleGrid([1.0, 2.0])
    with pytest.raises(
        BasisError, match=r"expected a basis \(F, 2, K, K\) with odd K .*, got \(4, 3, 5, 5\)"
    ):
        rescaling_error(torch.zeros(4, 3, 5, 5), grid)
    with pytest.raises(BasisError, match="expected a correlation of at least 0 and below 1, got 1"):
        rescaling_error(torch.zeros(4, 2, 5, 5), grid, correlation=1)


# --- the functions ---


def test_kinds_a_and_b_are_hermite_functions_of_the_pixels() -> None:
    dots = pixels(5, 11, WIDE_RESNET)
    for kind, options in (("A", {}), ("B", {"max_order": 3, "mult": 1.3})):
        small = HermiteBasis(5, kind, degenerate="allow", **options).sample(5, ScaleGrid([1.4]))[:, 0]
        expected = torch.einsum("fp,pskl->fskl", small.flatten(1), dots)
        sampled = DiscoBasis(5, kind, sigma=1.4, degenerate="allow", **options).sample(11, WIDE_RESNET)
        torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-12)


def test_norm_is_one_on_the_smallest_scale_and_sums_are_kept() -> None:
    sampled = DiscoBasis(3, sigma=0.9).sample(5, WIDE_RESNET)
    norms = sampled.square().sum((2, 3)).sqrt()
    torch.testing.assert_close(norms[:, 0], torch.ones_like(norms[:, 0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(norms[:, 2], norms[:, 0], rtol=0, atol=1e-12)
    sums = sampled.sum((2, 3))
    torch.testing.assert_close(sums[:, 1], sums[:, 0], rtol=0, atol=3e-3)  # uniform images are fitted best


def test_fitted_filters_keep_the_symmetries_of_the_pixels() -> None:
    dots = pixels(3, 9, ScaleGrid([1.0, 1.3, 1.7])).unflatten(0, (3, 3))
    torch.testing.assert_close(dots, dots.transpose(0, 1).transpose(-1, -2), rtol=0, atol=1e-10)
    torch.testing.assert_close(dots, dots.flip((0, -2)), rtol=0, atol=1e-10)
    assert not torch.allclose(dots, dots.flip(0))


def test_fitted_filters_end_one_pixel_beyond_the_dilated_ones() -> None:
    assert support_windows(pixels(7, 15, MNIST)) == (7, 11, 13, 13)
    assert support_windows(pixels(3, 5, WIDE_RESNET)) == (3, 5, 5)
    assert support_windows(pixels(3, 21, ScaleGrid([1.0, 2.3]))) == (3, 9)


def test_what_was_solved_once_is_not_solved_again_and_cannot_be_spoilt() -> None:
    first = pixels(3, 7, ScaleGrid([1.0, 1.43, 2.0]))
    expected = first.clone()
    first.zero_()
    assert torch.equal(pixels(3, 7, ScaleGrid([1.0, 1.43, 2.0])), expected)


def test_the_published_mnist_basis_needs_its_degenerate_functions_allowed() -> None:
    options = {"sigma": 1.9, "mult": 1.5}
    text = r'rank 4\d of 49 at scale 1; use another sigma, mult or kind, or accept it with degenerate="allow"'
    with pytest.raises(BasisError, match=text):
        DiscoBasis(7, "B", **options).sample(15, MNIST)
    with pytest.warns(UserWarning, match=text):
        warned = DiscoBasis(7, "B", degenerate="warn", **options).sample(15, MNIST)
    allowed = DiscoBasis(7, "B", degenerate="allow", **options).sample(15, MNIST)
    assert torch.equal(warned, allowed)
    assert not any(diagnosis.degenerate for diagnosis in diagnose(pixels(7, 15, MNIST), MNIST))


@pytest.mark.parametrize(("kernel", "scales", "needed"), [(3, [1.0, 2.0], 5), (5, [1.0, 2.2], 7)])
def test_the_kernel_must_hold_the_largest_filter(kernel: int, scales: list[float], needed: int) -> None:
    with pytest.raises(BasisError, match=rf"expected a kernel_size of at least {needed}, .*, got {kernel}"):
        DiscoBasis(3).sample(kernel, ScaleGrid(scales))
    assert DiscoBasis(3).sample(needed, ScaleGrid(scales)).shape == (9, 2, needed, needed)


@pytest.mark.parametrize("scales", [[1.4, 2.1], [1.2, 1.8], [0.7, 1.05]])
def test_the_rounding_of_a_ratio_needs_no_larger_kernel(scales: list[float]) -> None:
    """2.1 / 1.4 is a little more than 1.5 in floating point."""
    sampled = DiscoBasis(5).sample(7, ScaleGrid(scales))
    torch.testing.assert_close(sampled, DiscoBasis(5).sample(7, ScaleGrid([1.0, 1.5])), rtol=0, atol=1e-12)
    with pytest.raises(BasisError, match="expected a kernel_size of at least 9"):
        DiscoBasis(5).sample(7, ScaleGrid([1.4, 2.1001]))


@pytest.mark.parametrize("kernel", [0, -3, 4])
def test_refuses_even_kernels(kernel: int) -> None:
    text = f"expected an odd kernel_size, got {kernel}; a centred filter needs a central pixel"
    with pytest.raises(BasisError, match=text):
        DiscoBasis(3).sample(kernel, ScaleGrid([1.0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"effective_size": 4}, "an odd effective_size, got 4; the pixels of an even filter"),
        ({"effective_size": -1}, "an odd effective_size, got -1"),
        ({"kind": "C"}, "kind 'A', 'B' or 'pixel', got 'C'"),
        ({"sigma": 0.0}, r"a positive sigma or None, got 0\.0"),
        ({"correlation": 1.0}, r"a correlation of at least 0 and below 1, got 1\.0"),
        ({"mult": 1.0}, r"mult larger than 1, got 1\.0"),
        ({"max_order": -1}, "max_order of at least 0, got -1"),
        ({"degenerate": "ignore"}, "degenerate 'error', 'warn' or 'allow', got 'ignore'"),
    ],
)
def test_refuses_illegal_arguments(options: dict, text: str) -> None:
    with pytest.raises(BasisError, match="expected " + text):
        DiscoBasis(**{"effective_size": 3, **options})


def test_is_a_steerable_basis_and_a_value() -> None:
    assert isinstance(DiscoBasis(3), SteerableBasis)
    assert DiscoBasis(3).num_functions == 9
    assert DiscoBasis(3, "B") == DiscoBasis(3, "B") != DiscoBasis(3)
    assert hash(DiscoBasis(3)) == hash(DiscoBasis(3))
    assert DiscoBasis(1).sample(1, ScaleGrid([1.0])).tolist() == [[[[1.0]]]]


# --- in the layers ---


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(2, 2, size=(61, 65), generator=generator)


def lifting(basis: SteerableBasis, kernel_size: int, grid: ScaleGrid) -> nn.Module:
    lift = LiftConv2d(2, 4, kernel_size=kernel_size, grid=grid, basis=basis, padding="same")
    lift.reset_parameters(torch.Generator().manual_seed(1))
    return lift


@pytest.mark.usefixtures("float64")
def test_lifting_is_equivariant_far_beyond_the_hermite_basis(image: BandLimitedImage) -> None:
    fine = ScaleGrid.geometric(1.0, STEP, 4)
    disco = DiscoBasis(7, "B", sigma=1.9, degenerate="allow")
    report = equivariance_error(lifting(disco, 15, fine), image, [STEP, 1 / STEP, 2.0], margin=12)
    assert 1e-4 < report.worst < 6e-3, str(report)
    hermite = HermiteBasis(7, "B", mult=1.5, degenerate="allow")
    grid = ScaleGrid.geometric(2.0, STEP, 4)
    other = equivariance_error(lifting(hermite, 15, grid), image, [STEP, 1 / STEP, 2.0], margin=12)
    pairs = zip(report.errors, other.errors, strict=True)
    assert all(10 * ours < theirs for ours, theirs in pairs), str(other)


@pytest.mark.usefixtures("float64")
def test_correlated_images_give_smoother_fits(image: BandLimitedImage) -> None:
    """Why the default is not the published white noise."""
    errors = [
        equivariance_error(
            lifting(DiscoBasis(3, sigma=0.9, correlation=correlation), 5, WIDE_RESNET),
            image,
            [2**0.5],
            grid=ScaleGrid.geometric(1.0, 2**0.5, 3),
            margin=12,
        ).worst
        for correlation in (0.0, 0.95)
    ]
    assert 3e-3 < errors[1] < errors[0] / 2 < 0.05, errors


@pytest.mark.usefixtures("float64")
def test_works_in_the_scale_convolution(generator: torch.Generator) -> None:
    grid = ScaleGrid.geometric(1.0, 2**0.5, 3)
    maps = BandLimitedImage.random(2, 2 * len(grid), size=(49, 53), generator=generator).render()
    conv = ScaleConv2d(2, 4, kernel_size=7, grid=grid, basis=DiscoBasis(3), padding="same")
    conv.reset_parameters(torch.Generator().manual_seed(1))
    report = equivariance_error(conv, maps.unflatten(1, (2, 3)), [2**0.5, 2.0], margin=12)
    assert 1e-4 < report.worst < 2e-2, str(report)


@pytest.mark.usefixtures("float64")
def test_gradients_through_the_layers(generator: torch.Generator) -> None:
    options = {"kernel_size": 5, "grid": WIDE_RESNET, "basis": DiscoBasis(3), "padding": "same"}
    lift, conv = LiftConv2d(1, 2, **options), ScaleConv2d(2, 1, scale_size=2, **options)
    x = torch.randn(1, 1, 5, 6, generator=generator, requires_grad=True)
    assert conv(lift(x)).shape == (1, 1, 3, 5, 6)
    weights = (x, lift.weight, conv.weight)
    assert torch.autograd.gradcheck(lambda *_: conv(lift(x)), weights, fast_mode=True)


class NotDilated:
    """The mistake of one filter for all scales."""

    num_functions = 9

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        basis = DiscoBasis(3).sample(kernel_size, grid)
        return basis[:, :1].expand_as(basis).clone()


@pytest.mark.usefixtures("float64")
def test_one_filter_for_all_scales_is_found_out(image: BandLimitedImage) -> None:
    report = equivariance_error(lifting(NotDilated(), 5, ScaleGrid([1.0, 2.0])), image, [2.0], margin=12)
    assert report.worst > 0.1, str(report)
    error = rescaling_error(NotDilated().sample(5, ScaleGrid([1.0, 2.0])), ScaleGrid([1.0, 2.0]))
    assert float(error[0, 1]) > 0.1
