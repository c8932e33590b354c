"""Networks as safetensors files: what is written, and what is checked before a tensor is read."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from equiscale import __version__
from equiscale._files import atomic_path
from equiscale.errors import CheckpointError, SettingError
from equiscale.models.settings_json import SettingsJsonError, read_object, shown

FORMAT: Final = "equiscale-model-1"
_FAMILY: Final = FORMAT.rpartition("-")[0]
_TRAINING: Final = "equiscale-checkpoint-"
_MOST_HEADER: Final = 2**23
_STORED: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOATS: Final = ("F16", "BF16", "F32", "F64")
_INTEGERS: Final = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
_SHOWN: Final = 5
# What safetensors raises beside its own error: for types of tensors that torch lacks, and odd names.
_DAMAGES: Final = (
    OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, MemoryError
)  # fmt: skip
_ANEW: Final = "the file is damaged or was changed; get it anew"


@dataclass(frozen=True)
class WeightsFile:
    """What the header of a network's file says.

    Args:
        path: The file.
        model: The registered name of the network.
        settings: Its settings as JSON.
        notes: What was noted when it was saved: JSON values by name.
        version: The equiscale that wrote it.
        digest: SHA-256 of everything else in the file, as hex digits.
        tensors: The stored type and the shape of every tensor, by name.
    """

    path: Path
    model: str
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]
    version: str
    digest: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def elements(self) -> int:
        """The numbers in all tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def write_file(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    model: str,
    settings: Mapping[str, Any],
    notes: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> None:
    """Write a state dict with its network's name and settings, atomically.

    Args:
        path: The file.
        state: The tensors by name.
        model: The registered name.
        settings: As JSON.
        notes: JSON values by name.
        dtype: In which weights of two and more axes are stored; None: as they are.

    Raises:
        SettingError: For another dtype, or notes that have no JSON form.
        CheckpointError: If a tensor is not finite, or not in this dtype.
    """
    if dtype is not None and dtype not in _STORED:
        known = ", ".join(map(str, _STORED))
        raise SettingError(
            f"expected a dtype of {known} or None, got {dtype}; leave it out to keep all types"
        )
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    metadata = {
        "format": FORMAT,
        "equiscale": __version__,
        "model": model,
        "settings": json.dumps(settings, allow_nan=False),
        "notes": _encoded_notes(notes),
    }
    metadata["digest"] = digest_of(metadata, tensors)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # whose errors are the system's


def read_header(path: Path) -> WeightsFile:
    """Read everything but the tensors.

    Raises:
        CheckpointError: If it is no file of a network, or a damaged one.
    """
    path = Path(path)
    _check_header_size(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        _check_format(path, metadata)
        tensors = {name: _described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (no dict)
    missing = sorted({"model", "settings", "notes", "equiscale", "digest"} - set(metadata))
    if missing:
        raise CheckpointError(f"expected {', '.join(missing)} in the header of {path}, got none; {_ANEW}")
    try:
        settings, notes = (read_object(metadata[name], name) for name in ("settings", "notes"))
    except SettingsJsonError as problem:
        raise CheckpointError(f"{path}: {problem}; {_ANEW}") from problem
    model, version, digest = (metadata[name] for name in ("model", "equiscale", "digest"))
    return WeightsFile(path, model, settings, notes, version, digest, tensors)


def fill(network: nn.Module, file: WeightsFile) -> None:
    """Load the tensors of a file into the network that its header describes.

    Raises:
        CheckpointError: Unless the file holds exactly the network's tensors, finite, and as they were
            saved. Nothing is loaded then.
    """
    complaints = list(misfits(network.state_dict(), file.tensors))
    if complaints:
        found = ", ".join(complaints[:_SHOWN])
        more = f" and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
        raise CheckpointError(
            f"expected the tensors of {file.model!r} in {file.path}, got {found}{more}; {_ANEW}"
        )
    with _opened(file.path) as opened:
        tensors = {name: opened.get_tensor(name) for name in file.tensors}
        _check_digest(file, opened.metadata() or {}, tensors)
        _check_finite(tensors, str(file.path), _ANEW)
        network.load_state_dict(tensors, strict=True)


def misfits(expected: Mapping[str, Tensor], got: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[str]:
    """What is missing, additional, or of another shape or type."""
    yield from (f"no {name}" for name in expected if name not in got)
    yield from (f"an additional {shown(name)}" for name in got if name not in expected)
    for name in (name for name in expected if name in got):
        dtype, shape = got[name]
        if shape != tuple(expected[name].shape):
            yield f"{name} of shape {shape} instead of {tuple(expected[name].shape)}"
        elif dtype not in _types(expected[name].dtype):
            yield f"{name} of type {dtype} instead of {' or '.join(_types(expected[name].dtype))}"


def digest_of(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header's entries but the digest itself, and over all tensors, as hex digits."""
    entries = {name: text for name, text in metadata.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode(errors="surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy on the CPU; biases, norms and counters are small and keep their type."""
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if tensor.is_floating_point():
        _check_finite({name: tensor}, "the network", "nothing was saved")
        if dtype is not None and tensor.ndim >= 2:
            tensor = tensor.to(dtype)
            _check_finite({name: tensor}, str(dtype), "nothing was saved; use torch.bfloat16 or no dtype")
    return tensor


def _check_finite(tensors: Mapping[str, Tensor], where: str, cure: str) -> None:
    for name, tensor in tensors.items():
        broken = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if broken:
            raise CheckpointError(
                f"expected finite numbers in {name} in {where}, got {broken} that are not; {cure}"
            )


def _encoded_notes(notes: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(notes), allow_nan=False)
        read_object(text, "notes")
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"expected JSON values as notes, got: {error}; use text and finite numbers"
        ) from error
    return text


def _check_header_size(path: Path) -> None:
    """Ours are a few kilobytes; the reader would take a hundred megabytes to pieces."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise CheckpointError(
            f"expected a network's file at {path}, got: {error.strerror or error}; check the path"
        ) from error
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < size <= _MOST_HEADER:
        raise CheckpointError(
            f"expected a safetensors file at {path}, got a header of {size} bytes; save a network with "
            "equiscale.save, a file of another kind cannot be loaded"
        )


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    found = metadata.get("format", "")
    if found == FORMAT:
        return
    if found.startswith(f"{_FAMILY}-"):
        raise CheckpointError(
            f"expected the format {FORMAT} in {path}, got {shown(found)}; upgrade equiscale"
        )
    if found.startswith(_TRAINING):
        raise CheckpointError(
            f"expected a network's file at {path}, got the checkpoint of an unfinished training; finish it, "
            "or load the weights of a finished run"
        )
    raise CheckpointError(
        f"expected a file of equiscale.save at {path}, got tensors without a network's name and settings; "
        "build the network with create_model and load them with "
        "load_state_dict(safetensors.torch.load_file(path)), or a published checkpoint with "
        "load_published_state_dict"
    )


def _check_digest(file: WeightsFile, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    found = digest_of(metadata, tensors)
    if found != file.digest:
        raise CheckpointError(
            f"expected the SHA-256 {shown(file.digest)} of what is in {file.path}, got {found}; {_ANEW}"
        )


def _described(stored: Any) -> tuple[str, tuple[int, ...]]:
    return str(stored.get_dtype()), tuple(stored.get_shape())


def _types(dtype: torch.dtype) -> tuple[str, ...]:
    """The stored types that a tensor of this type may have."""
    return _FLOATS if dtype.is_floating_point else (_INTEGERS.get(dtype, "no type"),)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except _DAMAGES as error:
        raise CheckpointError(
            f"expected a complete safetensors file at {path}, got: {error}; get it anew"
        ) from error
