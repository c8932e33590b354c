"""A benchmark against an older one: what became slower or larger beyond the noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod
from typing import Final, Literal, NamedTuple

from equiscale.errors import SettingError
from equiscale.experiments.benchmark.record import (
    MODES,
    BenchmarkRecord,
    BenchmarkSettings,
    Kind,
    Mode,
    ModelResult,
    Probes,
    Timing,
)

_TOLERANCE: Final = 1.05
_SMALL_BYTES: Final = 8 * 2**20  # the resident memory of two equal runs differs by less
_SAME: Final = ("device", "threads", "precision", "keep_memory")

Quantity = Literal["time", "memory"]


class Range(NamedTuple):
    """A median between its quartiles; of memory all three are the one measurement.

    Memory is infinite where it could not be measured.
    """

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Change:
    """One quantity of one kind of one network, then and now.

    Args:
        model: The network.
        kind: Which kind of it.
        mode: In training or in evaluation.
        quantity: "time" in seconds, or "memory" in bytes.
        old: Then.
        new: Now.
        drift: How many times as long the machine's own probes take now; 1 for memory.
    """

    model: str
    kind: Kind
    mode: Mode
    quantity: Quantity
    old: Range
    new: Range
    drift: float

    @property
    def ratio(self) -> float:
        """New over old, as measured."""
        return self.new.median / self.old.median

    @property
    def verdict(self) -> Literal["worse", "better", "same"]:
        """Whether it changed by more than 5 % and more than the noise, after the machine's drift.

        More than the noise: the quartile ranges lie apart. For memory: by more than 8 MiB.
        """
        new = Range(*(value / self.drift for value in self.new))
        if self.quantity == "memory" and abs(new.median - self.old.median) < _SMALL_BYTES:
            return "same"
        if new.median > self.old.median * _TOLERANCE and new.low > self.old.high:
            return "worse"
        return "better" if new.median * _TOLERANCE < self.old.median and new.high < self.old.low else "same"

    @property
    def is_regression(self) -> bool:
        """Whether it became worse, and equiscale can have made it so: not in the public code."""
        return self.verdict == "worse" and self.kind != "peer"


def check_comparable(old: BenchmarkSettings, new: BenchmarkSettings) -> None:
    """Raise unless two benchmarks measure the same way.

    Raises:
        SettingError: If they differ in device, threads, precision or memory settings, or have no network
            in common.
    """
    for name in _SAME:
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise SettingError(
                f"expected {name}={before}, as in the older record, got {now}; measure with the same settings"
            )
    if not set(old.models) & set(new.models):
        raise SettingError(
            f"expected a network of the older record ({', '.join(old.models)}), got {', '.join(new.models)}"
        )


def compare(old: BenchmarkRecord, new: BenchmarkRecord) -> list[Change]:
    """Every quantity that both records have of a network with the same number of images a step.

    Memory that only the older one has is a change too, if the new one was to measure it: the process that
    should have done so failed, perhaps for want of memory.

    Raises:
        SettingError: If the records cannot be compared, or nothing was measured alike.
    """
    check_comparable(old.settings, new.settings)
    before = {(result.model, result.batch_size): result for result in old.models}
    changes = [
        change
        for result in new.models
        if (result.model, result.batch_size) in before
        for change in _changes(before[result.model, result.batch_size], result, memory=new.settings.memory)
    ]
    if not changes:
        raise SettingError(
            "expected a network with as many images a step as in the older record, got none; "
            "measure with the same --batch-size"
        )
    return changes


def missing_kinds(old: BenchmarkRecord, new: BenchmarkRecord) -> list[tuple[str, Kind]]:
    """Which kinds of which networks the older record has, and the new one of the same network has not."""
    now = {result.model: result for result in new.models}
    return [
        (result.model, kind.kind)
        for result in old.models
        if result.model in now
        for kind in result.kinds
        if now[result.model].kind(kind.kind) is None
    ]


def _changes(old: ModelResult, new: ModelResult, *, memory: bool) -> Iterator[Change]:
    for now in new.kinds:
        then = old.kind(now.kind)
        if then is None:
            continue
        for mode in MODES:
            drift = _drift(old.probes[mode], new.probes[mode])
            times = (_range(then.mode(mode).seconds), _range(now.mode(mode).seconds))
            yield Change(new.model, now.kind, mode, "time", *times, drift)
            then_and_now = then.mode(mode).peak_bytes, now.mode(mode).peak_bytes
            if memory or then_and_now[1] is not None:
                yield from _memory_change(new.model, now.kind, mode, *then_and_now)


def _memory_change(model: str, kind: Kind, mode: Mode, then: int | None, now: int | None) -> Iterator[Change]:
    """What was wanted and is missing now is taken for more memory than there is."""
    size = inf if now is None else now
    if then:
        yield Change(model, kind, mode, "memory", Range(then, then, then), Range(size, size, size), 1.0)


def _range(timing: Timing) -> Range:
    return Range(timing.quartile_1, timing.median, timing.quartile_3)


def _drift(old: Probes, new: Probes) -> float:
    """The geometric mean of how much longer each probe takes."""
    pairs = [(getattr(old, name), getattr(new, name)) for name in type(old).model_fields]
    return float(prod(now.median / then.median for then, now in pairs) ** (1 / len(pairs)))
