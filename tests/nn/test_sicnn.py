"""Columns shift with the scale of the image as far as their resized kernels allow: measured."""

import pytest
import torch
from torch import nn

from equiscale import functional as F
from equiscale.nn import ColumnBatchNorm2d, MultiColumnConv2d, MultiColumnLift2d, ScaleProjection
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.nn.scale_signals import STEP

COVERS = {"MultiColumnLift2d", "MultiColumnConv2d", "ColumnBatchNorm2d"}

pytestmark = pytest.mark.usefixtures("float64")


PUBLISHED = [0.67, 1.0, 1.5]


def seeded(layer: nn.Module) -> nn.Module:
    layer.reset_parameters(torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize("layer", [MultiColumnLift2d, MultiColumnConv2d])
def test_are_their_function(layer, generator: torch.Generator) -> None:
    scales = [0.5, 1.0, 2.0]
    module = layer(4, 6, kernel_size=3, scales=scales, stride=2, groups=2, bias=True)
    x = torch.randn(2, 4, *[3] * (layer is MultiColumnConv2d), 9, 8, generator=generator)
    geometry = F.ConvGeometry(stride=2, padding="same", groups=2)
    basis = F.multi_column_basis(3, scales)
    expected = F.multi_column_conv2d(x, module.weight, basis, module.bias, geometry=geometry)
    torch.testing.assert_close(module(x), expected, rtol=1e-13, atol=1e-13)


def edge_detector() -> MultiColumnLift2d:
    """A smooth kernel: the horizontal derivative of a Gaussian."""
    pixels = torch.arange(7.0) - 3
    gaussian = torch.exp(-(pixels[:, None] ** 2 + pixels**2) / (2 * 1.8**2))
    lift = MultiColumnLift2d(1, 1, kernel_size=7, scales=PUBLISHED)
    with torch.no_grad():
        lift.weight[0, 0] = gaussian * pixels
    return lift


def errors(lift: MultiColumnLift2d, generator: torch.Generator) -> tuple[float, ...]:
    image = BandLimitedImage.random(2, lift.in_channels, size=(49, 53), generator=generator)
    step = lift.grid.step
    return equivariance_error(lift, image, [1 / step, step], margin=14).errors


def test_columns_shift_with_the_scale(generator: torch.Generator) -> None:
    """Of a smooth kernel; one of noise is torn by repeating some of its pixels and not others."""
    smooth = errors(edge_detector(), generator)
    assert 0.01 < min(smooth) <= max(smooth) < 0.04, smooth
    noise = errors(seeded(MultiColumnLift2d(2, 4, kernel_size=7, scales=PUBLISHED)), generator)
    assert 0.4 < min(noise) <= max(noise) < 1.2, noise


def test_columns_shift_with_a_scale_of_three_even_for_noise(generator: torch.Generator) -> None:
    found = errors(seeded(MultiColumnLift2d(2, 4, kernel_size=5, scales=[1.0, 3.0])), generator)
    assert 2e-3 < min(found) <= max(found) < 6e-2, found


def test_columns_in_the_wrong_order_are_found_out(generator: torch.Generator) -> None:
    lift = edge_detector()
    lift.basis, lift.windows = lift.basis.flip(1), lift.windows[::-1]
    assert min(errors(lift, generator)) > 0.4


def test_a_second_layer_keeps_the_columns_apart(generator: torch.Generator) -> None:
    conv = seeded(MultiColumnConv2d(3, 2, kernel_size=5, scales=[1.0, STEP, 2.0]))
    x = torch.randn(1, 3, 3, 8, 9, generator=generator)
    y = conv(x)
    for scale in range(3):
        other = x.clone()
        other[:, :, scale] += 1
        changed = (conv(other) != y).any((0, 1, 3, 4))
        assert changed.tolist() == [s == scale for s in range(3)]


def test_settings_of_the_published_wide_network() -> None:
    scales = PUBLISHED
    network = nn.Sequential(
        MultiColumnLift2d(3, 4, kernel_size=3, scales=scales),
        ColumnBatchNorm2d(4, 3),
        nn.ReLU(),
        MultiColumnConv2d(4, 5, kernel_size=3, stride=2, scales=scales),
        ScaleProjection(),
    )
    shortcut = MultiColumnConv2d(4, 5, kernel_size=1, stride=2, scales=scales)
    x = torch.zeros(2, 3, 96, 96)
    assert network(x).shape == (2, 5, 48, 48)
    assert shortcut(network[0](x)).shape == (2, 5, 3, 48, 48)
    assert {key for key in network.state_dict() if "num" not in key} == {
        "0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight",
    }  # fmt: skip


@pytest.mark.parametrize("layer", [MultiColumnLift2d, MultiColumnConv2d])
def test_the_attribute_kernel_size_is_the_argument(layer) -> None:
    built = layer(1, 1, kernel_size=7, scales=[1.0, 2.0])
    assert (built.kernel_size, built.largest_kernel_size, built.basis.shape[-1]) == (7, 15, 15)


def test_padding_without_same_refers_to_the_largest_kernel(generator: torch.Generator) -> None:
    scales, x = PUBLISHED, torch.randn(1, 2, 9, 10, generator=generator)
    same, valid = (
        seeded(MultiColumnLift2d(2, 3, kernel_size=3, scales=scales, padding=p)) for p in ("same", 0)
    )
    torch.testing.assert_close(valid(x), same(x)[..., 2:-2, 2:-2], rtol=1e-13, atol=1e-13)


# --- batch norm of columns ---


def test_each_channel_of_each_column_has_statistics_of_its_own(generator: torch.Generator) -> None:
    x = torch.randn(3, 4, 5, 6, 7, generator=generator) * 2 + 1
    norm = ColumnBatchNorm2d(4, 5, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(20, generator=generator))
        norm.bias.copy_(torch.rand(20, generator=generator))
    single = [nn.BatchNorm2d(4, momentum=0.3) for _ in range(5)]
    for s, column in enumerate(single):
        column.load_state_dict({
            key: value.unflatten(0, (4, 5))[:, s] if value.ndim else value
            for key, value in norm.state_dict().items()
        })  # fmt: skip
    for mode in (True, True, False):
        expected = torch.stack([column.train(mode)(x[:, :, s]) for s, column in enumerate(single)], 2)
        torch.testing.assert_close(norm.train(mode)(x), expected, rtol=1e-12, atol=1e-12)
    mean = torch.stack([column.running_mean for column in single], 1)
    torch.testing.assert_close(norm.running_mean, mean.flatten(), rtol=1e-12, atol=1e-12)


def test_the_published_vectors_are_scale_major(generator: torch.Generator) -> None:
    """What the docstring tells an importer to do."""
    x = torch.randn(3, 4, 5, 6, 7, generator=generator)
    theirs, ours = nn.BatchNorm2d(20).eval(), ColumnBatchNorm2d(4, 5).eval()
    for vector in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
        vector.data.copy_(torch.rand(20, generator=generator) + 0.5)
    ours.load_state_dict({
        key: value.view(5, 4).T.reshape(-1) if value.ndim else value
        for key, value in theirs.state_dict().items()
    })  # fmt: skip
    published = theirs(x.transpose(1, 2).flatten(1, 2)).unflatten(1, (5, 4)).transpose(1, 2)
    assert torch.equal(ours(x), published)
