"""The networks for images of any size: sizes, gradients, shifts, and errors."""

import pytest
import torch

from equiscale import create_model, list_models
from equiscale.errors import ModelError, ShapeError

NAMES = [name for name in list_models("scale_*") if not name.endswith("_slow")]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_there_is_one_network_for_every_kind_of_method() -> None:
    assert {"scale_cnn", "scale_ses_scalar", "scale_ses_vector"} <= set(NAMES)


def test_any_size_goes_in_and_every_parameter_gets_a_gradient(name: str) -> None:
    model = create_model(name, channels=(4, 6), num_classes=3)
    for size in ((16, 16), (21, 34)):
        model.zero_grad()
        logits = model(torch.randn(4, 1, *size))
        assert logits.shape == (4, 3)
        logits.square().sum().backward()
        silent = [key for key, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
        assert silent == []


def test_shifts_by_the_pooling_stride_are_not_seen(name: str) -> None:
    model = create_model(name, channels=(4, 6), num_classes=3).eval()
    for norm in [module for module in model.modules() if "BatchNorm" in type(module).__name__]:
        norm.bias.data.fill_(-0.1)  # a constant background gives less than the digit
    image = torch.zeros(1, 1, 96, 96)
    image[..., 40:52, 36:50] = torch.rand(12, 14)
    with torch.no_grad():
        here, there = model(image), model(image.roll((8, -4), dims=(2, 3)))
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
        other = model(image.flip(3))
    assert not torch.allclose(other, here, rtol=1e-3, atol=1e-4), "the network must see something"


def test_the_steerable_networks_have_as_many_weights_as_the_plain_one() -> None:
    counts = {
        kind: sum(parameter.numel() for parameter in create_model(f"scale_{kind}").parameters())
        for kind in ("cnn", "ses_scalar", "ses_vector")
    }
    assert len(set(counts.values())) == 1, counts


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
