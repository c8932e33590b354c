"""The functions of vector fields against loops, their derivatives and their refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import (
    ScaleAngles,
    vector_field_batch_norm2d,
    vector_field_conv2d,
    vector_field_dropout,
    vector_field_lift2d,
    vector_field_magnitude,
    vector_field_max_pool2d,
    vector_field_variance,
)

COVERS = {
    "ScaleAngles",
    "vector_field_batch_norm2d",
    "vector_field_conv2d",
    "vector_field_dropout",
    "vector_field_lift2d",
    "vector_field_magnitude",
    "vector_field_max_pool2d",
    "vector_field_variance",
}

SCALES = ScaleAngles(num_small=3, num_big=1, base=1.4, angle_range=1.5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the definition, written as loops ---


def slow_resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear between pixel centres, the border pixel repeated."""
    y = np.zeros(size)
    for i, j in np.ndindex(*size):
        for source, weight_y in slow_taps(i, size[0], x.shape[0]):
            for column, weight_x in slow_taps(j, size[1], x.shape[1]):
                y[i, j] += weight_y * weight_x * x[source, column]
    return y


def slow_taps(target: int, size: int, source_size: int) -> list[tuple[int, float]]:
    point = max((target + 0.5) * source_size / size - 0.5, 0.0)
    left = min(int(point), source_size - 1)
    return [(left, 1 - (point - left)), (min(left + 1, source_size - 1), point - left)]


def slow_correlate(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    size = weight.shape[-1]
    x = np.pad(x, padding)
    y = np.zeros([side - size + 1 for side in x.shape])
    for i, j in np.ndindex(*y.shape):
        y[i, j] = np.sum(weight * x[i : i + size, j : j + size])
    return y


def slow_layer(x: np.ndarray, weight: np.ndarray, padding: int, sign: int | None) -> np.ndarray:
    """x is (B, C, H, W) where sign is None, else (B, C, 2, H, W)."""
    size = weight.shape[-1]
    rows, columns = (side + 2 * padding - size + 1 for side in x.shape[-2:])
    y = np.zeros((len(x), len(weight), 2, rows, columns))
    for b, o in np.ndindex(len(x), len(weight)):
        best = np.full((rows, columns), -np.inf)
        for k in (-2, -1, 0, 1):
            factor, theta = 1.4**k, k * 1.5 / 3
            copy_size = tuple(round(side * factor) for side in x.shape[-2:])
            total = 0
            for c in range(x.shape[1]):
                if sign is None:
                    pairs = [(x[b, c], weight[o, c])]
                else:
                    u, v = weight[o, c]
                    cos, sin = math.cos(theta), sign * math.sin(theta)
                    pairs = [(x[b, c, 0], cos * u - sin * v), (x[b, c, 1], sin * u + cos * v)]
                for image, filters in pairs:
                    total = total + slow_correlate(slow_resize(image, copy_size), filters, padding)
            answer = slow_resize(total, (rows, columns))
            better = answer > best
            best[better] = answer[better]
            length = np.maximum(answer, 0)
            y[b, o, 0][better] = (length * math.cos(theta))[better]
            y[b, o, 1][better] = (length * math.sin(theta))[better]
    return y


@pytest.mark.parametrize(("padding", "size"), [("same", (7, 9)), (0, (11, 8)), (2, (8, 6))])
def test_lift_equals_the_loops(padding, size: tuple[int, int]) -> None:
    x, weight = random(2, 2, *size), random(3, 2, 3, 3, seed=1)
    margin = 1 if padding == "same" else padding
    actual = vector_field_lift2d(x, weight, scales=SCALES, padding=padding)
    expected = torch.from_numpy(slow_layer(x.numpy(), weight.numpy(), margin, None))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("turn", "sign"), [("equivariant", 1), ("published", -1)])
@pytest.mark.parametrize(("padding", "size"), [("same", (7, 9)), (0, (11, 8))])
def test_convolution_equals_the_loops(turn, sign: int, padding, size: tuple[int, int]) -> None:
    x, weight = random(2, 2, 2, *size), random(3, 2, 2, 3, 3, seed=1)
    margin = 1 if padding == "same" else padding
    actual = vector_field_conv2d(x, weight, scales=SCALES, padding=padding, turn=turn)
    expected = torch.from_numpy(slow_layer(x.numpy(), weight.numpy(), margin, sign))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stride", "padding"), [(None, 0), (2, 1), (1, 0)])
def test_pooling_equals_the_loops(stride: int | None, padding: int) -> None:
    x = random(2, 3, 2, 7, 8)
    actual = vector_field_max_pool2d(x, 3, stride=stride, padding=padding)
    step = stride or 3
    for b, c, i, j in np.ndindex(*actual.shape[:2], *actual.shape[3:]):
        window = [
            x[b, c, :, row, column]
            for row in range(max(i * step - padding, 0), min(i * step - padding + 3, 7))
            for column in range(max(j * step - padding, 0), min(j * step - padding + 3, 8))
        ]
        assert torch.equal(actual[b, c, :, i, j], max(window, key=lambda vector: float(vector.norm())))


def test_lengths_variance_and_norm_equal_their_definitions() -> None:
    x = random(3, 2, 2, 4, 5)
    lengths = (x[:, :, 0] ** 2 + x[:, :, 1] ** 2) ** 0.5
    torch.testing.assert_close(vector_field_magnitude(x), lengths, rtol=1e-14, atol=0)
    variance = lengths.transpose(0, 1).flatten(1).var(1, unbiased=False)
    torch.testing.assert_close(vector_field_variance(x), variance, rtol=1e-14, atol=0)
    weight = torch.tensor([2.0, -3.0]).double()
    expected = torch.stack([x[:, c] * weight[c] / (variance[c] + 0.1) ** 0.5 for c in range(2)], dim=1)
    torch.testing.assert_close(vector_field_batch_norm2d(x, variance, weight, eps=0.1), expected)
    torch.testing.assert_close(
        vector_field_batch_norm2d(x, variance, eps=0.1), expected / weight.view(2, 1, 1, 1)
    )


# --- symmetries ---


def quarter_turn(x: Tensor) -> Tensor:
    return torch.stack([-x[:, :, 1], x[:, :, 0]], dim=2)


def test_pooling_and_length_commute_with_a_quarter_turn_exactly() -> None:
    x = random(2, 3, 2, 6, 7)
    turned = quarter_turn(x)
    assert torch.equal(vector_field_max_pool2d(turned, 2), quarter_turn(vector_field_max_pool2d(x, 2)))
    assert torch.equal(vector_field_magnitude(turned), vector_field_magnitude(x))
    rolled = vector_field_max_pool2d(x.roll(2, 3), 2)
    assert torch.equal(rolled, vector_field_max_pool2d(x, 2).roll(1, 3))


def test_pooling_the_components_is_something_else() -> None:
    x = random(2, 3, 2, 6, 6)
    components = torch.nn.functional.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (2, 3))
    assert not torch.allclose(vector_field_max_pool2d(x, 2), components)


@pytest.mark.parametrize("axis", [-1, -2])
def test_mirrored_images_and_filters_give_mirrored_fields(axis: int) -> None:
    image, weight = random(2, 2, 9, 10), random(3, 2, 3, 3, seed=1)
    y = vector_field_lift2d(image, weight, scales=SCALES)
    mirrored = vector_field_lift2d(image.flip(axis), weight.flip(axis), scales=SCALES)
    torch.testing.assert_close(mirrored, y.flip(axis), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(vector_field_lift2d(image.flip(axis), weight, scales=SCALES), y.flip(axis))


def test_angles_are_those_of_the_factors() -> None:
    assert SCALES.factors == pytest.approx((1.4**-2, 1.4**-1, 1.0, 1.4))
    assert SCALES.angles == pytest.approx((-1.0, -0.5, 0.0, 0.5))
    assert len(SCALES) == 4
    assert ScaleAngles(num_small=1, num_big=0).angles == (0.0,)
    y = vector_field_lift2d(random(1, 1, 9, 9), random(2, 1, 3, 3, seed=1), scales=SCALES)
    found = torch.atan2(y[:, :, 1], y[:, :, 0])[vector_field_magnitude(y) > 0]
    assert found.round(decimals=6).unique().tolist() == [-1.0, -0.5, 0.0, 0.5]


def test_dropout_has_one_mask_for_both_components() -> None:
    x, generator = random(4, 3, 2, 5, 6), torch.Generator().manual_seed(3)
    for whole_channels in (False, True):
        y = vector_field_dropout(x, 0.4, whole_channels=whole_channels, generator=generator)
        mask = y / x
        assert torch.equal(mask[:, :, 0] != 0, mask[:, :, 1] != 0)
        torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / 0.6))
        whole = (mask.flatten(2) != 0).all(2) | (mask.flatten(2) == 0).all(2)
        assert bool(whole.all()) == whole_channels
    assert vector_field_dropout(x, 0.9, training=False) is x
    assert vector_field_dropout(x, 0.0) is x


def test_a_generator_makes_dropout_reproducible() -> None:
    x, state = random(4, 3, 2, 5, 6), torch.get_rng_state()
    first, second = (
        vector_field_dropout(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


# --- derivatives ---


def test_derivatives() -> None:
    image, lift_weight = random(1, 1, 6, 5).requires_grad_(), random(2, 1, 3, 3, seed=1).requires_grad_()
    x, weight = random(1, 2, 2, 4, 5).requires_grad_(), random(1, 2, 2, 3, 3, seed=1).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x, w: vector_field_lift2d(x, w, scales=SCALES), (image, lift_weight))
    for turn in ("equivariant", "published"):
        assert check(lambda x, w, turn=turn: vector_field_conv2d(x, w, scales=SCALES, turn=turn), (x, weight))
    assert check(lambda x: vector_field_max_pool2d(x, 2), (x,))
    assert check(vector_field_magnitude, (x,))
    gain = random(2, seed=2).requires_grad_()
    assert check(lambda x, g: vector_field_batch_norm2d(x, vector_field_variance(x), g), (x, gain))
    assert check(lambda x: vector_field_dropout(x, generator=torch.Generator().manual_seed(0)), (x,))


def test_the_length_of_zero_has_gradient_zero() -> None:
    x = torch.zeros(1, 1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    vector_field_magnitude(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


# --- reduced precision ---


def test_lengths_of_what_is_not_a_number_are_not_zero() -> None:
    field = torch.zeros(1, 2, 2, 2, 2)
    field[0, 0, 0, 0, 0] = math.nan
    field[0, 1, 1, 1, 1] = math.inf
    lengths = vector_field_magnitude(field)
    assert lengths[0, 0, 0, 0].isnan()
    assert lengths[0, 1, 1, 1].isinf()
    pooled = vector_field_max_pool2d(field, 2)
    assert pooled[0, 0, 0, 0, 0].isnan()
    assert pooled[0, 1, 1, 0, 0].isinf()


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_lengths_in_half_precision_are_as_long_as_their_vectors(size: float) -> None:
    field = torch.tensor([3 * size, 4 * size], dtype=torch.float16).view(1, 1, 2, 1, 1)
    length = vector_field_magnitude(field)
    assert length.dtype == torch.float16
    assert length.item() == pytest.approx(5 * size, rel=2e-3)


def test_angles_stay_apart_in_reduced_precision() -> None:
    x, weight = random(1, 1, 16, 16).bfloat16(), random(2, 1, 3, 3, seed=1).bfloat16()
    y = vector_field_lift2d(x, weight).double()
    assert vector_field_lift2d(x, weight).dtype == torch.bfloat16
    alive = vector_field_magnitude(y) > 0
    found = torch.atan2(y[:, :, 1], y[:, :, 0])[alive] / ScaleAngles().step
    assert (found - found.round()).abs().max() < 0.03
    assert vector_field_variance(y.bfloat16()).dtype == torch.float32


# --- refusals ---

NOT_A_FIELD = [torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 3, 4, 5)]


@pytest.mark.parametrize("x", NOT_A_FIELD)
@pytest.mark.parametrize(
    "function",
    [
        vector_field_magnitude,
        vector_field_variance,
        lambda x: vector_field_max_pool2d(x, 2),
        lambda x: vector_field_batch_norm2d(x, torch.ones(3)),
        vector_field_dropout,
    ],
)
def test_refuses_what_is_no_vector_field(function, x: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"vector_field_\w+: expected a vector field \(B, C, 2, H, W\), got"):
        function(x)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: vector_field_lift2d(torch.zeros(1, 3, 8, 8), torch.zeros(2, 2, 3, 3)),
            r"an image \(B, 2, H",
        ),
        (lambda: vector_field_lift2d(torch.zeros(1, 2, 8, 8), torch.zeros(2, 2, 4, 4)), "with odd K, got"),
        (lambda: vector_field_lift2d(torch.zeros(1, 2, 8, 8), torch.zeros(2, 2, 3, 5)), "with odd K, got"),
        (
            lambda: vector_field_conv2d(torch.zeros(1, 3, 2, 8, 8), torch.zeros(2, 2, 2, 3, 3)),
            r"a vector field \(B, 2, 2, H, W\), got \(1, 3, 2, 8, 8\)",
        ),
        (
            lambda: vector_field_conv2d(torch.zeros(1, 2, 2, 8, 8), torch.zeros(2, 2, 3, 3, 3)),
            r"weights \(C', C, 2, K, K\) with odd K, got \(2, 2, 3, 3, 3\)",
        ),
        (
            lambda: vector_field_lift2d(torch.zeros(1, 2, 8, 9), torch.zeros(2, 2, 7, 7), padding=0),
            r"at least the kernel's 7 pixels, got 3 of \(8, 9\) with padding 0; use padding='same'",
        ),
        (
            lambda: vector_field_batch_norm2d(torch.zeros(1, 2, 2, 8, 8), torch.zeros(3)),
            r"a variance \(2,\), one number a channel, got \(3,\)",
        ),
        (
            lambda: vector_field_batch_norm2d(torch.zeros(1, 2, 2, 8, 8), torch.zeros(2), torch.zeros(1)),
            r"a weight \(2,\), one number a channel, got \(1,\)",
        ),
    ],
)
def test_refuses_wrong_shapes(call, text: str) -> None:
    with pytest.raises(ShapeError, match="expected .*" + text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ScaleAngles(num_small=0), "num_small of at least 1 and num_big of at least 0, got 0 and 3"),
        (lambda: ScaleAngles(num_big=-1), "got 5 and -1"),
        (lambda: ScaleAngles(base=1.0), "a base larger than 1, got 1.0"),
        (lambda: ScaleAngles(base=math.nan), "a base larger than 1, got nan"),
        (lambda: ScaleAngles(angle_range=7.0), r"an angle_range in \(0, 2π\) radians, got 7.0"),
        (
            lambda: vector_field_conv2d(random(1, 1, 2, 8, 8), random(1, 1, 2, 3, 3), turn="left"),
            "a turn of equivariant, published, got 'left'",
        ),
        (
            lambda: vector_field_lift2d(random(1, 1, 8, 8), random(1, 1, 3, 3), padding=-1),
            "a padding of at least 0 or 'same', got -1",
        ),
        (lambda: vector_field_dropout(random(1, 1, 2, 8, 8), 1.0), "p with 0 <= p < 1, got 1.0"),
    ],
)
def test_refuses_wrong_settings(call, text: str) -> None:
    with pytest.raises(SettingError, match="expected .*" + text):
        call()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kernel_size": 3, "padding": 2}, SettingError, "padding of 0 to 1, half the kernel, got 2"),
        ({"kernel_size": 0}, SettingError, "kernel_size and stride of at least 1, got 0 and None"),
        ({"kernel_size": 2, "stride": 0}, SettingError, "kernel_size and stride of at least 1, got 2 and 0"),
        ({"kernel_size": 7, "padding": 1}, ShapeError, r"window's 7 pixels, got \(4, 5\) with padding 1"),
    ],
)
def test_pooling_refuses_windows_that_do_not_fit(options: dict, error, text: str) -> None:
    with pytest.raises(error, match="vector_field_max_pool2d: expected .*" + text):
        vector_field_max_pool2d(torch.zeros(1, 1, 2, 4, 5), **options)
