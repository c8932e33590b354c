"""The convolutions against loops, their derivatives, their symmetries and their refusals."""

import subprocess
import sys
from dataclasses import dataclass, fields, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equiscale.errors import EquiscaleError, SettingError, ShapeError
from equiscale.functional import (
    ConvGeometry,
    GeometryOptions,
    lift_conv2d,
    pointwise_scale_conv2d,
    scale_conv2d,
    support_windows,
)
from tests.functional.reference import slow_lift, slow_pointwise, slow_scale_conv

COVERS = {"lift_conv2d", "scale_conv2d", "pointwise_scale_conv2d", "ConvGeometry", "GeometryOptions"}

examples = settings(deadline=None, derandomize=True, max_examples=40)
MODES = ["zeros", "circular", "reflect", "replicate"]


@dataclass(frozen=True)
class Case:
    batch: int
    size: tuple[int, int]
    channels: tuple[int, int]  # in and out, of one group
    groups: int
    num_scales: int
    scale_size: int
    functions: int
    kernel: int
    stride: int
    padding: int | str
    mode: str
    scale_padding: str
    bias: bool
    seed: int

    @property
    def geometry(self) -> ConvGeometry:
        return ConvGeometry(
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.mode,
            scale_padding=self.scale_padding,
            groups=self.groups,
        )

    def operands(self, *, scale_map: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        random = partial(torch.randn, dtype=torch.float64, generator=generator)
        (fan_in, fan_out), scales = self.channels, [self.num_scales] * scale_map
        slots = [self.scale_size] * scale_map
        x = random(self.batch, fan_in * self.groups, *scales, *self.size)
        weight = random(fan_out * self.groups, fan_in, *slots, self.functions)
        basis = random(self.functions, self.num_scales, self.kernel, self.kernel)
        return x, weight, basis, random(fan_out * self.groups) if self.bias else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_scales = draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([1, 3, 5]))
    return Case(
        batch=draw(st.integers(1, 2)),
        size=draw(st.tuples(st.integers(5, 7), st.integers(5, 8))),
        channels=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=draw(st.integers(1, 2)),
        num_scales=num_scales,
        scale_size=draw(st.integers(1, num_scales)),
        functions=draw(st.integers(1, 3)),
        kernel=kernel,
        stride=draw(st.integers(1, 3)),
        padding=draw(st.sampled_from([0, 1, 2, "same"])),
        mode=draw(st.sampled_from(MODES)),
        scale_padding=draw(st.sampled_from(["zeros", "replicate"])),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def arrays(*tensors: Tensor | None) -> list:
    return [None if tensor is None else tensor.numpy() for tensor in tensors]


def assert_equal(actual: Tensor, expected) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-10, atol=1e-10)


@examples
@given(cases())
def test_lift_equals_the_loops(case: Case) -> None:
    operands = case.operands(scale_map=False)
    expected = slow_lift(
        *arrays(*operands),
        stride=case.stride,
        padding=case.geometry.margin(case.kernel),
        mode=case.mode,
        groups=case.groups,
    )
    assert_equal(lift_conv2d(*operands, geometry=case.geometry), expected)


@examples
@given(cases())
def test_scale_conv_equals_the_loops(case: Case) -> None:
    operands = case.operands(scale_map=True)
    expected = slow_scale_conv(
        *arrays(*operands),
        stride=case.stride,
        padding=case.geometry.margin(case.kernel),
        mode=case.mode,
        scale_padding=case.scale_padding,
        groups=case.groups,
    )
    assert_equal(scale_conv2d(*operands, geometry=case.geometry), expected)


@examples
@given(cases())
def test_pointwise_equals_the_loops(case: Case) -> None:
    x, weight, _, bias = case.operands(scale_map=True)
    weight = weight[:, :, 0, :1, None]
    expected = slow_pointwise(*arrays(x, weight, bias), stride=case.stride, groups=case.groups)
    actual = pointwise_scale_conv2d(x, weight, bias, stride=case.stride, groups=case.groups)
    assert_equal(actual, expected)


@examples
@given(cases(), st.lists(st.sampled_from([1, 3, 5]), min_size=3, max_size=3))
def test_smaller_windows_change_nothing_where_the_basis_is_zero(case: Case, sides: list[int]) -> None:
    windows = [min(side, case.kernel) for side in sides[: case.num_scales]]
    for function, scale_map in ((lift_conv2d, False), (scale_conv2d, True)):
        x, weight, basis, bias = case.operands(scale_map=scale_map)
        cropped_to(basis, windows)
        assert support_windows(basis) == tuple(windows)
        full = function(x, weight, basis, bias, geometry=case.geometry)
        cropped = function(x, weight, basis, bias, geometry=case.geometry, windows=windows)
        assert_equal(cropped, full)


def cropped_to(basis: Tensor, windows: list[int]) -> None:
    for scale, window in enumerate(windows):
        margin = (basis.shape[-1] - window) // 2
        inner = torch.zeros_like(basis[0, 0])
        inner[margin : margin + window, margin : margin + window] = 1
        basis[:, scale] *= inner


SMALL = Case(
    batch=1, size=(4, 5), channels=(2, 1), groups=2, num_scales=2, scale_size=2, functions=2, kernel=3,
    stride=1, padding=1, mode="zeros", scale_padding="zeros", bias=True, seed=0,
)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [SMALL, replace(SMALL, mode="circular", scale_padding="replicate", stride=2), replace(SMALL, bias=False)],
    ids=["zeros", "circular", "no bias"],
)
@pytest.mark.parametrize("name", ["lift", "scale", "pointwise"])
def test_first_and_second_derivatives(name: str, case: Case) -> None:
    # The fewest pixels with a border all around an inner one: the time grows with their square.
    x, weight, basis, bias = replace(case, size=(3, 4)).operands(scale_map=name != "lift")

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if name == "pointwise":
            return pointwise_scale_conv2d(x, weight, bias, stride=case.stride, groups=case.groups)
        convolve = lift_conv2d if name == "lift" else scale_conv2d
        return convolve(x, weight, basis, bias, geometry=case.geometry, windows=(1, 3))

    if name == "pointwise":
        weight = weight[:, :, 0, :1, None]
    if name != "pointwise":
        cropped_to(basis, [1, 3])
    inputs = (x.requires_grad_(), weight.requires_grad_(), bias if bias is None else bias.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradients_reach_the_basis() -> None:
    """A family with parameters of its own can be learned."""
    x, weight, basis, bias = SMALL.operands(scale_map=True)
    assert torch.autograd.gradcheck(
        lambda functions: scale_conv2d(x, weight, functions, bias, geometry=SMALL.geometry),
        basis.requires_grad_(),
    )


@pytest.mark.parametrize("shift", [(1, 0), (-2, 3)])
@pytest.mark.parametrize("name", ["lift", "scale"])
def test_circular_shifts_are_exact_with_circular_padding(name: str, shift: tuple[int, int]) -> None:
    case = replace(SMALL, kernel=5, size=(6, 7), mode="circular", padding="same")
    function = {"lift": lift_conv2d, "scale": scale_conv2d}[name]
    x, *rest = case.operands(scale_map=name == "scale")
    expected = function(x, *rest, geometry=case.geometry).roll(shift, (-2, -1))
    shifted = x.roll(shift, (-2, -1))
    torch.testing.assert_close(function(shifted, *rest, geometry=case.geometry), expected, rtol=0, atol=1e-13)
    zeros = replace(case.geometry, padding_mode="zeros")
    broken = function(shifted, *rest, geometry=zeros) - function(x, *rest, geometry=zeros).roll(
        shift, (-2, -1)
    )
    assert broken.abs().max() > 0.1


def test_pointwise_commutes_with_permutations_of_pixels_and_scales(generator: torch.Generator) -> None:
    x, weight, _, bias = SMALL.operands(scale_map=True)
    weight = weight[:, :, 0, :1, None]
    convolve = partial(pointwise_scale_conv2d, weight=weight, bias=bias, groups=2)
    rows, scales = torch.randperm(x.shape[3], generator=generator), torch.tensor([1, 0])
    expected = convolve(x)[:, :, scales][..., rows, :]
    torch.testing.assert_close(convolve(x[:, :, scales][..., rows, :]), expected, rtol=0, atol=0)


def test_pointwise_without_bias_commutes_with_linear_operations_on_pixels(generator: torch.Generator) -> None:
    x, weight, _, bias = SMALL.operands(scale_map=True)
    weight, matrix = weight[:, :, 0, :1, None], torch.randn(5, 5, dtype=torch.float64, generator=generator)
    convolve = partial(pointwise_scale_conv2d, weight=weight, groups=2)
    torch.testing.assert_close(convolve(x @ matrix), convolve(x) @ matrix, rtol=0, atol=1e-12)
    assert (convolve(x @ matrix, bias=bias) - convolve(x, bias=bias) @ matrix).abs().max() > 0.1


def test_a_filter_slot_sees_the_scale_that_many_above() -> None:
    """x holds 1, 10, 100 on its scales; slots weigh 1 and 2."""
    x = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1, 1)
    weight, basis = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1), torch.ones(1, 3, 1, 1)
    assert scale_conv2d(x, weight, basis).flatten().tolist() == [21.0, 210.0, 100.0]
    replicate = ConvGeometry(scale_padding="replicate")
    assert scale_conv2d(x, weight, basis, geometry=replicate).flatten().tolist() == [21.0, 210.0, 300.0]


def test_more_slots_than_scales_see_only_the_padding() -> None:
    x, basis = torch.tensor([1.0, 10.0]).view(1, 1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    weight = torch.ones(1, 1, 4, 1)
    assert scale_conv2d(x, weight, basis).flatten().tolist() == [11.0, 10.0]
    replicate = ConvGeometry(scale_padding="replicate")
    assert scale_conv2d(x, weight, basis, geometry=replicate).flatten().tolist() == [31.0, 40.0]


def test_functions_and_scales_of_the_basis_are_not_confused() -> None:
    """F = 3 functions on S = 2 scales, each a different number: the weights pick functions, never scales."""
    basis = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]).view(3, 2, 1, 1)
    for function in range(3):
        weight = torch.zeros(1, 1, 3)
        weight[..., function] = 1
        lifted = lift_conv2d(torch.ones(1, 1, 1, 1), weight, basis)
        assert lifted.flatten().tolist() == basis[function].flatten().tolist()


def test_rows_and_columns_are_not_confused() -> None:
    """A correlation: the filter's entry (0, 2) sees the pixel above and to the right."""
    x = torch.arange(12.0).view(1, 1, 3, 4)
    basis = torch.zeros(1, 1, 3, 3)
    basis[..., 0, 2] = 1
    assert lift_conv2d(x, torch.ones(1, 1, 1), basis).flatten().tolist() == [2.0, 3.0]


X, W, BASIS = (2, 4, 6, 7), (6, 4, 9), (9, 3, 5, 5)
MAP, V = (2, 4, 3, 6, 7), (6, 4, 2, 9)

LIFT_REFUSALS = [
    (X, W, (9, 3, 5, 3), None, {}, r"basis \(F, S, K, K\) with odd K, got \(9, 3, 5, 3\)"),
    (X, W, (9, 3, 4, 4), None, {}, r"basis \(F, S, K, K\) with odd K, got \(9, 3, 4, 4\)"),
    (X, W, (9, 5, 5), None, {}, r"basis \(F, S, K, K\) with odd K, got \(9, 5, 5\)"),
    (X, (6, 4, 8), BASIS, None, {}, r"weights \(C', C, F\) with F=9 as in the basis, got \(6, 4, 8\)"),
    (X, V, BASIS, None, {}, r"weights \(C', C, F\) with F=9 as in the basis, got \(6, 4, 2, 9\)"),
    (X, W, BASIS, (4,), {}, r"bias \(6,\), one number an output channel, got \(4,\)"),
    ((2, 3, 6, 7), W, BASIS, None, {}, r"input \(B, 4, H, W\), got \(2, 3, 6, 7\)"),
    (MAP, W, BASIS, None, {}, r"input \(B, 4, H, W\), got \(2, 4, 3, 6, 7\)"),
    ((2, 8, 6, 7), W, BASIS, None, {"groups": 4}, r"input \(B, 16, H, W\), got \(2, 8, 6, 7\)"),
    ((2, 16, 6, 7), W, BASIS, None, {"groups": 4}, r"output channels divisible by 4 groups, got 6"),
    ((2, 4, 4, 7), W, BASIS, None, {}, r"at least the kernel's 5 pixels, got \(4, 7\) with padding 0; use"),
    (
        (2, 4, 1, 7), W, BASIS, None, {"padding": "same", "padding_mode": "circular"},
        r"circular padding of at most 1 pixels for an input of \(1, 7\), got 2; use a smaller kernel",
    ),
    (
        (2, 4, 2, 7), W, BASIS, None, {"padding": "same", "padding_mode": "reflect"},
        r"reflect padding of at most 1 pixels for an input of \(2, 7\), got 2; use a smaller kernel",
    ),
]  # fmt: skip

SCALE_REFUSALS = [
    (MAP, W, BASIS, None, {}, r"weights \(C', C, N, F\) with F=9 as in the basis, got \(6, 4, 9\)"),
    (MAP, V, BASIS, (3,), {}, r"bias \(6,\), one number an output channel, got \(3,\)"),
    (X, V, BASIS, None, {}, r"input \(B, 4, 3, H, W\), got \(2, 4, 6, 7\)"),
    ((2, 4, 2, 6, 7), V, BASIS, None, {}, r"input \(B, 4, 3, H, W\), got \(2, 4, 2, 6, 7\)"),
    ((2, 5, 3, 6, 7), V, BASIS, None, {}, r"input \(B, 4, 3, H, W\), got \(2, 5, 3, 6, 7\)"),
    ((2, 4, 3, 6, 2), V, BASIS, None, {"padding": 1}, r"kernel's 5 pixels, got \(6, 2\) with padding 1"),
]


def shaped(*shapes: tuple[int, ...] | None) -> list[Tensor | None]:
    return [None if shape is None else torch.zeros(shape) for shape in shapes]


@pytest.mark.parametrize(("x", "weight", "basis", "bias", "geometry", "text"), LIFT_REFUSALS)
def test_lift_refuses(x, weight, basis, bias, geometry, text) -> None:
    with pytest.raises(ShapeError, match="lift_conv2d: expected .*" + text):
        lift_conv2d(*shaped(x, weight, basis, bias), geometry=ConvGeometry(**geometry))


@pytest.mark.parametrize(("x", "weight", "basis", "bias", "geometry", "text"), SCALE_REFUSALS)
def test_scale_conv_refuses(x, weight, basis, bias, geometry, text) -> None:
    with pytest.raises(ShapeError, match="scale_conv2d: expected .*" + text):
        scale_conv2d(*shaped(x, weight, basis, bias), geometry=ConvGeometry(**geometry))


@pytest.mark.parametrize("windows", [(5, 5), (), (5, 5, 7), (5, 4, 5), (5, 0, 5)])
def test_refuses_windows_that_do_not_fit(windows: tuple[int, ...]) -> None:
    text = r"expected 3 odd windows of at most 5 pixels, one for each scale, got \["
    with pytest.raises(ShapeError, match=r"lift_conv2d: " + text):
        lift_conv2d(*shaped(X, W, BASIS), windows=windows)
    with pytest.raises(ShapeError, match=r"scale_conv2d: " + text):
        scale_conv2d(*shaped(MAP, V, BASIS), windows=windows)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "text"),
    [
        (X, (6, 4, 1, 1), None, {}, ShapeError, r"scale map \(B, 4, S, H, W\), got \(2, 4, 6, 7\)"),
        (MAP, (6, 3, 1, 1), None, {}, ShapeError, r"scale map \(B, 3, S, H, W\), got \(2, 4, 3, 6, 7\)"),
        (MAP, (6, 4), None, {}, ShapeError, r"weights \(C', C / groups, 1, 1\) .* 1 groups, got \(6, 4\)"),
        (MAP, (6, 4, 3, 3), None, {}, ShapeError, r"weights .* got \(6, 4, 3, 3\)"),
        (MAP, (6, 1, 1, 1), None, {"groups": 4}, ShapeError, r"divisible by 4 groups, got \(6, 1, 1, 1\)"),
        (MAP, (6, 4, 1, 1), (4,), {}, ShapeError, r"bias \(6,\), one number an output channel, got \(4,\)"),
        (MAP, (6, 4, 1, 1), None, {"stride": 0}, SettingError, r"at least 1, got 0 and 1"),
    ],
)
def test_pointwise_refuses(x, weight, bias, options, error: type[EquiscaleError], text: str) -> None:
    with pytest.raises(error, match="pointwise_scale_conv2d: expected .*" + text):
        pointwise_scale_conv2d(*shaped(x, weight, bias), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stride": 0}, "stride of at least 1, one number for both axes, got 0"),
        ({"groups": 0}, "at least 1 group, got 0"),
        ({"padding": -1}, "padding of at least 0 or 'same', got -1"),
        ({"padding": "valid"}, "padding of at least 0 or 'same', got 'valid'"),
        (
            {"padding_mode": "zero"},
            "padding_mode to be one of zeros, circular, reflect, replicate, got 'zero'",
        ),
        ({"scale_padding": "circular"}, "scale_padding to be one of zeros, replicate, got 'circular'"),
    ],
)
def test_geometry_refuses(options: dict, text: str) -> None:
    with pytest.raises(SettingError, match="expected .*" + text):
        ConvGeometry(**options)


def test_options_are_the_fields_of_the_geometry() -> None:
    assert list(GeometryOptions.__annotations__) == [field.name for field in fields(ConvGeometry)]


def test_geometry_names_what_differs_from_the_default() -> None:
    assert str(ConvGeometry()) == ""
    assert str(ConvGeometry(stride=2, padding="same")) == "stride=2, padding=same"
    assert [ConvGeometry(padding="same").margin(size) for size in (1, 7)] == [0, 3]
    assert ConvGeometry(padding=2).margin(7) == 2


TRACE = """
import torch
from equiscale import ScaleGrid
from equiscale.nn import LiftConv2d

layer = LiftConv2d(2, 3, kernel_size=5, grid=ScaleGrid([1.0, 1.5])).eval()
x = torch.randn(100, 2, 8, 8)
with torch.no_grad():
    traced = torch.jit.trace(layer, x, check_trace=False)
    torch.testing.assert_close(traced(x[:8]), layer(x[:8]))
"""


def test_a_trace_holds_for_other_numbers_of_images() -> None:
    """In a process without the shape checks of the tests, which do not know the sizes of a trace."""
    subprocess.run([sys.executable, "-c", TRACE], check=True, capture_output=True)
