"""Whole convolutions in blocks: the same values and gradients, and little that is held for them."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from equiscale.functional import ConvGeometry, lift_conv2d, scale_conv2d
from equiscale.functional.algorithms import (
    Convolution,
    FilterCache,
    algorithm,
    fourier,
    fourier_blocked,
    unfolded_blocked,
)
from equiscale.functional.algorithms import convolution as module_of_convolution
from equiscale.functional.algorithms.blocked import Result, from_memory, to_memory
from equiscale.functional.algorithms.planner import ALGORITHMS, BLOCKED, compute
from equiscale.nn import LiftConv2d
from equiscale.scales import ScaleGrid

SCALES, FUNCTIONS, KERNEL = 3, 5, 7
NAMES = sorted(BLOCKED)
by_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=["many blocks", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(fourier_blocked, "_BAND", 1)
        monkeypatch.setattr(unfolded_blocked, "_BLOCK", 1)


def operands(
    slots: int = 0, *, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (9, 11), **geometry: Any
) -> Convolution:
    """A lifting convolution of no slots, or a scale convolution; windows differ from scale to scale."""
    generator = torch.Generator().manual_seed(0)
    groups = geometry.get("groups", 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    basis = draw(FUNCTIONS, SCALES, KERNEL, KERNEL)
    basis[:, 0, [0, 1, -2, -1]] = 0
    basis[:, 0, :, [0, 1, -2, -1]] = 0
    return Convolution(
        draw(3, 4, *[SCALES] * bool(slots), *size),
        draw(6, 4 // groups, *[slots] * bool(slots), FUNCTIONS),
        basis,
        draw(6),
        ConvGeometry(**geometry),
        (3, 7, 7),
    )


def computed(convolution: Convolution, name: str) -> Tensor:
    function = lift_conv2d if convolution.x.ndim == 4 else scale_conv2d
    with algorithm(name):  # type: ignore[arg-type]
        return function(
            convolution.x,
            convolution.weight,
            convolution.basis,
            convolution.bias,
            geometry=convolution.geometry,
            windows=convolution.windows,
        )


def with_slot(lifting: Convolution) -> Convolution:
    """As the layers see a lifting convolution."""
    return replace(lifting, weight=lifting.weight[:, :, None])


def tracked(convolution: Convolution, name: str) -> tuple[Convolution, list[Tensor]]:
    """Operands that ask for gradients: the weights and the bias, and x where the algorithm takes that."""
    leaves = [convolution.weight, convolution.bias] + [convolution.x] * (name != "unfolded")
    for leaf in leaves:
        assert leaf is not None
        leaf.requires_grad_()
    return convolution, [leaf for leaf in leaves if leaf is not None]


GEOMETRIES = [
    {"padding": "same"},
    {"padding": "same", "projection": "max"},
    {"padding": "same", "groups": 2},
    {"padding": "same", "groups": 2, "projection": "max"},
    {"padding": 3, "stride": 2},
    {"padding": 5, "projection": "max"},
    {"padding": "same", "pooling": 2},
    {"padding": "same", "pooling": 2, "projection": "max"},
    {"padding": 4, "pooling": 3, "groups": 2, "projection": "max"},
]
CASES = [(name, slots) for name in NAMES for slots in ((0,) if name == "unfolded" else (0, 1, 2))]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("name", "slots"), CASES)
def test_values_and_gradients_are_those_of_the_definition(
    name: str, slots: int, geometry: dict[str, Any]
) -> None:
    results = []
    for used in ("dense", name):
        convolution, leaves = tracked(operands(slots, **geometry), name)
        y = computed(convolution, used)
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        results.append([y, *torch.autograd.grad(y, leaves, grad)])
        with torch.no_grad():
            results[-1].append(computed(convolution, used))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@by_name
def test_they_are_taken_where_they_fit(name: str) -> None:
    """A network's training must not fall back to the path that holds everything without a word."""
    convolution, _ = tracked(operands(padding="same"), name)
    assert "_Whole" in names_of_graph(computed(convolution, name))


def names_of_graph(y: Tensor) -> set[str]:
    names, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(type(node).__name__.removesuffix("Backward"))
            nodes += [following for following, _ in node.next_functions]
    return names


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (name, change)
        for name in NAMES
        for change in ("circular", "uncovered", "basis", "image", "tiles", "half", "pooling")
        if (name, change) not in {("fourier", "image"), ("fourier", "half"), ("unfolded", "tiles")}
    ],
)
def test_they_leave_to_the_others_what_does_not_fit(name: str, change: str) -> None:
    convolution = operands(padding="same")
    blocked = BLOCKED[name]
    assert blocked.fits(with_slot(convolution))
    if change == "circular":
        convolution = operands(padding="same", padding_mode="circular")
    elif change == "uncovered":  # the smallest window does not see the border
        convolution = operands(padding=0)
    elif change == "basis":
        convolution.basis.requires_grad_()
    elif change == "image":
        convolution.x.requires_grad_()
    elif change == "tiles":
        convolution = operands(padding="same", size=(160, 160))
    elif change == "pooling":  # too many values to choose from for the numbers of a byte
        convolution = operands(padding="same", size=(18, 18), pooling=10, projection="max")
    else:
        convolution = operands(padding="same", dtype=torch.bfloat16)
    assert not blocked.fits(with_slot(convolution))
    with torch.no_grad():
        y, expected = computed(convolution, name), computed(convolution, "dense")
    atol = 0.3 if change == "half" else 1e-9
    torch.testing.assert_close(y, expected, rtol=0, atol=atol)


@by_name
@pytest.mark.parametrize("maxima", [{}, {"projection": "max"}, {"pooling": 2}], ids=str)
def test_nothing_but_the_operands_and_a_byte_a_maximum_is_kept(name: str, maxima: dict[str, Any]) -> None:
    convolution, _ = tracked(operands(padding="same", **maxima), name)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = computed(convolution, name)
    own = {operand.data_ptr() for operand in (convolution.x, convolution.weight, convolution.basis)}
    others = [tensor for place, tensor in kept.items() if place not in own]
    assert sum(tensor.nbytes for tensor in others) == (y.numel() if maxima else 0)


@by_name
@pytest.mark.parametrize("projection", [None, "max"])
def test_the_gradient_of_the_gradient(name: str, projection: str | None) -> None:
    results = []
    for used in ("dense", name):
        convolution, leaves = tracked(operands(padding="same", projection=projection), name)
        y = computed(convolution, used)
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_gradient_where_x_depends_on_the_weights(name: str) -> None:
    """As in a layer that is applied twice: the path through x is counted once, with a graph or without."""
    grads = []
    for create_graph in (False, True):
        convolution, _ = tracked(operands(1, padding="same"), name)
        x = convolution.x * convolution.weight.mean()
        y = computed(replace(convolution, x=x), name).square().mean()
        grads += torch.autograd.grad(y, convolution.weight, create_graph=create_graph)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("sides", [(3, 7, 7), (7, 7, 7)], ids=str)
def test_patches_are_made_once_for_all_scales_that_share_a_window(
    monkeypatch: pytest.MonkeyPatch, sides: tuple[int, ...]
) -> None:
    made = []
    original = unfolded_blocked.BlockedUnfolded._unfolded

    def spy(self: Any, x: Tensor, window: int, rows: slice) -> Tensor:
        made.append(window)
        return original(self, x, window, rows)

    monkeypatch.setattr(unfolded_blocked.BlockedUnfolded, "_unfolded", spy)
    with torch.no_grad():
        computed(replace(operands(padding="same"), windows=sides), "unfolded")
    assert made == sorted(set(sides))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("projection", [None, "max"])
def test_many_gradients_at_once(name: str, projection: str | None) -> None:
    convolution, _ = tracked(operands(padding="same", projection=projection), name)
    y = computed(convolution, name)
    many = torch.randn(3, *y.shape, dtype=y.dtype)
    (actual,) = torch.autograd.grad(y, convolution.weight, many, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, convolution.weight, one, retain_graph=True)[0] for one in many]
    torch.testing.assert_close(actual, torch.stack(expected))


@by_name
def test_an_edit_of_the_basis_before_the_backward_pass_is_refused(name: str) -> None:
    convolution, _ = tracked(operands(padding="same"), name)
    y = computed(convolution, name)
    convolution.basis.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("maxima", [{}, {"projection": "max"}, {"pooling": 2}], ids=str)
def test_no_images(name: str, maxima: dict[str, Any]) -> None:
    convolution, leaves = tracked(operands(padding="same", **maxima), name)
    some = computed(convolution, name)
    y = computed(replace(convolution, x=convolution.x[:0]), name)
    assert y.shape == (0, *some.shape[1:])
    grads = torch.autograd.grad(y.sum(), leaves)
    assert all((grad == 0).all() for grad in grads)


class Builds:
    """How many filters are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bands = 0
        original = fourier_blocked.filters_of

        def spy(*arguments: Any) -> Any:
            self.bands += arguments[1].shape[1]  # frequencies
            return original(*arguments)

        for module in (fourier, fourier_blocked):
            monkeypatch.setattr(module, "filters_of", spy)


@pytest.mark.parametrize("room", [1, 1 << 27])
@pytest.mark.parametrize("cache", [True, False])
def test_evaluation_makes_every_filter_once(
    monkeypatch: pytest.MonkeyPatch, room: int, *, cache: bool
) -> None:
    """Kept as a whole, or, where they are too large or there is no layer to keep them, band by band."""
    monkeypatch.setattr(fourier_blocked, "_BAND", 1)
    monkeypatch.setattr(module_of_convolution, "_ROOM", room)
    builds = Builds(monkeypatch)
    convolution = replace(operands(padding="same"), cache=FilterCache() if cache else None)
    with torch.no_grad():
        compute(with_slot(convolution), "fourier")
        rows, columns = fourier.tilings(with_slot(convolution))[0][1]
        once = SCALES * (columns.period // 2 + 1) * rows.period
        assert builds.bands == once
        compute(with_slot(convolution), "fourier")
        assert builds.bands == (once if cache and room > 1 else 2 * once)


def test_transforms_of_images_are_given_up_when_no_scale_sees_them_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = []
    original = Result.put

    def spy(result: Result, *arguments: Any) -> None:
        group = sys._getframe(1).f_locals["group"]
        held.append({place for place, _ in group._spectra})
        original(result, *arguments)

    monkeypatch.setattr(Result, "put", spy)
    with torch.no_grad():
        computed(operands(2, padding="same"), "fourier")
    assert held == [{0, 1}, {1, 2}, {2}]


def test_operands_are_let_go_of_once_the_gradient_is_there() -> None:
    """Else a loss that is still in a variable would hold the last step's features through the next."""
    convolution, leaves = tracked(operands(padding="same"), "fourier")
    y = computed(replace(convolution, x=convolution.x * 1), "fourier")
    node = next(node for node in nodes_of(y) if type(node).__name__.startswith("_Whole"))
    torch.autograd.grad(y.sum(), leaves)
    with pytest.raises(RuntimeError, match="already been freed"):
        _ = node.saved_tensors
    assert node.how[0].x.numel() == node.how[0].weight.numel() == 0


def nodes_of(y: Tensor) -> Iterator[Any]:
    nodes = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            yield node
            nodes += [following for following, _ in node.next_functions]


@by_name
def test_training_keeps_no_filters(name: str) -> None:
    layer = LiftConv2d(2, 3, kernel_size=9, grid=ScaleGrid([1.0, 1.5]), padding="same")
    with algorithm(name):  # type: ignore[arg-type]
        layer(torch.randn(2, 2, 12, 12)).sum().backward()
        assert not layer.filter_cache.kept
        with torch.no_grad():
            layer(torch.randn(2, 2, 12, 12))
        assert layer.filter_cache.kept


@by_name
def test_gradients_under_autocast(name: str) -> None:
    """The backward pass may be inside of autocast or not; parameters keep their own type."""
    grads = []
    for inside in (True, False):
        convolution, leaves = tracked(operands(padding="same", dtype=torch.float32, projection="max"), name)
        with torch.autocast("cpu", torch.bfloat16):
            y = computed(convolution, name)
            assert y.dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=inside):
                grads.append(torch.autograd.grad(y.float().square().sum(), leaves))
        assert all(grad.dtype == torch.float32 for grad in grads[-1])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 6, 4, 5)])
def test_the_order_in_memory_and_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert to_memory(x).shape == (shape[2] if len(shape) == 5 else 1, 5, 4, 2, 3)
    assert torch.equal(from_memory(to_memory(x), len(shape)), x)


@by_name
def test_a_convolution_without_a_layer_has_its_result(name: str) -> None:
    convolution = replace(operands(padding="same"), cache=FilterCache())
    torch.testing.assert_close(compute(with_slot(convolution), name), computed(convolution, "dense"))
