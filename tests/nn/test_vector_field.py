"""SEVF: golden numbers, what is exact, and how equivariant the layers are where they are not exact."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from equiscale.errors import ShapeError
from equiscale.functional import (
    ScaleAngles,
    vector_field_conv2d,
    vector_field_lift2d,
    vector_field_magnitude,
    vector_field_max_pool2d,
    vector_field_variance,
)
from equiscale.nn import (
    VectorFieldBatchNorm2d,
    VectorFieldConv2d,
    VectorFieldDropout,
    VectorFieldDropout2d,
    VectorFieldLift2d,
    VectorFieldMagnitude,
    VectorFieldMaxPool2d,
)
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.golden import golden_case

COVERS = {
    "VectorFieldBatchNorm2d",
    "VectorFieldConv2d",
    "VectorFieldDropout",
    "VectorFieldDropout2d",
    "VectorFieldLift2d",
    "VectorFieldMagnitude",
    "VectorFieldMaxPool2d",
}

pytestmark = pytest.mark.usefixtures("float64")

PUBLISHED = ScaleAngles(num_small=5, num_big=3, base=1.26, angle_range=2 * math.pi / 3)


def field(case, name: str, first: int = 0) -> Tensor:
    """Two scalar arrays of a golden case as one vector field."""
    return torch.stack([case[f"{name}{first}"], case[f"{name}{first + 1}"]], dim=2)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def turned(x: Tensor, angle: float) -> Tensor:
    u, v = x.unbind(2)
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([cos * u - sin * v, sin * u + cos * v], dim=2)


# --- golden numbers ---


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("sevf_lift", lambda: VectorFieldLift2d(2, 3, kernel_size=7, padding=3)),
        ("sevf_conv", lambda: VectorFieldConv2d(2, 3, kernel_size=7, padding=3, turn="published")),
        ("sevf_max_pool", lambda: VectorFieldMaxPool2d(2)),
    ],
)
def test_output_and_gradients_equal_the_published_layers(name: str, layer) -> None:
    case, module = golden_case(name), layer()
    module.load_state_dict(case.parameters())
    is_lift = name == "sevf_lift"
    x = (case["x0"] if is_lift else field(case, "x")).clone().requires_grad_()
    y = module(x)
    y.backward(field(case, "grad_y"))
    # The published angles are rounded to float32.
    assert relative(y, field(case, "y")) < 1e-7
    assert relative(x.grad, case["grad_x0"] if is_lift else field(case, "grad_x")) < 1e-7
    gradients = case.parameter_gradients()
    assert set(gradients) == {key for key, _ in module.named_parameters()}
    for key, parameter in module.named_parameters():
        assert relative(parameter.grad, gradients[key]) < 1e-7, key


def test_the_defaults_are_the_published_settings() -> None:
    assert ScaleAngles() == PUBLISHED
    assert VectorFieldBatchNorm2d(2).momentum == 0.5
    assert VectorFieldBatchNorm2d(2).eps == 1e-5


def test_the_other_turn_is_not_the_published_one() -> None:
    case = golden_case("sevf_conv")
    module = VectorFieldConv2d(2, 3, kernel_size=7)
    module.load_state_dict(case.parameters())
    assert 0.3 < relative(module(field(case, "x")), field(case, "y")) < 2


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_equals_the_published_one(mode: str) -> None:
    case = golden_case(f"sevf_batch_norm_{mode}")
    norm = VectorFieldBatchNorm2d(2)
    if mode == "eval":
        for first in (0, 2):
            norm(field(case, "x", first))
        assert relative(norm.running_var, case["param_running_var"]) < 1e-12
        assert {key: value.shape for key, value in norm.state_dict().items()} == {
            key: value.shape for key, value in case.parameters().items()
        }
    first = 4 if mode == "eval" else 0
    x = field(case, "x", first).requires_grad_()
    y = norm.train(mode == "train")(x)
    y.backward(field(case, "grad_y"))
    assert relative(y, field(case, "y")) < 1e-12
    assert relative(x.grad, field(case, "grad_x", first)) < 1e-12


# --- equivariance: an enlarged object turns the vectors back by one step ---


def enlarged(image: Tensor, base: int) -> Tensor:
    """As the layers resize."""
    return interpolate(image, scale_factor=base, mode="bilinear", align_corners=False)


def partners(small: Tensor, large: Tensor, scales: ScaleAngles) -> tuple[Tensor, Tensor, float]:
    """Vectors of the enlarged result and, turned by −θ₁, those of the small one that they stem from.

    Compared are those whose strongest factor is listed before and after; their fraction comes third.
    """
    base, half_step = round(scales.base), scales.step / 2
    partner = large[..., base // 2 :: base, base // 2 :: base]
    before, after = (x.movedim(2, -1) for x in (small, partner))  # (B, C, H, W, 2)
    listed = (angle(before) > scales.angles[0] + half_step) & (angle(after) < scales.angles[-1] - half_step)
    listed &= (before != 0).any(-1) & (after != 0).any(-1)
    expected = turned(small, -scales.step).movedim(2, -1)
    return after[listed], expected[listed], float(listed.double().mean())


def angle(vectors: Tensor) -> Tensor:
    return torch.atan2(vectors[..., 1], vectors[..., 0])


EXACT_SCALES = ScaleAngles(num_small=3, num_big=2, base=3.0, angle_range=2.0)


def exact_pair(turn: str, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    x = torch.randn(1, 2, 2, 27, 54, generator=generator)
    weight = torch.randn(4, 2, 2, 3, 3, generator=generator)
    options = {"scales": EXACT_SCALES, "turn": turn}
    larger = enlarged(x.flatten(1, 2), 3).unflatten(1, (2, 2))
    small = vector_field_conv2d(x, weight, **options)
    large = vector_field_conv2d(turned(larger, -EXACT_SCALES.step), weight, **options)
    return partners(small, large, EXACT_SCALES)


def test_lift_is_exact_for_an_odd_whole_base(generator: torch.Generator) -> None:
    image = torch.randn(2, 2, 27, 54, generator=generator)
    weight = torch.randn(4, 2, 3, 3, generator=generator)
    small = vector_field_lift2d(image, weight, scales=EXACT_SCALES)
    large = vector_field_lift2d(enlarged(image, 3), weight, scales=EXACT_SCALES)
    actual, expected, used = partners(small, large, EXACT_SCALES)
    assert used > 0.4
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_convolution_is_exact_for_an_odd_whole_base(generator: torch.Generator) -> None:
    actual, expected, used = exact_pair("equivariant", generator)
    assert used > 0.4
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_convolution_with_the_published_turn_is_not(generator: torch.Generator) -> None:
    actual, expected, used = exact_pair("published", generator)
    assert used > 0.3
    assert 0.3 < float((actual - expected).norm() / expected.norm()) < 2


def band_pass(*shape: int, generator: torch.Generator) -> Tensor:
    """Gabor filters without a mean: their answer has a maximum over scales, and not at the list's end."""
    *leading, size = shape
    count, half = math.prod(leading), size // 2
    angle, phase = (2 * math.pi * torch.rand(count, 1, 1, generator=generator) for _ in "ab")
    pixels = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = pixels[:, None], pixels[None]
    envelope = torch.exp(-(y**2 + x**2) / (2 * 2.5**2))
    wave = envelope * torch.cos(0.6 * (angle.sin() * y + angle.cos() * x) + phase)
    wave = wave - envelope * wave.sum((1, 2), keepdim=True) / envelope.sum()
    return wave.view(*leading, size, size)


@pytest.fixture
def image(generator: torch.Generator) -> BandLimitedImage:
    return BandLimitedImage.random(1, 2, size=(57, 61), generator=generator)


def test_length_at_the_published_scales(image: BandLimitedImage, generator: torch.Generator) -> None:
    lift = VectorFieldLift2d(2, 4, kernel_size=13)
    lift.weight.data = band_pass(4, 2, 13, generator=generator)
    network = nn.Sequential(lift, VectorFieldMagnitude())
    report = equivariance_error(network, image, [1 / 1.26, 1.26], margin=12)
    assert 0.04 < min(report.errors) <= report.worst < 0.1, str(report)
    plain = nn.Sequential(nn.Conv2d(2, 4, 13, padding=6, bias=False), nn.ReLU())
    plain[0].weight.data = lift.weight.data
    control = equivariance_error(plain, image, [1 / 1.26, 1.26], margin=12)
    assert min(control.errors) > 2 * report.worst, str(control)


def test_two_layers_keep_lengths_with_the_equivariant_turn_better(
    image: BandLimitedImage, generator: torch.Generator
) -> None:
    errors = {}
    filters = band_pass(3, 2, 13, generator=generator), band_pass(3, 3, 2, 13, generator=generator)
    for turn in ("equivariant", "published"):
        lift = VectorFieldLift2d(2, 3, kernel_size=13)
        conv = VectorFieldConv2d(3, 3, kernel_size=13, turn=turn)
        lift.weight.data = filters[0]
        conv.weight_u.data, conv.weight_v.data = filters[1].unbind(2)
        network = nn.Sequential(lift, conv, VectorFieldMagnitude())
        errors[turn] = equivariance_error(network, image, [1 / 1.26, 1.26], margin=12).worst
    assert 0.1 < errors["equivariant"] < 0.8 * errors["published"] < 0.5, errors


def test_shifts_are_exact_without_resizing_and_approximate_with_it(generator: torch.Generator) -> None:
    image = torch.zeros(1, 1, 40, 41)
    image[..., 12:28, 12:29] = torch.randn(16, 17, generator=generator)
    errors = []
    for scales in (ScaleAngles(num_small=1, num_big=0), PUBLISHED):
        lift = VectorFieldLift2d(1, 3, kernel_size=5, scales=scales)
        lift.reset_parameters(generator)
        y, shifted = lift(image), lift(image.roll((1, 2), (2, 3)))
        errors.append(relative(shifted, y.roll((1, 2), (3, 4))))
    assert errors[0] < 1e-12
    assert 0.02 < errors[1] < 1


# --- what the layers add to their functions ---


def test_layers_are_their_functions(generator: torch.Generator) -> None:
    scales = ScaleAngles(num_small=2, num_big=1, base=1.5)
    options = {"scales": scales, "padding": 1}
    lift, conv = (
        VectorFieldLift2d(2, 3, kernel_size=5, **options),
        VectorFieldConv2d(3, 4, kernel_size=5, turn="published", **options),
    )
    image = torch.randn(2, 2, 9, 11, generator=generator)
    y = lift(image)
    assert torch.equal(y, vector_field_lift2d(image, lift.weight, **options))
    weight = torch.stack([conv.weight_u, conv.weight_v], dim=2)
    assert torch.equal(conv(y), vector_field_conv2d(y, weight, turn="published", **options))
    assert torch.equal(VectorFieldMagnitude()(y), vector_field_magnitude(y))
    pool = VectorFieldMaxPool2d(4, stride=3, padding=2)
    assert torch.equal(pool(y), vector_field_max_pool2d(y, 4, stride=3, padding=2))


@pytest.mark.parametrize("layer", [VectorFieldLift2d, VectorFieldConv2d])
def test_initial_weights_are_uniform_within_the_published_bound(layer: type) -> None:
    module, other = layer(8, 32, kernel_size=3), layer(8, 32, kernel_size=3)
    state = torch.get_rng_state()
    module.reset_parameters(torch.Generator().manual_seed(0))
    other.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    bound = 1 / math.sqrt(8 * 9)
    for weight, same in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)
        assert 0.97 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_running_variance_is_unbiased_and_moves_by_the_momentum(generator: torch.Generator) -> None:
    norm = VectorFieldBatchNorm2d(3, momentum=0.2)
    x = torch.randn(2, 3, 2, 4, 5, generator=generator)
    norm(x)
    unbiased = vector_field_variance(x) * 40 / 39
    torch.testing.assert_close(norm.running_var.flatten(), 0.8 + 0.2 * unbiased)
    assert not norm.running_var.requires_grad
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
    before = norm.eval().running_var.clone()
    expected = x / (before + 1e-5).sqrt()[:, :, None] * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm.running_var, before)


def test_batch_norm_refuses_a_single_vector_in_training_only() -> None:
    norm, x = VectorFieldBatchNorm2d(3), torch.ones(1, 3, 2, 1, 1)
    with pytest.raises(
        ShapeError, match=r"more than one vector a channel in training, got \(1, 3, 2, 1, 1\)"
    ):
        norm(x)
    assert norm.eval()(x).shape == x.shape


def test_batch_norm_commutes_with_turning(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 2, 4, 5, generator=generator)
    torch.testing.assert_close(
        VectorFieldBatchNorm2d(3)(turned(x, 0.7)), turned(VectorFieldBatchNorm2d(3)(x), 0.7)
    )


def test_gradients_are_finite_where_vectors_are_zero() -> None:
    """An empty border gives zero vectors, and so does dropout; the published length has no gradient there."""
    x = torch.zeros(2, 3, 2, 4, 4)
    x[0, :, :, 0, 0] = 1.0
    for layer in (VectorFieldMagnitude(), VectorFieldBatchNorm2d(3), VectorFieldMaxPool2d(2)):
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        assert bool(torch.isfinite(leaf.grad).all()), layer


@pytest.mark.parametrize(("layer", "axes"), [(VectorFieldDropout, (2,)), (VectorFieldDropout2d, (2, 3, 4))])
def test_dropouts_drop_in_training_only_and_whole_vectors(layer, axes: tuple[int, ...]) -> None:
    ones = torch.ones(100, 6, 2, 2, 3)
    assert torch.equal(layer(0.8).eval()(ones), ones)
    y = layer(0.8).train()(ones)
    assert torch.equal(y, y.amax(axes, keepdim=True).expand_as(y))
    assert 0.7 < (y == 0).double().mean().item() < 0.9
    assert y.max().item() == pytest.approx(5.0)
    within_channels = (y.amax((2, 3, 4)) != y.amin((2, 3, 4))).any()
    assert bool(within_channels) == (layer is VectorFieldDropout)


def test_a_network_of_them_trains(generator: torch.Generator) -> None:
    network = nn.Sequential(
        *(VectorFieldLift2d(1, 4, kernel_size=5), VectorFieldMaxPool2d(2), VectorFieldBatchNorm2d(4)),
        *(VectorFieldConv2d(4, 4, kernel_size=5), VectorFieldMaxPool2d(4, padding=2)),
        *(VectorFieldMagnitude(), nn.Flatten()),
    )
    for index in (0, 3):
        network[index].reset_parameters(generator)
    images = torch.randn(8, 1, 12, 14, generator=generator)
    images[:4] = torch.nn.functional.avg_pool2d(images[:4], 5, 1, 2)
    sign = torch.tensor([1.0] * 4 + [-1.0] * 4)  # smooth images are to give long vectors, rough ones short
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    losses = []
    for _ in range(10):
        loss = nn.functional.softplus(-sign * (network(images).mean(1) - 0.5)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
