import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from equiscale.errors import SettingError, ShapeError
from equiscale.functional.rescale import CUBIC_KEYS, CUBIC_PILLOW, MNIST_SCALE_CENTER_OFFSET, rescale

SIZE = 28
COVERS = {"rescale"}


def digit_images(count: int) -> np.ndarray:
    """Real digits of 20×20 in the middle of the 28×28 canvas, like MNIST's."""
    canvas = np.zeros((count, SIZE, SIZE), np.uint8)
    for index, digit in enumerate(load_digits().images[:count]):
        small = Image.fromarray((digit * 255 / 16).astype(np.uint8))
        canvas[index, 4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC))
    return canvas


def pillow_rescale(image: np.ndarray, factor: float, *, resample: Image.Resampling) -> np.ndarray:
    center, inverse = SIZE / 2 + MNIST_SCALE_CENTER_OFFSET, 1 / factor
    matrix = (inverse, 0, center - inverse * center, 0, inverse, center - inverse * center)
    return np.asarray(
        Image.fromarray(image).transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, resample)
    )


def slow_rescale(x: torch.Tensor, factor: float, *, cubic: float, center_offset: float) -> torch.Tensor:
    """The definition, one target pixel after the other."""
    height, width = x.shape
    y = torch.zeros_like(x)
    middle = [(side - 1) / 2 + center_offset for side in (height, width)]
    for i in range(height):
        for j in range(width):
            source = [m + (k - m) / factor for m, k in zip(middle, (i, j), strict=True)]
            if all(-0.5 <= s <= side - 0.5 for s, side in zip(source, (height, width), strict=True)):
                y[i, j] = slow_interpolation(x, source, cubic)
    return y


def slow_interpolation(x: torch.Tensor, source: list[float], cubic: float) -> torch.Tensor:
    first = [int(np.floor(s)) - 1 for s in source]
    total = torch.zeros((), dtype=x.dtype)
    for p in range(first[0], first[0] + 4):
        for q in range(first[1], first[1] + 4):
            pixel = x[min(max(p, 0), x.shape[0] - 1), min(max(q, 0), x.shape[1] - 1)]
            total += keys_kernel(source[0] - p, cubic) * keys_kernel(source[1] - q, cubic) * pixel
    return total


def keys_kernel(distance: float, a: float) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_pillow_conventions_equal_pillow_within_one_grey_level(method: str) -> None:
    images = digit_images(8)
    x = torch.tensor(images).double()
    resample = Image.Resampling[method.upper()]
    equal, pixels = 0, 0
    for factor in np.linspace(0.3, 2, 50):
        y = rescale(
            x, float(factor), method=method, cubic=CUBIC_PILLOW, center_offset=MNIST_SCALE_CENTER_OFFSET
        )
        expected = np.stack([pillow_rescale(image, factor, resample=resample) for image in images])
        levels = y.round().clamp(0, 255).numpy()
        assert np.abs(levels - expected).max() <= 1, f"factor {factor}"
        equal += np.sum(y.floor().clamp(0, 255).numpy() == expected)
        pixels += expected.size
    assert equal / pixels > 0.99  # Pillow truncates: the floor is equal nearly everywhere


def test_pillow_is_told_apart_from_neighbouring_conventions() -> None:
    images = digit_images(4)
    x = torch.tensor(images).double()
    expected = np.stack([pillow_rescale(image, 0.7, resample=Image.Resampling.BICUBIC) for image in images])
    for cubic, offset in [(CUBIC_KEYS, MNIST_SCALE_CENTER_OFFSET), (-0.75, 0.5), (CUBIC_PILLOW, 0.0)]:
        y = rescale(x, 0.7, cubic=cubic, center_offset=offset).round().clamp(0, 255).numpy()
        assert np.abs(y - expected).max() > 5, f"a = {cubic}, offset {offset}"


@pytest.mark.parametrize("shape", [(7, 7), (6, 9), (1, 4)])
@pytest.mark.parametrize("factor", [0.31, 0.75, 1.37, 3.0])
@pytest.mark.parametrize(("cubic", "offset"), [(CUBIC_KEYS, 0.0), (CUBIC_PILLOW, 0.5)])
def test_equals_the_slow_definition(
    shape: tuple[int, int], factor: float, cubic: float, offset: float
) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = slow_rescale(x, factor, cubic=cubic, center_offset=offset)
    torch.testing.assert_close(
        rescale(x, factor, cubic=cubic, center_offset=offset), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_bit_for_bit_the_identity_at_factor_one(dtype: torch.dtype) -> None:
    x = torch.randn(3, 2, 9, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0, :3] = torch.tensor([-0.0, float("inf"), 1e30])
    for factor in (1.0, torch.ones(3), torch.tensor(1.0)):
        y = rescale(x, factor)
        assert torch.equal(y, x)
        assert torch.equal(torch.signbit(y), torch.signbit(x))
        assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.8, 1.3, 2.0])
@pytest.mark.parametrize("size", [8, 9])
def test_symmetric_images_stay_symmetric_about_the_true_centre(factor: float, size: int) -> None:
    half = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    y = rescale(half + half.flip(0) + half.flip(1) + half.flip(0, 1), factor)
    for axis in (0, 1):
        torch.testing.assert_close(y, y.flip(axis), rtol=0, atol=1e-12)
    shifted = rescale(half + half.flip(0) + half.flip(1) + half.flip(0, 1), factor, center_offset=0.5)
    assert (shifted - shifted.flip(0)).abs().max() > 1e-3


def test_keys_kernel_is_exact_on_quadratics_and_pillows_is_not() -> None:
    u = torch.arange(16, dtype=torch.float64) - 7.5
    x = (u**2)[:, None] + u[None, :]
    expected = ((u / 2) ** 2)[:, None] + (u / 2)[None, :]
    inner = slice(2, -2)
    torch.testing.assert_close(rescale(x, 2.0)[inner, inner], expected[inner, inner], rtol=0, atol=1e-12)
    assert (rescale(x, 2.0, cubic=CUBIC_PILLOW) - expected)[inner, inner].abs().max() > 0.01


def test_larger_factor_means_larger_object_and_zeros_come_from_outside() -> None:
    x = torch.ones(1, 12, 12, dtype=torch.float64)
    areas = [rescale(x, factor).sum().item() for factor in (1 / 3, 0.5, 1.0, 2.0)]
    assert areas == pytest.approx([16, 36, 144, 144])


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_a_factor_for_each_image_equals_one_image_at_a_time(lead: tuple[int, ...]) -> None:
    x = torch.randn(4, *lead, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.4, 1.0, 1.2, 2.0])
    batch = rescale(x, factors)
    for index, factor in enumerate(factors):
        torch.testing.assert_close(batch[index], rescale(x[index], factor.item()), rtol=0, atol=1e-12)


def test_empty_batches_keep_their_shape() -> None:
    assert rescale(torch.zeros(0, 1, 4, 5), 0.5).shape == (0, 1, 4, 5)
    assert rescale(torch.zeros(0, 1, 4, 5), torch.zeros(0)).shape == (0, 1, 4, 5)


def test_is_differentiable_in_the_images() -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda image: rescale(image, torch.tensor([0.7, 1.0])), (x,))


def test_a_number_is_checked_without_a_look_at_a_tensor() -> None:
    """On the device without values, where a decision that depends on them is an error."""
    assert rescale(torch.ones(2, 3, 6, 7, device="meta"), 1.5).shape == (2, 3, 6, 7)
    x = torch.randn(2, 3, 6, 7)
    assert torch.equal(rescale(x, 1.5), rescale(x, torch.tensor(1.5)))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 0.0])])
def test_refuses_a_bad_factor(factor: float | torch.Tensor) -> None:
    with pytest.raises(
        SettingError, match=r"expected finite positive scale factors, got (0\.0|-1\.0|nan|inf)"
    ):
        rescale(torch.zeros(2, 1, 4, 4), factor)


@pytest.mark.parametrize(
    ("x_shape", "factor_shape"), [((2, 1, 4, 4), (3,)), ((2, 1, 4, 4), (2, 1)), ((4, 4), (4,))]
)
def test_refuses_factors_that_do_not_fit(x_shape: tuple[int, ...], factor_shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected one factor, or one for each image .* give a number or"):
        rescale(torch.zeros(x_shape), torch.ones(factor_shape))


def test_refuses_what_is_no_image() -> None:
    with pytest.raises(ShapeError, match=r"at least two axes \(\.\.\., H, W\), got shape \(5,\)"):
        rescale(torch.zeros(5), 1.0)
    with pytest.raises(SettingError, match=r"floating-point numbers, got torch.uint8; convert them"):
        rescale(torch.zeros(4, 4, dtype=torch.uint8), 1.0)
    with pytest.raises(SettingError, match=r"expected a method of \['bicubic', 'bilinear'\], got 'cubic'"):
        rescale(torch.zeros(4, 4), 1.0, method="cubic")  # type: ignore[arg-type]
