"""All algorithms compute the same convolution, with the same derivatives, and can be forced."""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equiscale.basis import DiscoBasis, HermiteBasis
from equiscale.errors import SettingError
from equiscale.functional import ConvGeometry, lift_conv2d, scale_conv2d
from equiscale.functional.algorithms import AlgorithmName, Convolution, algorithm
from equiscale.functional.algorithms.fourier import tiling
from equiscale.functional.algorithms.planner import ALGORITHMS
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.scales import ScaleGrid
from tests.functional.test_conv import SMALL, Case, cases, cropped_to

NAMES: tuple[AlgorithmName, ...] = get_args(AlgorithmName)
FAST = tuple(name for name in NAMES if name != "dense")
every_algorithm = pytest.mark.parametrize("name", NAMES)
every_function = pytest.mark.parametrize("function", [lift_conv2d, scale_conv2d], ids=["lift", "scale"])

Operands = tuple[Tensor, Tensor, Tensor, Tensor | None]
Function = Callable[..., Tensor]


# --- values and first derivatives ---


@dataclass(frozen=True)
class Problem:
    """A case, the windows of its functions, and what is wanted of it."""

    case: Case
    windows: tuple[int, ...]
    kind: str
    projection: str | None
    learned_basis: bool

    @property
    def geometry(self) -> ConvGeometry:
        return replace(self.case.geometry, projection=self.projection)

    def operands(self, function: Function, dtype: torch.dtype) -> Operands:
        x, weight, basis, bias = self.case.operands(scale_map=function is scale_conv2d)
        basis = shaped_as(self.kind, basis)
        cropped_to(basis, list(self.windows))
        x, weight, basis = (operand.to(dtype).requires_grad_() for operand in (x, weight, basis))
        basis.requires_grad_(self.learned_basis)
        return x, weight, basis, None if bias is None else bias.to(dtype).requires_grad_()


def shaped_as(kind: str, basis: Tensor) -> Tensor:
    """Functions of any form, products of a column and a row, or zero off every second pixel."""
    side = basis.shape[-1]
    if kind == "products":
        rows = basis[:, :, :1] if side < 5 else basis[:1, :, :1].expand(len(basis), -1, -1, -1)
        return basis[..., :1] * rows
    if kind == "dilated":
        offsets = torch.arange(side) - side // 2
        on_grid = offsets % 2 == 0
        return basis * (on_grid[:, None] & on_grid)
    if kind == "vanishing":
        return basis * (torch.arange(basis.shape[1])[:, None, None] % 2)
    return basis


@st.composite
def problems(draw: st.DrawFn, kernels: Sequence[int] = (1, 3, 5)) -> Problem:
    case = draw(cases())
    case = replace(case, kernel=draw(st.sampled_from(kernels)))
    sides = st.sampled_from([side for side in (1, 3, 5, 7) if side <= case.kernel])
    windows = draw(st.lists(sides, min_size=case.num_scales, max_size=case.num_scales))
    return Problem(
        case,
        tuple(windows),
        draw(st.sampled_from(["any", "products", "dilated", "vanishing"])),
        draw(st.sampled_from([None, "max"])),
        draw(st.booleans()),
    )


def computed(name: AlgorithmName, function: Function, problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of all operands."""
    operands = problem.operands(function, dtype)
    with algorithm(name):
        y = function(*operands, geometry=problem.geometry, windows=problem.windows)
    wanted = [operand for operand in operands if operand is not None and operand.requires_grad]
    direction = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
    grads = list(torch.autograd.grad(y, wanted, direction))
    if problem.learned_basis:
        cropped_to(grads[2], list(problem.windows))  # beyond its window a function is not asked for
    return [y.detach(), *grads]


def assert_agree(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        one, other = one.detach(), other.detach()
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1e-3, float(other.abs().max())))


def check(problem: Problem, dtype: torch.dtype, tolerance: float) -> None:
    for function in (lift_conv2d, scale_conv2d):
        expected = computed("dense", function, problem, dtype)
        for name in FAST:
            assert_agree(computed(name, function, problem, dtype), expected, tolerance)


bounded = partial(settings, deadline=None, derandomize=True)


@bounded(max_examples=60)
@given(problems())
def test_values_and_gradients_agree_in_double_precision(problem: Problem) -> None:
    check(problem, torch.float64, 1e-10)


@bounded(max_examples=20)
@given(problems())
def test_values_and_gradients_agree_in_single_precision(problem: Problem) -> None:
    check(replace(problem, projection=None), torch.float32, 1e-5)


@bounded(max_examples=15)
@given(problems(kernels=[7, 9]), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_kernels_larger_than_the_image_agree(problem: Problem, size: tuple[int, int]) -> None:
    case = replace(problem.case, size=size, padding="same", mode="zeros")
    check(replace(problem, case=case), torch.float64, 1e-10)


@bounded(max_examples=10)
@given(problems(kernels=[3, 7]), st.tuples(st.integers(30, 60), st.integers(30, 50)))
def test_large_images_agree(problem: Problem, size: tuple[int, int]) -> None:
    case = replace(problem.case, size=size, channels=(2, 2), batch=1)
    check(replace(problem, case=case), torch.float64, 1e-10)


LARGE = Case(
    batch=1, size=(60, 50), channels=(8, 4), groups=1, num_scales=2, scale_size=2, functions=2, kernel=7,
    stride=1, padding="same", mode="zeros", scale_padding="zeros", bias=True, seed=0,
)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        LARGE,
        replace(LARGE, mode="circular", scale_padding="replicate"),
        replace(LARGE, stride=2, groups=2, channels=(4, 4)),
        replace(LARGE, padding=1, size=(53, 60)),
    ],
    ids=["same", "circular", "stride", "padding"],
)
def test_images_in_many_tiles_agree(case: Case) -> None:
    problem = Problem(case, (5, 7), "any", None, learned_basis=False)
    x, weight, basis, bias = problem.operands(scale_conv2d, torch.float64)
    cuts, _ = tiling(Convolution(x, weight, basis, bias, case.geometry, (5, 7)), 7)
    assert min(cut.tiles for cut in cuts) > 1
    check(problem, torch.float64, 1e-10)


def test_a_wrong_algorithm_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(SMALL, (1, 3), "any", None, learned_basis=False)
    cropped = ALGORITHMS["cropped"]

    def shifted(convolution: Convolution):
        return (y + 1e-9 * y.abs().max() for y in cropped(convolution))

    check(problem, torch.float64, 1e-10)
    monkeypatch.setitem(ALGORITHMS, "cropped", shifted)
    with pytest.raises(AssertionError, match="not close"):
        check(problem, torch.float64, 1e-10)


# --- second derivatives ---

TINY = replace(SMALL, size=(3, 4), channels=(1, 1))


@every_algorithm
@every_function
@pytest.mark.parametrize("projection", [None, "max"])
@pytest.mark.parametrize("learned_basis", [False, True], ids=["fixed", "learned"])
def test_second_derivatives(
    name: AlgorithmName, function: Function, projection: str | None, learned_basis: bool
) -> None:
    problem = Problem(replace(TINY, stride=2), (1, 3), "any", projection, learned_basis)
    operands = problem.operands(function, torch.float64)

    def of_those_with_gradient(*inputs: Tensor) -> Tensor:
        given = iter(inputs)
        every = [next(given) if operand.requires_grad else operand for operand in operands]
        with algorithm(name):
            return function(*every, geometry=problem.geometry, windows=problem.windows)

    inputs = tuple(operand for operand in operands if operand.requires_grad)
    assert torch.autograd.gradcheck(of_those_with_gradient, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(of_those_with_gradient, inputs, fast_mode=True)


@every_algorithm
@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(name: AlgorithmName, wanted: int) -> None:
    """The others are not computed, and not needed."""
    operands = SMALL.operands(scale_map=True)
    alone = [operand.requires_grad_(place == wanted) for place, operand in enumerate(operands)]
    both = [operand.detach().requires_grad_() for operand in operands]
    with algorithm(name):
        (actual,) = torch.autograd.grad(scale_conv2d(*alone, geometry=SMALL.geometry).sum(), alone[wanted])
        expected = torch.autograd.grad(scale_conv2d(*both, geometry=SMALL.geometry).sum(), both)[wanted]
    assert_agree([actual], [expected], 1e-12)


# --- types ---


@every_algorithm
@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_type(name: AlgorithmName, function: Function, dtype: torch.dtype) -> None:
    operands = Problem(SMALL, (3, 3), "products", None, False).operands(function, torch.float32)
    geometry = SMALL.geometry
    with algorithm(name):
        exact = function(*operands, geometry=geometry)
        with torch.autocast("cpu", dtype):
            y = function(*operands, geometry=geometry)
            doubles = [operand.detach().double() for operand in operands]
            assert function(*doubles, geometry=geometry).dtype == torch.float64
    assert y.dtype == dtype
    assert relative_error(y, exact) < 8 * torch.finfo(dtype).eps
    grads = torch.autograd.grad(y.float().sum(), [operand for operand in operands if operand.requires_grad])
    expected = torch.autograd.grad(exact.sum(), [operand for operand in operands if operand.requires_grad])
    for grad, reference in zip(grads, expected, strict=True):
        assert grad.dtype == torch.float32
        assert relative_error(grad, reference) < 8 * torch.finfo(dtype).eps


@every_algorithm
@every_function
@pytest.mark.parametrize("projection", [None, "max"])
def test_bfloat16_stays_so(name: AlgorithmName, function: Function, projection: str | None) -> None:
    problem = Problem(SMALL, (3, 3), "products", projection, False)
    half = [operand.detach().bfloat16() for operand in problem.operands(function, torch.float32)]
    with algorithm(name):
        y = function(*half, geometry=problem.geometry)
        exact = function(*(operand.float() for operand in half), geometry=problem.geometry)
    assert y.dtype == torch.bfloat16
    assert 0 < relative_error(y, exact) < 8 * torch.finfo(torch.bfloat16).eps


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().float() - expected.detach()).abs().max() / expected.detach().abs().max())


# --- modes of torch ---


@every_algorithm
@every_function
def test_without_gradients_and_in_inference_mode_the_same_bits(
    name: AlgorithmName, function: Function
) -> None:
    operands = SMALL.operands(scale_map=function is scale_conv2d)
    tracked = [operand.clone().requires_grad_() for operand in operands[:2]] + list(operands[2:])
    with algorithm(name):
        y = function(*tracked, geometry=SMALL.geometry)
        with torch.no_grad():
            quiet = function(*tracked, geometry=SMALL.geometry)
        with torch.inference_mode():
            inferred = function(*tracked, geometry=SMALL.geometry)
    assert [y.requires_grad, quiet.requires_grad, inferred.is_inference()] == [True, False, True]
    assert torch.equal(quiet, y)
    assert torch.equal(inferred, y)


@every_algorithm
@pytest.mark.parametrize("projection", [None, "max"])
def test_many_images_are_the_same_as_few(name: AlgorithmName, projection: str | None) -> None:
    """However many are taken at a time."""
    problem = Problem(replace(TINY, batch=131), (3, 3), "any", projection, False)
    x, *others = problem.operands(scale_conv2d, torch.float64)
    with torch.no_grad(), algorithm(name):
        y = scale_conv2d(x, *others, geometry=problem.geometry)
        few = [scale_conv2d(part, *others, geometry=problem.geometry) for part in x.split(50)]
    assert_agree([y], [torch.cat(few)], 1e-12)


# In a process of its own: a compiler cannot follow the run-time shape checks of this suite.
COMPILED = """
import torch
from equiscale import ScaleGrid, algorithm
from equiscale.functional.algorithms.planner import ALGORITHMS
from equiscale.nn import ScaleConv2d

torch.set_num_threads(1)
grid = ScaleGrid.geometric(0.9, 1.41, 2)
net = ScaleConv2d(2, 2, kernel_size=5, grid=grid, scale_size=2, projection="max")
x = torch.randn(2, 2, 2, 9, 10, requires_grad=True)
inputs = (x, *net.parameters())

for name in ALGORITHMS:
    with algorithm(name):
        torch._dynamo.reset()
        y, expected = torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x)
        torch.testing.assert_close(y, expected)
        grads = (torch.autograd.grad(z.square().sum(), inputs) for z in (y, expected))
        for grad, reference in zip(*grads, strict=True):
            torch.testing.assert_close(grad, reference, atol=1e-4, rtol=1e-4)
"""


def test_every_algorithm_compiles_to_one_graph_with_its_gradients() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


TRANSFORMS = {
    "vmap over images": lambda f, x, w: (torch.vmap(f, (0, None))(x, w[0]), [f(one, w[0]) for one in x]),
    "vmap over weights": lambda f, x, w: (torch.vmap(f, (None, 0))(x[0], w), [f(x[0], one) for one in w]),
    "grad": lambda f, x, w: (
        torch.vmap(torch.func.grad(lambda w, x: f(x, w).square().sum()), (None, 0))(w[0], x),
        [gradient(lambda w, one=one: f(one, w).square().sum(), w[0]) for one in x],
    ),
    "jvp": lambda f, x, w: (
        [torch.func.jvp(partial(f, x[0]), (w[0],), (w[1],))[1]],
        [f(x[0], w[1]) - f(x[0], torch.zeros_like(w[1]))],
    ),
}


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


# Of torch's own forward-mode derivatives.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@every_algorithm
@every_function
@pytest.mark.parametrize(
    ("transform", "projection"),
    [*((name, None) for name in TRANSFORMS), ("vmap over images", "max"), ("grad", "max")],
)
def test_can_be_transformed(
    name: AlgorithmName, function: Function, transform: str, projection: str | None
) -> None:
    operands = [replace(SMALL, seed=seed).operands(scale_map=function is scale_conv2d) for seed in (1, 2)]
    _, _, basis, bias = operands[0]
    xs, weights = (torch.stack([each[place] for each in operands]) for place in (0, 1))
    geometry = replace(SMALL.geometry, projection=projection)
    with algorithm(name):
        actual, expected = TRANSFORMS[transform](
            lambda x, w: function(x, w, basis, bias, geometry=geometry), xs, weights
        )
    assert_agree(list(actual), list(expected), 1e-10)


# --- memory ---

ORDERED = {"fourier", "unfolded", "projected"}


@every_algorithm
@every_function
@pytest.mark.parametrize("projection", [None, "max"])
def test_order_of_the_results_in_memory(
    name: AlgorithmName, function: Function, projection: str | None
) -> None:
    """Channels innermost behind (S, W, H, B), or ordinary images, scale by scale."""
    problem = Problem(replace(SMALL, batch=2), (3, 3), "any", projection, False)
    operands = [operand.detach() for operand in problem.operands(function, torch.float64)]
    with algorithm(name):
        y = function(*operands, geometry=problem.geometry)
    axes = "BCHW" if projection else "BCSHW"
    order = "SWHBC" if name in ORDERED else "SBCHW"
    in_memory = y.permute([axes.index(axis) for axis in order if axis in axes])
    assert in_memory.is_contiguous()
    assert not in_memory.transpose(0, 1).is_contiguous()


# --- forcing ---


def test_an_unknown_algorithm_is_refused() -> None:
    text = "expected an algorithm of dense, cropped, unfolded, fourier, projected, dilated, got 'winograd'"
    with pytest.raises(SettingError, match=text), algorithm("winograd"):  # type: ignore[arg-type]
        raise AssertionError("not reached")


def test_every_name_has_its_algorithm() -> None:
    assert tuple(ALGORITHMS) == NAMES


def layer_and_image() -> tuple[LiftConv2d, Tensor]:
    layer = LiftConv2d(1, 1, kernel_size=7, grid=ScaleGrid([0.9, 1.4]), basis=HermiteBasis(3))
    return layer, torch.randn(1, 1, 7, 7)


def used(layer: LiftConv2d, x: Tensor) -> str | None:
    layer(x)
    return layer.filter_cache.algorithm


def test_contexts_nest_and_end() -> None:
    layer, x = layer_and_image()
    chosen = used(layer, x)
    with algorithm("dense"):
        assert used(layer, x) == "dense"
        with algorithm("unfolded"):
            assert used(layer, x) == "unfolded"
        assert used(layer, x) == "dense"
    assert used(layer, x) == chosen != "dense"


def test_a_context_ends_with_an_exception() -> None:
    layer, x = layer_and_image()
    chosen = used(layer, x)
    with pytest.raises(RuntimeError, match="inside"), algorithm("dense"):
        raise RuntimeError("inside")
    assert used(layer, x) == chosen != "dense"


def test_threads_do_not_see_one_anothers_context() -> None:
    seen: dict[str, str | None] = {}
    both_inside = threading.Barrier(2, timeout=10)

    def inside(name: AlgorithmName) -> None:
        layer, x = layer_and_image()
        with algorithm(name):
            both_inside.wait()
            seen[name] = used(layer, x)
            both_inside.wait()

    threads = [threading.Thread(target=inside, args=(name,)) for name in ("dense", "dilated")]
    for thread in threads:
        thread.start()
    layer, x = layer_and_image()
    outside = used(layer, x)
    for thread in threads:
        thread.join()
    assert seen == {"dense": "dense", "dilated": "dilated"}
    assert outside not in seen


@every_algorithm
@pytest.mark.parametrize("basis", [HermiteBasis(3), DiscoBasis(3)], ids=["hermite", "disco"])
def test_layers_agree_in_training_and_in_evaluation(name: AlgorithmName, basis, float64: None) -> None:
    """With kept filters and factors, twice."""
    layer = ScaleConv2d(2, 3, kernel_size=7, grid=ScaleGrid([1.0, 1.4, 2.0]), basis=basis, scale_size=2)
    x = torch.randn(2, 2, 3, 9, 8)
    with algorithm("dense"):
        expected = layer(x)
    with algorithm(name):
        assert_agree([layer(x)], [expected], 1e-10)
        with torch.no_grad():
            for _ in range(2):
                assert_agree([layer(x)], [expected], 1e-10)
    assert f"algorithm={name}" in repr(layer)
