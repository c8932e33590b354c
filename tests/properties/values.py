"""Values of inputs that are finite and awkward, and how often the properties are tried."""

import math
import os
from collections.abc import Callable
from typing import Final

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

from tests.properties.cases import Case, Shape, Use

# Twenty times as many: EQUISCALE_PROPERTIES=many pytest tests/properties
_TIMES: Final = {"few": 1, "many": 20}[os.environ.get("EQUISCALE_PROPERTIES", "few")]

Fill = Callable[[Shape, float, torch.Generator], Tensor]


def examples(count: int) -> settings:
    """The same examples in every run."""
    return settings(
        max_examples=count * _TIMES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


def _mixed(shape: Shape, largest: float, generator: torch.Generator) -> Tensor:
    exponents = torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1  # of 1e-30 … largest
    reach = torch.where(exponents < 0, 30.0, math.log10(largest))
    return _moderate(shape, largest, generator) * 10 ** (exponents * reach) / 4


def _moderate(shape: Shape, largest: float, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    return values.clamp(-4, 4)


def _one_huge_pixel(shape: Shape, largest: float, generator: torch.Generator) -> Tensor:
    values = _moderate(shape, largest, generator)
    values.view(-1)[:1] = largest
    return values


FILLS: Final[dict[str, Fill]] = {
    "moderate": _moderate,
    "mixed magnitudes": _mixed,
    "zeros": lambda shape, *_: torch.zeros(shape, dtype=torch.float64),
    "negative zeros": lambda shape, *_: -torch.zeros(shape, dtype=torch.float64),
    "constant": lambda shape, *_: torch.full(shape, 3.7, dtype=torch.float64),
    "denormals": lambda *given: _moderate(*given) * 1e-41,
    "one huge pixel": _one_huge_pixel,
    "all huge": lambda *given: _moderate(*given) * given[1] / 4,
}


def operands(
    case: Case, use: Use, fill: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """The tensors of a use: the first filled as told, the others with moderate values or zeros."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for number, (name, shape) in enumerate(use.tensors.items()):
        strange = number == 0 or name == "skip" or fill == "zeros"  # zero weights are as legal as zero images
        how = FILLS[fill] if strange else _moderate
        values = how(shape, case.largest, generator)
        made[name] = case.domains.get(name, lambda given: given)(values).to(dtype)
    return made
