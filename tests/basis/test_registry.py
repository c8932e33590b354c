"""What every registered basis promises: one row a basis, and the same tests for all."""

from dataclasses import dataclass, field

import pytest
import torch

from equiscale import ScaleGrid, SteerableBasis
from equiscale.basis import BasisEntry, basis_entry, diagnose, list_bases
from equiscale.errors import BasisError
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"BasisEntry", "basis_entry", "list_bases"}

STEP = 2**0.5
GRID = ScaleGrid.geometric(1.5, STEP, 3)
KERNEL = 19
CLOSED = ScaleGrid([1.5, 3.0])


@dataclass(frozen=True)
class Row:
    """A registered basis with e = 3: the bounds of its equivariance error, and of its condition number."""

    lower: float
    upper: float
    condition: float
    options: dict = field(default_factory=dict)

    def build(self, name: str, **more) -> SteerableBasis:
        return basis_entry(name).build(3, **{**self.options, **more})


ROWS = {
    "hermite-a": Row(6e-3, 1.6e-2, 5),
    "hermite-b": Row(3e-3, 8e-3, 200, {"max_order": 2, "mult": 1.4}),
    "bspline": Row(1.2e-2, 3e-2, 5),
    "fourier-bessel": Row(0.06, 0.16, 3),
    "log-radial": Row(0.08, 0.22, 6),
    "gaussian-derivative": Row(6e-3, 1.6e-2, 5),
}

EVERY_BASIS = pytest.mark.parametrize("name", list(ROWS))


def test_every_registered_basis_has_a_row() -> None:
    assert set(ROWS) >= set(list_bases()) - OTHERS, "give the new basis a row in ROWS"
    assert set(ROWS) <= set(list_bases())


# Solved for, not sampled from a formula: tests/basis/test_disco.py.
OTHERS = {"disco-a", "disco-b"}


@pytest.mark.parametrize("name", list_bases())
def test_entries_say_what_they_are(name: str) -> None:
    entry = basis_entry(name)
    assert isinstance(entry, BasisEntry)
    assert entry.name == name
    assert entry.title
    assert entry.summary.endswith(".")
    assert entry.citation.year >= 2019


def test_an_unknown_basis_is_refused_with_what_exists() -> None:
    with pytest.raises(BasisError, match=r"expected a basis of .*bspline.*log-radial.*, got 'haar'"):
        basis_entry("haar")


@EVERY_BASIS
def test_samples_as_many_functions_as_the_ordinary_filter_has_weights(name: str) -> None:
    basis = ROWS[name].build(name)
    sampled = basis.sample(KERNEL, GRID)
    assert isinstance(basis, SteerableBasis)
    assert basis.num_functions == 9
    assert sampled.shape == (9, 3, KERNEL, KERNEL)
    assert sampled.dtype == torch.float64


@EVERY_BASIS
def test_is_normalised_on_the_smallest_scale_alone(name: str) -> None:
    norms = ROWS[name].build(name).sample(KERNEL, GRID).square().sum((2, 3)).sqrt()
    torch.testing.assert_close(norms[:, 0], torch.ones_like(norms[:, 0]), rtol=0, atol=1e-14)
    _, middle, largest = norms.mean(0).tolist()  # 1 / √2 and 1 / 2 in the continuum
    assert 0.65 < middle < 0.8
    assert 0.45 < largest < 0.6


@EVERY_BASIS
def test_is_independent_on_a_sane_grid(name: str) -> None:
    found = diagnose(ROWS[name].build(name).sample(KERNEL, GRID), GRID)
    assert [diagnosis.rank for diagnosis in found] == [9, 9, 9]
    assert max(diagnosis.condition for diagnosis in found) < ROWS[name].condition


@EVERY_BASIS
def test_scales_are_copies_of_one_another(name: str) -> None:
    """psi(x / 2; s) = 4 psi(x; 2 s), exact at the even pixels; not so with the scales exchanged."""
    sampled = ROWS[name].build(name).sample(25, CLOSED)
    small, large = sampled[:, 0, 6:19, 6:19], sampled[:, 1]
    torch.testing.assert_close(small, 4 * large[:, ::2, ::2], rtol=0, atol=1e-14)
    assert not torch.allclose(small, 4 * large[:, 6:19, 6:19], atol=1e-2)


@EVERY_BASIS
def test_the_same_is_sampled_each_time_and_nobody_can_spoil_it(name: str) -> None:
    row = ROWS[name]
    first = row.build(name).sample(KERNEL, CLOSED)
    kept = first.clone()
    first.zero_()
    assert torch.equal(row.build(name).sample(KERNEL, CLOSED), kept)
    other = row.build(name).sample(KERNEL, ScaleGrid([1.6, 3.0]))
    assert not torch.equal(other, kept)


@EVERY_BASIS
def test_is_a_value(name: str) -> None:
    row = ROWS[name]
    assert row.build(name) == row.build(name)
    assert hash(row.build(name)) == hash(row.build(name))
    assert row.build(name) != basis_entry(name).build(4, **row.options)


@EVERY_BASIS
@pytest.mark.usefixtures("float64")
def test_how_equivariant_is_the_lifting_convolution(name: str, generator: torch.Generator) -> None:
    row = ROWS[name]
    image = BandLimitedImage.random(2, 2, size=(49, 53), generator=generator)
    lift = LiftConv2d(2, 4, kernel_size=KERNEL, grid=GRID, basis=row.build(name), padding="same")
    lift.reset_parameters(torch.Generator().manual_seed(1))
    report = equivariance_error(lift, image, [0.5, 2.0, 1 / STEP, STEP], margin=14)
    assert row.lower < report.worst < row.upper, str(report)
    assert max(report.errors[2:]) < min(report.errors[:2])  # nearer scales are more alike
    lift.basis.copy_(lift.basis.flip(1))
    reversed_scales = equivariance_error(lift, image, [1 / STEP, STEP], margin=14)
    assert min(reversed_scales.errors) > 2 * row.upper


@EVERY_BASIS
@pytest.mark.usefixtures("float64")
def test_gradients_through_the_layers(name: str, generator: torch.Generator) -> None:
    options = {"kernel_size": 9, "grid": ScaleGrid([1.0, 1.4]), "padding": "same"}
    basis = ROWS[name].build(name, degenerate="allow")
    lift = LiftConv2d(1, 2, basis=basis, **options)
    conv = ScaleConv2d(2, 1, basis=basis, scale_size=2, **options)
    x = torch.randn(1, 1, 5, 6, generator=generator, requires_grad=True)
    assert conv(lift(x)).shape == (1, 1, 2, 5, 6)
    assert torch.autograd.gradcheck(lambda x: conv(lift(x)), (x,), fast_mode=True)
    weights = (lift.weight, conv.weight)
    assert torch.autograd.gradcheck(lambda *_: conv(lift(x)), weights, fast_mode=True)


@EVERY_BASIS
@pytest.mark.parametrize("kernel", [0, -3, 4])
def test_refuses_even_kernels(name: str, kernel: int) -> None:
    text = f"expected an odd kernel_size, got {kernel}; a centred filter needs a central pixel"
    with pytest.raises(BasisError, match=text):
        ROWS[name].build(name).sample(kernel, GRID)


@EVERY_BASIS
@pytest.mark.parametrize(
    ("size", "options", "text"),
    [
        (0, {}, "effective_size of at least 1, got 0"),
        (3, {"degenerate": "ignore"}, "degenerate 'error', 'warn' or 'allow', got 'ignore'"),
    ],
)
def test_refuses_illegal_arguments(name: str, size: int, options: dict, text: str) -> None:
    with pytest.raises(BasisError, match="expected " + text):
        basis_entry(name).build(size, **options)


@pytest.mark.parametrize("policy", ["error", "warn", "allow"])
@pytest.mark.parametrize(
    ("name", "size", "kernel", "scales", "text"),
    [
        ("fourier-bessel", 4, 9, [1.0, 2.0], r"got 1 of 16 that vanish at scale 1 \(window 5\)"),  # 3e14
        ("hermite-a", 7, 15, [0.1, 0.2], r"got \d+ of 49 that vanish at scale 0\.1 \(window 7\)"),  # 1e31
        ("hermite-b", 7, 15, [0.1, 0.2], r"got \d+ of 49 that vanish at scale 0\.1 \(window 7\)"),
        ("gaussian-derivative", 3, 15, [0.1, 2.0], r"got 5 of 9 that vanish at scale 0\.1 \(window 1\)"),
    ],
)
def test_rounding_is_not_blown_up_to_a_function(
    name: str, size: int, kernel: int, scales: list[float], text: str, policy: str
) -> None:
    text = "expected functions that are not zero on the smallest scale, " + text
    with pytest.raises(BasisError, match=text):
        basis_entry(name).build(size, degenerate=policy).sample(kernel, ScaleGrid(scales))


def test_no_kernel_is_named_on_which_a_function_is_rounding() -> None:
    """Odd functions of a Gaussian this narrow are independent of the even one, but 1e-11 of it."""
    jet = basis_entry("gaussian-derivative").build(2, max_order=1, radius=None)
    with pytest.raises(BasisError, match=r"got 2 of 3 that vanish .*; no kernel up to 65 works; use larger"):
        jet.sample(3, ScaleGrid([0.138]))
    assert jet.sample(3, ScaleGrid([0.2])).norm(dim=(2, 3)).flatten().tolist() == pytest.approx([1.0] * 3)


@EVERY_BASIS
def test_too_many_functions_are_refused_warned_of_or_allowed(name: str) -> None:
    crowded, kernel = ScaleGrid([1.0, 1.5]), 9
    build = basis_entry(name).build
    text = r'independent functions .*, got rank \d+ of 64 at scale 1 .* accept it with degenerate="allow"'
    with pytest.raises(BasisError, match="expected 64 " + text):
        build(8).sample(kernel, crowded)
    with pytest.warns(UserWarning, match="expected 64 " + text):
        warned = build(8, degenerate="warn").sample(kernel, crowded)
    assert torch.equal(warned, build(8, degenerate="allow").sample(kernel, crowded))
