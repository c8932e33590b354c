"""Scales as parameters: the same numbers as fixed scales, gradients through them, and training."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import BasisError, ScaleGridError, SettingError, ShapeError
from equiscale.functional import sample_hermite
from equiscale.models import create_model, list_models
from equiscale.nn import LearnableLiftConv2d, LearnableScaleConv2d, LearnableScales, LiftConv2d, ScaleConv2d
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"LearnableScales", "LearnableLiftConv2d", "LearnableScaleConv2d", "sample_hermite"}

pytestmark = pytest.mark.usefixtures("float64")

STEP = 2**0.5
A, B = HermiteBasis(3), HermiteBasis(3, kind="B", max_order=2, mult=1.5)
KINDS = pytest.mark.parametrize("family", [A, B], ids="AB")


def half_octaves(min_scale: float = 1.5) -> LearnableScales:
    return LearnableScales(3, min_scale=min_scale, scale_range=2.0)


@dataclass(frozen=True)
class WholeWindow:
    """Hermite functions pixel by pixel on all of the kernel, whatever the scale."""

    family: HermiteBasis

    @property
    def num_functions(self) -> int:
        return self.family.num_functions

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        u = np.arange(kernel_size) - kernel_size // 2
        basis = np.empty((self.num_functions, len(grid), kernel_size, kernel_size))
        for index, scale in enumerate(grid):
            for function, (sigma, order_y, order_x) in enumerate(self.family.functions(scale)):
                for row, column in itertools.product(range(kernel_size), repeat=2):
                    y, x = u[row] / sigma, u[column] / sigma
                    value = hermite_e.HermiteE.basis(order_x)(y) * hermite_e.HermiteE.basis(order_y)(x)
                    basis[function, index, row, column] = value * np.exp(-(x**2 + y**2) / 2) / sigma**2
        norms = np.sqrt((basis[:, :1] ** 2).sum((2, 3), keepdims=True))
        return torch.from_numpy(basis / norms)


# --- the functions ---


@pytest.mark.parametrize(
    "family", [HermiteBasis(4), HermiteBasis(4, kind="B", max_order=3, mult=1.5)], ids="AB"
)
def test_functions_equal_the_formula_on_the_whole_kernel(family: HermiteBasis) -> None:
    scales = half_octaves()
    sampled = sample_hermite(scales(), family.functions(1.0), 9)
    torch.testing.assert_close(sampled, WholeWindow(family).sample(9, scales.grid), rtol=0, atol=1e-13)


@KINDS
def test_functions_equal_the_fixed_basis_on_the_largest_scale_and_to_the_cut_elsewhere(
    family: HermiteBasis,
) -> None:
    """The published window of scale s is cut at K s / 2 s_max: here beyond 3.3 deviations."""
    grid = ScaleGrid.geometric(1.5, STEP, 3)
    fixed = family.sample(21, grid)
    sampled = sample_hermite(torch.tensor(grid.values), family.functions(1.0), 21)
    scale = fixed.norm(dim=(2, 3)) / sampled.norm(dim=(2, 3))  # norm one, but in another window
    torch.testing.assert_close(sampled[:, 2] * scale[:, 2, None, None], fixed[:, 2], rtol=0, atol=1e-14)
    cut = (sampled - fixed).abs().amax(dim=(0, 2, 3))
    assert 1e-4 < float(cut.max()) < 4e-2, cut


@KINDS
def test_derivatives_of_the_functions(family: HermiteBasis) -> None:
    scales = half_octaves().double()().detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: sample_hermite(s, family.functions(1.0), 9), (scales,), fast_mode=True
    )


def test_a_single_function_of_order_zero() -> None:
    sampled = sample_hermite(torch.tensor([1.0]), [(1.0, 0, 0)], 3)
    side = math.exp(-0.5)
    expected = torch.tensor([[side**2, side, side**2], [side, 1.0, side], [side**2, side, side**2]])
    torch.testing.assert_close(sampled[0, 0], expected / expected.norm())


@KINDS
def test_a_function_too_narrow_for_the_pixels_is_divided_by_a_tenth_of_its_norm_in_the_continuum(
    family: HermiteBasis,
) -> None:
    scales, functions = torch.tensor([0.35, 0.6, 1.0]), family.functions(1.0)
    sampled = sample_hermite(scales, functions, 9)
    unit = WholeWindow(family).sample(9, ScaleGrid(scales.tolist()))
    factors = [min(1.0, sampled_share(q * 0.35, y, x) / 0.1) for q, y, x in functions]
    assert min(factors) < 0.7
    assert max(factors) == 1.0
    torch.testing.assert_close(sampled, torch.tensor(factors).view(-1, 1, 1, 1) * unit, rtol=1e-9, atol=1e-13)


def sampled_share(sigma: float, *orders: int) -> float:
    """The norm on whole pixels over that of the continuum, by sums over coarse and fine positions."""
    share = 1.0
    for order in orders:
        coarse, fine = np.arange(-4.0, 5.0) / sigma, np.arange(-12, 12, 1e-3)
        sums = [
            (hermite_e.HermiteE.basis(order)(u) ** 2 * np.exp(-(u**2))).sum() * step
            for u, step in ((coarse, 1 / sigma), (fine, 1e-3))
        ]
        share *= math.sqrt(sums[0] / sums[1])
    return share


WIDE = pytest.mark.parametrize(
    ("family", "kernel"),
    [(A, 9), (B, 13), (HermiteBasis(7), 15), (HermiteBasis(7, kind="B", mult=1.5), 13)],
    ids=["A3", "B3", "A7", "B7"],
)


@WIDE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_and_derivatives_stay_bounded_as_the_scales_shrink(
    family: HermiteBasis, kernel: int, dtype: torch.dtype
) -> None:
    largest = []
    for smallest in [10.0 ** (-i / 20) for i in range(-10, 60)] + [1e-5, 1e-10]:
        scales = LearnableScales(3, min_scale=smallest, scale_range=3.0).to(dtype)
        sampled = sample_hermite(scales(), family.functions(1.0), kernel)
        sampled.square().sum().backward()
        largest.append(float(sampled.detach().abs().max()))
        assert abs(scales.log_min_scale.grad) < 2e4, smallest
        assert abs(scales.log_range.grad) < 2e4, smallest
    assert 0.9 < max(largest) < 5


@pytest.mark.parametrize("name", list_models("mnist_learnable_*"))
def test_the_networks_of_the_registry_start_with_norm_one_on_the_smallest_scale(name: str) -> None:
    layers = [layer for layer in create_model(name).modules() if isinstance(layer, LearnableScaleConv2d)]
    norms = layers[0].sample_basis()[:, 0].norm(dim=(1, 2))
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-12)


def test_functions_refuse_wrong_arguments() -> None:
    with pytest.raises(ShapeError, match=r"expected scales \(S,\), got \(2, 1\)"):
        sample_hermite(torch.ones(2, 1), [(1.0, 0, 0)], 3)
    with pytest.raises(SettingError, match="expected an odd kernel_size, got 4"):
        sample_hermite(torch.ones(2), [(1.0, 0, 0)], 4)


# --- the scales ---


def test_scales_are_geometric_and_differentiable() -> None:
    scales = LearnableScales(4, min_scale=1.2, scale_range=3.0)
    expected = torch.tensor([1.2 * 3 ** (i / 3) for i in range(4)])
    torch.testing.assert_close(scales(), expected)
    assert scales.grid.values == pytest.approx(expected.tolist(), rel=1e-12)
    scales().sum().backward()
    assert float(scales.log_min_scale.grad) == pytest.approx(float(expected.sum()))
    by_range = sum(i / 3 * value for i, value in enumerate(expected.tolist()))
    assert float(scales.log_range.grad) == pytest.approx(by_range)


def test_scales_stay_in_order_whatever_the_parameters_are() -> None:
    scales = half_octaves()
    with torch.no_grad():
        scales.log_min_scale.fill_(-3.0)
        scales.log_range.fill_(-0.5)
    assert (scales().diff() > 0).all()
    assert scales.grid.min == pytest.approx(math.exp(-3))
    assert scales.grid.max == pytest.approx(math.exp(-2.5))


def test_equal_scales_can_part_again() -> None:
    scales = half_octaves()
    with torch.no_grad():
        scales.log_range.zero_()
    scales()[-1].backward()
    assert float(scales.log_range.grad) == pytest.approx(1.5)  # ds / db at the largest scale, b ≥ 0
    with pytest.raises(ScaleGridError, match="expected strictly increasing scales"):
        scales.grid  # noqa: B018
    assert repr(scales) == "LearnableScales(3, scales=[1.5, 1.5, 1.5])"


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (1e3, "inf"), (-1e3, "0.0")])
def test_a_network_whose_scales_are_lost_can_still_be_printed(value: float, shown: str) -> None:
    scales = half_octaves()
    layer = LearnableLiftConv2d(1, 2, kernel_size=9, scales=scales)
    with torch.no_grad():
        scales.log_min_scale.fill_(value)
    assert f"LearnableScales(3, scales=[{shown}, {shown}, {shown}])" in repr(layer)
    with pytest.raises(ScaleGridError, match="expected finite positive scales, got " + shown):
        layer.grid  # noqa: B018
    assert "LearnableScales(3)" in repr(layer.to("meta"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_scales": 1}, "at least 2 scales, which span a range, got 1"),
        ({"min_scale": 0.0}, r"a positive min_scale, got 0\.0"),
        ({"scale_range": 1.0}, r"a scale_range larger than 1, got 1\.0"),
        ({"scale_range": math.inf}, "a scale_range larger than 1, got inf"),
    ],
)
def test_scales_refuse_illegal_arguments(options: dict, text: str) -> None:
    with pytest.raises(SettingError, match="expected " + text):
        LearnableScales(**{"num_scales": 3, "min_scale": 1.0, "scale_range": 2.0, **options})


def test_layers_share_one_pair_of_numbers() -> None:
    scales = half_octaves()
    options = {"kernel_size": 9, "scales": scales, "padding": "same", "bias": False}
    network = nn.Sequential(LearnableLiftConv2d(1, 2, **options), LearnableScaleConv2d(2, 2, **options))
    assert [name for name, _ in network.named_parameters()] == [
        "0.weight",
        "0.scales.log_min_scale",
        "0.scales.log_range",
        "1.weight",
    ]
    assert list(scales.state_dict()) == ["log_min_scale", "log_range"]
    network(torch.randn(1, 1, 9, 9)).square().sum().backward()
    with torch.no_grad():
        network[0].scales.log_range.add_(0.1)
    assert network[1].grid == network[0].grid == scales.grid
    options["scales"] = half_octaves(0.7)
    other = nn.Sequential(LearnableLiftConv2d(1, 2, **options), LearnableScaleConv2d(2, 2, **options))
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 9, 9)
    torch.testing.assert_close(other(x), network(x))


# --- the layers ---


@KINDS
def test_lifting_equals_fixed_scales_in_the_whole_window(
    family: HermiteBasis, generator: torch.Generator
) -> None:
    scales = half_octaves()
    learnable = LearnableLiftConv2d(2, 3, kernel_size=13, scales=scales, basis=family, padding="same")
    fixed = LiftConv2d(2, 3, kernel_size=13, grid=scales.grid, basis=WholeWindow(family), padding="same")
    nn.init.normal_(learnable.bias, generator=generator)
    fixed.load_state_dict({"weight": learnable.weight, "bias": learnable.bias})
    x = torch.randn(2, 2, 11, 14, generator=generator)
    torch.testing.assert_close(learnable(x), fixed(x), rtol=0, atol=1e-12)


@KINDS
def test_scale_convolution_equals_fixed_scales_in_the_whole_window(
    family: HermiteBasis, generator: torch.Generator
) -> None:
    scales = half_octaves()
    options = {"kernel_size": 13, "padding": "same", "scale_size": 2, "scale_padding": "replicate"}
    learnable = LearnableScaleConv2d(2, 3, scales=scales, basis=family, **options)
    fixed = ScaleConv2d(2, 3, grid=scales.grid, basis=WholeWindow(family), **options)
    nn.init.normal_(learnable.bias, generator=generator)
    fixed.load_state_dict({"weight": learnable.weight, "bias": learnable.bias})
    x = torch.randn(2, 2, 3, 11, 14, generator=generator)
    torch.testing.assert_close(learnable(x), fixed(x), rtol=0, atol=1e-12)


def test_lifting_equals_the_published_window_but_for_what_it_cuts(generator: torch.Generator) -> None:
    scales = half_octaves()
    learnable = LearnableLiftConv2d(2, 3, kernel_size=21, scales=scales, padding="same", bias=False)
    learnable.reset_parameters(torch.Generator().manual_seed(1))
    fixed = LiftConv2d(2, 3, kernel_size=21, grid=scales.grid, basis=A, padding="same", bias=False)
    fixed.load_state_dict({"weight": learnable.weight})
    x = BandLimitedImage.random(2, 2, size=(31, 33), generator=generator).render()
    difference = (learnable(x) - fixed(x)).norm() / fixed(x).norm()
    assert 1e-3 < difference.item() < 1e-2


@KINDS
def test_derivatives_of_weights_and_scales(family: HermiteBasis, generator: torch.Generator) -> None:
    scales = half_octaves(1.2)
    options = {"kernel_size": 7, "scales": scales, "padding": "same", "basis": family_allowed(family)}
    lift, conv = (
        LearnableLiftConv2d(1, 1, **options),
        LearnableScaleConv2d(1, 1, scale_size=2, **options),
    )
    x = torch.randn(1, 1, 4, 5, generator=generator)

    def network(*_: Tensor) -> Tensor:
        return conv(lift(x))

    parameters = (scales.log_min_scale, scales.log_range, lift.weight, conv.weight, lift.bias, conv.bias)
    assert torch.autograd.gradcheck(network, parameters)


def family_allowed(family: HermiteBasis) -> HermiteBasis:
    return HermiteBasis(**{**vars(family), "degenerate": "allow"})


@KINDS
def test_how_equivariant_is_lifting(family: HermiteBasis, generator: torch.Generator) -> None:
    image = BandLimitedImage.random(2, 2, size=(49, 53), generator=generator)
    lift = LearnableLiftConv2d(2, 4, kernel_size=19, scales=half_octaves(), basis=family, padding="same")
    lift.reset_parameters(torch.Generator().manual_seed(1))
    report = equivariance_error(lift, image, [STEP, 1 / STEP, 2.0], margin=14)
    assert 5e-3 < report.worst < 4e-2, str(report)
    wrong = equivariance_error(lift, image, [1.2], grid=ScaleGrid.geometric(1.0, 1.2, 3), margin=14)
    assert wrong.worst > 5 * report.worst, str(wrong)


def test_training_moves_the_scales_to_those_of_the_teacher(generator: torch.Generator) -> None:
    teacher = LearnableLiftConv2d(
        1, 4, kernel_size=15, scales=LearnableScales(3, min_scale=0.9, scale_range=2.2), padding="same"
    ).requires_grad_(False)
    teacher.reset_parameters(torch.Generator().manual_seed(1))
    scales = LearnableScales(3, min_scale=1.2, scale_range=1.5)
    student = LearnableLiftConv2d(1, 4, kernel_size=15, scales=scales, padding="same")
    student.weight.data.copy_(teacher.weight)
    images = BandLimitedImage.random(2, 1, size=(24, 24), generator=generator, band=0.8).render()
    optimizer = torch.optim.Adam(scales.parameters(), lr=0.05)
    seen = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (student(images) - teacher(images)).square().mean()
        loss.backward()
        optimizer.step()
        seen.append((scales.grid.min, scales.grid.max / scales.grid.min))
    assert seen[0][0] < 1.2  # the first step goes the right way
    assert seen[0][1] > 1.5
    assert seen[-1] == pytest.approx((0.9, 2.2), rel=0.05)


def test_dependent_functions_are_refused_warned_of_or_allowed() -> None:
    scales = LearnableScales(2, min_scale=0.2, scale_range=2.0)
    text = r'expected 16 independent functions on every initial scale .* rank \d+ at scale 0.2 in 7 .*"allow"'
    with pytest.raises(BasisError, match=text):
        LearnableLiftConv2d(1, 1, kernel_size=7, scales=scales, basis=HermiteBasis(4))
    with pytest.warns(UserWarning, match=text):
        LearnableLiftConv2d(1, 1, kernel_size=7, scales=scales, basis=HermiteBasis(4, degenerate="warn"))
    allowed = HermiteBasis(4, degenerate="allow")
    assert LearnableLiftConv2d(1, 1, kernel_size=7, scales=scales, basis=allowed).grid == scales.grid
