"""Which algorithm is taken: a forced one before a measured one before the model's."""

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch

from equiscale.functional import ConvGeometry
from equiscale.functional.algorithms import Convolution, FilterCache, algorithm, choices, planner, unmeasured
from equiscale.functional.algorithms.choices import Choice, ChoiceTable, place_of, problem_of
from equiscale.functional.algorithms.planner import ALGORITHMS, compute, estimate, observed, plan
from equiscale.functional.conv import convolve
from equiscale.nn import LiftConv2d
from equiscale.scales import ScaleGrid


def convolution(channels: int = 8, kernel: int = 5, size: int = 12, batch: int = 2) -> Convolution:
    generator = torch.Generator().manual_seed(0)
    return Convolution(
        torch.randn(batch, channels, 2, size, size, generator=generator),
        torch.randn(4, channels, 1, 3, generator=generator),
        torch.randn(3, 2, kernel, kernel, generator=generator),
        None,
        ConvGeometry(padding="same"),
        (kernel, kernel),
        FilterCache(),
    )


def used(operands: Convolution) -> str | None:
    compute(operands)
    assert operands.cache is not None
    return operands.cache.algorithm


def other_than(*names: str) -> str:
    return next(name for name in ALGORITHMS if name not in names)


def measured_as(name: str, operands: Convolution) -> ChoiceTable:
    key = place_of(operands.x.device), problem_of(operands)
    return ChoiceTable({key: Choice(name, {name: 1.0})})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> tuple[Convolution, str]:
    """A convolution for which an algorithm was measured that the model would not take."""
    operands = convolution()
    name = other_than(estimate(operands))
    monkeypatch.setattr(choices, "TABLE", measured_as(name, operands))
    return operands, name


@pytest.mark.usefixtures("choices_path")
def test_without_measurements_the_model_decides() -> None:
    for operands in (convolution(), convolution(channels=64, kernel=15, size=28), convolution(channels=1)):
        assert used(operands) == plan(operands) == estimate(operands)


def test_the_model_prefers_transforms_for_large_kernels_and_never_for_pixels() -> None:
    assert estimate(convolution(channels=64, kernel=15, size=28, batch=64)) == "fourier"
    assert estimate(convolution(channels=64, kernel=1, size=28, batch=64)) != "fourier"


@pytest.mark.usefixtures("choices_path")
def test_a_layer_estimates_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Convolution] = []

    def counted(operands: Convolution) -> str:
        calls.append(operands)
        return "cropped" if operands.x.shape[0] == 2 else "dense"

    monkeypatch.setattr(planner, "estimate", counted)
    monkeypatch.setattr(planner, "_MANY_SHAPES", 2)
    operands = convolution()
    larger = replace(operands, x=operands.x.repeat(2, 1, 1, 1, 1))
    assert [used(operands), used(operands), used(larger), used(operands)] == [
        "cropped",
        "cropped",
        "dense",
        "cropped",
    ]
    assert len(calls) == 2
    assert copy.deepcopy(operands.cache).estimates == {}  # type: ignore[union-attr]
    used(replace(larger, x=operands.x[:1]))  # one shape too many: all are forgotten
    used(operands)
    assert len(calls) == 4
    plan(replace(operands, cache=None))
    assert len(calls) == 5, "without a layer nothing is kept"


def test_what_was_measured_goes_before_the_model(measured: tuple[Convolution, str]) -> None:
    operands, name = measured
    assert used(operands) == name != estimate(operands)


def test_what_is_forced_goes_before_what_was_measured(measured: tuple[Convolution, str]) -> None:
    operands, name = measured
    forced = other_than(name, estimate(operands))
    with algorithm(forced):  # type: ignore[arg-type]
        assert used(operands) == forced
        with unmeasured():
            assert used(operands) == forced
    assert used(operands) == name


def test_without_what_was_measured_the_model_decides(measured: tuple[Convolution, str]) -> None:
    operands, name = measured
    with unmeasured():
        assert used(operands) == estimate(operands)
        with unmeasured():
            pass
        assert used(operands) == estimate(operands)
    with pytest.raises(KeyError), unmeasured():
        raise KeyError
    assert used(operands) == name


def test_other_threads_do_not_see_that_it_is_left_out(measured: tuple[Convolution, str]) -> None:
    operands, name = measured
    seen = []
    with unmeasured():
        thread = threading.Thread(target=lambda: seen.append(used(operands)))
        thread.start()
        thread.join()
    assert seen == [name]


@pytest.mark.parametrize(
    "change",
    [
        lambda operands: convolution(batch=3),
        lambda operands: convolution(size=13),
        lambda operands: convolution(channels=7),
        lambda operands: convolution(kernel=7),
        lambda operands: replace(operands, x=operands.x.double(), weight=operands.weight.double()),
        lambda operands: replace(operands, weight=operands.weight.clone().requires_grad_()),
        lambda operands: replace(operands, bias=torch.zeros(4)),
        lambda operands: replace(operands, windows=(3, 5)),
        lambda operands: replace(operands, geometry=ConvGeometry(padding=1)),
        lambda operands: replace(operands, geometry=ConvGeometry(padding="same", stride=2)),
        lambda operands: replace(operands, geometry=ConvGeometry(padding="same", projection="max")),
    ],
)
def test_of_another_problem_nothing_is_known(
    measured: tuple[Convolution, str], change: Callable[[Convolution], Convolution]
) -> None:
    operands, _ = measured
    known = choices.TABLE.known
    assert (place_of(operands.x.device), problem_of(operands)) in known
    assert (place_of(operands.x.device), problem_of(change(operands))) not in known


def test_of_other_threads_processors_or_versions_nothing_is_known(measured: tuple[Convolution, str]) -> None:
    operands, name = measured
    problem = problem_of(operands)
    here = place_of(operands.x.device)
    assert here.threads == torch.get_num_threads()
    assert here.torch == torch.__version__
    for field, value in {"processor": "another", "threads": 77, "torch": "1.0", "device": "H200"}.items():
        assert (here._replace(**{field: value}), problem) not in choices.TABLE.known
    torch.set_num_threads(2)
    try:
        assert used(operands) == estimate(operands)
    finally:
        torch.set_num_threads(1)
    assert used(operands) == name


def test_of_autocast_nothing_is_known(measured: tuple[Convolution, str]) -> None:
    operands, _ = measured
    with torch.autocast("cpu", torch.bfloat16):
        assert problem_of(operands).autocast == "bfloat16"
        assert used(operands) == estimate(operands)


def test_an_algorithm_that_there_is_no_more_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = convolution()
    monkeypatch.setattr(choices, "TABLE", measured_as("of-a-later-version", operands))
    assert used(operands) == estimate(operands)


def test_an_export_takes_ordinary_convolutions_whatever_was_measured(
    measured: tuple[Convolution, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    operands, name = measured
    assert name != "cropped"
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert used(operands) == "cropped"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_autocast_may_reach_around_the_backward_pass(name: str) -> None:
    """Not recommended, and often written."""
    operands = convolution()
    weight = operands.weight.clone().requires_grad_()
    gradients = []
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16), algorithm(name):  # type: ignore[arg-type]
            y = compute(replace(operands, weight=weight)).float().square().sum()
            with torch.autocast("cpu", enabled=inside):
                gradients += torch.autograd.grad(y, weight)
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=0.05, atol=0.05 * gradients[0].abs().max().item()
    )


@pytest.mark.parametrize("projection", [None, "max"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_results_lie_in_memory_without_gaps_in_an_order_of_their_own(
    name: str, projection: Literal["max"] | None
) -> None:
    operands = convolution()
    geometry = ConvGeometry(padding="same", projection=projection)
    with algorithm(name):  # type: ignore[arg-type]
        y = convolve("scale_conv2d", replace(operands, geometry=geometry))
    assert y.shape == ((2, 4, 12, 12) if projection else (2, 4, 2, 12, 12))
    order = sorted(range(y.ndim), key=lambda axis: -y.stride(axis))
    assert y.permute(order).is_contiguous()
    scale, width, height, batch, channel = 2, y.ndim - 1, y.ndim - 2, 0, 1
    if name in ("fourier", "projected", "unfolded"):
        assert order == ([] if projection else [scale]) + [width, height, batch, channel]
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            y.view(2, -1)
    torch.testing.assert_close(y.reshape(2, -1), y.contiguous().view(2, -1), rtol=0, atol=0)


def test_an_observer_sees_every_convolution_and_changes_nothing() -> None:
    seen: list[Convolution] = []
    operands = convolution()
    with observed(seen.append):
        first = used(operands)
    assert first == used(operands)
    assert [one.x is operands.x for one in seen] == [True]


# --- compiled networks ---

# In a process of its own: a compiler cannot follow the run-time shape checks of this suite.
COMPILED = """
import torch
from equiscale import ScaleGrid, algorithm
from equiscale.functional.algorithms import choices, unmeasured
from equiscale.functional.algorithms.planner import observed
from equiscale.nn import ScaleConv2d

torch.set_num_threads(1)
grid = ScaleGrid.geometric(0.9, 1.41, 2)
layer = ScaleConv2d(2, 2, kernel_size=5, grid=grid, padding="same", projection="max")
x = torch.randn(2, 2, 2, 12, 12)

def record(convolution):
    key = choices.place_of(convolution.x.device), choices.problem_of(convolution)
    choices.TABLE.add({key: choices.Choice("dense", {"dense": 1.0})})

def takes():
    layer.filter_cache.algorithm = None
    torch.testing.assert_close(compiled(x), expected)
    return layer.filter_cache.algorithm

expected = layer(x)
compiled = torch.compile(layer, fullgraph=True, backend="eager")
assert takes() != "dense"
with observed(record):
    layer(x)
assert takes() == "dense", "compiled anew after a measurement"
with algorithm("fourier"):
    assert takes() == "fourier"
with unmeasured():
    assert takes() != "dense"

torch._dynamo.reset()
compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
assert takes() == "dense"
choices.TABLE.clear()
assert takes() != "dense"
"""


def test_a_compiled_network_is_one_graph_and_follows_measurements_and_contexts() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_threads_that_leave_in_another_order_leave_no_setting_to_compilers() -> None:
    entered, left = threading.Barrier(2, timeout=60), threading.Event()

    def first() -> None:
        with algorithm("fourier"):
            entered.wait()
            entered.wait()  # until the second is inside too
        left.set()

    def second() -> None:
        entered.wait()
        with algorithm("dense"):
            entered.wait()
            assert left.wait(timeout=60)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layer = LiftConv2d(1, 2, kernel_size=5, grid=ScaleGrid([1.0, 2.0])).eval()
    torch.export.export(layer, (torch.zeros(2, 1, 9, 9),), strict=False)
    assert layer.filter_cache.algorithm == "cropped"
