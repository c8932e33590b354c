"""Checkpoints as safetensors: loading one never executes code."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from equiscale._files import atomic_path
from equiscale.errors import CheckpointError

_FORMAT = "equiscale-checkpoint-2"


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
        save_file(tensors, temporary, metadata)


def load_checkpoint(path: Path, *, identity: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Returns:
        The groups of tensors, on the CPU, and the progress.

    Raises:
        CheckpointError: If the file is damaged, of another format, or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        progress = json.loads(metadata.get("progress", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"expected a checkpoint in {path}, got: {error}; delete it to start anew"
        ) from error
    if metadata.get("format") != _FORMAT or not isinstance(progress, dict):
        raise CheckpointError(
            f"expected the format {_FORMAT} in {path}, got {metadata.get('format')}; delete it to start anew"
        )
    if metadata.get("identity") != identity:
        raise CheckpointError(
            f"expected a checkpoint of {identity} in {path}, got one of {metadata.get('identity')}; "
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
    """The inverse of `optimizer_tensors`, for an optimiser of the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
