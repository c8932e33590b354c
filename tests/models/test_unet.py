"""The U-Net of scale maps: sizes, shifts, and how equivariant it is."""

import pytest
import torch
from torch import Tensor, nn

from equiscale import ScaleGrid, create_model, list_models
from equiscale.errors import ModelError, ShapeError
from equiscale.models.unet import ScaleUNet
from equiscale.testing import equivariance_error

PARAMETERS = {"ses_unet": 29_858}
STEP = 2**0.5
SMALL = {"channels": (4, 6), "num_classes": 3}


def blobs(size: int) -> Tensor:
    """Smooth bright and dark spots about the middle of a black image."""
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(size) - (size - 1) / 2
    image = torch.zeros(size, size)
    for _ in range(12):
        row, column, width, height = torch.rand(4, generator=generator).tolist()
        squares = (x - 24 * row + 12)[:, None] ** 2 + (x - 24 * column + 12) ** 2
        image += (height - 0.4) * torch.exp(-squares / (2 * (2 + 1.5 * width) ** 2))
    return image[None, None]


def calibrated(network: nn.Module, image: Tensor) -> nn.Module:
    """Batch norm with the image's statistics, so that every step counts; no bias that hides an error."""
    torch.manual_seed(1)
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = None
    network.train()(image)
    nn.init.zeros_(network.classifier.bias)
    return network.eval()


class Features(nn.Module):
    """The network before its projection."""

    def __init__(self, network: ScaleUNet) -> None:
        super().__init__()
        self.network, self.grid = network, network.settings.grid

    def forward(self, x: Tensor) -> Tensor:
        return self.network.scale_map(x)


class PlainUNet(nn.Module):
    """The control: one step down and up with ordinary convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lower, self.last = self.double(1, 4), self.double(4, 6), self.double(10, 4)
        self.classifier = nn.Conv2d(4, 3, 1)

    @staticmethod
    def double(c_in: int, c_out: int) -> nn.Sequential:
        layers = [
            [nn.Conv2d(c, c_out, 5, padding=2), nn.BatchNorm2d(c_out), nn.ReLU()] for c in (c_in, c_out)
        ]
        return nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        low = self.lower(nn.functional.avg_pool2d(skip, 2))
        larger = nn.functional.interpolate(low, scale_factor=2, mode="bilinear")
        return self.classifier(self.last(torch.cat([larger, skip], 1)))


def test_is_registered_and_has_its_parameters() -> None:
    assert set(PARAMETERS) == set(list_models("ses_unet*"))
    for name, count in PARAMETERS.items():
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == count


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (4, 5)])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_every_pixel_gets_its_classes_and_every_parameter_a_gradient(size: tuple[int, int], pool) -> None:
    model = create_model("ses_unet", channels=(2, 3, 4), num_classes=5, in_channels=2, pool=pool)
    logits = model(torch.randn(2, 2, *size))
    assert logits.shape == (2, 5, *size)
    logits.square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_every_step_up_is_given_the_map_that_the_step_down_skipped() -> None:
    model = create_model("ses_unet", channels=(2, 3, 4)).eval()
    made: dict[str, Tensor] = {}
    taken: dict[str, tuple[Tensor, ...]] = {}

    def note(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made[name], taken[name] = output, inputs

    for name in ("lift", "down.0", "down.1", "up.0", "up.1"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: note(name, inputs, output)
        )
    model(torch.randn(1, 1, 16, 18))
    assert [tuple(made[name].shape[3:]) for name in made] == [(16, 18), (8, 9), (4, 4), (8, 9), (16, 18)]
    pairs = {"up.0": ("down.1", "down.0"), "up.1": ("up.0", "lift")}
    for name, sources in pairs.items():
        for given, source in zip(taken[name], sources, strict=True):
            assert torch.equal(given, made[source])


@torch.no_grad()
@pytest.mark.usefixtures("float64")
def test_shifts_by_the_strides_are_exact_and_others_are_not() -> None:
    model = create_model("ses_unet", **SMALL, padding_mode="circular", kernel_size=13)
    image = torch.randn(1, 1, 64, 68)
    calibrated(model, image)
    inside = (..., slice(24, 40), slice(24, 40))  # of the reach of two filters on both sides
    there = model(image.roll((6, -4), (2, 3)))
    expected = model(image).roll((6, -4), (2, 3))
    torch.testing.assert_close(there[inside], expected[inside], rtol=0, atol=1e-10)
    assert not torch.allclose(there, expected, atol=1e-3)  # interpolation does not wrap around
    odd = model(image.roll(1, 2))
    assert not torch.allclose(odd[inside], model(image).roll(1, 2)[inside], atol=1e-3)


@torch.no_grad()
@pytest.mark.usefixtures("float64")
def test_scaling_moves_the_logits_along_better_than_a_plain_network() -> None:
    """Before the projection up to sampling; after it up to the scales that leave and enter the axis."""
    image = blobs(64)
    torch.manual_seed(0)
    model = calibrated(create_model("ses_unet", **SMALL, padding_mode="replicate"), image)
    factors = [1 / STEP, STEP]
    features = equivariance_error(Features(model), image, factors, margin=8)
    logits = equivariance_error(model, image, factors, margin=8)
    plain = equivariance_error(calibrated(PlainUNet(), image), image, factors, margin=8)
    assert 0.02 < features.worst < 0.2, str(features)
    assert 0.02 < logits.worst < 0.45, str(logits)
    assert plain.worst > 1.5 * logits.worst, str(plain)


@torch.no_grad()
@pytest.mark.usefixtures("float64")
def test_without_steps_only_the_convolutions_are_left() -> None:
    image = blobs(64)
    torch.manual_seed(0)
    settings = {"grid": ScaleGrid.geometric(1.0, STEP, 3), "kernel_size": 17, "padding_mode": "replicate"}
    flat = calibrated(create_model("ses_unet", channels=(4,), **settings), image)
    report = equivariance_error(Features(flat), image, [1 / STEP, STEP], margin=8)
    assert 2e-3 < report.worst < 0.04, str(report)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create_model("ses_unet", channels=()), ModelError, r"positive channel counts, got \(\)"),
        (
            lambda: create_model("ses_unet", projection="argmax-scale"),
            ModelError,
            "a projection of max, mean, logsumexp, got 'argmax-scale'",
        ),
        (
            lambda: create_model("ses_unet")(torch.zeros(1, 1, 3, 8)),
            ShapeError,
            r"ScaleUNet: expected images \(B, 1, H, W\) of at least 4×4 pixels, got \(1, 1, 3, 8\)",
        ),
        (
            lambda: create_model("ses_unet")(torch.zeros(1, 2, 8, 8)),
            ShapeError,
            r"images \(B, 1, H, W\) .*, got \(1, 2, 8, 8\)",
        ),
    ],
)
def test_errors_say_what_was_expected(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
