"""Whatever is legal works: shapes, types, finite values, empty batches, memory, low precision, NaN.

Every public layer, function and basis of `equiscale.functional`, `equiscale.nn` and `equiscale.basis` has a
case in `tests/properties/cases.py`.
"""

import inspect
import math
import re
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import equiscale.basis
import equiscale.functional
import equiscale.nn
import equiscale.nn.nd
from equiscale.errors import EquiscaleError, ShapeError
from equiscale.functional.algorithms import AlgorithmName
from tests.properties.cases import CASES, EXEMPT, Case, Use, uses
from tests.properties.values import FILLS, examples, operands

PACKAGES = (equiscale.basis, equiscale.functional, equiscale.nn, equiscale.nn.nd)
EVERY_CASE = pytest.mark.parametrize("name", sorted(CASES))
DTYPES = st.sampled_from([torch.float32, torch.float64])


def test_every_public_name_has_a_case() -> None:
    public = {name for package in PACKAGES for name in package.__all__}
    assert public == set(CASES) | set(EXEMPT), "give the new name a case, or say why it needs none"
    assert not set(CASES) & set(EXEMPT)


def takes_tensors(case: Case) -> bool:
    """Whether there is an input, images or maps, and not numbers alone."""
    forward = case.thing.forward if case.is_layer else case.thing
    names = inspect.signature(forward).parameters
    return "x" in names or "input" in names


def as_tensor(result: object) -> Tensor:
    return torch.tensor(result) if isinstance(result, tuple) else result  # windows are numbers


def parameters(bound: object) -> list[Tensor]:
    return list(bound.parameters()) if isinstance(bound, nn.Module) else []


@EVERY_CASE
def test_finite_inputs_give_finite_results_of_the_documented_shape(name: str) -> None:
    case = CASES[name]

    @examples(3)  # the first is the smallest
    @given(uses(case), DTYPES, st.booleans())
    def check(use: Use, dtype: torch.dtype, training: bool) -> None:
        fills = FILLS if use.tensors else ["moderate"]
        for fill in fills:
            check_one(case, use, fill, dtype, training)

    check()


def check_one(case: Case, use: Use, fill: str, dtype: torch.dtype, training: bool) -> None:
    bound = case.bind(use.settings, dtype)
    if isinstance(bound, nn.Module):
        bound.train(training)
    tensors = operands(case, use, fill, dtype)
    for tensor in tensors.values():
        tensor.requires_grad_()
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    y = as_tensor(case.run(bound, tensors))
    assert tuple(y.shape) == use.output
    assert y.dtype == (case.dtype or dtype)
    assert bool(y.isfinite().all()), fill
    assert all(torch.equal(tensors[key], before[key]) for key in before), "changed in place"
    if y.requires_grad:
        y.sum().backward()
        for tensor in (*tensors.values(), *parameters(bound)):
            assert tensor.grad is None or bool(tensor.grad.isfinite().all()), f"gradient, {fill}"


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
@pytest.mark.parametrize("name", ["LiftConv2d", "ScaleConv2d", "lift_conv2d", "scale_conv2d"])
def test_every_algorithm_gives_finite_results_for_finite_inputs(name: str, algorithm: AlgorithmName) -> None:
    case = CASES[name]

    @examples(1)
    @given(uses(case), DTYPES, st.booleans())
    def check(use: Use, dtype: torch.dtype, training: bool) -> None:
        with equiscale.functional.algorithms.algorithm(algorithm):
            for fill in FILLS:
                check_one(case, use, fill, dtype, training)

    check()


# --- what the batch holds ---

# The statistics of nothing, and what knows no batch.
NO_BATCH = {
    "vector_field_variance": "a variance of nothing is refused",
    **dict.fromkeys(("sample_hermite", "steer_in_scale", "synthesize_filters", "support_windows"), "filters"),
    **dict.fromkeys(("diagnose", "rescaling_error"), "filters"),
}
OF_IMAGES = pytest.mark.parametrize(
    "name", [name for name in sorted(CASES) if name not in NO_BATCH and takes_tensors(CASES[name])]
)


def state_of(bound: object) -> dict[str, Tensor]:
    if not isinstance(bound, nn.Module):
        return {}
    return {key: value.clone() for key, value in bound.state_dict().items() if key != "num_batches_tracked"}


@OF_IMAGES
def test_an_empty_batch_gives_an_empty_result_and_moves_no_statistics(name: str) -> None:
    case = CASES[name]

    @examples(2)
    @given(uses(case), st.booleans())
    def check(use: Use, training: bool) -> None:
        if len(use.tensors["x"]) < 3:
            return  # no batch
        bound = case.bind(use.settings)
        if isinstance(bound, nn.Module):
            bound.train(training)
        state = state_of(bound)
        tensors = {
            key: (value[:0] if key in ("x", "skip") else value).requires_grad_()
            for key, value in operands(case, use, "moderate").items()
        }
        y = case.run(bound, tensors)
        assert tuple(y.shape) == (0, *use.output[1:])
        y.sum().backward()
        after = state_of(bound)
        assert all(torch.equal(after[key], state[key]) for key in state if "num_batches" not in key)

    check()


def test_the_variance_of_an_empty_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected at least one vector a channel, got \(0, 3, 2, 4, 4\)"):
        equiscale.functional.vector_field_variance(torch.zeros(0, 3, 2, 4, 4))


# --- memory ---


def backwards(x: Tensor) -> list[int]:
    return [*reversed(range(x.ndim))]


LAYOUTS = {
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 1 else x,
    "axes reversed": lambda x: x.permute(backwards(x)).contiguous().permute(backwards(x)),
    "every second": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2] if x.ndim else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.ndim else x,
}


@EVERY_CASE
def test_memory_does_not_matter_and_inputs_stay(name: str) -> None:
    case = CASES[name]

    @examples(3)
    @given(uses(case))
    def check(use: Use) -> None:
        settings = use.settings | ({"training": False} if "training" in use.settings else {})
        bound = case.bind(settings, torch.float64)
        if isinstance(bound, nn.Module):
            bound.eval()
        for strange in layouts(operands(case, use, "moderate", torch.float64), case):
            plain = {key: value.contiguous().clone() for key, value in strange.items()}
            before = {key: value.clone() for key, value in strange.items()}
            y, expected = as_tensor(case.run(bound, strange)), as_tensor(case.run(bound, plain))
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
            assert all(torch.equal(strange[key], before[key]) for key in before)

    check()


def layouts(tensors: dict[str, Tensor], case: Case) -> list[dict[str, Tensor]]:
    """Each of the tensors in each layout, the rest as they are; scales that repeat are none."""
    return [
        {**tensors, key: change(tensors[key])}
        for key in tensors
        for name, change in LAYOUTS.items()
        if not (key in case.domains and name == "expanded")
    ]


# --- precision ---


@EVERY_CASE
def test_low_precision_is_finite_or_refused(name: str) -> None:
    case = CASES[name]

    @examples(2)
    @given(uses(case), st.sampled_from([torch.bfloat16, torch.float16]), st.booleans())
    def check(use: Use, dtype: torch.dtype, training: bool) -> None:
        try:
            bound = case.bind(use.settings, dtype)
            if isinstance(bound, nn.Module):
                bound.train(training)
            y = as_tensor(case.run(bound, operands(case, use, "moderate", dtype)))
        except EquiscaleError:
            return
        assert tuple(y.shape) == use.output
        widened = name == "vector_field_variance"  # as documented
        assert y.dtype == (torch.float32 if widened else case.dtype or dtype)
        assert bool(y.isfinite().all())

    check()


@EVERY_CASE
def test_autocast_gives_finite_results_and_gradients(name: str) -> None:
    case = CASES[name]

    @examples(1)
    @given(uses(case), st.booleans())
    def check(use: Use, training: bool) -> None:
        bound = case.bind(use.settings)
        if isinstance(bound, nn.Module):
            bound.train(training)
        tensors = {key: value.requires_grad_() for key, value in operands(case, use, "moderate").items()}
        with torch.autocast("cpu", torch.bfloat16):
            y = as_tensor(case.run(bound, tensors))
        assert tuple(y.shape) == use.output
        assert bool(y.isfinite().all())
        if y.requires_grad:
            y.float().sum().backward()
            assert all(t.grad is None or bool(t.grad.isfinite().all()) for t in tensors.values())

    check()


# --- what is not a number ---


@OF_IMAGES
def test_what_is_not_a_number_is_never_swallowed(name: str) -> None:
    case = CASES[name]

    @examples(2)
    @given(uses(case), st.sampled_from([torch.float32, torch.float64]))
    def check(use: Use, dtype: torch.dtype) -> None:
        settings = use.settings | ({"training": False} if "training" in use.settings else {})
        bound = case.bind(settings, dtype)
        if isinstance(bound, nn.Module):
            bound.eval()
        tensors = operands(case, use, "moderate", dtype)
        if len(use.tensors["x"]) < 3:
            return
        tensors["x"][0] = math.nan  # the first image
        y = case.run(bound, tensors)
        assert bool(y[0].isnan().any())
        assert bool(y[1:].isfinite().all())

    check()


SINGLE = [name for name in sorted(CASES) if re.search("pool|projection|magnitude", name.lower())]


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "vector_field_variance"])
def test_one_pixel_that_is_not_a_number_is_never_swallowed(name: str) -> None:
    case = CASES[name]

    @examples(5)
    @given(uses(case))
    def check(use: Use) -> None:
        tensors = operands(case, use, "moderate")
        tensors["x"].view(-1)[0] = math.nan
        for tracked in (False, True):
            y = case.run(case.bind(use.settings), {"x": tensors["x"].clone().requires_grad_(tracked)})
            assert bool(y.reshape(-1)[0].isnan())

    check()
