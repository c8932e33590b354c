import itertools
import math

import pytest
import torch

from equiscale import ScaleGrid
from equiscale.basis import LogRadialBasis, diagnose
from equiscale.errors import BasisError
from tests.golden import golden_case, golden_names

COVERS = {"LogRadialBasis"}

PUBLISHED = golden_names("basis_lr_harmonics")


def shared_functions(config: dict) -> tuple[list[int], list[int]]:
    """Their places in the published listing, whose last direction repeats the first, and in ours."""
    count, directions = config["effective_size"] ** 2, config["num_rotations"]
    theirs, ours = [], []
    for order, direction, part in itertools.product(range(3), range(directions - 1), range(2)):
        pair = [(order * n + direction) * 2 + part for n in (directions, directions - 1)]
        if max(pair) < count:
            theirs.append(pair[0])
            ours.append(pair[1])
    return theirs, ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_functions_scale_by_scale(name: str) -> None:
    """Each scale by itself: the published frequency changes from window to window."""
    case = golden_case(name)
    config, size = case.config, case.config["size"]
    theirs, ours = shared_functions(config)
    basis = LogRadialBasis(
        config["effective_size"],
        rotations=config["num_rotations"] - 1,
        angular_width=config["sigma"],
        degenerate="allow",
    )
    for index, scale in enumerate(config["scales"]):
        window = int(size * scale / config["scales"][-1]) // 2 * 2 + 1
        inner = slice((size - window) // 2, (size + window) // 2)
        published = case["basis"][theirs, index, inner, inner]
        published = published / published.square().sum((1, 2), keepdim=True).sqrt()
        sampled = basis.sample(window, ScaleGrid([scale]))[ours, 0]
        torch.testing.assert_close(sampled, published, rtol=0, atol=1e-13)
    assert len(ours) > 40


def test_the_published_directions_repeat_and_ours_do_not() -> None:
    case = golden_case("basis_lr_harmonics_mnist_plus")
    grid = ScaleGrid(case.config["scales"])
    first, last = case["basis"][0], case["basis"][2 * (case.config["num_rotations"] - 1)]
    torch.testing.assert_close(first, last, rtol=0, atol=1e-9)
    assert diagnose(case["basis"], grid)[-1].rank == 45
    assert diagnose(LogRadialBasis(7, degenerate="allow").sample(15, grid), grid)[-1].rank == 49


def test_is_the_formula_pixel_by_pixel() -> None:
    grid = ScaleGrid([1.5, 2.4])
    sampled = LogRadialBasis(3, rotations=2, angular_width=0.5).sample(11, grid)
    reach = math.log(math.sqrt(2) * 5 / 2.4)
    listing = list(itertools.product((0.5, 1.0, 2.0), (0.0, math.pi / 2), (math.cos, math.sin)))[:9]
    for function, (order, direction, wave) in enumerate(listing):
        expected = torch.zeros(2, 11, 11, dtype=torch.float64)
        for index, scale in enumerate(grid):
            half = int(11 * scale / 2.4) // 2
            for row, column in itertools.product(range(-half, half + 1), repeat=2):
                rho = max(math.hypot(row, column), scale / 1.5) / scale
                turns = [math.atan2(column, -row) - direction + k * math.pi for k in range(-2, 3)]
                distance = min(abs(turn) for turn in turns)
                expected[index, row + 5, column + 5] = (
                    math.exp(-(distance**2) / (2 * 0.5**2))
                    / (rho * scale**2)
                    * wave(2 * math.pi * order * math.log(rho) / reach - math.pi / 4)
                )
        expected /= expected[0].norm()
        torch.testing.assert_close(sampled[function], expected, rtol=0, atol=1e-13)


def test_the_cone_of_direction_zero_points_up_and_the_next_turns_right() -> None:
    sampled = LogRadialBasis(4, rotations=4).sample(13, ScaleGrid([2.0]))[:, 0]
    up, diagonal, right = sampled[0].abs(), sampled[2].abs(), sampled[4].abs()
    for image, (row, column) in [(up, (-5, 0)), (diagonal, (-4, 4)), (right, (0, 5))]:
        ray, opposite = image[6 + row, 6 + column], image[6 - row, 6 - column]
        across = image[6 - column, 6 + row]
        assert ray == pytest.approx(float(opposite), rel=1e-12)
        assert ray > 50 * across


def test_defaults_are_as_many_directions_as_the_effective_size_half_apart() -> None:
    spelled_out = LogRadialBasis(4, rotations=4, angular_width=math.pi / 8)
    grid = ScaleGrid([2.0, 3.0])
    assert torch.equal(LogRadialBasis(4).sample(15, grid), spelled_out.sample(15, grid))


def test_refuses_a_kernel_whose_corner_is_too_near() -> None:
    text = (
        r"corner is farther from the centre than the largest scale 4, got 5 with its corner at 2\.83; "
        "use a larger kernel"
    )
    with pytest.raises(BasisError, match="expected a kernel whose " + text):
        LogRadialBasis(3).sample(5, ScaleGrid([2.0, 4.0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rotations": 0}, "at least 1 rotation, got 0"),
        ({"angular_width": 0.0}, r"a positive finite angular_width, got 0\.0"),
    ],
)
def test_refuses_illegal_arguments(options: dict, text: str) -> None:
    with pytest.raises(BasisError, match="expected " + text):
        LogRadialBasis(3, **options)
