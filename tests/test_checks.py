"""The one answer to what a number is, for bases and for everything that takes tensors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from equiscale import _checks
from equiscale.basis import sampling
from equiscale.functional import checks


@pytest.mark.parametrize("value", [1, 3, 2**31 - 1, np.int8(3), np.uint64(3)], ids=repr)
def test_whole_numbers(value: Any) -> None:
    assert _checks.is_whole(value)
    assert _checks.is_whole(value, int(value))
    assert not _checks.is_whole(value, int(value) + 1)
    assert _checks.is_number(value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        2**31,
        2**64,
        True,
        np.True_,
        1.0,
        np.float64(1),
        math.nan,
        "1",
        b"1",
        None,
        [1],
        1j,
        torch.tensor(1),
    ],
    ids=repr,
)
def test_what_is_no_whole_number_from_one(value: Any) -> None:
    assert not _checks.is_whole(value)


def test_zero_is_whole_where_it_is_asked_for() -> None:
    assert _checks.is_whole(0, 0)
    assert not _checks.is_whole(False, 0)
    assert not _checks.is_whole(-1, 0)


@pytest.mark.parametrize(
    "value", [0.5, -1, math.nan, math.inf, np.float16(1), 10**400], ids=lambda v: str(v)[:9]
)
def test_numbers_be_they_finite_or_not(value: Any) -> None:
    assert _checks.is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, [1.0], 1j, torch.tensor(1.0)], ids=repr)
def test_what_is_no_number(value: Any) -> None:
    assert not _checks.is_number(value)


def test_bases_and_operations_have_the_same_answer() -> None:
    assert sampling.is_whole is checks.is_whole is _checks.is_whole
    assert sampling.is_number is checks.is_number is _checks.is_number


def test_a_size_that_a_compiler_leaves_free_is_whole() -> None:
    seen = []

    def count(x: torch.Tensor) -> torch.Tensor:
        seen.append((type(x.shape[0]), bool(_checks.is_whole(x.shape[0]))))
        return x + 1

    make_fx(count, tracing_mode="symbolic")(torch.ones(3))
    assert (torch.SymInt, True) in seen
