"""The search: what is tried, what is measured, what is chosen, and that the line to paste works."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

import equiscale
from equiscale import ScaleGrid
from equiscale.basis import DiscoBasis, HermiteBasis, diagnose, rescaling_error
from equiscale.choose import Candidate, SearchSpace, Suggestion, suggest
from equiscale.choose.candidates import combined, expression_of, grid_shapes, search
from equiscale.choose.cost import operations_of, relative_operations, relative_time
from equiscale.choose.measure import (
    Probe,
    error_between,
    error_on_grid,
    neighbour_correlation,
    prepared,
    root_mean_square,
)
from equiscale.choose.suggest import front, sieve
from equiscale.errors import BasisError, SettingError, ShapeError
from equiscale.functional.algorithms import Convolution
from equiscale.functional.rescale import rescale
from equiscale.nn import ScaleConv2d
from equiscale.testing import BandLimitedImage

SPACE = SearchSpace(kernel_sizes=(5, 7), bases=("disco-a", "hermite-a"), measured=4, images=3)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return BandLimitedImage.random(6, 1, size=(32, 36), generator=generator, band=0.8).render()


@pytest.fixture(scope="module")
def found(images: Tensor) -> Suggestion:
    return suggest(images, factor_range=(0.5, 1.0), budget=5.0, space=SPACE)


# --- what is suggested ---


def test_the_chosen_one_is_the_least_error_within_the_budget(found: Suggestion) -> None:
    affordable = [c for c in found.measured if c.cost <= 5.0]
    assert found.chosen is min(affordable, key=lambda c: c.error)
    assert len(found.measured) == 4
    assert all(0 < c.error < 2 and c.rank == c.functions == 9 for c in found.measured)
    assert found.candidates[0] is found.measured[0]
    assert [c.error for c in found.measured] == sorted(c.error for c in found.measured)


def test_the_front_holds_what_no_other_beats_and_nothing_else(found: Suggestion) -> None:
    for candidate in found.measured:
        beaten = any(o.cost <= candidate.cost and o.error < candidate.error for o in found.measured)
        assert (candidate in found.pareto) == (not beaten)
    assert [c.cost for c in found.pareto] == sorted(c.cost for c in found.pareto)


def test_the_line_to_paste_makes_the_chosen_layer(found: Suggestion) -> None:
    scope: dict[str, object] = {}
    exec(found.code, scope)
    lift = scope["lift"]
    assert isinstance(lift, equiscale.nn.LiftConv2d)
    assert lift.kernel_size == found.chosen.kernel_size
    assert lift.family == found.chosen.basis
    assert list(lift.grid) == pytest.approx(list(found.chosen.grid), rel=1e-12)
    assert lift(torch.zeros(2, 1, 32, 32)).shape == (2, 16, len(found.chosen.grid), 32, 32)


def test_grids_cover_the_range(found: Suggestion) -> None:
    for candidate in found.candidates:
        assert candidate.grid.max / candidate.grid.min == pytest.approx(2.0, rel=0.003)
        assert all(b / a <= 2.001 for a, b in pairwise(candidate.grid))


def test_the_same_seed_gives_the_same_and_another_does_not(images: Tensor, found: Suggestion) -> None:
    torch.rand(5)  # torch's own generator does not matter
    before = torch.get_rng_state()
    again = suggest(images, factor_range=(0.5, 1.0), budget=5.0, space=SPACE)
    assert again == found
    assert torch.equal(before, torch.get_rng_state())
    other = suggest(images, factor_range=(0.5, 1.0), budget=5.0, space=SPACE, seed=1)
    assert {c.error for c in other.measured}.isdisjoint({c.error for c in found.measured})


def test_only_the_ratio_of_the_range_counts(images: Tensor, found: Suggestion) -> None:
    again = suggest(images, factor_range=(3.0, 6.0), budget=5.0, space=SPACE)
    assert again.candidates == found.candidates


def test_a_larger_budget_is_never_worse_and_a_tiny_one_gives_nothing(found: Suggestion) -> None:
    larger = replace(found, budget=100.0)
    assert larger.chosen.error <= found.chosen.error
    nothing = replace(found, budget=0.5)
    assert nothing.chosen is None
    assert "raise the budget" in str(nothing)
    with pytest.raises(SettingError, match=r"at most 0\.5 plain convolutions, got [\d.]+ as the least"):
        _ = nothing.code


def test_the_record_is_json_and_holds_everything(found: Suggestion) -> None:
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert len(record["candidates"]) == len(found.candidates)
    (chosen,) = [row for row in record["candidates"] if row["chosen"]]
    assert chosen["error"] == found.chosen.error
    assert record["code"] == found.code
    assert sum(row["pareto"] for row in record["candidates"]) == len(found.pareto)


def test_the_table_shows_every_measured_one_and_marks_the_chosen_one(found: Suggestion) -> None:
    lines = str(found).splitlines()
    rows = [line for line in lines if "Basis(" in line and "lift" not in line]
    assert len(rows) == 4
    (marked,) = [line for line in rows if line.startswith(">")]
    assert f"{found.chosen.error:.3f}" in marked
    assert lines[-1] == found.code.splitlines()[-1]
    assert "sizes of objects from 0.50 to 1.00 (given)" in lines[0]


# --- bases that do not fit ---


def test_degenerate_and_too_small_ones_are_shown_and_never_chosen(images: Tensor) -> None:
    space = SearchSpace(kernel_sizes=(7,), bases=("hermite-a", "disco-a"), effective_size=5, images=2)
    found = suggest(images, factor_range=(1.0, 2.0), budget=50.0, space=space)
    statuses = {(c.basis_name, c.kernel_size): c.status for c in found.candidates if len(c.grid) == 2}
    assert statuses[("disco-a", 7)] == "unfit"
    assert statuses[("hermite-a", 7)] == "degenerate"
    assert found.chosen is None
    assert not found.measured
    unfit = next(c for c in found.candidates if c.status == "unfit")
    assert "expected a kernel_size of at least" in unfit.note
    worst = next(c for c in found.candidates if c.status == "degenerate")
    assert worst.rank < worst.functions == 25
    assert "degenerate: hermite-a with kernel 7" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_an_affordable_candidate_of_dependent_functions_is_not_chosen(found: Suggestion) -> None:
    tempting = replace(found.measured[0], status="degenerate", on_grid=0.0, between=0.0, cost=0.1)
    assert replace(found, candidates=(tempting, *found.candidates)).chosen == found.chosen


# --- the search ---


def test_grids_have_steps_of_at_most_an_octave_and_are_few() -> None:
    assert grid_shapes(2.0) == [(2.0, 2), (1.414, 3), (1.26, 4)]
    assert grid_shapes(1.2)[0] == (1.2, 2)
    assert [count for _, count in grid_shapes(10.0)] == [5, 6, 7]
    with pytest.raises(SettingError, match="a plain convolution serves objects of one size"):
        grid_shapes(1.01)


def test_a_candidate_has_the_smallest_scale_of_least_error() -> None:
    space = SearchSpace(kernel_sizes=(9,), bases=("hermite-a",))
    best = next(search(2.0, space, size=(32, 32), correlation=0.9))
    errors = {}
    for scale in [9 / 2 / k for k in (3.0, 4.0, 5.0, 6.5, 8.5)]:
        grid = ScaleGrid.geometric(round(scale, 2), 2.0, 2)
        sampled = HermiteBasis(3, degenerate="allow").sample(9, grid)
        if not any(d.degenerate for d in diagnose(sampled, grid)):
            errors[grid.min] = float(rescaling_error(sampled, grid, correlation=0.9)[0, 1])
    assert len(errors) > 2
    assert best.grid.min == min(errors, key=errors.__getitem__)
    assert best.sieve == pytest.approx(min(errors.values()))


def test_a_larger_kernel_around_the_same_functions_is_not_tried_again() -> None:
    space = SearchSpace(kernel_sizes=(5, 7, 9), bases=("disco-a",))
    tried = [c for c in search(2.0, space, size=(32, 32), correlation=0.9) if len(c.grid) == 2]
    assert [c.kernel_size for c in tried] == [5]


def test_fronts_come_one_after_the_other() -> None:
    grid = ScaleGrid([1.0, 2.0])

    def made(cost: float, error: float) -> Candidate:
        return Candidate(grid, 5, "disco-a", cost=cost, sieve=error, between=0.0)

    first = [made(1, 9), made(2, 5), made(4, 1)]
    second = [made(2, 9), made(3, 6), made(5, 2)]
    third = [made(6, 9)]
    everything = [*third, *second, *first]
    assert front(everything, lambda c: (c.cost, c.sieve)) == first
    assert sieve(everything, 6) == [*first, *second]
    assert sieve(everything, 4) == [*first, second[0]]
    assert sieve([replace(c, status="degenerate") for c in everything], 4) == []


def test_what_lies_far_beyond_the_budget_is_not_measured(images: Tensor) -> None:
    found = suggest(images, factor_range=(0.5, 1.0), budget=1.1, space=SPACE)
    assert {c.status for c in found.candidates if c.cost and c.cost > 2.2} == {"costly"}
    assert all(c.cost <= 2.2 for c in found.measured)


# --- what is measured ---


def test_the_error_on_the_grid_is_that_of_the_definition(images: Tensor) -> None:
    candidate = Candidate(ScaleGrid([1.0, 2.0]), 5, "disco-a", DiscoBasis(3))
    x = prepared(images, 2, 0)
    squares = []
    for draw in range(3):
        probe = Probe(candidate, in_channels=1, seed=5 + draw)
        with torch.no_grad():
            y, enlarged = rescale(probe(x), 2.0), probe(rescale(x, 2.0))
        inside = (..., slice(8, 24), slice(8, 28))  # a quarter of 32 from each border
        difference = (enlarged[:, :, 1] - y[:, :, 0])[inside]
        squares.append(float(difference.norm() / y[:, :, 0][inside].norm()) ** 2)
    assert error_on_grid(candidate, x, 5) == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-4)


def test_an_exact_basis_has_a_far_smaller_error_than_a_wrong_one(images: Tensor) -> None:
    x = prepared(images, 3, 0)
    exact = Candidate(ScaleGrid([1.0, 2.0]), 5, "disco-a", DiscoBasis(3))

    class Frozen(DiscoBasis):
        def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
            smallest = super().sample(kernel_size, grid)[:, :1]
            return smallest.expand(-1, len(grid), -1, -1)

    wrong = replace(exact, basis=Frozen(3))
    assert 0.0 < error_on_grid(exact, x, 0) < 0.15
    assert error_on_grid(wrong, x, 0) > 3 * error_on_grid(exact, x, 0)


def test_the_error_between_scales_is_that_of_half_a_step_in_a_plain_network(images: Tensor) -> None:
    x, squares = prepared(images, 2, 0), []
    for draw in range(3):
        generator = torch.Generator().manual_seed(5 + draw)
        first, second = (
            nn.init.kaiming_uniform_(torch.empty(8, channels, 3, 3), a=math.sqrt(5), generator=generator)
            for channels in (1, 8)
        )
        y, enlarged = (
            conv2d(conv2d(seen, first, padding=1).relu(), second, padding=1) for seen in (x, rescale(x, 1.2))
        )
        inside = (..., slice(8, 24), slice(8, 28))
        expected = rescale(y, 1.2)[inside]
        squares.append(float((enlarged[inside] - expected).norm() / expected.norm()) ** 2)
    found = error_between(1.44, x, effective_size=3, seed=5)
    assert found == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-4)


def test_what_lies_between_scales_grows_with_the_step(images: Tensor) -> None:
    x = prepared(images, 3, 0)
    gaps = [error_between(step, x, effective_size=3, seed=0) for step in (1.0001, 1.2, 1.41, 2.0)]
    assert gaps[0] < 1e-3
    assert gaps == sorted(gaps)
    assert gaps[-1] > 0.05
    assert combined(0.3, 0.0) == 0.3
    assert combined(0.3, 0.6) == pytest.approx(math.sqrt(0.09 + 0.12))
    assert combined(None, 0.6) is None


def test_images_are_few_cropped_and_continued_by_zeros() -> None:
    photographs = torch.randint(50, 200, (9, 3, 80, 70), generator=torch.Generator().manual_seed(0))
    photographs[:, 1, :, 0] = photographs[:, 1, :, -1] = 255
    x = prepared(photographs.to(torch.uint8), 4, 0)
    assert x.shape == (4, 3, 64, 64)
    assert x.std() == pytest.approx(1.0, rel=0.1)
    edge = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
    assert edge.median(-1).values.abs().max() < 1e-6
    digits = torch.zeros(2, 1, 28, 28)
    digits[:, :, 8:20, 8:20] = 255.0
    assert (prepared(digits, 5, 0)[..., :8, :] == 0).all()
    assert not torch.equal(prepared(photographs, 4, 0), prepared(photographs, 4, 1))


def test_correlation_of_neighbours() -> None:
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert neighbour_correlation(noise) < 0.03
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    assert neighbour_correlation(ramp) > 0.95
    mixed = noise[..., 1:] + noise[..., :-1]
    assert neighbour_correlation(mixed) == pytest.approx(0.25, abs=0.05)  # 1/2 along one axis
    assert root_mean_square([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))


# --- costs ---


def layer(size: int, channels: int = 32, **options) -> ScaleConv2d:
    return ScaleConv2d(channels, channels, kernel_size=size, padding="same", **options)


def test_operations_of_the_direct_algorithms_are_counted_by_hand() -> None:
    conv = layer(5, 4, grid=ScaleGrid([1.0, 2.0]), basis=DiscoBasis(3))
    x = torch.zeros(3, 4, 2, 10, 12)
    convolution = Convolution(
        x, conv.weight, conv.basis, conv.bias, conv.geometry, conv.windows, conv.filter_cache
    )
    pairs = 2.0 * 3 * 10 * 12 * 4 * 4
    assert operations_of(convolution, "cropped") == pairs * (9 + 25)
    assert operations_of(convolution, "dilated") == pairs * (9 + 9)
    assert operations_of(convolution, "projected") != operations_of(convolution, "fourier")


def test_a_scale_costs_at_least_a_plain_convolution_unless_transformed() -> None:
    exact = layer(5, grid=ScaleGrid([1.0, 2.0]), basis=DiscoBasis(3))
    assert relative_operations(exact, (32, 32)) == pytest.approx(2.0)  # dilated copies of one filter
    three = layer(7, grid=ScaleGrid.geometric(0.9, 1.41, 3))
    four = layer(9, grid=ScaleGrid.geometric(0.9, 1.41, 4))
    assert 2 < relative_operations(three, (32, 32)) < relative_operations(four, (32, 32)) < 15


def test_the_measured_time_is_of_that_order() -> None:
    ratio = relative_time(layer(7, 8, grid=ScaleGrid.geometric(0.9, 1.41, 3)), (16, 16))
    assert 0.3 < ratio < 300


def test_times_can_be_the_cost(images: Tensor) -> None:
    space = SearchSpace(kernel_sizes=(5,), bases=("disco-a",), cost="time", measured=1, images=2)
    found = suggest(images, factor_range=(0.5, 1.0), budget=1e4, space=space)
    counted = suggest(images, factor_range=(0.5, 1.0), budget=1e4, space=replace(space, cost="operations"))
    assert found.measured[0].cost != counted.measured[0].cost
    assert found.measured[0].error == counted.measured[0].error


# --- settings ---


def test_expressions_name_what_is_not_as_by_default() -> None:
    assert expression_of(DiscoBasis(3)) == "basis.DiscoBasis(3)"
    assert expression_of(HermiteBasis(5, "B", mult=1.5)) == "basis.HermiteBasis(5, kind='B', mult=1.5)"


def test_the_range_is_estimated_where_none_is_given(images: Tensor) -> None:
    told: list[str] = []
    blobs = torch.stack([_blob(d) for d in (2.0, 2.4, 3.0, 4.0, 5.0)])
    found = suggest(blobs, budget=8.0, space=replace(SPACE, measured=1), progress=told.append)
    assert found.range_source == "estimated from the images"
    assert found.factor_range[1] / found.factor_range[0] == pytest.approx(2.2, rel=0.1)
    assert told[0] == "estimating the range of sizes"
    assert told[-1].startswith("measuring 1 of 1: ")


def _blob(deviation: float) -> Tensor:
    x = torch.arange(40.0) - 19.5
    return torch.exp(-(x[:, None] ** 2 + x**2) / (2 * deviation**2))[None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": ()}, "expected at least one kernel size and one basis, got none"),
        ({"kernel_sizes": (5, 6)}, "expected odd positive kernel_sizes, got 5, 6"),
        ({"effective_size": 4}, "expected odd positive effective_size, got 4"),
        ({"measured": 0}, "expected to measure a candidate on an image at least, got 0 on 16"),
        ({"cost": "money"}, "expected a cost of operations, time, got 'money'"),
    ],
)
def test_senseless_spaces_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SearchSpace(**options)


def test_unknown_bases_are_refused_before_any_work() -> None:
    with pytest.raises(BasisError, match="expected a basis of"):
        SearchSpace(bases=("no-such",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor_range": (2.0, 1.0)}, "expected a factor_range of two rising positive factors, got 2 and 1"),
        ({"factor_range": (0.0, 1.0)}, "expected a factor_range"),
        ({"factor_range": (1.0, 1.01)}, "expected sizes that differ by a factor of at least 1.05, got 1.01"),
        ({"factor_range": (1.0, 2.0), "budget": 0.0}, "expected a positive budget, got 0"),
    ],
)
def test_senseless_ranges_and_budgets_are_refused(arguments: dict, message: str, images: Tensor) -> None:
    with pytest.raises(SettingError, match=message):
        suggest(images, **arguments)


def test_images_that_show_nothing_are_left_out_and_none_is_refused(images: Tensor) -> None:
    with pytest.raises(SettingError, match="expected images that show something, got constant ones only"):
        suggest(torch.ones(3, 1, 32, 32), factor_range=(1.0, 2.0))
    with pytest.raises(SettingError, match="expected finite pixel values"):
        suggest(images / images.abs().clamp(max=0), factor_range=(1.0, 2.0))
    with pytest.raises(ShapeError, match=r"expected images \(N, C, H, W\)"):
        suggest(images[0], factor_range=(1.0, 2.0))
    space = SearchSpace(kernel_sizes=(5,), bases=("disco-a",), measured=1, images=6)
    with_blank = torch.cat([torch.zeros(1, 1, 32, 36), images])
    assert suggest(with_blank, factor_range=(1.0, 2.0), budget=9.0, space=space) == suggest(
        images, factor_range=(1.0, 2.0), budget=9.0, space=space
    )


def test_a_candidate_without_a_basis_has_no_layer() -> None:
    with pytest.raises(SettingError, match="expected a basis that can be built, got disco-a: too small"):
        Candidate(ScaleGrid([1.0]), 3, "disco-a", note="too small").layer()
    assert isinstance(Candidate(ScaleGrid([1.0]), 3, "disco-a", DiscoBasis(3)).layer(4), nn.Module)
