"""Numbers of the published implementations; see README.md."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class GoldenCase:
    config: dict[str, Any]
    arrays: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def parameters(self) -> dict[str, Tensor]:
        return self._named("param_")

    def parameter_gradients(self) -> dict[str, Tensor]:
        return self._named("grad_param_")

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)
        }


def golden_names(prefix: str) -> list[str]:
    """The cases whose names start like this; never none, or a test would silently run over nothing."""
    names = [name for name in _index() if name.startswith(prefix)]
    if not names:
        raise LookupError(f"no golden case starts with {prefix!r}")
    return names


def golden_case(name: str) -> GoldenCase:
    with np.load(_FOLDER / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return GoldenCase(_index()[name], arrays)


def _index() -> dict[str, dict[str, Any]]:
    return json.loads((_FOLDER / "index.json").read_text())
