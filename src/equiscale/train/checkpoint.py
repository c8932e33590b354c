"""Checkpoints as safetensors: loading one never executes code."""

import json
import math
import struct
from pathlib import Path
from typing import Any, Never

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from equiscale._files import atomic_path
from equiscale.errors import CheckpointError

_FORMAT = "equiscale-checkpoint-2"
_MOST_HEADER = 2**24
# What safetensors raises beside its own error: for types of tensors that torch lacks, and odd names.
_DAMAGES = (
    OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, MemoryError
)  # fmt: skip


def storable(tensor: Tensor) -> Tensor:
    """A copy as safetensors takes it: on the CPU, contiguous, and sharing memory with nothing."""
    return tensor.detach().contiguous().cpu().clone()


def save_checkpoint(
    path: Path, groups: dict[str, dict[str, Tensor]], *, identity: str, progress: dict[str, Any]
) -> None:
    """Write named groups of tensors and the progress atomically.

    Args:
        path: The file.
        groups: For example ``{"model": …, "best": …, "optimizer": …}``.
        identity: What was trained; `load_checkpoint` refuses another.
        progress: JSON values.
    """
    tensors = {
        f"{group}/{name}": storable(tensor)
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    metadata = {"format": _FORMAT, "identity": identity, "progress": json.dumps(progress)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # whose errors are the system's


def load_checkpoint(path: Path, *, identity: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Returns:
        The groups of tensors, on the CPU, and the progress.

    Raises:
        CheckpointError: If the file is damaged, of another format, or of another training.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        progress = json.loads(
            metadata.get("progress", "null"), parse_constant=_not_finite, parse_float=_finite
        )
    except _DAMAGES as error:
        raise CheckpointError(
            f"expected a checkpoint in {path}, got: {error}; delete it to start anew"
        ) from error
    if metadata.get("format") != _FORMAT or not isinstance(progress, dict):
        raise CheckpointError(
            f"expected the format {_FORMAT} in {path}, got {metadata.get('format')!r}; "
            "delete it to start anew"
        )
    if metadata.get("identity") != identity:
        raise CheckpointError(
            f"expected a checkpoint of {identity} in {path}, got one of {metadata.get('identity')!r}; "
            "delete it to start anew"
        )
    return _regroup(tensors), progress


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``index/name`` tensors; what is None, as plain SGD's momentum, is left out."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value
        for index, entry in state.items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimiser of the same parameters.

    Raises:
        ValueError: If a tensor belongs to none of its parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"expected one of {len(parameters)} parameters, got {key!r}")
        state.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_header(path: Path) -> None:
    """The library would take a header of a hundred megabytes to pieces."""
    with open(path, "rb") as stream:
        start = stream.read(8)
    if len(start) == 8 and struct.unpack("<Q", start)[0] > _MOST_HEADER:
        raise ValueError(f"a header of more than {_MOST_HEADER} bytes")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _not_finite(text)


def _not_finite(text: str) -> Never:
    raise ValueError(f"{text[:20]} is not finite")


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """The file holds contiguous tensors; the optimiser had them in the memory layout of the parameter."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value).detach()


def _regroup(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups
