"""What is a number: the one answer for the settings of bases, operations and layers."""

from typing import Final, TypeGuard

import numpy as np
import torch

# What torch's kernels count with. Smaller sizes for which the memory is too small, the memory refuses.
_LARGEST: Final = 2**31 - 1


def is_whole(value: object, least: int = 1) -> TypeGuard[int]:
    """Whether a setting is a whole number from ``least`` to 2³¹ − 1; True and False are none."""
    whole = type(value) is int or (
        isinstance(value, int | np.integer | torch.SymInt) and not isinstance(value, bool)
    )
    return whole and least <= value <= _LARGEST  # type: ignore[operator]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a setting is a number, be it finite or not; True and False are none."""
    return isinstance(value, float | int | np.floating | np.integer) and not isinstance(value, bool)
