"""What a layer keeps of its weights and of its basis: as long as they stay, and never in the way."""

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from equiscale.functional.algorithms import AlgorithmName, FilterCache, algorithm
from equiscale.functional.algorithms import convolution as module
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.scales import ScaleGrid

GRID = ScaleGrid([1.0, 1.5])
BASIS = torch.ones(1)
every_algorithm = pytest.mark.parametrize("name", get_args(AlgorithmName))
KEEPING = ["cropped", "unfolded", "fourier", "projected", "dilated"]
keeping_algorithm = pytest.mark.parametrize("name", KEEPING)


@pytest.fixture
def layer() -> ScaleConv2d:
    return ScaleConv2d(2, 3, kernel_size=5, grid=GRID)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 2, 2, 8, 9, generator=generator)


def kept(layer: ScaleConv2d) -> dict:
    return dict(layer.filter_cache.kept)


def fresh(layer: ScaleConv2d, x: Tensor) -> Tensor:
    """What a layer gives that has never kept anything."""
    with torch.no_grad():
        return copy.deepcopy(layer)(x)


# --- the cache alone ---


class Builds:
    """A build that counts."""

    def __init__(self, value: Callable[[], object] = lambda: torch.ones(1)) -> None:
        self.count, self.value = 0, value

    def __call__(self):
        self.count += 1
        return self.value()


def test_builds_once_while_the_values_stay() -> None:
    cache, weight, build = FilterCache(), torch.randn(3), Builds()
    assert cache.get("a", weight, BASIS, build) is cache.get("a", weight.clone(), BASIS, build)
    assert build.count == 1
    cache.get("b", weight, BASIS, build)
    assert build.count == 2
    weight[0] += 1e-6
    cache.get("a", weight, BASIS, build)
    assert build.count == 3


def test_keeps_nothing_that_a_gradient_is_wanted_of() -> None:
    cache, weight, build = FilterCache(), nn.Parameter(torch.randn(3)), Builds()
    for _ in range(2):
        cache.get("a", weight, BASIS, build)
    assert build.count == 2
    with torch.no_grad():
        for _ in range(2):
            cache.get("a", weight, BASIS, build)
    assert build.count == 3
    cache.get("a", weight, BASIS, build)
    assert cache.kept == {}


def test_keeps_of_a_basis_until_it_is_another() -> None:
    cache, basis, build = FilterCache(), torch.randn(3), Builds()
    for _ in range(2):
        cache.get_of_basis("a", basis, build)
    assert build.count == 1
    for other in (basis.double(), basis.clone()):
        cache.get_of_basis("a", other, build)
    assert build.count == 3
    for _ in range(2):
        cache.get_of_basis("a", basis.requires_grad_(), build)
    assert build.count == 5


@every_algorithm
@pytest.mark.parametrize("trained", [True, False])
def test_a_basis_that_is_edited_is_not_remembered(
    name: AlgorithmName, trained: bool, layer: ScaleConv2d, x: Tensor
) -> None:
    with algorithm(name), torch.set_grad_enabled(trained):
        layer(x)
        layer.basis.copy_(layer.basis.flip(1))
        torch.testing.assert_close(layer(x).detach(), fresh(layer, x))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", 4 * 100)
    cache, weight = FilterCache(), torch.randn(3)
    large, half = Builds(lambda: torch.ones(101)), Builds(lambda: (torch.ones(30), torch.ones(30)))
    for _ in range(2):
        cache.get("large", weight, BASIS, large)
    assert large.count == 2
    assert not cache.kept
    for _ in range(2):
        cache.get("half", weight, BASIS, half)
    assert half.count == 1
    cache.get("another half", weight, BASIS, half)
    assert list(cache.kept) == ["another half"]


def test_one_thread_may_clear_while_another_builds() -> None:
    cache, weight = FilterCache(), torch.randn(3)

    def build() -> Tensor:
        cache.clear()
        return torch.ones(2)

    assert torch.equal(cache.get("a", weight, BASIS, build), torch.ones(2))


def test_threads_share_a_layer(layer: ScaleConv2d, x: Tensor) -> None:
    expected = fresh(layer, x)
    wrong: list[object] = []

    def evaluate() -> None:
        try:
            for _ in range(20):
                with torch.no_grad(), algorithm("fourier"):
                    if not torch.allclose(layer(x), expected, atol=1e-5):
                        wrong.append("values")
        except Exception as error:  # noqa: BLE001 of whatever kind
            wrong.append(error)

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_with_weights_of_their_own_share_a_cache() -> None:
    """As copies of a layer do: none gets the filters of another's weights."""
    cache, basis = FilterCache(), torch.ones(1)
    wrong: list[object] = []

    def evaluate(number: float) -> None:
        weight = torch.full((1,), number)
        for _ in range(2000):
            with torch.no_grad():
                got = cache.get("double", weight, basis, lambda: weight * 2)
            if got.item() != 2 * number:
                wrong.append(got)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=evaluate, args=(float(number),)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


# --- in layers ---


@keeping_algorithm
def test_filters_are_made_once_in_evaluation(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    with algorithm(name), torch.no_grad():
        layer(x)
        first = kept(layer)
        y = layer(x)
    assert first
    assert all(kept(layer)[key] is value for key, value in first.items())
    torch.testing.assert_close(y, fresh(layer, x))


@keeping_algorithm
def test_nothing_is_kept_in_training(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    with algorithm(name):
        with torch.no_grad():
            layer(x)
        assert kept(layer)
        layer(x)
    assert not kept(layer)


def optimizer_step(layer: ScaleConv2d) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def through_data(layer: ScaleConv2d) -> None:
    layer.weight.data.mul_(2)


def one_value_through_data(layer: ScaleConv2d) -> None:
    layer.weight.data[0, 0, 0, 0] += 1


def new_data(layer: ScaleConv2d) -> None:
    layer.weight.data = torch.ones_like(layer.weight)


def loaded(layer: ScaleConv2d, *, assign: bool = False) -> None:
    state = {key: value + 1 for key, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


def assigned(layer: ScaleConv2d) -> None:
    loaded(layer, assign=True)


def reset(layer: ScaleConv2d) -> None:
    layer.reset_parameters(torch.Generator().manual_seed(1))


CHANGES = [optimizer_step, through_data, one_value_through_data, new_data, loaded, assigned, reset]


@every_algorithm
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_changed_weights_change_the_result(
    name: AlgorithmName, change: Callable, mode: Callable, layer: ScaleConv2d, x: Tensor
) -> None:
    with algorithm(name):
        with mode():
            before = layer(x).clone()
        change(layer)
        with mode():
            after = layer(x).clone()
        torch.testing.assert_close(after, fresh(layer, x), rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 1e-2


@every_algorithm
def test_another_type_is_computed_in_that_type(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    with algorithm(name), torch.no_grad():
        single = layer(x)
        double = layer.double()(x.double())
        torch.testing.assert_close(double, fresh(layer, x.double()), rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.float()(x), single)
    assert double.dtype == torch.float64


@every_algorithm
def test_autocast_does_not_see_what_was_kept_without(
    name: AlgorithmName, layer: ScaleConv2d, x: Tensor
) -> None:
    with algorithm(name), torch.no_grad():
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), plain)


@every_algorithm
def test_what_was_kept_under_autocast_is_not_seen_without(
    name: AlgorithmName, layer: ScaleConv2d, x: Tensor
) -> None:
    with algorithm(name), torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert torch.equal(layer(x), fresh(layer, x))


@every_algorithm
def test_no_inference_tensor_reaches_a_training(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    """Evaluated in inference mode first, trained after, at the same shapes."""
    lift = LiftConv2d(1, 2, kernel_size=5, grid=GRID, padding="same")
    network = nn.Sequential(lift, layer)
    image = x[:, :1, 0]
    with algorithm(name):
        with torch.inference_mode():
            expected = network(image).clone()
        with torch.no_grad():
            assert not network(image).is_inference()
        y = network(image)
        y.square().sum().backward()
        torch.testing.assert_close(y.detach(), expected.detach().clone())
    assert all(parameter.grad is not None for parameter in network.parameters())
    held = [*lift.filter_cache.kept_of_basis.values(), *layer.filter_cache.kept_of_basis.values()]
    assert not any(tensor.is_inference() for tensor in held)


@every_algorithm
def test_frozen_weights_let_gradients_through(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    layer.requires_grad_(False)
    grads = []
    with algorithm(name):
        with torch.inference_mode():
            layer(x)  # what this keeps must not be saved for a backward pass
        for _ in range(2):
            x = x.detach().requires_grad_()
            layer(x).square().sum().backward()
            grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


@every_algorithm
def test_a_learned_basis_is_never_stale(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    """Its gradient is wanted again and again although the weights are frozen, and its values change."""
    layer.requires_grad_(False)
    layer.basis.requires_grad_()
    with algorithm(name):
        for _ in range(2):
            layer(x).sum().backward()
        with torch.no_grad():
            before = layer(x)
            layer.basis.mul_(2)
            after = layer(x)
    bias = layer.bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(after - bias, 2 * (before - bias))


@keeping_algorithm
def test_copies_and_files_hold_the_weights_alone(name: AlgorithmName, layer: ScaleConv2d, x: Tensor) -> None:
    before = len(pickle.dumps(layer))
    with algorithm(name), torch.no_grad():
        layer(x)
    assert kept(layer)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert len(pickle.dumps(layer)) == before
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    others = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    for other in others:
        assert not kept(other)
        assert not other.filter_cache.kept_of_basis
        with algorithm(name), torch.no_grad():
            assert torch.equal(other(x), layer(x))
        assert kept(other)
        assert other.filter_cache is not layer.filter_cache


@every_algorithm
def test_functional_call_uses_the_weights_it_is_given(
    name: AlgorithmName, layer: ScaleConv2d, x: Tensor
) -> None:
    others = {key: value + 1 for key, value in layer.state_dict().items()}
    with algorithm(name), torch.no_grad():
        own = layer(x)
        given = torch.func.functional_call(layer, others, (x,))
        assert torch.equal(layer(x), own)
    layer.load_state_dict(others)
    torch.testing.assert_close(given, fresh(layer, x), rtol=1e-5, atol=1e-5)
    assert (given - own).abs().max() > 1e-2


@every_algorithm
def test_images_of_many_sizes_in_turn(name: AlgorithmName, layer: ScaleConv2d) -> None:
    with algorithm(name), torch.no_grad():
        for size in ((8, 9), (5, 14), (8, 9), (20, 6)):
            x = torch.randn(1, 2, 2, *size)
            torch.testing.assert_close(layer(x), fresh(layer, x), rtol=1e-5, atol=1e-5)
