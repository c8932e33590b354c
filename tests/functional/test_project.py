import math
import weakref
from collections.abc import Iterator

import pytest
import torch

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import scale_projection
from equiscale.functional.project import fold_max, largest
from tests.golden import golden_case
from tests.memory import MAP_ORDERS, laid, tied

COVERS = {"scale_projection"}


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=generator)


def test_values_by_hand() -> None:
    x = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64).view(1, 1, 3, 1, 1)
    by_mode = {
        "max": 4.0,
        "mean": 1.0,
        "logsumexp": math.log(math.exp(1) + math.exp(4) + math.exp(-2)),
        "argmax-scale": 1,
    }
    for mode, expected in by_mode.items():
        y = scale_projection(x, mode)
        assert y.shape == (1, 1, 1, 1)
        assert y.item() == pytest.approx(expected, rel=1e-14)


def test_maximum_equals_the_published_one_with_its_gradient() -> None:
    case = golden_case("scale_max_projection")
    x = case["x0"].clone().requires_grad_()
    y = scale_projection(x)
    y.backward(case["grad_y0"])
    assert torch.equal(y, case["y0"])
    assert torch.equal(x.grad, case["grad_x0"])


def test_maximum_is_invariant_to_permutations_bit_for_bit(x: torch.Tensor) -> None:
    assert torch.equal(scale_projection(x[:, :, [2, 0, 3, 1]]), scale_projection(x))


@pytest.mark.parametrize("mode", ["mean", "logsumexp"])
def test_sums_are_invariant_to_permutations_up_to_rounding(mode: str, x: torch.Tensor) -> None:
    y = scale_projection(x, mode)
    torch.testing.assert_close(scale_projection(x[:, :, [2, 0, 3, 1]], mode), y, rtol=0, atol=1e-14)
    assert (scale_projection(x[:, :, [0, 0, 1, 2]], mode) - y).abs().max() > 0.1


def test_strongest_scale_is_an_index_that_moves_with_the_scales(x: torch.Tensor) -> None:
    y = scale_projection(x, "argmax-scale")
    assert y.dtype == torch.int64
    assert not y.requires_grad
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(order[scale_projection(x[:, :, order], "argmax-scale")], y)
    assert torch.equal(x.gather(2, y[:, :, None])[:, :, 0], scale_projection(x))


def test_of_equal_scales_the_first_is_strongest_and_one_alone_gets_the_gradient() -> None:
    x = torch.zeros(1, 1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    assert scale_projection(x, "argmax-scale").item() == 0
    scale_projection(x).sum().backward()
    assert sorted(x.grad.flatten().tolist()) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("mode", ["max", "mean", "logsumexp"])
def test_derivatives(mode: str, generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 3, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scale_projection(x, mode), (x,))


def test_refuses_images_and_unknown_modes() -> None:
    with pytest.raises(ShapeError, match=r"scale map \(B, C, S, H, W\), got \(2, 3, 8, 8\)"):
        scale_projection(torch.zeros(2, 3, 8, 8))
    text = "expected a projection of max, mean, logsumexp, argmax-scale, got 'median'"
    with pytest.raises(SettingError, match=text):
        scale_projection(torch.zeros(1, 1, 1, 1, 1), "median")  # type: ignore[arg-type]


def test_the_maximum_is_the_same_with_and_without_a_gradient() -> None:
    x = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    x[:, :, 2] = x[:, :, 1]  # equal values
    tracked = x.clone().requires_grad_()
    assert torch.equal(largest(tracked, 2), largest(x, 2))
    largest(tracked, 2).sum().backward()
    expected = torch.zeros_like(x).scatter_(2, x.max(2, keepdim=True).indices, 1.0)
    assert torch.equal(tracked.grad, expected)


@pytest.mark.parametrize("order", MAP_ORDERS)
@pytest.mark.parametrize("scales", [1, 2, 5])
def test_folding_equals_the_maximum_with_its_gradient_where_values_are_equal(order, scales: int) -> None:
    x = laid(tied(3, 5, scales, 7, 9), order).requires_grad_()
    y, expected = fold_max(x.unbind(2)), x.max(2).values
    weights = torch.rand_like(y)
    assert torch.equal(y, expected)
    assert torch.equal(fold_max(x.detach().unbind(2)), expected)
    assert torch.equal(*(torch.autograd.grad(result, x, weights)[0] for result in (y, expected)))


def test_folding_has_second_derivatives(generator: torch.Generator) -> None:
    x = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()

    def folded(x: torch.Tensor) -> torch.Tensor:
        return fold_max(part**3 for part in x.unbind(2))

    assert torch.autograd.gradcheck(folded, (x,))
    assert torch.autograd.gradgradcheck(folded, (x,))


def test_folding_leaves_the_callers_tensors_alone_and_keeps_what_is_not_a_number() -> None:
    parts = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, math.nan, 1.0]), torch.tensor([0.0, 9.0, 9.0])]
    before = [part.clone() for part in parts]
    for tracked in (set(), {0}, {1}, {2}, {0, 1, 2}):
        for number, part in enumerate(parts):
            part.requires_grad_(number in tracked)
        y = fold_max(iter(parts))
        assert y.tolist()[::2] == [2.0, 9.0]
        assert y.isnan().tolist() == [False, True, False]
        assert all(
            torch.equal(part, old) or part.isnan().any() for part, old in zip(parts, before, strict=True)
        )
    fold_max(parts).sum().backward()
    assert [part.grad.tolist()[::2] for part in parts] == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_folding_holds_no_tensor_while_it_asks_for_the_next_but_the_first() -> None:
    alive: list[weakref.ref] = []

    def parts() -> Iterator[torch.Tensor]:
        for number in range(5):
            assert sum(ref() is not None for ref in alive) == (number == 1)
            part = torch.full((4,), float(number), requires_grad=True) * 1  # a node, as a layer's output
            alive.append(weakref.ref(part))
            yield part
            del part

    assert fold_max(parts()).tolist() == [4.0] * 4


def test_folding_of_nothing_is_refused_and_of_one_is_itself() -> None:
    with pytest.raises(SettingError, match="fold_max: expected at least one tensor, got none"):
        fold_max([])
    x = torch.ones(2)
    assert fold_max([x]) is x


@pytest.mark.parametrize("order", MAP_ORDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_maximum_and_its_gradient_are_those_of_torch_in_every_memory_order(order, dtype) -> None:
    x = laid(tied(2, 33, 4, 47, 51, dtype=dtype), order).requires_grad_()  # more than one block
    y, expected = largest(x, 2), x.max(2).values
    weights = torch.rand_like(y)
    gradient, expected_gradient = (torch.autograd.grad(result, x, weights)[0] for result in (y, expected))
    assert torch.equal(y, expected)
    assert torch.equal(gradient, expected_gradient)
    assert torch.equal(largest(x.detach(), 2), expected)
    assert gradient.stride() == x.stride()
    assert y.stride() == torch.empty_like(x[:, :, 0]).stride()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # within torch
def test_the_maximum_has_second_derivatives_and_forward_ones(generator: torch.Generator) -> None:
    x = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: largest(x**3, 2), (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: largest(x**3, 2), (x,))


def test_the_maximum_can_be_traced_and_mapped() -> None:
    x = tied(2, 3, 4, 5, 6).requires_grad_()
    traced = torch.compile(largest, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(x.max(2).values.square().sum(), x)
    for y in (traced(x, 2), torch.func.vmap(largest, (0, None))(x, 1)):
        assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected)


def test_more_scales_than_a_byte_numbers() -> None:
    """Of a whole map torch's own maximum; folded one by one with a gradient, an error and no wrong one."""
    x = torch.randn(2, 1, 300, 2, 2, dtype=torch.float64, requires_grad=True)
    grad, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (scale_projection(x), x.amax(2)))
    assert torch.equal(grad, expected)
    assert torch.equal(fold_max(x.detach().unbind(2)), x.detach().amax(2))
    with pytest.raises(SettingError, match="at most 256 scales for a maximum with a gradient, got more"):
        fold_max(x.unbind(2))
