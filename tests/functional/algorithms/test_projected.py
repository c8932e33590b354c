"""The basis before the weights: how functions are taken apart, what is held in memory, what it costs."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from equiscale.basis import (
    BSplineBasis,
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    HermiteBasis,
)
from equiscale.functional import ConvGeometry, lift_conv2d, scale_conv2d, support_windows
from equiscale.functional.algorithms import Convolution, FilterCache, algorithm
from equiscale.functional.algorithms import projected as module
from equiscale.functional.algorithms.planner import compute
from equiscale.functional.algorithms.projected import projected_operations
from equiscale.nn import ScaleConv2d
from equiscale.scales import ScaleGrid

GRID = ScaleGrid([1.0, 1.5])
TOLERANCE = module._ROUNDING * torch.finfo(torch.float64).eps


def factors(functions: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = module._factorise(functions, TOLERANCE)
    restored = torch.einsum("pw,fph->fhw", rows, columns)
    torch.testing.assert_close(restored, functions, rtol=0, atol=1e-12)
    return rows, columns


def used(columns: Tensor) -> list[int]:
    """Of each function the number of rows in its sum."""
    return (columns != 0).any(-1).sum(1).tolist()


# --- taking apart ---


@pytest.mark.parametrize(
    ("basis", "profiles"),
    [
        (HermiteBasis(3), 3),
        (HermiteBasis(3, kind="B", max_order=2), None),
        (BSplineBasis(3), 3),
        (GaussianDerivativeBasis(3), 3),
    ],
    ids=["hermite a", "hermite b", "b-spline", "gaussian derivatives"],
)
def test_these_families_are_products_of_columns_and_rows(basis, profiles: int | None) -> None:
    for scale in range(2):
        rows, columns = factors(basis.sample(15, GRID)[:, scale])
        assert used(columns) == [1] * basis.num_functions
        assert len(rows) == profiles if profiles else len(rows) < basis.num_functions


@pytest.mark.parametrize(
    "basis", [DiscoBasis(3), FourierBesselBasis(3, degenerate="allow")], ids=["disco", "fourier–bessel"]
)
def test_the_others_are_sums_of_products(basis) -> None:
    functions = basis.sample(15, GRID)[:, 1]
    window = support_windows(functions[:, None])[0]
    rows, columns = factors(functions)
    assert len(rows) <= window
    assert max(used(columns)) > 1
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))


def test_rows_that_differ_by_sign_and_length_are_one() -> None:
    column, row = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    functions = torch.outer(column, row) * torch.tensor([1.0, -3.0, 1e-3]).double()[:, None, None]
    assert len(factors(functions)[0]) == 1
    nearly = functions.clone()
    nearly[2] = torch.outer(column, row + 1e-9 * torch.arange(5))
    assert len(factors(nearly)[0]) == 2


def test_nearly_a_product_is_none() -> None:
    """What double precision would show is not rounded away, and in single precision is."""
    column, row, other = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    function = (torch.outer(column, row) + 1e-9 * torch.outer(row, other))[None]
    assert used(factors(function)[1]) == [2]
    assert used(module._factorise(function, 1e-6)[1]) == [1]


def test_functions_that_vanish_have_no_products() -> None:
    functions = torch.zeros(3, 5, 5, dtype=torch.float64)
    functions[1] = 1
    assert used(factors(functions)[1]) == [0, 1, 0]
    assert used(factors(functions * 0)[1]) == [0, 0, 0]


# --- strips ---


@pytest.mark.parametrize("strip", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("padding", [0, 4, "same"])
def test_any_strips_give_the_same(
    strip: int, stride: int, mode: str, padding: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STRIP", strip)
    geometry = ConvGeometry(stride=stride, padding=padding, padding_mode=mode, groups=2)
    random = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, dtype=torch.float64, generator=random, requires_grad=True)
        for shape in ((2, 4, 11, 9), (6, 2, 3))
    )
    basis = torch.randn(3, 2, 7, 7, dtype=torch.float64, generator=random)
    results = []
    for name in ("dense", "projected"):
        with algorithm(name):  # type: ignore[arg-type]
            y = lift_conv2d(x, weight, basis, geometry=geometry)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, weight))))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_strips_cover_all_results_once_and_end_in_the_image() -> None:
    for size, window, margin, stride, count in ((40, 7, 3, 1, 40), (50, 5, 0, 2, 23), (3, 1, 4, 1, 11)):
        axis = module._axis(size, window, margin, stride, count)
        covered = [i for strip in axis.strips for i in range(strip.results.start, strip.results.stop)]
        assert covered == list(range(count))
        assert axis.count == count
        assert all(0 <= strip.pixels.start < strip.pixels.stop <= size for strip in axis.strips)
        assert max(strip.shape[0] for strip in axis.strips) <= module._STRIP


# --- cost ---


def layer(**options) -> ScaleConv2d:
    built = ScaleConv2d(6, 8, kernel_size=7, grid=GRID, basis=HermiteBasis(3), bias=False, **options)
    return built.requires_grad_(False)


def convolution(conv: ScaleConv2d, x: Tensor) -> Convolution:
    weight = conv.weight
    return Convolution(x, weight, conv.basis, None, conv.geometry, conv.windows, FilterCache())


class Products(TorchDispatchMode):
    """The operations of all products of matrices, and their number by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.operations += 2 * math.prod(out.shape) * args[0].shape[-1]
        elif name in ("addmm_", "baddbmm_", "addmm", "baddbmm"):
            self.operations += 2 * math.prod(out.shape) * args[1].shape[-1]
        return out


@pytest.mark.parametrize("size", [(9, 8), (40, 21)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": "same", "scale_size": 2},
        {"groups": 2},
        {"padding": 2, "padding_mode": "circular"},
    ],
)
def test_operations_are_those_that_are_done(size: tuple[int, int], options: dict) -> None:
    operands = convolution(layer(**options), torch.randn(2, 6, 2, *size))
    estimated = projected_operations(operands)
    with algorithm("projected"), Products() as products:
        compute(operands)
    assert products.operations == estimated


def test_operations_count_slots_and_functions_that_are_no_products() -> None:
    x = torch.randn(2, 6, 2, 9, 8)
    one, two = (convolution(layer(scale_size=n, scale_padding="replicate"), x) for n in (1, 2))
    assert projected_operations(two) == 2 * projected_operations(one)
    open_end = convolution(layer(scale_size=2), x)
    assert projected_operations(one) < projected_operations(open_end) < projected_operations(two)
    full = replace(one, basis=torch.randn_like(one.basis), windows=(7, 7))
    assert projected_operations(full) > projected_operations(replace(one, windows=(7, 7)))


def test_fewer_pixels_than_functions_are_the_functions() -> None:
    """A window of one pixel costs one function, not nine."""
    operands = convolution(layer(), torch.randn(2, 6, 2, 9, 8))
    basis = torch.zeros_like(operands.basis)
    basis[..., 3, 3] = 1
    with algorithm("projected"), Products() as products:
        compute(replace(operands, basis=basis, windows=(1, 1)))
    mixed = 2 * 2 * 2 * 3 * 2 * 6 * 8
    assert mixed < products.operations < 9 * mixed


# --- memory ---


def test_no_feature_is_kept_for_the_gradient() -> None:
    """Of F = 9 functions on two scales: the input and the weights alone."""
    conv = layer(padding="same").requires_grad_()
    x = torch.randn(2, 6, 2, 40, 21, requires_grad=True)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with algorithm("projected"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = conv(x)
    assert sum(saved.values()) <= 4 * (2 * x.numel() + 4 * conv.weight.numel())
    y.sum().backward()


def test_a_channels_innermost_image_is_not_copied() -> None:
    """Scale maps of the fast algorithms lie as this one needs them."""
    inner = torch.randn(2, 10, 12, 3, 6)  # (S, W, H, B, C)
    x = inner.permute(3, 4, 0, 2, 1)
    operands = convolution(layer(), x)
    image = module._in_order(operands, 1)
    assert image.data_ptr() == inner[1].data_ptr()
    ordinary = replace(operands, x=x.contiguous())
    assert module._in_order(ordinary, 1).data_ptr() != ordinary.x[:, :, 1].data_ptr()


# --- what is kept ---


def test_functions_are_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, count = layer(), []
    original = module._factorise
    monkeypatch.setattr(module, "_factorise", lambda *args: count.append(args) or original(*args))
    with algorithm("projected"):
        for size in (9, 12):
            conv(torch.randn(1, 6, 2, size, size))
        assert len(count) == 2
        conv.double()(torch.randn(1, 6, 2, 9, 9, dtype=torch.float64))
        assert len(count) == 4


def test_a_basis_rounded_to_float32_is_right_in_double_precision() -> None:
    """`.double()` of a layer: products but for rounding, and rounding counts in double precision."""
    conv = layer().double()
    x = torch.randn(1, 6, 2, 9, 9, dtype=torch.float64)
    with algorithm("dense"):
        expected = conv(x)
    with algorithm("projected"):
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


def test_a_learned_basis_goes_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(module, "_factorise", lambda *args: called.append(args))
    operands = convolution(layer(), torch.randn(1, 6, 2, 9, 9))
    basis = operands.basis.clone().requires_grad_()
    with algorithm("projected"):
        scale_conv2d(operands.x, operands.weight, basis).sum().backward()
    assert not called
    assert basis.grad is not None
