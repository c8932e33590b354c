"""From a suite and a selection to the list of its runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TypeVar

from equiscale.errors import SettingError
from equiscale.experiments.records import RunSettings
from equiscale.experiments.spec import Augmentation, Suite, Treatment

# Two numbers of three digits: nothing here is numbered higher, and a typing error makes no endless list.
_LONGEST_RANGE = len(" 000-999")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Selection:
    """Which runs of a suite; None: all.

    Args:
        models: A shell pattern for the networks' names.
        augment: Augmentations.
        datasets: A shell pattern for the data sets' names.
        realisations: Realisations of the data sets.
        epochs: Another number of epochs; the learning rate's steps move in proportion.
    """

    models: str = "*"
    augment: Sequence[Augmentation] | None = None
    realisations: Sequence[int] | None = None
    epochs: int | None = None
    datasets: str = "*"


def plan_runs(suite: Suite, selection: Selection | None = None) -> list[RunSettings]:
    """Every network with every augmentation on every realisation; what the table shows comes first.

    A suite with several data sets has the runs that its table shows, and no others.

    Raises:
        SettingError: If the selection names what the suite does not have.

    Example:
        >>> from equiscale.experiments.spec import load_suite
        >>> len(plan_runs(load_suite("digits-scale")))
        9
    """
    chosen = selection or Selection()
    models = _matching("a model", chosen.models, suite.models)
    datasets = _matching("a data set", chosen.datasets, suite.datasets)
    augmentations = _subset("augment", chosen.augment, suite.augmentations)
    realisations = _subset("realisations", chosen.realisations, suite.realisations)
    protocol = suite.protocol if chosen.epochs is None else suite.protocol.cut(chosen.epochs)
    runs = [
        RunSettings(
            suite=suite.name,
            dataset=treatment.dataset,
            model=treatment.model,
            augment=augment,
            realisation=realisation,
            protocol=protocol,
            overrides=treatment.overrides,
        )
        for realisation in realisations
        for augment in augmentations
        for treatment in _treatments(suite, augment)
        if treatment.model in models and treatment.dataset in datasets
    ]
    return sorted(runs, key=lambda run: run.treatment not in suite.treatments)


def _treatments(suite: Suite, augment: Augmentation) -> list[Treatment]:
    """What is run with an augmentation: all networks, where there is only one data set."""
    if len(suite.datasets) == 1:
        crossed = (treatment._replace(augment=augment) for treatment in suite.treatments)
        return list(dict.fromkeys(crossed))
    return [treatment for treatment in suite.treatments if treatment.augment == augment]


def parse_numbers(text: str) -> list[int]:
    """Numbers and ranges, as in ``0-2,5``.

    Raises:
        SettingError: If the text is something else.

    Example:
        >>> parse_numbers("0-2,5")
        [0, 1, 2, 5]
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > _LONGEST_RANGE:
            raise SettingError(f"expected numbers and ranges such as 0-2,5, got {text!r}")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _matching(kind: str, pattern: str, available: Sequence[str]) -> list[str]:
    matches = [name for name in available if fnmatch(name, pattern)]
    if not matches:
        raise SettingError(
            f"expected a pattern that matches {kind} of {', '.join(available)}, got {pattern!r}"
        )
    return matches


def _subset(name: str, chosen: Sequence[_Value] | None, available: Sequence[_Value]) -> list[_Value]:
    missing = [value for value in chosen or () if value not in available]
    if missing or (chosen is not None and not chosen):
        raise SettingError(f"expected {name} of {list(available)}, got {list(chosen or ())}")
    return list(dict.fromkeys(chosen if chosen is not None else available))
