"""Every layer and function of a converted network does to each scale what it did to images."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equiscale import ScaleGrid, convert
from equiscale.errors import ModelError
from equiscale.nn import LiftConv2d, ScaleConv2d
from tests.deploy.networks import Between, fate, features, image, projections, stirred

pytestmark = pytest.mark.usefixtures("float64")

TWO, THREE = ScaleGrid([1.0, 2.0]), ScaleGrid([1.0, 1.5, 2.25])

# --- layers ---

NOT_SQUARE = "a kernel of {}×{} is not square and odd"


@pytest.mark.parametrize(
    ("options", "after", "note"),
    [
        ({"kernel_size": 3, "padding": 1, "dilation": 1}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "stride": 2}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": "same"}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": "valid"}, "ScaleConv2d", ""),
        ({"kernel_size": 5, "padding": 1}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": 4}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": 1, "groups": 2, "bias": False}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "padding": "same", "padding_mode": "replicate"}, "ScaleConv2d", ""),
        ({"kernel_size": 1, "stride": 2, "groups": 2}, "PointwiseScaleConv2d", ""),
        ({"kernel_size": 1, "padding": "same"}, "PointwiseScaleConv2d", ""),
        ({"kernel_size": 1, "padding": 1}, "ScaleConv2d", ""),
        ({"kernel_size": 3, "dilation": 2, "padding": 2}, "ScaleWise", "dilation 2"),
        ({"kernel_size": 2, "stride": 2}, "ScaleWise", NOT_SQUARE.format(2, 2)),
        ({"kernel_size": (1, 3), "padding": (0, 1)}, "ScaleWise", NOT_SQUARE.format(1, 3)),
        ({"kernel_size": 3, "stride": (2, 1)}, "ScaleWise", r"stride \(2, 1\)"),
        ({"kernel_size": 3, "padding": (1, 0)}, "ScaleWise", r"padding \(1, 0\)"),
        ({"kernel_size": 1, "stride": (2, 1)}, "ScaleWise", r"stride \(2, 1\)"),
    ],
)
def test_every_convolution_has_its_fate_and_computes_the_same(options: dict, after: str, note: str) -> None:
    """Behind a first convolution, and as the first one: on the reference scale as it was."""
    conv = nn.Conv2d(4, 6, **options)
    network, x = stirred(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), conv)).eval(), image(2, 4, 13, 11)
    converted, report = convert(network, TWO, example=torch.zeros(1, 4, 13, 11))
    assert fate(report, "1").after == after
    assert fate(report, "1").note == (
        f"the same filter on every scale, since {note}" if note else ""
    ).replace("\\", "")
    assert fate(report, "1").equivariant == (not note)
    torch.testing.assert_close(features(converted, "1", x)[:, :, 0], network(x), rtol=1e-11, atol=1e-11)
    if note and max(conv.kernel_size) > 1:
        report = convert(nn.Sequential(conv, nn.Conv2d(6, 6, 3)), TWO, example=x).report
        assert fate(report, "0").note == f"stays an ordinary convolution: {note}".replace("\\", "")
        assert fate(report, "1").after == "LiftConv2d"


@pytest.mark.parametrize(
    ("pool", "after"),
    [
        (nn.MaxPool2d(2), "ScaleMaxPool2d"),
        (nn.MaxPool2d(3, 2, 1), "ScaleMaxPool2d"),
        (nn.MaxPool2d((3, 3), (2, 2), (1, 1)), "ScaleMaxPool2d"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "ScaleWise"),
        (nn.MaxPool2d((3, 2)), "ScaleWise"),
        (nn.MaxPool2d(3, 1, dilation=2), "ScaleWise"),
        (nn.AvgPool2d(3, 2, 1), "ScaleAvgPool2d"),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "ScaleWise"),
        (nn.AvgPool2d(2, divisor_override=3), "ScaleWise"),
        (nn.AvgPool2d(3, 2, ceil_mode=True), "ScaleWise"),
        (nn.LPPool2d(2, 2), "ScaleWise"),
        (nn.Upsample(scale_factor=2), "ScaleWise"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "ScaleWise"),
        (nn.ConvTranspose2d(4, 3, 3, 2), "ScaleWise"),
        (nn.PixelShuffle(2), "ScaleWise"),
        (nn.ReflectionPad2d(2), "ScaleWise"),
        (nn.GroupNorm(2, 4), "ScaleWise"),
        (nn.InstanceNorm2d(4, affine=True), "ScaleWise"),
        (nn.LocalResponseNorm(3), "ScaleWise"),
        (nn.ZeroPad2d(1), ""),
        (nn.PReLU(4), ""),
        (nn.Softmax(1), ""),
        (nn.Softmax2d(), "ScaleWise"),
        (nn.Softmax(-2), ""),
        (nn.Softmax(2), "ScaleWise"),
        (nn.Dropout2d(0.4), "ScaleDropout2d"),
        (nn.Dropout2d(1.0), "ScaleWise"),
        (nn.LeakyReLU(0.1, inplace=True), ""),
    ],
    ids=str,
)
def test_every_module_does_to_each_scale_what_it_did_to_images(pool: nn.Module, after: str) -> None:
    pool = copy.deepcopy(pool).double()
    network, x = stirred(nn.Sequential(nn.Conv2d(3, 4, 3), pool)).eval(), image(2, 3, 14, 12)
    converted, report = convert(network, THREE, example=torch.zeros(1, 3, 14, 12))
    assert fate(report, "1").after == after
    lifted, actual = features(converted, "0", x), features(converted, "1", x)
    with torch.no_grad():
        expected = torch.stack([pool(lifted[:, :, s].clone()) for s in range(3)], 2)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_pooling_with_indices_is_done_on_images() -> None:
    class Unpools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, return_indices=True)
            self.unpool = nn.MaxUnpool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.unpool(*self.pool(self.conv(x)))

    network = stirred(Unpools())
    converted, report = convert(network, TWO, example=image(1, 3, 10, 10))
    assert projections(report) == ["in front of pool"]
    assert converted(image(2, 3, 10, 10)).shape == (2, 4, 8, 8)


# --- functions between layers ---


def cat_of_chunks(_: nn.Module, y: Tensor) -> Tensor:
    a, b = y.chunk(2, dim=1)
    return torch.cat([b, a.relu()], 1)


def split_whole(_: nn.Module, y: Tensor) -> Tensor:
    parts = torch.split(y, [1, 3], dim=1)
    return torch.cat(parts[::-1], dim=1)


def largest_of_channels(_: nn.Module, y: Tensor) -> Tensor:
    return y * torch.max(y, dim=1, keepdim=True).values


def reshaped(_: nn.Module, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return y.reshape(b, c, h, w) * h


def squeezed(_: nn.Module, y: Tensor) -> Tensor:
    return y * torch.sigmoid(y.mean((2, 3), keepdim=True))


def before_and_after(_: nn.Module, y: Tensor) -> Tensor:
    twice = 2 * y
    other = twice + 1
    twice.sub_(3)
    y += twice
    return y * other


def in_place_statement(_: nn.Module, y: Tensor) -> Tensor:
    y.mul_(2).add_(1)
    F.leaky_relu(y, 0.3, inplace=True)
    return y


def resized(_: nn.Module, y: Tensor) -> Tensor:
    low = F.avg_pool2d(y, 2)
    return F.interpolate(low, size=(y.shape[2], y.shape[3]), mode="bilinear", align_corners=False) + y


FUNCTIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "relu": lambda _, y: F.relu(y),
    "in_place_statement": in_place_statement,
    "before_and_after": before_and_after,
    "cat_of_chunks": cat_of_chunks,
    "split_whole": split_whole,
    "largest_of_channels": largest_of_channels,
    "reshaped": reshaped,
    "squeezed": squeezed,
    "resized": resized,
    "flip_rows": lambda _, y: y.flip(2),
    "flip_columns": lambda _, y: y.flip(-1),
    "flip_images": lambda _, y: y.flip(0),
    "roll": lambda _, y: torch.roll(y, (1, 2), (2, 3)),
    "cumsum": lambda _, y: y.cumsum(2),
    "cumsum_in_place": lambda _, y: y.cumsum_(2),
    "rows_of_a_tensor": lambda self, y: torch.take_along_dim(y, self.rows, 2),
    "sort": lambda _, y: y.sort(dim=2)[0],
    "softmax_rows": lambda _, y: y.softmax(2),
    "normalize": lambda _, y: F.normalize(y, dim=1),
    "layer_norm": lambda _, y: F.layer_norm(y.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2),
    "instance_norm": lambda _, y: F.instance_norm(y),
    "slice": lambda _, y: y[:, :, ::2, 1:],
    "cropped": lambda _, y: y[..., : y.shape[-1] - 2],
    "index": lambda _, y: y[:, [1, 0, 3, 2]],
    "pad": lambda _, y: F.pad(y, (1, 2, 0, 3)),
    "pad_reflect": lambda _, y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "max_pool": lambda _, y: F.max_pool2d(y, kernel_size=3, stride=1, padding=1),
    "where": lambda _, y: torch.where(y > 0, y, 0.1 * y),
    "data": lambda _, y: y + y.data,
    "detach": lambda _, y: y.detach().clone().contiguous() + y,
    "batch_mean": lambda _, y: y - y.mean(0, keepdim=True),
    "gamma": lambda self, y: y * self.gamma,
    "ones": lambda self, y: y * self.ones,
    "shift": lambda self, y: y + self.shift,
    "lerp": lambda self, y: torch.lerp(y, self.shift, 0.25),
    "own_weight": lambda self, y: y * self.conv.weight.norm() + self.conv.bias.view(1, -1, 1, 1),
    "filtered": lambda self, y: F.conv2d(y, self.after.weight, padding=1),
    "keywords": lambda self, y: torch.add(input=y, other=self.shift, alpha=2),
    "cat_image": lambda self, y: torch.cat([y[:, :3], (y * 0 + self.shift).mean(1, keepdim=True)], 1),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_functions_do_to_each_scale_what_they_did_to_images(function: str, batch: int) -> None:
    """As many scales as channels, ones as weights and zeros as the example would hide a mistaken axis."""
    grid = ScaleGrid([1.0, 1.3, 1.7, 2.2])
    network = Between(FUNCTIONS[function]).eval()
    converted, _ = convert(network, grid, example=torch.zeros(batch, 3, 12, 14))
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for each in (converted, copied):
            each.gamma.copy_(torch.arange(4.0).view(1, 4, 1, 1)) if hasattr(each, "gamma") else None
            each.ones.copy_(torch.arange(4.0).view(4, 1, 1)) if hasattr(each, "ones") else None
    x = image(3, 3, 12, 14)
    with torch.no_grad():
        lifted = converted.conv(x)
        expected = [copied.function(copied, lifted[:, :, s].clone()) for s in range(4)]
        expected = converted.after(torch.stack(expected, 2)).amax(2).mean((2, 3))
        torch.testing.assert_close(converted(x), expected, rtol=1e-11, atol=1e-11)


def test_an_image_meets_a_scale_map_as_the_same_on_every_scale() -> None:
    class Meets(nn.Module):
        def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.conv, self.how = nn.Conv2d(4, 4, 3, padding=1), how

        def forward(self, x: Tensor) -> Tensor:
            return self.how(self.conv(x), x)

    x = image(3, 4, 9, 8)
    for how in (
        lambda y, x: y + x,
        lambda y, x: x * y,
        lambda y, x: torch.cat((x, y), 1),
        lambda y, x: torch.maximum(y, x[:, :1]),
        lambda y, x: y * x.mean((2, 3), keepdim=True),
        lambda y, x: torch.where(x > 0, y, x),
        lambda y, x: y + x[:1],
    ):
        for batch in (1, 2):
            network = stirred(Meets(how)).eval()
            converted, _ = convert(network, TWO, example=torch.zeros(batch, 4, 9, 8))
            lifted = converted.conv(x)
            expected = torch.stack([how(lifted[:, :, s], x) for s in range(2)], 2).amax(2)
            torch.testing.assert_close(converted(x), expected)


def test_functions_without_a_sense_for_scale_maps_see_the_projection() -> None:
    network = stirred(Between(lambda _, y: y.flatten(2).cumsum(-1).unflatten(2, (y.shape[2], -1)))).eval()
    converted, report = convert(network, TWO, example=image())
    assert projections(report)[0] == "in front of flatten"
    x = image(3, 3, 13, 17)
    expected = network.function(network, converted.conv(x).amax(2))
    expected = converted.after(expected).amax(2).mean((2, 3))
    torch.testing.assert_close(converted(x), expected)


def test_functions_that_are_no_layers_are_told_in_the_report() -> None:
    filtered = convert(Between(FUNCTIONS["filtered"]), TWO, example=image()).report
    (told,) = filtered.not_equivariant
    assert (told.name, told.after) == ("conv2d", "scale by scale")
    assert "the same filter on every scale: written as a function" in told.note
    resized_report = convert(Between(resized), TWO, example=image()).report
    assert [f.name for f in resized_report.fates if f.after == "scale by scale"] == [
        "avg_pool2d",
        "interpolate",
    ]
    assert resized_report.not_equivariant == ()

    class First(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.after(F.conv2d(x, self.conv.weight))

    (told,) = convert(First(FUNCTIONS["relu"]), TWO, example=image()).report.not_equivariant
    assert "stays an ordinary convolution: written as a function" in told.note


def test_weights_that_functions_use_learn_and_are_named_as_before() -> None:
    network = Between(FUNCTIONS["gamma"])
    converted, _ = convert(network, TWO, example=image())
    assert set(dict(converted.named_parameters())) == {
        *("gamma", "conv.weight", "conv.bias", "after.weight", "after.bias")
    }
    converted(image()).square().sum().backward()
    assert bool((converted.gamma.grad != 0).all())


# --- shared modules ---


class Shared(nn.Module):
    """One convolution, used twice on features, or on the image too."""

    def __init__(self, *, on_image: bool) -> None:
        super().__init__()
        self.on_image = on_image
        self.stem, self.conv = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        x = self.conv(x) if self.on_image else self.act(self.stem(x))
        return self.conv(self.act(self.conv(x)))


def test_a_module_used_twice_on_scale_maps_stays_one() -> None:
    network = stirred(Shared(on_image=False)).eval()
    converted, report = convert(network, TWO, example=image(1, 4, 9, 9))
    assert fate(report, "conv").after == "ScaleConv2d"
    assert report.parameters[0] == report.parameters[1]
    x = image(2, 4, 9, 9)
    act, stem, conv = (converted.get_submodule(name) for name in ("act", "stem", "conv"))
    torch.testing.assert_close(converted(x), conv(act(conv(act(stem(act(x)))))).amax(2))
    assert isinstance(stem, LiftConv2d)
    assert isinstance(conv, ScaleConv2d)


def test_a_module_used_on_images_and_on_scale_maps_is_refused() -> None:
    with pytest.raises(
        ModelError, match="expected conv to be used on images or on scale maps, got both; give"
    ):
        convert(Shared(on_image=True), TWO, example=image(1, 4, 9, 9))
