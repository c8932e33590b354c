from functools import partial

import pytest
import torch
from torch.nn.functional import avg_pool2d, avg_pool3d, max_pool2d, max_pool3d

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import image_max_pool2d, scale_avg_pool2d, scale_max_pool2d
from tests.memory import IMAGE_ORDERS, MAP_ORDERS, laid, tied

COVERS = {"scale_max_pool2d", "scale_avg_pool2d", "image_max_pool2d"}

POOLS = [(scale_max_pool2d, max_pool3d), (scale_avg_pool2d, avg_pool3d)]


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 4, 8, 12, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("pool", "torch_pool"), POOLS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, None, 0), (4, None, 0), (3, 2, 1), (3, 1, 0)])
def test_equals_three_dimensional_pooling_of_depth_one(
    pool, torch_pool, kernel: int, stride: int | None, padding: int, x: torch.Tensor
) -> None:
    step = kernel if stride is None else stride
    expected = torch_pool(x, [1, kernel, kernel], [1, step, step], [0, padding, padding])
    actual = pool(x, kernel, stride=stride, padding=padding)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pool", [scale_max_pool2d, scale_avg_pool2d])
def test_commutes_with_shifts_of_scales_and_by_the_stride(pool, x: torch.Tensor) -> None:
    pool = partial(pool, kernel_size=2)
    expected = pool(x).roll((1, 1, -2), (2, 3, 4))
    torch.testing.assert_close(pool(x.roll((1, 2, -4), (2, 3, 4))), expected, rtol=0, atol=1e-15)
    assert (pool(x.roll(1, 3)) - pool(x).roll(1, 3)).abs().max() > 0.1


@pytest.mark.parametrize("pool", [scale_max_pool2d, scale_avg_pool2d])
def test_derivatives(pool, generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 2, 5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(partial(pool, kernel_size=3, stride=2, padding=1), (x,))


@pytest.mark.parametrize("pool", [scale_max_pool2d, scale_avg_pool2d])
def test_refuses_an_image(pool) -> None:
    text = rf"{pool.__name__}: expected a scale map \(B, C, S, H, W\), got \(2, 3, 8, 8\)"
    with pytest.raises(ShapeError, match=text):
        pool(torch.zeros(2, 3, 8, 8), 2)


@pytest.mark.parametrize("pool", [scale_max_pool2d, scale_avg_pool2d])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kernel_size": 3, "padding": 2}, SettingError, "padding of 0 to 1, half the kernel, got 2"),
        ({"kernel_size": 0}, SettingError, "kernel_size and stride of at least 1, got 0 and None"),
        ({"kernel_size": 2, "stride": 0}, SettingError, "kernel_size and stride of at least 1, got 2 and 0"),
        ({"kernel_size": 7, "padding": 1}, ShapeError, r"window's 7 pixels, got \(4, 5\) with padding 1"),
    ],
)
def test_refuses_windows_that_do_not_fit(pool, options: dict, error, text: str) -> None:
    with pytest.raises(error, match=f"{pool.__name__}: expected .*{text}"):
        pool(torch.zeros(1, 1, 2, 4, 5), **options)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (2, 2)])
def test_halving_equals_torch_where_values_are_equal_and_sizes_odd(size: tuple[int, int]) -> None:
    tied = torch.randint(0, 3, (2, 3, 2, *size), dtype=torch.float64).requires_grad_()
    expected = max_pool3d(tied, [1, 2, 2])
    assert torch.equal(scale_max_pool2d(tied, 2), expected)
    with torch.no_grad():
        assert torch.equal(scale_max_pool2d(tied, 2), expected)


def test_halving_tells_of_what_is_not_a_number() -> None:
    x = torch.zeros(1, 1, 1, 2, 4)
    x[..., 1, 1] = torch.nan
    assert scale_max_pool2d(x, 2).isnan().flatten().tolist() == [True, False]


WINDOWS = [(2, None, 0), (4, None, 2), (3, 2, 1), (3, 1, 0), (2, 3, 1), (1, 2, 0)]
SIZES = [(8, 12), (7, 9)]


def gradients(*results: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.rand(results[0].shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    return [torch.autograd.grad(result, x, weights)[0] for result in results]


@pytest.mark.parametrize("order", IMAGE_ORDERS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [3, 17])  # torch's own loop and ours
def test_images_are_pooled_as_by_torch_in_every_memory_order(order, window, size, channels: int) -> None:
    x = laid(tied(2, channels, *size), order).requires_grad_()
    kernel, stride, padding = window
    y = image_max_pool2d(x, kernel, stride=stride, padding=padding)
    expected = max_pool2d(x, *window)
    assert torch.equal(y, expected)
    assert torch.equal(image_max_pool2d(x.detach(), kernel, stride=stride, padding=padding), expected)
    actual, wanted = gradients(y, expected, x=x)
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-15)  # sums where windows overlap
    if channels == 17 or window == (2, None, 0):
        assert y.stride() == torch.empty_like(x[..., : y.shape[-2], : y.shape[-1]]).stride()


@pytest.mark.parametrize("order", MAP_ORDERS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("pool", "torch_pool"), [(scale_max_pool2d, max_pool2d), (scale_avg_pool2d, avg_pool2d)]
)
def test_scale_maps_are_pooled_as_by_torch_in_every_memory_order(
    pool, torch_pool, order, window, size
) -> None:
    x = laid(tied(2, 17, 3, *size), order).requires_grad_()
    kernel, stride, padding = window
    y = pool(x, kernel, stride=stride, padding=padding)
    expected = torch_pool(x.flatten(1, 2), *window).unflatten(1, (17, 3))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(*gradients(y, expected, x=x), rtol=0, atol=1e-15)
    if order != MAP_ORDERS[-1]:
        assert y.stride() == torch.empty_like(x[..., : y.shape[-2], : y.shape[-1]]).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", IMAGE_ORDERS)
def test_halving_is_the_same_in_several_blocks(order, dtype: torch.dtype) -> None:
    x = laid(tied(4, 40, 48, 52, dtype=dtype), order).requires_grad_()  # 99,840 windows
    y, expected = image_max_pool2d(x, 2), max_pool2d(x, 2)
    assert torch.equal(y, expected)
    assert torch.equal(*gradients(y, expected, x=x))


@pytest.mark.parametrize("window", [(2, None, 0), (3, 2, 1)])
@pytest.mark.parametrize("order", MAP_ORDERS)
@pytest.mark.parametrize("pool", [scale_max_pool2d, scale_avg_pool2d])
def test_second_derivatives(pool, order, window, generator: torch.Generator) -> None:
    x = laid(torch.randn(1, 16, 1, 4, 5, dtype=torch.float64, generator=generator), order).requires_grad_()
    kernel, stride, padding = window

    def cubed(x: torch.Tensor) -> torch.Tensor:
        return pool(x**3, kernel, stride=stride, padding=padding)

    assert torch.autograd.gradcheck(cubed, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(cubed, (x,), fast_mode=True)


def test_the_input_is_not_kept() -> None:
    for channels, window in ((17, 3), (17, 2), (3, 2)):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            x = torch.randn(2, channels, 12, 12, requires_grad=True)
            y = image_max_pool2d(x, window)
        assert kept == [y.numel()]


def test_images_and_only_they_are_pooled_as_images() -> None:
    with pytest.raises(ShapeError, match=r"image_max_pool2d: expected an image .*, got \(2, 3, 4, 8, 8\)"):
        image_max_pool2d(torch.zeros(2, 3, 4, 8, 8), 2)
    with pytest.raises(ShapeError, match=r"image_max_pool2d: .* window's 7 pixels, got \(4, 5\)"):
        image_max_pool2d(torch.zeros(1, 1, 4, 5), 7)
