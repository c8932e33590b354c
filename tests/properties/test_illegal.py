"""Whatever is illegal is refused with a typed error that says what was expected and what came."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from equiscale import functional
from equiscale.errors import EquiscaleError
from tests.properties.cases import CASES, Case, Use, uses
from tests.properties.illegal import FREE, kind, parameters, resized, wrong_settings, wrong_types
from tests.properties.values import examples, operands

EVERY_CASE = pytest.mark.parametrize("name", sorted(CASES))


@EVERY_CASE
def test_every_setting_has_illegal_values_or_is_free(name: str) -> None:
    case = CASES[name]
    tensors = {"x", "input", "weight", "variance", "real", "imag", "mult_real", "mult_imag"}
    assert [p for p in parameters(case) if kind(case, p) is None and p not in {*FREE, *tensors}] == []


def refusal(call: Callable[[], Any], what: str) -> str | None:
    """What is wrong with a refusal; None where it is a typed error with both words."""
    try:
        call()
    except EquiscaleError as error:
        text = str(error)
        return None if "expected" in text and "got" in text else f"{what}: {text!r} lacks a word"
    except Exception as error:  # noqa: BLE001 (whatever else comes is what is looked for)
        return f"{what}: {type(error).__name__}: {error}"
    return f"{what}: accepted"


@EVERY_CASE
def test_illegal_settings_are_refused(name: str) -> None:
    case = CASES[name]

    @examples(1)
    @given(uses(case))
    def check(use: Use) -> None:
        tensors = operands(case, use, "moderate")

        def call(parameter: str, value: Any) -> None:
            bound = case.bind({**use.settings, parameter: value})
            if not case.is_layer:
                case.run(bound, tensors)

        found = [
            refusal(lambda: call(parameter, value), f"{parameter}={value!r}")  # noqa: B023 (called at once)
            for parameter, value in wrong_settings(case, use)
        ]
        assert [text for text in found if text] == []

    check()


@EVERY_CASE
def test_what_is_no_tensor_of_floating_point_numbers_is_refused(name: str) -> None:
    case = CASES[name]

    @examples(1)
    @given(uses(case))
    def check(use: Use) -> None:
        bound, tensors = case.bind(use.settings), operands(case, use, "moderate")
        found = [
            refusal(lambda: case.run(bound, {**tensors, key: wrong}), f"{key}: {what}")  # noqa: B023
            for key, tensor in tensors.items()
            for what, wrong in wrong_types(tensor).items()
        ]
        assert [text for text in found if text] == []

    check()


@EVERY_CASE
def test_tensors_of_two_types_or_devices_are_refused(name: str) -> None:
    case = CASES[name]

    @examples(1)
    @given(uses(case))
    def check(use: Use) -> None:
        bound, tensors = case.bind(use.settings), operands(case, use, "moderate")
        if not has_partners(case, use) or name in MIXED or name in OF_MODULES:
            return
        strange = {"float64": tensors["x"].double(), "meta": tensors["x"].to("meta")}
        found = [
            refusal(lambda: case.run(bound, {**tensors, "x": wrong}), what)  # noqa: B023
            for what, wrong in strange.items()
        ]
        assert [text for text in found if text] == []

    check()


# Their gains may be of a wider type than the vectors.
MIXED = {"vector_field_batch_norm2d", "VectorFieldBatchNorm2d"}


def has_partners(case: Case, use: Use) -> bool:
    return "x" in use.tensors and (len(use.tensors) > 1 or "in_channels" in use.settings)


@EVERY_CASE
def test_other_shapes_work_or_are_refused(name: str) -> None:
    """One axis a pixel longer or shorter, empty, or missing: never an error from within torch."""
    case = CASES[name]

    @examples(2)
    @given(uses(case))
    def check(use: Use) -> None:
        if name in OF_MODULES:
            return
        bound, tensors = case.bind(use.settings), operands(case, use, "moderate")
        found = []
        for key, tensor in tensors.items():
            for what, wrong in resized(tensor).items():
                text = refusal(lambda: finite(case.run(bound, {**tensors, key: wrong})), f"{key}: {what}")  # noqa: B023
                found.append(text)
        assert [text for text in found if text and not text.endswith("accepted")] == []

    check()


def finite(result: Any) -> None:
    result = torch.tensor(result) if isinstance(result, tuple) else result
    assert bool(result.isfinite().all()), "not finite"


@EVERY_CASE
def test_other_channels_are_refused_where_there_are_weights(name: str) -> None:
    case = CASES[name]

    @examples(2)
    @given(uses(case))
    def check(use: Use) -> None:
        if not has_partners(case, use) or name in OF_MODULES:
            return
        bound, tensors = case.bind(use.settings), operands(case, use, "moderate")
        more = torch.cat([tensors["x"], tensors["x"][:, :1]], 1)
        assert refusal(lambda: case.run(bound, {**tensors, "x": more}), "a channel more") is None

    check()


# What their module refuses, it refuses in its own words.
OF_MODULES = {"InputPyramid", "input_pyramid", "ScaleWise"}


def test_a_refusal_is_told_from_other_errors() -> None:
    """The control: what the properties count as a defect is one."""
    assert "accepted" in (refusal(lambda: None, "nothing") or "")
    assert "RuntimeError" in (refusal(lambda: torch.zeros(2) @ torch.zeros(3), "torch") or "")
    with contextlib.suppress(EquiscaleError):
        functional.scale_projection(np.zeros((1, 1, 1, 1, 1)))
    assert refusal(lambda: functional.scale_projection(torch.zeros(2)), "a vector") is None
