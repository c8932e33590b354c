"""The convolution layers: golden numbers, initialisation, what a layer adds to its function."""

import math

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import BasisError
from equiscale.functional import ConvGeometry, lift_conv2d, scale_conv2d
from equiscale.nn import LiftConv2d, PointwiseScaleConv2d, ScaleConv2d
from tests.golden import GoldenCase, golden_case, golden_names

COVERS = {"LiftConv2d", "ScaleConv2d", "PointwiseScaleConv2d"}

GRID = ScaleGrid.geometric(0.9, 1.41, 3)
OPTIONS = {"kernel_size": 7, "grid": GRID}


def from_golden(config: dict) -> nn.Module:
    channels = config["in_channels"], config["out_channels"]
    if config["layer"] == "H->H 1x1":
        return PointwiseScaleConv2d(*channels, stride=config["stride"], bias=False)
    extra = {key: config[key] for key in ("max_order", "mult") if key in config}
    kind = {"hermite_a": "A", "hermite_b": "B"}[config["basis"]]
    options = {
        "kernel_size": config["kernel_size"],
        "grid": ScaleGrid(config["scales"]),
        "basis": HermiteBasis(config["effective_size"], kind=kind, degenerate="allow", **extra),
        "stride": config.get("stride", 1),
        "padding": config["padding"],
    }
    if config["layer"] == "T->H":
        return LiftConv2d(*channels, **options)
    return ScaleConv2d(*channels, scale_size=config["scale_size"], **options)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach() - expected).abs().max() / expected.abs().max())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", golden_names("conv_"))
def test_output_and_gradients_equal_the_published_layers(name: str) -> None:
    case: GoldenCase = golden_case(name)
    layer = from_golden(case.config)
    layer.load_state_dict(case.parameters())
    x = case["x0"].clone().requires_grad_()
    y = layer(x)
    y.backward(case["grad_y0"])
    assert relative(y, case["y0"]) < 1e-5
    assert relative(x.grad, case["grad_x0"]) < 1e-5
    gradients = case.parameter_gradients()
    assert set(gradients) == {key for key, _ in layer.named_parameters()}
    for key, parameter in layer.named_parameters():
        assert relative(parameter.grad, gradients[key]) < 1e-5, key


@pytest.mark.usefixtures("float64")
def test_pointwise_adds_its_bias_once_on_every_scale() -> None:
    """The published layer accepts a bias and never adds it."""
    case = golden_case("conv_hh_1x1")
    config = case.config
    layer = PointwiseScaleConv2d(config["in_channels"], config["out_channels"], stride=config["stride"])
    bias = torch.arange(1.0, 6.0)
    layer.load_state_dict({**case.parameters(), "bias": bias})
    assert relative(layer(case["x0"]) - case["y0"], bias.view(5, 1, 1, 1).expand_as(case["y0"])) < 1e-12


@pytest.mark.usefixtures("float64")
def test_layers_are_their_functions_on_the_sampled_basis(generator: torch.Generator) -> None:
    basis = HermiteBasis(3).sample(7, GRID)
    geometry = ConvGeometry(stride=2, padding="same", padding_mode="circular", groups=2)
    options = {"stride": 2, "padding": "same", "padding_mode": "circular", "groups": 2, **OPTIONS}
    lift, conv = LiftConv2d(4, 2, **options), ScaleConv2d(4, 2, scale_size=3, **options)
    image = torch.randn(2, 4, 9, 8, generator=generator)
    expected = lift_conv2d(image, lift.weight, basis, lift.bias, geometry=geometry)
    torch.testing.assert_close(lift(image), expected, rtol=0, atol=1e-12)
    scale_map = torch.randn(2, 4, 3, 9, 8, generator=generator)
    expected = scale_conv2d(scale_map, conv.weight, basis, conv.bias, geometry=geometry)
    torch.testing.assert_close(conv(scale_map), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "fan_in"),
    [
        (lambda: LiftConv2d(8, 32, **OPTIONS), 8 * 9),
        (lambda: LiftConv2d(8, 32, groups=4, **OPTIONS), 2 * 9),
        (lambda: ScaleConv2d(8, 32, scale_size=2, **OPTIONS), 8 * 2 * 9),
        (lambda: PointwiseScaleConv2d(64, 32), 64),
    ],
)
def test_initial_weights_are_uniform_within_the_published_bound(build, fan_in: int) -> None:
    layer = build()
    layer.reset_parameters(torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(fan_in)
    weight = layer.weight.detach()
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.97 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    "build",
    [
        lambda: LiftConv2d(2, 3, **OPTIONS),
        lambda: ScaleConv2d(2, 3, **OPTIONS),
        lambda: PointwiseScaleConv2d(2, 3),
    ],
)
def test_a_generator_decides_the_weights_alone(build) -> None:
    layer, other = build(), build()
    state = torch.get_rng_state()
    layer.reset_parameters(torch.Generator().manual_seed(5))
    other.reset_parameters(torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(layer.weight, other.weight)
    other.reset_parameters(torch.Generator().manual_seed(6))
    assert not torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("layer", [LiftConv2d, ScaleConv2d])
def test_without_a_bias_there_is_no_key_for_it(layer: type) -> None:
    module = layer(2, 3, bias=False, **OPTIONS)
    assert list(module.state_dict()) == ["weight"]
    assert module.bias is None


def test_the_basis_follows_the_module_and_is_never_saved() -> None:
    lift = LiftConv2d(2, 3, **OPTIONS)
    sampled = HermiteBasis(3).sample(7, GRID)
    assert torch.equal(lift.basis, sampled.float())
    assert lift.windows == (3, 5, 7)
    assert lift.double().basis.dtype == torch.float64
    assert "basis" in dict(lift.named_buffers())
    assert "basis" not in lift.state_dict()


@pytest.mark.parametrize("layer", [LiftConv2d, ScaleConv2d])
def test_a_degenerate_basis_is_refused_when_the_layer_is_built(layer: type) -> None:
    with pytest.raises(BasisError, match="rank 9 of 25"):
        layer(1, 1, kernel_size=7, grid=ScaleGrid([0.3, 0.6]), basis=HermiteBasis(5))
