"""Modules of images on scale maps: scale by scale, and nothing between the scales."""

import pytest
import torch
from torch import Tensor, nn

from equiscale.errors import ShapeError
from equiscale.nn import ScaleWise
from equiscale.testing import BandLimitedImage, equivariance_error

COVERS = {"ScaleWise"}

pytestmark = pytest.mark.usefixtures("float64")

MODULES = {
    "conv": lambda: nn.Conv2d(4, 6, (3, 2), stride=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, 2),
    "upsample": lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "max_pool": lambda: nn.MaxPool2d((3, 2), 2, ceil_mode=True),
    "shuffle": lambda: nn.PixelShuffle(2),
}
EVERY_MODULE = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 4, 3, 8, 9, generator=generator)


@EVERY_MODULE
def test_is_the_module_on_every_scale_by_itself(module, x: Tensor) -> None:
    layer = ScaleWise(module())
    expected = torch.stack([layer.module(x[:, :, s]) for s in range(3)], 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scales", [1, 3])
def test_images_and_scales_are_not_confused(batch: int, scales: int, generator: torch.Generator) -> None:
    x = torch.randn(batch, 4, scales, 5, 6, generator=generator)
    layer = ScaleWise(nn.GroupNorm(1, 4))
    for b in range(batch):
        for s in range(scales):
            torch.testing.assert_close(layer(x)[b, :, s], layer.module(x[b : b + 1, :, s])[0])


@EVERY_MODULE
def test_commutes_with_shifts_of_the_scale_axis_bit_for_bit(module, x: Tensor) -> None:
    layer = ScaleWise(module())
    assert torch.equal(layer(x.roll(1, 2)), layer(x).roll(1, 2))
    across = nn.Conv3d(4, 4, 3, padding=1)  # which sees several scales
    assert not torch.allclose(across(x.roll(1, 2)), across(x).roll(1, 2))


def test_is_scale_equivariant_as_far_as_its_module_is() -> None:
    """Upsampling commutes with scaling up to sampling; a filter of several pixels does not."""
    image = BandLimitedImage.random(1, 2, size=(48, 48), generator=torch.Generator().manual_seed(0))

    def maps(module: nn.Module):
        return lambda x: ScaleWise(module)(x[:, :, None])[:, :, 0]

    errors = [
        equivariance_error(maps(module), image, [2.0], margin=8).worst
        for module in (
            nn.Upsample(scale_factor=2, mode="bicubic"),
            nn.Tanh(),
            nn.Conv2d(2, 2, 7, padding=3, groups=2, bias=False).requires_grad_(False),
        )
    ]
    assert 1e-5 < errors[0] < 0.02
    assert 1e-5 < errors[1] < 0.02
    assert errors[2] > 0.1


def test_what_else_is_given_the_module_is_given(x: Tensor) -> None:
    layer = ScaleWise(nn.ConvTranspose2d(4, 4, 3, 2))
    assert layer(x).shape == (2, 4, 3, 17, 19)
    assert layer(x, [18, 20]).shape == (2, 4, 3, 18, 20)
    torch.testing.assert_close(layer(x, output_size=[18, 19]), layer(x, [18, 19]))


@EVERY_MODULE
def test_gradients_are_those_of_the_module(module) -> None:
    layer = ScaleWise(module())
    x = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_weights_are_the_modules_once_for_all_scales() -> None:
    module = nn.Conv2d(4, 6, 3)
    layer = ScaleWise(module)
    assert list(layer.state_dict()) == ["module.weight", "module.bias"]
    assert next(layer.parameters()) is module.weight


def test_a_module_that_writes_into_its_input_is_as_on_images(x: Tensor) -> None:
    """On one image or one scale the images are views: as with torch's own layers, the input is written."""
    expected = nn.functional.leaky_relu(x, 0.5)
    assert torch.equal(ScaleWise(nn.LeakyReLU(0.5, inplace=True))(x.clone()), expected)
    assert torch.equal(ScaleWise(nn.LeakyReLU(0.5, inplace=True))(x[:1].clone()), expected[:1])


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Flatten(), r"Flatten to map images .* got \(6, 288\) from \(6, 4, 8, 9\); project the scale map"),
        (nn.Flatten(0, 1), r"got \(24, 8, 9\) from \(6, 4, 8, 9\)"),
        (nn.Unflatten(0, (3, 2)), r"got \(3, 2, 4, 8, 9\) from"),
        (nn.MaxPool2d(2, return_indices=True), r"MaxPool2d to map images .* got tuple from \(6, 4, 8, 9\)"),
    ],
)
def test_modules_that_do_not_give_images_are_refused(module: nn.Module, text: str, x: Tensor) -> None:
    with pytest.raises(ShapeError, match=f"ScaleWise: expected {'.*'}{text}"):
        ScaleWise(module)(x)


def test_a_batch_that_the_module_shortens_is_refused(x: Tensor) -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:3]

    with pytest.raises(ShapeError, match=r"First to map .* got \(3, 4, 8, 9\) from \(6, 4, 8, 9\)"):
        ScaleWise(First())(x)
