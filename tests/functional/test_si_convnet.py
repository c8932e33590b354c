import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale.errors import ScaleGridError, SettingError, ShapeError
from equiscale.functional import ConvGeometry, locally_scale_invariant_conv2d
from equiscale.functional.rescale import rescale
from tests.functional.reference import slow_lift
from tests.golden import golden_case

COVERS = {"locally_scale_invariant_conv2d"}

SAME = ConvGeometry(padding="same")


@pytest.fixture
def random(generator: torch.Generator):
    return partial(torch.randn, dtype=torch.float64, generator=generator)


def test_equals_the_published_layer_with_its_gradients() -> None:
    case = golden_case("si_convnet_conv")
    x = case["x0"].clone().requires_grad_()
    weight, bias = (case.parameters()[name].clone().requires_grad_() for name in ("weight", "bias"))
    y = locally_scale_invariant_conv2d(
        x, weight, case.config["scales"], bias, geometry=ConvGeometry(padding=case.config["padding"])
    )
    y.backward(case["grad_y0"])
    expected = case.parameter_gradients()
    for actual, published in [
        (y, case["y0"]),
        (x.grad, case["grad_x0"]),
        (weight.grad, expected["weight"]),
        (bias.grad, expected["bias"]),
    ]:
        torch.testing.assert_close(actual, published, rtol=1e-12, atol=1e-12)


def slow_resize(x: np.ndarray, scale: float) -> np.ndarray:
    """Bilinear with the corners aligned, one target pixel after the other, zeros around."""
    if scale == 1:
        return x
    y = np.zeros_like(x)
    sides = x.shape[-2:]
    small = [math.floor(side * scale) for side in sides]
    for i, j in np.ndindex(*sides):
        target = [k - (side - h) // 2 for k, side, h in zip((i, j), sides, small, strict=True)]
        if not all(0 <= t < h for t, h in zip(target, small, strict=True)):
            continue
        source = [
            t * (side - 1) / (h - 1) if h > 1 else 0.0
            for t, side, h in zip(target, sides, small, strict=True)
        ]
        for p, q in np.ndindex(*sides):
            weight = max(0, 1 - abs(source[0] - p)) * max(0, 1 - abs(source[1] - q))
            y[..., i, j] += weight * x[..., p, q]
    return y


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, "same", 1), (2, "same", 1), (1, 0, 2)])
def test_equals_the_loops(stride: int, padding, groups: int, random) -> None:
    scales = [0.5, 1.0, 1.7]
    x, weight, bias = random(2, 2, 7, 8), random(4, 2 // groups, 3, 3), random(4)
    geometry = ConvGeometry(stride=stride, padding=padding, groups=groups)
    delta = np.eye(9).reshape(9, 1, 3, 3)  # the kernel's own pixels as basis functions
    margin = geometry.margin(3)
    answers = []
    for scale in scales:
        y = slow_lift(
            slow_resize(x.numpy(), scale), weight.flatten(2).numpy(), delta, bias.numpy(),
            stride=stride, padding=margin, mode="zeros", groups=groups,
        )[:, :, 0]  # fmt: skip
        answers.append(slow_resize(y, 1 / scale))
    y = locally_scale_invariant_conv2d(x, weight, scales, bias, geometry=geometry)
    torch.testing.assert_close(y, torch.from_numpy(np.max(answers, 0)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_scale_one_alone_is_the_ordinary_convolution_bit_for_bit(mode, random) -> None:
    x, weight, bias = random(2, 2, 7, 9), random(3, 2, 5, 5), random(3)
    geometry = ConvGeometry(padding=2, padding_mode=mode, stride=2)
    y = locally_scale_invariant_conv2d(x, weight, [1.0], bias, geometry=geometry)
    module = torch.nn.Conv2d(2, 3, 5, padding=2, stride=2, padding_mode=mode).double()
    module.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(y, module(x))


def test_centred_resampling_is_that_of_rescale(random) -> None:
    x, weight = random(2, 2, 8, 9), random(3, 2, 3, 3)
    bilinear = partial(rescale, method="bilinear")
    there_and_back = [bilinear(conv2d(bilinear(x, s), weight, padding=1), 1 / s) for s in (0.6, 1.0, 1.5)]
    y = locally_scale_invariant_conv2d(x, weight, [0.6, 1.0, 1.5], geometry=SAME, resampling="centred")
    torch.testing.assert_close(y, torch.stack(there_and_back).amax(0), rtol=1e-12, atol=1e-12)


def test_centred_comes_back_to_where_it_started_and_published_does_not() -> None:
    """A kernel of one pixel: there and back is the identity but for the interpolation of a ramp."""
    ramp = torch.arange(28, dtype=torch.float64).expand(1, 1, 28, 28)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    inner = (..., slice(10, 18), slice(10, 18))
    errors = {
        resampling: (locally_scale_invariant_conv2d(ramp, one, [0.3], resampling=resampling) - ramp)[inner]
        .abs()
        .max()
        .item()
        for resampling in ("published", "centred")
    }
    assert errors["centred"] < 1e-12
    assert 0.1 < errors["published"] < 2, errors


def test_zeros_from_outside_take_part_in_the_maximum(random) -> None:
    """As published: enlarged by 2, only the middle answers; around it the answer is never negative."""
    x, weight, bias = random(1, 1, 12, 12), torch.zeros(1, 1, 1, 1).double(), torch.tensor([-1.0]).double()
    y = locally_scale_invariant_conv2d(x, weight, [1.0, 2.0], bias)[0, 0]
    assert torch.equal(y[3:9, 3:9], torch.full((6, 6), -1.0).double())
    assert y.sum() == -36


@pytest.mark.parametrize("resampling", ["published", "centred"])
def test_derivatives(resampling, random) -> None:
    x, weight, bias = (random(*shape).requires_grad_() for shape in ((1, 2, 5, 6), (2, 2, 3, 3), (2,)))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return locally_scale_invariant_conv2d(
            x, weight, [0.5, 1.0, 1.5], bias, geometry=SAME, resampling=resampling
        )

    assert torch.autograd.gradcheck(function, (x, weight, bias))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "text"),
    [
        ((2, 2, 3, 8, 8), (3, 2, 3, 3), None, r"an image \(B, 2, H, W\), got \(2, 2, 3, 8, 8\)"),
        ((2, 3, 8, 8), (3, 2, 3, 3), None, r"an image \(B, 2, H, W\), got \(2, 3, 8, 8\)"),
        ((2, 2, 8, 8), (3, 2, 4, 4), None, r"K, K\) with odd K, got \(3, 2, 4, 4\)"),
        ((2, 2, 8, 8), (3, 2, 3, 5), None, r"K, K\) with odd K, got \(3, 2, 3, 5\)"),
        ((2, 2, 8, 8), (3, 2, 3, 3), (2,), r"a bias \(3,\), got \(2,\)"),
        (
            (2, 2, 4, 8),
            (3, 2, 5, 5),
            None,
            r"the kernel's 5 pixels, got \(4, 8\) with padding 0; use padding",
        ),
    ],
)
def test_refuses_shapes_that_do_not_fit(x, weight, bias, text: str) -> None:
    bias = None if bias is None else torch.zeros(bias)
    with pytest.raises(ShapeError, match="locally_scale_invariant_conv2d: expected .*" + text):
        locally_scale_invariant_conv2d(torch.zeros(x), torch.zeros(weight), [1.0], bias)


def test_refuses_other_settings() -> None:
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
    with pytest.raises(SettingError, match="resampling of published, centred, got 'cubic'"):
        locally_scale_invariant_conv2d(x, weight, [1.0], resampling="cubic")  # type: ignore[arg-type]
    with pytest.raises(ScaleGridError, match="strictly increasing scales"):
        locally_scale_invariant_conv2d(x, weight, [2.0, 1.0])
    with pytest.raises(
        ShapeError, match=r"expected at least 5 pixels, so that one is left at scale 0.2, got 4"
    ):
        locally_scale_invariant_conv2d(x, weight, [0.2, 1.0])


@pytest.mark.parametrize(
    ("x", "weight", "geometry", "text"),
    [
        ((1, 2, 8, 8), (3, 1, 3, 3), {"groups": 2}, "output channels divisible by 2 groups, got 3"),
        ((1, 2, 3, 4), (2, 2, 9, 9), {"padding_mode": "reflect"}, "reflect padding of at most 2 .*, got 4"),
        ((1, 2, 3, 4), (2, 2, 9, 9), {"padding_mode": "circular"}, "circular padding of at most 3 .*, got 4"),
    ],
)
def test_refuses_groups_and_borders_that_do_not_fit(x, weight, geometry: dict, text: str) -> None:
    with pytest.raises(ShapeError, match="locally_scale_invariant_conv2d: expected .*" + text):
        locally_scale_invariant_conv2d(
            torch.zeros(x), torch.zeros(weight), [1.0], geometry=ConvGeometry(padding="same", **geometry)
        )
