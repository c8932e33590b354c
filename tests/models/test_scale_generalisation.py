"""The networks for images of any size: sizes, gradients, shifts, and errors."""

import itertools

import pytest
import torch

from equiscale import create_model, list_models
from equiscale.errors import ModelError, ShapeError
from equiscale.functional.rescale import rescale

NAMES = list_models("scale_*")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_there_is_one_network_for_every_kind_of_method() -> None:
    kinds = ("cnn", "disco", "pyramid", "rescaled", "ses_scalar", "ses_vector")
    assert [f"scale_{kind}" for kind in kinds] == NAMES


def test_any_size_goes_in_and_every_parameter_gets_a_gradient(name: str) -> None:
    model = create_model(name, channels=(4, 6), num_classes=3)
    for size in ((16, 16), (21, 34)):
        model.zero_grad()
        logits = model(torch.randn(4, 1, *size))
        assert logits.shape == (4, 3)
        logits.square().sum().backward()
        silent = [key for key, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
        assert silent == []


@torch.no_grad()
def test_shifts_by_the_pooling_stride_are_not_seen(name: str) -> None:
    torch.manual_seed(0)
    # a pyramid's copies are shifted by other numbers of pixels
    alone = {"factors": (1.0,)} if name == "scale_pyramid" else {}
    model = create_model(name, channels=(4, 6), num_classes=3, **alone).eval()
    for norm in [module for module in model.modules() if "BatchNorm" in type(module).__name__]:
        norm.bias.data.fill_(-0.1)  # a constant background gives less than the digit
    image = torch.zeros(1, 1, 96, 96)
    image[..., 40:52, 36:50] = torch.rand(12, 14)
    here, there = model(image), model(image.roll((8, -4), dims=(2, 3)))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    other = model(image.flip(3))
    assert not torch.allclose(other, here, rtol=1e-3, atol=1e-4), "the network must see something"


def test_all_networks_have_as_many_weights() -> None:
    counts = {name: sum(parameter.numel() for parameter in create_model(name).parameters()) for name in NAMES}
    assert set(counts.values()) == {90_938}, counts


@torch.no_grad()
def test_a_pyramid_moves_less_than_the_plain_network_when_the_object_is_rescaled() -> None:
    side = torch.linspace(-1, 1, 112)
    image = torch.exp(-((side / 0.1) ** 2) - (side[:, None] / 0.3) ** 2)[None, None]
    moved = {"scale_cnn": 0.0, "scale_pyramid": 0.0}
    for name, seed in itertools.product(moved, range(4)):
        torch.manual_seed(seed)
        model = create_model(name).eval()
        large, small = (torch.amax(model.main(x), (2, 3)) for x in (image, rescale(image, 0.5)))
        moved[name] += float((small - large).norm() / large.norm()) / 4
    # untrained, and with an end to its factors: what remains is far from zero
    assert 0.1 < moved["scale_pyramid"] < 0.8 * moved["scale_cnn"] < 0.3, moved


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 15, 16), r"at least 16×16 pixels, got \(2, 1, 15, 16\)"),
        ((2, 3, 32, 32), r"\(B, 1, H, W\) .* got \(2, 3, 32, 32\)"),
        ((1, 32, 32), r"got \(1, 32, 32\)"),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        create_model("scale_cnn")(torch.zeros(shape))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"expected positive channel counts, got \(\)"):
        create_model("scale_cnn", channels=())
    with pytest.raises(ModelError, match="expected an odd effective_size, got 4"):
        create_model("scale_cnn", effective_size=4)
