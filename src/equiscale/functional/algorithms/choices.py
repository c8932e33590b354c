"""Choices of algorithms that were measured: in memory, and in a file read at the first convolution."""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from equiscale import __version__
from equiscale._files import atomic_path, user_cache
from equiscale._machine import processor_name
from equiscale.errors import SettingError
from equiscale.functional.algorithms.convolution import Convolution

FOLDER_VARIABLE: Final = "EQUISCALE_CACHE_DIR"
SWITCH_VARIABLE: Final = "EQUISCALE_AUTOTUNE"
_FILE: Final = "autotune.json"
_FORMAT: Final = 1
_MOST_BYTES = 1 << 26


class Place(NamedTuple):
    """Where and by what a convolution is computed.

    Args:
        processor: Its model.
        device: "cpu", or the accelerator's model.
        threads: That torch uses on the processor.
        torch: Its version.
        equiscale: Its version.
    """

    processor: str
    device: str
    threads: int
    torch: str
    equiscale: str


class Problem(NamedTuple):
    """What decides how long a convolution takes, but for the place: shapes and types, and no values.

    Args:
        x: Shape of the input, ``(B, C, H, W)`` or ``(B, C, S, H, W)``.
        weight: Shape of the weights, ``(C', C / groups, N, F)``.
        windows: Side of the filters' window on every scale.
        kernel_size: K.
        stride: Step in pixels.
        padding: Pixels on each side.
        padding_mode: What they are.
        scale_padding: What lies beyond the largest scale.
        groups: Groups of channels.
        projection: "max", or None for the scale map.
        bias: Whether one is added before the maximum.
        dtypes: Of the input and of the weights.
        autocast: Its type, or None.
        gradients: Which of x, weight and basis want one; none in evaluation.
        keeps: Whether a layer keeps what is made from the basis, and in evaluation the filters.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    windows: tuple[int, ...]
    kernel_size: int
    stride: int
    padding: int
    padding_mode: str
    scale_padding: str
    groups: int
    projection: str | None
    bias: bool
    dtypes: tuple[str, ...]
    autocast: str | None
    gradients: tuple[str, ...]
    keeps: bool


@dataclass(frozen=True)
class Choice:
    """The fastest algorithm of a problem.

    Args:
        algorithm: Its name.
        seconds: The median time of each algorithm that was measured; None for those that failed.
    """

    algorithm: str
    seconds: Mapping[str, float | None]


Key: TypeAlias = tuple[Place, Problem]


class ChoiceTable:
    """What was measured so far.

    Example:
        >>> ChoiceTable({}).known
        {}
    """

    def __init__(self, known: dict[Key, Choice] | None = None) -> None:
        self.version, self._known = 0, known

    @property
    def known(self) -> Mapping[Key, Choice]:
        """All choices; from the file, when nobody has asked before."""
        return self._loaded()

    def add(self, found: Mapping[Key, Choice]) -> Path | None:
        """Remember choices, also in the file; returns its path, or None where there is none.

        What other processes have written meanwhile stays in it, and wins for the processes to come.
        """
        self._loaded().update(found)
        self.version += 1
        path = choices_file()
        if path is None:
            return None
        try:
            _write(path, {**self.known, **_read_or_warn(path)})
        except OSError as error:
            warnings.warn(
                f"expected a folder for {path} that can be written, got {error}; what was measured holds for "
                f"this process alone; set {FOLDER_VARIABLE}",
                stacklevel=3,
            )
            return None
        return path

    def clear(self) -> None:
        """Forget all, also in the file."""
        self._known = {}
        self.version += 1
        path = choices_file()
        if path is not None:
            path.unlink(missing_ok=True)

    def _loaded(self) -> dict[Key, Choice]:
        if self._known is None:
            path = choices_file()
            self._known = {} if path is None else _read_or_warn(path)
        return self._known


TABLE: Final = ChoiceTable()


def choices_file() -> Path | None:
    """The file of measured choices; None where ``EQUISCALE_AUTOTUNE`` is "off".

    It is ``autotune.json`` in the folder ``EQUISCALE_CACHE_DIR``, or else in ``equiscale`` in
    ``XDG_CACHE_HOME``, or else in ``~/.cache/equiscale``.

    Raises:
        SettingError: If ``EQUISCALE_AUTOTUNE`` is neither "on" nor "off".

    Example:
        >>> path = choices_file()
        >>> path is None or path.name == "autotune.json"
        True
    """
    switch = os.environ.get(SWITCH_VARIABLE) or "on"
    if switch not in ("on", "off"):
        raise SettingError(f"expected {SWITCH_VARIABLE} to be 'on' or 'off', got {switch!r}")
    if switch == "off":
        return None
    chosen = os.environ.get(FOLDER_VARIABLE)
    return (Path(chosen).expanduser().absolute() if chosen else user_cache()) / _FILE


def fastest_measured(convolution: Convolution) -> str | None:
    """The algorithm that was measured to be the fastest for such a convolution, if it was."""
    version = TABLE.version
    return _look_up(facts(convolution), convolution.x.device, version) if _any_known(version) else None


def facts(convolution: Convolution) -> tuple[Any, ...]:
    """The fields of a `Problem`, with types that are still torch's own."""
    x, weight, geometry = convolution.x, convolution.weight, convolution.geometry
    kind = x.device.type
    operands = (("x", x), ("weight", weight), ("basis", convolution.basis))
    wanted = [name for name, operand in operands if operand.requires_grad] if torch.is_grad_enabled() else []
    return (
        tuple(map(index, x.shape)),  # a compiler's free sizes get their values here
        tuple(weight.shape),
        tuple(map(index, convolution.sides)),
        convolution.kernel_size,
        geometry.stride,
        geometry.margin(convolution.kernel_size),
        geometry.padding_mode,
        geometry.scale_padding,
        geometry.groups,
        geometry.projection,
        convolution.bias is not None,
        (x.dtype, weight.dtype),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        tuple(wanted),
        convolution.cache is not None,
    )


def problem_of(convolution: Convolution) -> Problem:
    """What is looked up for a convolution."""
    return _problem(facts(convolution))


def place_of(device: torch.device) -> Place:
    """Where convolutions on a device are computed now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Place(processor_name(), name, torch.get_num_threads(), str(torch.__version__), __version__)


def _problem(found: tuple[Any, ...]) -> Problem:
    made = Problem(*found)
    return made._replace(
        dtypes=tuple(map(_dtype_name, found[Problem._fields.index("dtypes")])),
        autocast=_dtype_name(made.autocast) if made.autocast else None,
    )


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _any_known(_version: int) -> bool:
    return bool(TABLE.known)


def _look_up(found: tuple[Any, ...], device: torch.device, _version: int) -> str | None:
    choice = TABLE.known.get((place_of(device), _problem(found)))
    return None if choice is None else choice.algorithm


# A compiler takes these answers for constants until the version changes, and does not follow how they were
# found: what torch.compiler.assume_constant_result does, which would import the compiler.
for _function in (_any_known, _look_up):
    setattr(_function, "_dynamo_marked_constant", True)  # noqa: B010 (types know no attributes of functions)


def _read_or_warn(path: Path) -> dict[Key, Choice]:
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"expected measured choices of equiscale.autotune in {path}, got a file that cannot be used "
            f"({type(error).__name__}: {error}); it is ignored until equiscale.autotune writes it anew",
            stacklevel=2,
        )
        return {}


def _read(path: Path) -> dict[Key, Choice]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {_FORMAT}")
    return dict(_parse(entry) for entry in content["choices"])


def _parse(entry: Mapping[str, Any]) -> tuple[Key, Choice]:
    place = Place(**entry["place"])
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["problem"].items()
    }
    problem = Problem(**fields)
    algorithm, seconds = entry["algorithm"], dict(entry["seconds"])
    if seconds.get(algorithm) is None or not all(isinstance(s, float | None) for s in seconds.values()):
        raise ValueError(f"no time of the chosen algorithm {algorithm!r}")
    hash((place, problem))
    return (place, problem), Choice(algorithm, seconds)


def _write(path: Path, choices: Mapping[Key, Choice]) -> None:
    entries = [
        {
            "place": place._asdict(),
            "problem": problem._asdict(),
            "algorithm": choice.algorithm,
            "seconds": dict(choice.seconds),
        }
        for (place, problem), choice in choices.items()
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"format": _FORMAT, "choices": entries}, indent=1) + "\n", "utf-8")
