"""The MNIST networks: settings as published, shapes, gradients, exact shifts and errors."""

import pytest
import torch

from equiscale import create_model, list_models
from equiscale.errors import ShapeError
from equiscale.models import model_entry
from equiscale.nn import LiftConv2d, ScaleConv2d

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


@pytest.mark.parametrize("name", list_models("mnist_*"))
def test_forward_and_backward_reach_every_parameter(name: str) -> None:
    model = create_model(name)
    logits = model(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    silent = [key for key, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    # a bias in front of batch norm has a gradient, since the maximum pooling lies between them
    assert silent == []


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
