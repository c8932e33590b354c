"""What every operation asks of its settings and tensors: types alone, and never values of tensors."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from equiscale._checks import is_number as is_number
from equiscale._checks import is_whole as is_whole
from equiscale.errors import SettingError, ShapeError


def is_odd(value: object) -> TypeGuard[int]:
    """Whether a setting is an odd whole number above 0."""
    return is_whole(value) and value % 2 == 1


def is_list(values: object) -> TypeGuard[Sequence[Any]]:
    """Whether a setting is a sequence, and no text."""
    return isinstance(values, list | tuple) or (isinstance(values, Sequence) and not isinstance(values, str))


def shown(values: object) -> object:
    """A sequence as a list, however it was given."""
    return list(values) if is_list(values) else values


def check_probability(prefix: str, p: float) -> None:
    """Raise a SettingError unless p is in [0, 1)."""
    if not (is_number(p) and 0 <= p < 1):
        raise SettingError(f"{prefix}expected a probability p with 0 <= p < 1, got {p!r}")


def check_norm_settings(eps: float, momentum: float | None) -> None:
    """Raise a SettingError unless eps is at least 0 and the momentum in [0, 1], or None."""
    if not (is_number(eps) and 0 <= eps < math.inf):
        raise SettingError(f"expected a finite eps of at least 0, got {eps!r}")
    if momentum is not None and not (is_number(momentum) and 0 <= momentum <= 1):
        raise SettingError(f"expected a momentum in [0, 1] or None, got {momentum!r}")


def check_odd(name: str, value: int) -> None:
    """Raise a SettingError unless the side of a filter is odd."""
    if not is_odd(value):
        raise SettingError(f"expected an odd {name}, got {value!r}; a centred filter needs a central pixel")


def check_tensor(name: str, x: object) -> None:
    """Raise a SettingError unless x is a tensor of floating-point numbers."""
    if not isinstance(x, Tensor):
        raise SettingError(
            f"{name}: expected a tensor, got {type(x).__name__}; make one with torch.as_tensor"
        )
    if not x.is_floating_point():
        raise SettingError(
            f"{name}: expected floating-point numbers, got {x.dtype}; convert them with .float()"
        )


def check_filled(name: str, x: object) -> None:
    """As `check_tensor`, and raise a ShapeError for an empty axis behind the first, that of images."""
    check_tensor(name, x)
    if isinstance(x, Tensor) and 0 in x.shape[1:]:
        raise ShapeError(f"{name}: expected no empty axis but the batch, got {tuple(x.shape)}")


def check_operands(name: str, x: Tensor, *others: Tensor | None) -> None:
    """Raise unless all are tensors of one floating-point type on one device, and none is empty but the input.

    Raises:
        SettingError: For another type or device.
        ShapeError: For an empty axis; that of the input's images may be empty.
    """
    check_filled(name, x)
    for other in others:
        if other is None:
            continue
        check_filled(name, other)
        if 0 in other.shape[:1]:
            raise ShapeError(f"{name}: expected no empty axis but the batch, got {tuple(other.shape)}")
        if other.device != x.device:
            raise SettingError(
                f"{name}: expected all tensors on {x.device}, as the input, got one on {other.device}; "
                "move the input or the module with .to(device)"
            )
        if other.dtype != x.dtype and not _cast(x, other):
            raise SettingError(
                f"{name}: expected all tensors of {x.dtype}, as the input, got one of {other.dtype}; "
                "convert the input or the module with .to(dtype)"
            )


def _cast(x: Tensor, other: Tensor) -> bool:
    """Whether autocast makes them of one type; it leaves float64 alone."""
    return torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, other.dtype)
