"""The MNIST networks: settings as published, shapes, gradients, exact shifts and errors."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from equiscale import create_model, list_models
from equiscale.errors import ShapeError
from equiscale.models import model_entry
from equiscale.nn import (
    ImageBatchNorm2d,
    ImageMaxPool2d,
    LiftConv2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleMaxPool2d,
    SteerableConv2d,
)

# S, smallest and largest scale, mult, kernel, as published.
CELLS = {
    "mnist_ses_vector_28": (3, 1.5, 4.5, 1.5, 13),
    "mnist_ses_vector_28p": (3, 1.5, 4.5, 1.4, 15),
    "mnist_ses_vector_56": (4, 2.0, 4.0, 1.5, 15),
    "mnist_ses_vector_56p": (4, 1.5, 3.0, 1.4, 13),
    "mnist_ses_scalar_28": (4, 1.7, 5.1, 1.5, 15),
    "mnist_ses_scalar_28p": (4, 1.5, 4.5, 1.4, 13),
    "mnist_ses_scalar_56": (3, 2.0, 4.0, 1.4, 15),
    "mnist_ses_scalar_56p": (3, 1.0, 3.0, 1.4, 17),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_the_published_ones(name: str) -> None:
    settings = model_entry(name).settings
    assert (
        len(settings.grid),
        settings.grid.min,
        settings.grid.max,
        settings.mult,
        settings.kernel_size,
    ) == CELLS[name]
    assert (settings.channels, settings.effective_size, settings.hidden) == ((32, 63, 95), 7, 256)
    assert (settings.dropout, settings.max_order) == (0.7, 4)


# Learned parameters, as published where they are.
COUNTS = {
    "mnist_cnn_*": 494_549,
    "mnist_kanazawa_*": 494_549,
    "mnist_ses_*": 494_549,
    "mnist_disco": 494_549,
    "mnist_xu_*": 496_639,
    "mnist_sevf_scalar_*": 494_425,
    "mnist_sevf_vector_*": 475_475,
    "mnist_dss_*": 494_359,
    "mnist_ss_*": 493_688,
    "mnist_hermite": 494_549,
    "mnist_bspline": 494_549,
    "mnist_fourier_bessel": 494_549,
    "mnist_log_radial": 494_549,
    "mnist_gaussian_derivative": 494_549,
    "mnist_pyramid_*": 494_549,
    "mnist_rescaled_*": 494_549,
    "mnist_learnable_*": 494_549 + 2,  # the smallest scale and the range
}


def test_every_network_is_counted() -> None:
    counted = [name for pattern in COUNTS for name in list_models(pattern)]
    assert sorted(counted) == list_models("mnist_*")


@pytest.mark.parametrize("pattern", COUNTS)
def test_the_networks_have_as_many_parameters_as_published(pattern: str) -> None:
    for name in list_models(pattern):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == COUNTS[pattern], (
            name
        )


# What the published SS-CNN registers, and no output depends on.
NEVER_READ = ("const_real", "unused_norm.weight", "unused_norm.bias")


@pytest.mark.parametrize("name", list_models("mnist_*"))
def test_forward_and_backward_reach_every_parameter(name: str) -> None:
    model = create_model(name)
    logits = model(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    parameters = {
        key: parameter
        for key, parameter in model.named_parameters()
        if "unused" not in key and "const_real" not in key
    }
    silent = [key for key, parameter in parameters.items() if not parameter.grad.abs().sum() > 0]
    # a bias in front of batch norm has a gradient, since the maximum pooling lies between them
    assert silent == []


def test_what_the_published_ss_cnn_never_reads_can_be_left_out() -> None:
    model, lean = create_model("mnist_ss_28"), create_model("mnist_ss_28", unused=False)
    kept = lean.state_dict().keys()
    unused = [parameter.numel() for key, parameter in model.named_parameters() if key not in kept]
    assert sum(unused) == 30 + 30 * 60 + 60 * 90 + 2 * 90 == 7_410
    lean.load_state_dict({key: value for key, value in model.state_dict().items() if key in kept})
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(model.eval()(images), lean.eval()(images))


def test_vector_networks_keep_the_scale_axis_and_scalar_networks_do_not() -> None:
    vector, scalar = create_model("mnist_ses_vector_28"), create_model("mnist_ses_scalar_28")
    kinds = [[type(layer) for layer in model.main] for model in (vector, scalar)]
    assert kinds[0].count(LiftConv2d) == 1
    assert kinds[0].count(ScaleConv2d) == 2
    assert kinds[1].count(LiftConv2d) == 3


def test_the_56_networks_see_every_pixel_four_times() -> None:
    model = create_model("mnist_cnn_56").eval()
    seen = []
    model.main.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.randn(1, 1, 28, 28)
    model(image)
    assert torch.equal(seen[0], image.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 56, 56), (1, 28, 28)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected images \(B, 1, 28, 28\), got"):
        create_model("mnist_cnn_56")(torch.zeros(shape))


POOLS = (ImageMaxPool2d, ScaleMaxPool2d)


def of_torch(layer: nn.Module) -> nn.Module:
    """The layer of torch that a fast one stands for, with the same state."""
    if isinstance(layer, ImageMaxPool2d):
        return nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, ScaleMaxPool2d):
        stride, size, padding = layer.stride or layer.kernel_size, layer.kernel_size, layer.padding
        return nn.MaxPool3d((1, size, size), (1, stride, stride), (0, padding, padding))
    plain = {ImageBatchNorm2d: nn.BatchNorm2d, ScaleBatchNorm2d: nn.BatchNorm3d}.get(type(layer))
    if plain is None:
        return layer
    norm = plain(layer.num_features).to(layer.weight.dtype)
    norm.load_state_dict(layer.state_dict())
    return norm


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["mnist_cnn_28", "mnist_ses_vector_28", "mnist_dss_vector_28"])
def test_fast_layers_in_another_order_compute_what_torchs_do_in_the_published_one(name: str) -> None:
    model = create_model(name, channels=(3, 17, 5), dropout=0.0, hidden=8)
    reference = copy.deepcopy(model)
    layers = list(reference.main)
    for place, layer in enumerate(layers):
        if isinstance(layer, SteerableConv2d) and layer.geometry.pooling > 1:
            assert isinstance(layers[place + 1], nn.Identity)
            layers[place + 1] = ScaleMaxPool2d(layer.geometry.pooling)
            layer.geometry = dataclasses.replace(layer.geometry, pooling=1)
    for place in range(len(layers) - 1):
        if isinstance(layers[place], POOLS) and isinstance(layers[place + 1], nn.ReLU):
            layers[place : place + 2] = layers[place + 1], layers[place]
    assert sum(isinstance(layer, POOLS) for layer in layers) == 3
    reference.main = nn.Sequential(*map(of_torch, layers))
    images = torch.rand(4, 1, 28, 28).round()  # of a few equal values, as a black background
    for mode in (True, False):
        logits, expected = (network.train(mode)(images) for network in (model, reference))
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(y.square().sum(), network.parameters())
        for y, network in ((logits, model), (expected, reference))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-12, atol=1e-12)
