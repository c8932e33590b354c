"""From a suite and a selection to the list of its runs; and runs that belong to no suite."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TypeVar

from equiscale.errors import SettingError
from equiscale.experiments.records import RunSettings
from equiscale.experiments.spec import Augmentation, Overrides, Precision, Protocol, Scalar, Suite, Treatment

# Two numbers of three digits: nothing here is numbered higher, and a typing error makes no endless list.
_LONGEST_RANGE = len(" 000-999")

# The folder of the records of runs that belong to no suite.
AD_HOC_SUITE = "train"

# What a selection may replace in a protocol.
_NUMERICS = ("precision", "compile", "cuda_graphs", "deterministic")

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
        precision: Another precision.
        compile: Whether steps are compiled.
        cuda_graphs: Whether they are recorded as CUDA graphs.
        deterministic: Whether only algorithms are taken that give the same bits again.
    """

    models: str = "*"
    augment: Sequence[Augmentation] | None = None
    realisations: Sequence[int] | None = None
    epochs: int | None = None
    datasets: str = "*"
    precision: Precision | None = None
    compile: bool | None = None
    cuda_graphs: bool | None = None
    deterministic: bool | None = None


def plan_runs(suite: Suite, selection: Selection | None = None) -> list[RunSettings]:
    """Every network with every augmentation on every realisation; what the table shows comes first.

    A suite with several data sets has the runs that its table shows, and no others.

    Raises:
        SettingError: If the selection names what the suite does not have, or no run fits all of it.

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
    protocol = _numerics_replaced(suite.protocol, chosen)
    if chosen.epochs is not None:
        protocol = protocol.cut(chosen.epochs)
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
    if not runs:
        raise SettingError(
            f"expected a selection with runs in {suite.name}, got none of models {chosen.models!r} with "
            f"augment {', '.join(augmentations)} on data {chosen.datasets!r}; select more"
        )
    return sorted(runs, key=lambda run: run.treatment not in suite.treatments)


def _numerics_replaced(protocol: Protocol, chosen: Selection) -> Protocol:
    wanted = {name: getattr(chosen, name) for name in _NUMERICS}
    return protocol.model_copy(update={name: value for name, value in wanted.items() if value is not None})


def _treatments(suite: Suite, augment: Augmentation) -> list[Treatment]:
    """What is run with an augmentation: all networks, where there is only one data set."""
    if len(suite.datasets) == 1:
        crossed = (treatment._replace(augment=augment) for treatment in suite.treatments)
        return list(dict.fromkeys(crossed))
    return [treatment for treatment in suite.treatments if treatment.augment == augment]


def ad_hoc_run(treatment: Treatment, *, protocol: Protocol, realisation: int = 0) -> RunSettings:
    """A run that belongs to no suite.

    Example:
        >>> protocol = Protocol(epochs=1, batch_size=8, learning_rate=0.1, lr_steps=(), lr_gamma=0.1)
        >>> ad_hoc_run(Treatment("mnist_cnn_28", (), "none", "digits-scale"), protocol=protocol).suite
        'train'
    """
    return RunSettings(
        suite=AD_HOC_SUITE,
        dataset=treatment.dataset,
        model=treatment.model,
        augment=treatment.augment,
        realisation=realisation,
        protocol=protocol,
        overrides=treatment.overrides,
    )


def parse_overrides(assignments: Iterable[str]) -> tuple[tuple[str, Scalar | tuple[Scalar, ...]], ...]:
    """Settings of a network from ``name=value``: numbers, true, false, text, or a list with commas.

    Raises:
        SettingError: If a text is no assignment, or two are to one name.

    Example:
        >>> parse_overrides(["depth=10", "channels=8,8,16", "dropout=0.5"])
        (('channels', (8, 8, 16)), ('depth', 10), ('dropout', 0.5))
    """
    overrides: dict[str, Scalar | tuple[Scalar, ...]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not name.isidentifier() or not equals or name in overrides:
            raise SettingError(f"expected each setting once, as name=value, got {assignment!r}")
        parts = text.split(",")
        overrides[name] = _scalar(text) if len(parts) == 1 else tuple(map(_scalar, parts))
    return tuple(sorted(overrides.items()))


def format_overrides(overrides: Overrides) -> list[str]:
    """The inverse of `parse_overrides`.

    Example:
        >>> format_overrides((("channels", (8, 8, 16)), ("dropout", 0.5), ("nesterov", True)))
        ['channels=8,8,16', 'dropout=0.5', 'nesterov=true']
    """
    return [
        f"{name}={','.join(map(_text, value if isinstance(value, tuple) else (value,)))}"
        for name, value in overrides
    ]


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


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
