import math

import pytest
import torch
from torch import nn

from equiscale.errors import BasisError, SettingError
from equiscale.functional import support_windows
from equiscale.nn import ScaleSteeredConv2d, ScaleSteering
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.golden import GoldenCase, golden_case

COVERS = {"ScaleSteeredConv2d", "ScaleSteering"}

SMALL = ScaleSteering(kernel_sizes=(3, 5), base_size=5, orders=(1.0,))


@pytest.fixture
def case() -> GoldenCase:
    return golden_case("ss_cnn_conv")


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("steer_conv."): tensor.double() for name, tensor in tensors.items()}


def steering_of(config: dict) -> ScaleSteering:
    sizes = tuple(config["ker_size_range"])
    return ScaleSteering(kernel_sizes=sizes, base_size=config["base_kernel_size"], orders=config["k_range"])


@pytest.mark.usefixtures("float64")
def test_equals_the_published_layer_and_its_gradients(case: GoldenCase) -> None:
    """Their harmonics were rounded to float32."""
    conv = ScaleSteeredConv2d(2, 3, steering=steering_of(case.config), padding="same")
    published = renamed(case.parameters())
    conv.load_state_dict({name: published[name] for name in conv.state_dict()})
    x = case["x0"].double().requires_grad_()
    y = conv(x).relu()
    torch.testing.assert_close(y, case["y0"].double(), rtol=1e-6, atol=1e-6)
    y.backward(case["grad_y0"].double())
    torch.testing.assert_close(x.grad, case["grad_x0"].double(), rtol=1e-6, atol=1e-6)
    gradients = renamed(case.parameter_gradients())
    for name, parameter in conv.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-6, atol=1e-5)


def test_the_constants_are_those_of_a_published_checkpoint(case: GoldenCase) -> None:
    conv = ScaleSteeredConv2d(2, 3, steering=steering_of(case.config))
    published = renamed(case.parameters())
    constants = conv.published_constants()
    assert set(constants) == {"filter_real", "filter_imag"}
    for name, constant in constants.items():
        torch.testing.assert_close(constant, published[name], rtol=0, atol=1e-7)
    other = ScaleSteeredConv2d(2, 3, steering=ScaleSteering(orders=(0.5, 1.0, 3.0))).published_constants()
    assert not torch.allclose(other["filter_real"], published["filter_real"], atol=1e-2)


def test_the_defaults_are_the_published_settings(case: GoldenCase) -> None:
    steering = ScaleSteering()
    assert list(steering.kernel_sizes) == case.config["ker_size_range"]
    assert (steering.base_size, list(steering.orders)) == (11, case.config["k_range"])
    expected = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(steering.angles, dtype=torch.float64), expected)
    assert (steering.angular_width, steering.phase) == (math.pi / 16, -math.pi / 4)


def test_learned_numbers_of_the_published_networks() -> None:
    """Published counts hold C C' more a layer: ``const_real``, which no output depends on."""
    plan = [(1, 30), (30, 60), (60, 90)]
    learned = sum(p.numel() for channels in plan for p in ScaleSteeredConv2d(*channels).parameters())
    assert learned == 54 * (1 * 30 + 30 * 60 + 60 * 90)
    wide = ScaleSteering(kernel_sizes=(3,), base_size=3, orders=(1.0,))
    conv = ScaleSteeredConv2d(11, 88, steering=wide, stride=2, padding="same")
    assert sum(p.numel() for p in conv.parameters()) == wide.num_weights * 11 * 88 == 18 * 11 * 88
    assert conv(torch.zeros(1, 11, 24, 23)).shape == (1, 88, 12, 12)


def test_windows_are_the_kernel_sizes_and_the_basis_is_made_once() -> None:
    conv = ScaleSteeredConv2d(1, 1, steering=ScaleSteering(kernel_sizes=(7, 9, 11, 13, 15, 17)))
    assert conv.windows == (7, 9, 11, 13, 15, 17)
    assert support_windows(conv.basis) == conv.windows
    assert conv.basis.shape == (54, 6, 17, 17)
    assert set(conv.state_dict()) == {"mult_real", "mult_imag"}


def test_initial_weights_are_as_published(generator: torch.Generator) -> None:
    conv = ScaleSteeredConv2d(8, 12)
    conv.reset_parameters(generator)
    bound = math.sqrt(2 / (9 * 8 * 12))
    for weight in conv.parameters():
        assert 0.98 * bound < weight.abs().max().item() <= bound
        assert abs(weight.mean().item()) < 0.05 * bound
    assert not torch.equal(conv.mult_real, conv.mult_imag)


def seeded(conv: ScaleSteeredConv2d) -> ScaleSteeredConv2d:
    conv.reset_parameters(torch.Generator().manual_seed(1))
    return conv


@pytest.mark.usefixtures("float64")
def test_circular_shifts_are_exact(generator: torch.Generator) -> None:
    conv = seeded(ScaleSteeredConv2d(2, 3, padding="same", padding_mode="circular"))
    x = torch.randn(1, 2, 15, 18, generator=generator)
    torch.testing.assert_close(
        conv(x.roll((2, -5), (2, 3))), conv(x).roll((2, -5), (2, 3)), rtol=0, atol=1e-12
    )


@pytest.mark.usefixtures("float64")
def test_how_scaling_the_image_scales_the_output(generator: torch.Generator) -> None:
    """Roughly: less with one size alone, and least with a plain convolution as large, the control."""
    image = BandLimitedImage.random(4, 2, size=(65, 65), generator=generator)

    def error(conv: nn.Module) -> float:
        return equivariance_error(conv, image, [1 / 1.3, 1.3], margin=16).worst

    one_size = ScaleSteering(kernel_sizes=(11,))
    many = error(seeded(ScaleSteeredConv2d(2, 16, padding="same")))
    one = error(seeded(ScaleSteeredConv2d(2, 16, padding="same", steering=one_size)))
    torch.manual_seed(0)
    plain = error(nn.Conv2d(2, 16, 13, padding=6, bias=False))
    assert 0.12 < many < 0.19
    assert 1.03 * many < one < 0.22
    assert 1.5 * many < plain


@pytest.mark.usefixtures("float64")
def test_gradients(generator: torch.Generator) -> None:
    conv = ScaleSteeredConv2d(1, 2, steering=SMALL, padding="same", stride=2)
    x = torch.randn(1, 1, 5, 6, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, conv.mult_real, conv.mult_imag))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel_sizes": ()}, r"increasing kernel_sizes, the last at least 3, got \[\]"),
        ({"kernel_sizes": (1,)}, r"the last at least 3, got \[1\]"),
        ({"kernel_sizes": (7, 5)}, r"increasing kernel_sizes, .* got \[7, 5\]"),
        ({"kernel_sizes": (4, 6)}, r"odd kernel_sizes, got \[4, 6\]; a centred filter needs a central pixel"),
        ({"orders": ()}, r"at least one angle, and orders that are positive, got angles .* and orders \[\]"),
        ({"orders": (0.0,)}, r"orders that are positive, got angles .* and orders \[0\.0\]"),
        ({"angles": ()}, r"at least one angle, .* got angles \[\]"),
        ({"base_size": 0}, "positive base_size and angular_width, got 0 and"),
        ({"angular_width": -1.0}, r"positive base_size and angular_width, got 11 and -1\.0"),
    ],
)
def test_refuses_illegal_steering(options: dict, text: str) -> None:
    with pytest.raises(SettingError, match="expected .*" + text):
        ScaleSteering(**options)


def test_refuses_a_harmonic_that_vanishes() -> None:
    steering = ScaleSteering(kernel_sizes=(3,), phase=0.0)  # sin(k ln 1) on the only ring
    with pytest.raises(BasisError, match="not zero, got one that vanishes on 3 pixels with phase 0; use a"):
        ScaleSteeredConv2d(1, 1, steering=steering)
    rounded = ScaleSteering(kernel_sizes=(3,), base_size=3, orders=(1.0,), phase=math.pi / 2)  # cos is 6e-17
    with pytest.raises(BasisError, match=r"one that vanishes on 3 pixels with phase 1\.5708; use a"):
        ScaleSteeredConv2d(1, 1, steering=rounded)
