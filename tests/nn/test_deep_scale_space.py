"""DSS: golden numbers, initialisation, and how equivariant lift and correlation are together."""

import math

import pytest
import torch
from torch import Tensor, nn

from equiscale import ScaleGrid
from equiscale.errors import SettingError
from equiscale.functional import ConvGeometry, discrete_gaussian, scale_space_conv2d
from equiscale.nn import ScaleProjection, ScaleSpaceConv2d, ScaleSpaceLift2d
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.golden import golden_case, golden_names

COVERS = {"ScaleSpaceConv2d", "ScaleSpaceLift2d"}


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


# --- golden numbers ---


@pytest.mark.usefixtures("float64")
def test_lift_equals_the_published_one() -> None:
    case = golden_case("dss_lift_bessel")
    config = case.config
    lift = ScaleSpaceLift2d(config["n_scales"], base=config["base"], zero_scale=config["zero_scale"])
    x = case["x0"].clone().requires_grad_()
    y = lift(x)
    y.backward(case["grad_y0"])
    assert relative(y, case["y0"]) < 1e-7  # the published kernels are rounded to float32
    assert relative(x.grad, case["grad_x0"]) < 1e-7


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", golden_names("dss_conv_"))
def test_convolution_equals_the_published_one(name: str) -> None:
    case = golden_case(name)
    config = case.config
    bias = "bias" in case.parameters()
    conv = ScaleSpaceConv2d(
        config["in_channels"],
        config["out_channels"],
        kernel_size=config["kernel_size"],
        num_scales=config["scales_out"],
        scale_size=config["kernel_scales"],
        base=config["base"],
        stride=config.get("stride", 1),
        bias=bias,
    )
    ours = {"weights": "weight"}
    conv.load_state_dict({ours.get(key, key): value for key, value in case.parameters().items()})
    x = case["x0"].clone().requires_grad_()
    y = conv(x)
    y.backward(case["grad_y0"])
    assert relative(y, case["y0"]) < 1e-12
    assert relative(x.grad, case["grad_x0"]) < 1e-12
    gradients = {ours.get(key, key): value for key, value in case.parameter_gradients().items()}
    assert set(gradients) == {key for key, _ in conv.named_parameters()}
    for key, parameter in conv.named_parameters():
        assert relative(parameter.grad, gradients[key]) < 1e-12, key


# --- settings ---


def test_the_lift_blurs_every_scale_to_its_place_on_the_grid() -> None:
    lift = ScaleSpaceLift2d(4, zero_scale=0.5)
    assert lift.variances == (0.75, 3.75, 15.75)
    assert lift.grid == ScaleGrid([0.5, 1.0, 2.0, 4.0])
    for total, variance in zip(list(lift.grid)[1:], lift.variances, strict=True):
        assert total**2 == pytest.approx(0.5**2 + variance)
    impulse = torch.zeros(1, 1, 41, 43)
    impulse[..., 20, 21] = 1.0
    for blurred, variance in zip(lift(impulse)[0, 0, 1:], lift.variances, strict=True):
        torch.testing.assert_close(blurred.sum(0), padded(discrete_gaussian(variance), 43).float())
        torch.testing.assert_close(blurred.sum(1), padded(discrete_gaussian(variance), 41).float())


def padded(kernel: Tensor, size: int) -> Tensor:
    return nn.functional.pad(kernel, [(size - len(kernel)) // 2] * 2)


def test_a_lift_to_one_scale_is_the_image() -> None:
    image = torch.randn(2, 3, 5, 6)
    assert torch.equal(ScaleSpaceLift2d(1)(image), image[:, :, None])


def test_the_kernels_follow_the_module_and_are_never_saved() -> None:
    lift = ScaleSpaceLift2d(3)
    assert list(lift.state_dict()) == []
    assert lift.double().kernels.dtype == torch.float64
    assert lift(torch.zeros(1, 1, 4, 4).double()).dtype == torch.float64


def test_scales_beyond_the_layers_own_are_not_seen() -> None:
    x = torch.randn(2, 3, 5, 8, 9, generator=torch.Generator().manual_seed(0))
    conv = ScaleSpaceConv2d(3, 4, kernel_size=3, num_scales=3, scale_size=2)
    assert torch.equal(conv(x), conv(x[:, :, :3]))
    assert conv(x).shape == (2, 4, 3, 8, 9)
    everything = scale_space_conv2d(x, conv.weight)
    assert torch.equal(conv(x)[:, :, :2], everything[:, :, :2])
    assert not torch.allclose(conv(x)[:, :, 2], everything[:, :, 2])


def test_layer_is_its_function() -> None:
    x = torch.randn(2, 4, 2, 9, 10)
    options = {"stride": 2, "padding_mode": "circular", "scale_padding": "replicate", "groups": 2}
    conv = ScaleSpaceConv2d(4, 6, kernel_size=3, num_scales=2, scale_size=2, base=3, bias=True, **options)
    geometry = ConvGeometry(padding="same", **options)
    assert torch.equal(conv(x), scale_space_conv2d(x, conv.weight, conv.bias, base=3, geometry=geometry))
    published = ScaleSpaceConv2d(4, 6, kernel_size=7, num_scales=2, padding=3)
    assert published(x).shape == (2, 6, 2, 9, 10)


# --- initialisation ---


def test_he_initialisation_as_published() -> None:
    conv = ScaleSpaceConv2d(16, 32, kernel_size=3, num_scales=3, scale_size=2, bias=True)
    other = ScaleSpaceConv2d(16, 32, kernel_size=3, num_scales=3, scale_size=2, bias=True)
    state = torch.get_rng_state()
    conv.reset_parameters(torch.Generator().manual_seed(0))
    other.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(conv.weight, other.weight)
    deviation = math.sqrt(2 / (16 * 2 * 9))
    assert conv.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert conv.weight.abs().max() > 3 * deviation  # normal, not uniform
    assert torch.equal(conv.bias, torch.ones(32))


def test_delta_initialisation_hands_channels_through() -> None:
    conv = ScaleSpaceConv2d(4, 6, kernel_size=3, num_scales=3, scale_size=2, bias=True)
    conv.reset_parameters(torch.Generator().manual_seed(0), init="delta")
    weight, center = conv.weight.detach(), conv.weight.detach()[:, :, :, 1, 1]
    for output in range(6):
        for channel in range(4):
            same = output // 3 == channel // 2  # two blocks: of three outputs, of two inputs
            assert (center[output, channel] == 2 / 6).all() == same
    beside = weight.clone()
    beside[:, :, :, 1, 1] = 0
    assert 0.009 < beside.abs().max() <= 0.01
    assert not conv.bias.any()
    through = ScaleSpaceConv2d(5, 5, kernel_size=3, num_scales=2)
    through.reset_parameters(torch.Generator().manual_seed(0), init="delta")
    x = torch.randn(2, 5, 2, 8, 8)
    assert relative(through(x), x) < 0.1


def test_delta_initialisation_stays_within_groups() -> None:
    conv = ScaleSpaceConv2d(4, 6, kernel_size=1, num_scales=2, groups=2)
    conv.reset_parameters(init="delta")
    assert ((conv.weight.flatten(1) > 0.3).sum(1) == 2).all()
    conv = ScaleSpaceConv2d(4, 4, kernel_size=1, num_scales=2, groups=2)
    conv.reset_parameters(init="delta")
    assert (conv.weight.flatten(1).argmax(1) == torch.tensor([0, 1, 0, 1])).all()
    with pytest.raises(SettingError, match="expected an init of he, delta, got 'xavier'"):
        conv.reset_parameters(init="xavier")


# --- equivariance ---


def downscaled(x: Tensor, lift: ScaleSpaceLift2d) -> Tensor:
    """The action of the semigroup on images: blur by t₁, take every second pixel."""
    return lift(x)[:, :, 1, ::2, ::2]


@pytest.mark.usefixtures("float64")
def test_lift_under_blurring_and_subsampling(generator: torch.Generator) -> None:
    """Exact on the image's own scale; elsewhere as far as the coarse grid can hold the image."""
    smooth = BandLimitedImage.random(2, 2, size=(64, 64), generator=generator).render()
    noise = torch.randn(2, 2, 64, 64, generator=generator)
    bounds = {0.25: (5e-3, 2e-2), 0.5: (3e-3, 1.2e-2), 1.0: (2e-3, 1e-2)}
    for zero_scale, (lower, upper) in bounds.items():
        lift = ScaleSpaceLift2d(4, zero_scale=zero_scale, padding_mode="circular")
        expected = lift(smooth)[:, :, 1:, ::2, ::2]
        actual = lift(downscaled(smooth, lift))[:, :, :3]
        assert torch.equal(actual[:, :, 0], expected[:, :, 0])
        for scale in (1, 2):
            assert lower < relative(actual[:, :, scale], expected[:, :, scale]) < upper
    blind = ScaleSpaceLift2d(4, zero_scale=0.25, padding_mode="circular")
    aliased = relative(blind(downscaled(noise, blind))[:, :, 1], blind(noise)[:, :, 2, ::2, ::2])
    assert aliased > 0.5  # noise is finer than the coarse grid


@pytest.mark.usefixtures("float64")
def test_network_under_blurring_and_subsampling_is_no_worse_than_its_lift(generator: torch.Generator) -> None:
    image = BandLimitedImage.random(2, 2, size=(64, 64), generator=generator).render()
    options = {"kernel_size": 3, "padding_mode": "circular"}
    lift = ScaleSpaceLift2d(4, padding_mode="circular")
    body = nn.Sequential(
        ScaleSpaceConv2d(2, 4, num_scales=4, scale_size=2, **options),
        nn.ReLU(),
        ScaleSpaceConv2d(4, 4, num_scales=3, **options),
    )
    for layer in (body[0], body[2]):
        layer.reset_parameters(generator)
    expected = body(lift(image))[:, :, 1:, ::2, ::2]
    actual = body(lift(downscaled(image, lift)))[:, :, :2]
    assert 2e-3 < relative(actual, expected) < 2e-2
    assert relative(body(lift(downscaled(image, lift)))[:, :, 1:3], expected) > 0.1  # scales not shifted


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("zero_scale", [0.25, 0.5])
def test_enlarging(zero_scale: float, generator: torch.Generator) -> None:
    """Enlarging does not blur: what the lift thinks the image's own blur to be remains as an error."""
    image = BandLimitedImage.random(1, 2, size=(65, 69), generator=generator)
    lift = ScaleSpaceLift2d(3, zero_scale=zero_scale)
    conv = ScaleSpaceConv2d(2, 4, kernel_size=5, num_scales=3)
    conv.reset_parameters(generator)
    upper = {0.25: 1.2e-2, 0.5: 4e-2}[zero_scale]
    for network in (lift, nn.Sequential(lift, conv)):
        report = equivariance_error(network, image, [0.5, 2.0], margin=14)
        assert upper / 4 < report.worst < upper, str(report)
    undilated = nn.Sequential(lift, Undilated(conv))
    control = equivariance_error(undilated, image, [0.5, 2.0], margin=14)
    assert all(wrong > 5 * right for wrong, right in zip(control.errors, report.errors, strict=True))


class Undilated(nn.Module):
    """The same filter at every scale, of the same size: not equivariant."""

    def __init__(self, conv: ScaleSpaceConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([scale_space_conv2d(scale, self.conv.weight) for scale in x.split(1, dim=2)], dim=2)


@pytest.mark.usefixtures("float64")
def test_inter_scale_convolution_but_for_the_open_end(generator: torch.Generator) -> None:
    image = BandLimitedImage.random(1, 2, size=(65, 69), generator=generator)
    conv = ScaleSpaceConv2d(2, 4, kernel_size=3, num_scales=3, scale_size=2)
    conv.reset_parameters(generator)
    network = nn.Sequential(ScaleSpaceLift2d(3), conv)
    inside = equivariance_error(network, image, [0.5, 2.0], margin=14, scale_margin=1)
    assert 1e-3 < inside.worst < 2e-2, str(inside)
    with_end = equivariance_error(network, image, [0.5, 2.0], margin=14)
    assert 0.2 < min(with_end.errors) < with_end.worst < 1, str(with_end)


def test_a_strided_network_trains(generator: torch.Generator) -> None:
    network = nn.Sequential(
        *(
            ScaleSpaceLift2d(3, zero_scale=0.5),
            ScaleSpaceConv2d(1, 4, kernel_size=3, num_scales=3, scale_size=2),
        ),
        *(nn.ReLU(), ScaleSpaceConv2d(4, 4, kernel_size=3, num_scales=2, stride=2), ScaleProjection()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    images = torch.randn(16, 1, 12, 14, generator=generator)
    images[:8] = nn.functional.avg_pool2d(images[:8], 3, 1, 1)
    target = torch.arange(16) // 8
    for layer in (network[1], network[3]):
        layer.reset_parameters(generator)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
