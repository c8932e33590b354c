"""The measurement itself: what must pass, what must fail, and what must be refused."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from equiscale import ScaleGrid
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.rescale import rescale
from equiscale.nn import LiftConv2d, ScaleAvgPool2d, ScaleConv2d, ScaleProjection
from equiscale.testing import (
    BandLimitedImage,
    EquivarianceOptions,
    EquivarianceReport,
    assert_equivariant,
    equivariance_error,
)

COVERS = {"equivariance_error", "assert_equivariant", "EquivarianceReport", "EquivarianceOptions"}

pytestmark = pytest.mark.usefixtures("float64")

STEP = 2**0.5
GRID = ScaleGrid.geometric(1.5, STEP, 3)
FACTORS = [0.5, 1 / STEP, STEP, 2.0]


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(2, 2, size=(48, 51), generator=generator)


@pytest.fixture
def scale_map(generator: torch.Generator) -> Tensor:
    images = BandLimitedImage.random(2, 6, size=(48, 51), generator=generator)
    return images.render().unflatten(1, (2, 3))


def lift(**options) -> LiftConv2d:
    module = LiftConv2d(2, 3, kernel_size=19, grid=GRID, padding="same", **options)
    module.reset_parameters(torch.Generator().manual_seed(1))
    return module


def refined(image: BandLimitedImage, factor: int) -> BandLimitedImage:
    """The same image on a finer pixel grid."""
    return BandLimitedImage(
        size=(image.size[0] * factor, image.size[1] * factor),
        centers=image.centers * factor,
        widths=image.widths * factor,
        frequencies=image.frequencies / factor,
        phases=image.phases,
        amplitudes=image.amplitudes,
    )


def gaussians(x: Tensor) -> Tensor:
    """Scale space: the image under isotropic Gaussians of sigma 2, 2.8 and 4, cut at six sigma."""
    maps = []
    for sigma in (2.0, 2 * STEP, 4.0):
        u = torch.arange(-24.0, 25.0)
        window = torch.exp(-(u**2) / (2 * sigma**2))
        window = (window / window.sum()).expand(x.shape[1], 1, -1)
        rows = conv2d(x, window[..., None], padding=(24, 0), groups=x.shape[1])
        maps.append(conv2d(rows, window[..., None, :], padding=(0, 24), groups=x.shape[1]))
    return torch.stack(maps, dim=2)


# --- what must pass ---


def test_identity_has_only_the_error_of_interpolation_which_is_of_third_order(
    image: BandLimitedImage,
) -> None:
    for factor in (0.7, 1.3):
        errors = [
            equivariance_error(lambda x: x, refined(image, fine), [factor], margin=12 * fine).worst
            for fine in (1, 2, 4)
        ]
        assert 1e-5 < errors[0] < 2e-3
        orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
        assert all(2.7 < order < 3.6 for order in orders), orders


def test_identity_on_tensors_is_exact(image: BandLimitedImage, scale_map: Tensor) -> None:
    assert equivariance_error(lambda x: x, image.render(), [0.3, 0.9, 1.0, 3.0]).errors == (0.0,) * 4
    assert equivariance_error(lambda x: x, scale_map, FACTORS, grid=GRID).errors == (0.0,) * 4


def test_pointwise_functions_pass(image: BandLimitedImage) -> None:
    report = equivariance_error(torch.tanh, image, [0.6, 1.7])
    assert 1e-5 < report.worst < 3e-3, str(report)


@pytest.mark.parametrize("size", [(64, 65), (65, 64)])
def test_isotropic_scale_space_passes(size: tuple[int, int], generator: torch.Generator) -> None:
    image = BandLimitedImage.random(1, 2, size=size, generator=generator)
    report = equivariance_error(gaussians, image, FACTORS, grid=GRID, margin=24)
    assert 1e-6 < report.worst < 2e-3, str(report)


def test_lifting_a_fine_image_passes(image: BandLimitedImage) -> None:
    report = assert_equivariant(lift(), image, FACTORS, tolerance=2e-2, margin=14)
    assert report.worst > 2e-3


def test_invariants_pass(image: BandLimitedImage) -> None:
    """The mean of the square, relative to the mean of the absolute value squared: no pixels left."""

    def ratio(x: Tensor) -> Tensor:
        return (
            x.square().mean((2, 3)) / x.abs().amax((2, 3)) ** 2 / x.abs().mean((2, 3)) * x.abs().amax((2, 3))
        )

    smaller = BandLimitedImage.random(2, 2, size=(128, 128), generator=torch.Generator().manual_seed(0))
    smaller = BandLimitedImage(
        (128, 128),
        smaller.centers * 0.3,
        smaller.widths,
        smaller.frequencies,
        smaller.phases,
        smaller.amplitudes,
    )
    report = equivariance_error(ratio, smaller, [0.8, 1.25])
    assert 1e-6 < report.worst < 5e-2, str(report)
    assert report.compared == (4, 4)


def test_lower_resolution_passes_where_pixels_stay_centred(image: BandLimitedImage) -> None:
    def pooled(x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=0.5, mode="bilinear")  # the mean of two by two

    fine = refined(image, 2)
    report = equivariance_error(pooled, fine, [0.7, 1.3], margin=24)
    assert 1e-5 < report.worst < 1e-2, str(report)


# --- what must fail ---


def test_a_plain_convolution_fails(image: BandLimitedImage) -> None:
    kernel = torch.tensor([[-1.0, 0.0, 1.0]] * 3).expand(2, 1, 3, 3)
    report = equivariance_error(lambda x: conv2d(x, kernel, padding=1, groups=2).relu(), image, FACTORS)
    for factor, error in zip(report.factors, report.errors, strict=True):
        # A derivative falls with the scale: 1 / a of what is expected comes out, but for the finite step.
        assert error == pytest.approx(abs(1 / factor - 1), rel=0.2), str(report)


def test_coordinates_fail(image: BandLimitedImage) -> None:
    def with_coordinates(x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[-1])

    for x in (image, image.render()):
        report = equivariance_error(with_coordinates, x, [0.5, 2.0])
        assert min(report.errors) > 0.02, str(report)
        assert report.worst < 2


def test_permuted_scales_fail(image: BandLimitedImage) -> None:
    module = lift()
    report = equivariance_error(lambda x: module(x)[:, :, [2, 0, 1]], image, FACTORS, grid=GRID, margin=14)
    assert min(report.errors) > 0.1, str(report)
    assert report.worst < 2


def test_a_shift_in_the_wrong_direction_fails(scale_map: Tensor) -> None:
    report = equivariance_error(lambda x: x.flip(2), scale_map, [1 / STEP, STEP], grid=GRID)
    assert min(report.errors) > 0.5, str(report)


def test_assertion_holds_the_table(image: BandLimitedImage) -> None:
    with pytest.raises(AssertionError, match=r"relative errors of at most 0\.001, got\n +factor") as caught:
        assert_equivariant(lift(), image, [1 / STEP, STEP], tolerance=1e-3, margin=14)
    table = str(equivariance_error(lift(), image, [1 / STEP, STEP], margin=14))
    assert str(caught.value).endswith(table)


# --- what is compared ---


@pytest.mark.parametrize(
    ("size", "factor", "margin", "kept"),
    [
        (8, 1.0, 0, 8),
        (8, 1.0, 3, 2),
        (9, 1.0, 3, 3),
        (8, 0.5, 0, 4),  # |i - 3.5| <= 1.75
        (9, 0.5, 0, 5),
        (9, 0.5, 2, 3),
        (8, 2.0, 1, 6),  # enlarging: a pixel's own position is what counts
    ],
)
def test_pixels_count_when_they_and_their_preimages_are_inside(
    size: int, factor: float, margin: int, kept: int
) -> None:
    x = torch.ones(1, 1, size, size + 4)
    report = equivariance_error(lambda x: x + 1, x, [factor], margin=margin)
    columns = sum(
        abs(i - (size + 3) / 2) <= ((size + 3) / 2 - margin) * min(1, factor) for i in range(size + 4)
    )
    assert report.compared == (kept * columns,)


def test_the_margin_hides_the_border_and_shrinks_with_the_resolution(image: BandLimitedImage) -> None:
    def spoiled(x: Tensor) -> Tensor:
        y = x[..., ::3, ::3].clone() if x.shape[-1] == 51 else x
        y[..., :3, :] = y[..., -3:, :] = 7.0
        y[..., :, :3] = y[..., :, -3:] = 7.0
        return y

    square = BandLimitedImage.random(1, 1, size=(51, 51), generator=torch.Generator().manual_seed(0))
    x = square.render()  # 51 pixels become 17; three of them are nine of the input
    counts = [equivariance_error(spoiled, x, [1.0], margin=margin).compared[0] for margin in (0, 9, 24)]
    assert counts == [17**2, 11**2, 1]
    wide, narrow = (equivariance_error(spoiled, x, [0.8], margin=margin).worst for margin in (0, 12))
    assert wide > 0.5 > narrow


def test_default_margin_is_a_quarter_of_the_shorter_side() -> None:
    assert equivariance_error(torch.exp, torch.ones(1, 1, 16, 20), [1.0]).compared == (8 * 12,)


@pytest.mark.parametrize(
    ("factor", "scale_margin", "scales"), [(1.0, 0, 3), (STEP, 0, 2), (0.5, 0, 1), (1.0, 1, 2), (STEP, 1, 1)]
)
def test_scales_on_both_sides_are_compared(
    factor: float, scale_margin: int, scales: int, image: BandLimitedImage
) -> None:
    report = equivariance_error(lift(), image, [factor], margin=0, scale_margin=scale_margin)
    pixels = equivariance_error(lambda x: x, image, [factor], margin=0).compared[0] // 2
    assert report.compared == (pixels * 3 * scales,)  # 3 channels for 2


def test_scales_that_depend_on_what_comes_from_outside_are_left_out(scale_map: Tensor) -> None:
    """A filter over two scales, shrinking by one: scale 2 comes from outside, so 1 and 2 are touched."""
    options = {"kernel_size": 19, "grid": GRID, "padding": "same"}
    counts = {}
    for scale_size in (1, 2):
        conv = ScaleConv2d(2, 2, scale_size=scale_size, **options)
        counts[scale_size] = equivariance_error(conv, scale_map, [1 / STEP, STEP], margin=14).compared
    assert counts[1][0] == 2 * counts[2][0]
    assert counts[1][1] == counts[2][1]


def test_a_projection_mixes_in_what_comes_from_outside(scale_map: Tensor) -> None:
    text = r"does not depend on the scales that come in from outside at factor 1\.414, .* from the image on"
    with pytest.raises(SettingError, match=text):
        equivariance_error(ScaleProjection(), scale_map, [STEP], grid=GRID)
    assert equivariance_error(ScaleProjection(), scale_map, [1.0], grid=GRID).worst == 0


# --- how the module is run ---


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Identity())
        self.seen: list[tuple[bool, bool, torch.dtype]] = []
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training or self.inner.training, torch.is_grad_enabled(), x.dtype))
        return self.inner(x) * self.weight


def test_runs_in_evaluation_without_gradients_and_restores_the_modes(image: BandLimitedImage) -> None:
    module = Recorder()
    module.inner.eval()
    equivariance_error(module, image, [2.0])
    assert set(module.seen) == {(False, False, torch.float32)}
    assert module.training
    assert not module.inner.training
    assert not module.inner[0].training
    with pytest.raises(SettingError):
        equivariance_error(module, image, [-1.0])
    assert module.training


def test_finds_the_grid_of_the_first_layer_that_has_one(image: BandLimitedImage) -> None:
    nested = nn.Sequential(nn.Identity(), nn.Sequential(lift(), ScaleAvgPool2d(1)))
    assert (
        equivariance_error(nested, image, [STEP]).errors == equivariance_error(lift(), image, [STEP]).errors
    )
    other = ScaleGrid.geometric(1.0, 2.0, 3)
    assert equivariance_error(nested, image, [2.0], grid=other).worst > 0.1


def test_published_grids_are_rounded(image: BandLimitedImage) -> None:
    rounded = ScaleGrid([1.5, 2.12, 3.0])
    module = LiftConv2d(2, 2, kernel_size=19, grid=rounded, padding="same")
    assert equivariance_error(module, image, [1.41], margin=14).worst < 3e-2


# --- the report ---


def test_report() -> None:
    report = EquivarianceReport((0.5, 2.0), (0.25, 1e-5), (1024, 4096))
    assert report.worst == 0.25
    assert report.as_dict() == {
        "factors": (0.5, 2.0), "errors": (0.25, 1e-5), "compared": (1024, 4096), "worst": 0.25,
    }  # fmt: skip
    lines = str(report).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0.5", "2.50e-01", "1024"],
        ["2", "1.00e-05", "4096"],
        ["worst", "2.50e-01"],
    ]
    assert len({len(line) for line in lines[:3]}) == 1
    assert max(map(len, lines)) <= 80


def test_options_are_the_keywords_of_the_measurement() -> None:
    import inspect

    keywords = [
        p.name for p in inspect.signature(equivariance_error).parameters.values() if p.kind == p.KEYWORD_ONLY
    ]
    assert list(EquivarianceOptions.__annotations__) == keywords


# --- what is refused ---


def always(y: Tensor):
    return lambda x: y


MAP = torch.ones(1, 1, 3, 8, 8)


@pytest.mark.parametrize(
    ("module", "factors", "options", "error", "text"),
    [
        (torch.tanh, [], {}, SettingError, "at least one scale factor, got none"),
        (torch.tanh, [1.0, 0.0], {}, SettingError, r"finite positive scale factors, got 0\.0"),
        (torch.tanh, [math.nan], {}, SettingError, "finite positive scale factors, got nan"),
        (torch.tanh, [1.0], {"margin": -1}, SettingError, "at least 0, got margin=-1, scale_margin=0"),
        (torch.tanh, [1.0], {"margin": 99}, SettingError, r"got 99 for an output of \(48, 51\); use"),
        (lambda x: x / 0, [1.0], {}, SettingError, r"finite outputs, got \d+ that are not, at scale"),
        (lambda x: x * math.nan, [1.0], {}, SettingError, "finite outputs, got 9792 that are not"),
        (torch.zeros_like, [2.0], {}, SettingError, "the module's output is zero .* at scale factor 2"),
        (always(torch.zeros(2, 5)), [2.0], {}, SettingError, "the module's output is zero"),
        (always(torch.ones(3)), [2.0], {}, ShapeError, r"output \(B, D\), .* got torch.float32 \(3,\)"),
        (lambda x: x.argmax(1), [2.0], {}, ShapeError, r"floating-point output .* got torch.int64 \(2, 48"),
        (always(MAP), [2.0], {}, SettingError, "geometric scale grid to compare scale maps, got None; give"),
        (always(MAP), [2.0], {"grid": ScaleGrid([1, 2, 3])}, SettingError, r"got ScaleGrid\(\[1.0, 2.0"),
        (
            always(MAP), [1.5], {"grid": GRID}, SettingError,
            r"expected scale factors of 0\.5, 0\.7071, 1, 1\.414, 2, powers of the grid's step, got 1\.5",
        ),
        (always(MAP), [4.0], {"grid": GRID}, SettingError, r"factors of 0\.5, .*, 2, powers .*, got 4"),
        (always(MAP), [1.43], {"grid": GRID}, SettingError, r"powers of the grid's step, got 1\.43"),
        (
            always(MAP), [2.0], {"grid": GRID, "scale_margin": 1}, SettingError,
            "scales to compare at factor 2, a shift by 2 of 3, got none with scale_margin=1",
        ),
    ],
)  # fmt: skip
def test_refuses(module, factors, options, error, text: str, image: BandLimitedImage) -> None:
    with pytest.raises(error, match=text):
        equivariance_error(module, image, factors, **options)


def test_refuses_inputs_that_are_no_images_and_outputs_that_change_their_shape() -> None:
    with pytest.raises(ShapeError, match=r"image \(B, C, H, W\) or a scale map .* got \(8, 8\)"):
        equivariance_error(torch.tanh, torch.ones(8, 8), [2.0])
    outputs = iter([torch.ones(1, 2), torch.ones(1, 3)])
    with pytest.raises(ShapeError, match=r"outputs of one shape, got \(1, 2\) and \(1, 3\)"):
        equivariance_error(lambda x: next(outputs), torch.ones(1, 1, 8, 8), [2.0])


def test_a_single_nan_never_passes(image: BandLimitedImage) -> None:
    """Not even in a corner that the margin hides."""

    def broken(x: Tensor) -> Tensor:
        y = x.clone()
        y[0, 0, 0, 0] = math.nan
        return y

    with pytest.raises(SettingError, match="finite outputs, got 1 that are not"):
        assert_equivariant(broken, image, [2.0], tolerance=1.0)


def test_tensors_are_scaled_by_rescale(image: BandLimitedImage) -> None:
    seen = []
    equivariance_error(lambda x: seen.append(x) or x, image.render(), [0.6])
    assert torch.equal(seen[1], rescale(image.render(), 0.6))
