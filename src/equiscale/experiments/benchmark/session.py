"""A benchmark from its settings to its record, network by network: equal outputs, memory, then the clock."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from equiscale._machine import available_cores, keep_memory
from equiscale.errors import BenchmarkError, SettingError
from equiscale.experiments import provenance
from equiscale.experiments.benchmark.contenders import (
    DEFAULT_MODELS,
    Contender,
    Subject,
    check_equal,
    choose_models,
    default_batch,
    line_up,
)
from equiscale.experiments.benchmark.measure import (
    Step,
    interleave,
    machine_state,
    make_step,
    probe_sizes,
    probe_steps,
    probes_of,
    stopwatch,
)
from equiscale.experiments.benchmark.memory import MemoryTask, peak_in_own_process
from equiscale.experiments.benchmark.peer import PublicCode
from equiscale.experiments.benchmark.record import (
    MODES,
    BenchmarkRecord,
    BenchmarkSettings,
    Kind,
    KindResult,
    Measured,
    Mode,
    ModelResult,
    Peaks,
    Timing,
    make_settings,
    write_benchmark,
)
from equiscale.experiments.benchmark.work import Operation, operations, summary
from equiscale.experiments.runner import check_device
from equiscale.nn import SteerableConv2d

_PROBES = ("product", "convolution", "traffic")
_WORDS = {"train": "training", "evaluate": "evaluation"}


@dataclass(frozen=True)
class Listeners:
    """Who is told what happens.

    Args:
        on_stage: Gets a line about what is being done.
        on_model: Gets the record so far, each time that a network is done.
    """

    on_stage: Callable[[str], None] = lambda _: None
    on_model: Callable[[BenchmarkRecord], None] = lambda _: None


@dataclass
class _Raw:
    """What was measured of one network, before the machine's peak is known."""

    subject: Subject
    kinds: list[Kind]
    seconds: dict[Mode, dict[str, list[float]]] = field(default_factory=dict)
    work: dict[tuple[Kind, Mode], list[Operation]] = field(default_factory=dict)
    memory: dict[tuple[Kind, Mode], int] = field(default_factory=dict)
    algorithms: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_benchmark(
    settings: BenchmarkSettings,
    output: Path,
    *,
    peer: PublicCode | None = None,
    tell: Listeners | None = None,
) -> BenchmarkRecord:
    """Measure every network of the settings; the record is written anew each time that one is done.

    Of each network first the outputs of the kinds with the same weights are compared; then of each kind the
    peak memory of a training step and of an evaluation, in processes of their own; then, in this process,
    the time of both, interleaved over all kinds and with the probes of the machine between them.

    Must be called under ``if __name__ == "__main__":``, as everything that starts processes.

    Args:
        settings: What to measure, with models that exist.
        output: The record's file.
        peer: The public code; None: it is not measured.
        tell: Who is told what happens.

    Returns:
        The record.

    Raises:
        BenchmarkError: If kinds that should compute the same do not. The networks before are in the record.
    """
    tell = tell or Listeners()
    if settings.keep_memory:
        keep_memory()
    session = _Session(settings, peer, tell.on_stage)
    for record in session.records():
        write_benchmark(output, record)
        tell.on_model(record)
    return record


def prepare_settings(
    wanted: Mapping[str, object], older: BenchmarkSettings | None = None
) -> BenchmarkSettings:
    """Complete settings of what a user asks for, checked before any work starts.

    Args:
        wanted: Fields of `BenchmarkSettings`; models may be patterns. None: not asked for.
        older: Settings to take the rest from; None: the defaults, with all cores and the device there is.

    Raises:
        ModelError: For an unknown network, or a pattern that fits none.
        SettingError: For an illegal setting, a missing device, or a network whose images are not known.
    """
    asked = {name: value for name, value in wanted.items() if value is not None}
    base: dict[str, object] = {"models": DEFAULT_MODELS, "threads": available_cores(), "device": "auto"}
    if older is not None:
        base = older.model_dump()
    settings = make_settings(**(base | asked))
    device = check_device(settings.device)
    if settings.precision == "tf32" and device == "cpu":
        raise SettingError("expected a CUDA device for the precision tf32, got cpu; use float32")
    return settings.model_copy(update={"models": choose_models(settings.models), "device": device})


class _Session:
    def __init__(
        self, settings: BenchmarkSettings, peer: PublicCode | None, on_stage: Callable[[str], None]
    ) -> None:
        self.settings, self.peer, self.on_stage = settings, peer, on_stage
        self.device = torch.device(settings.device)
        self.started, self.commit = provenance.now(), provenance.commit()
        self.done: list[_Raw] = []

    def records(self) -> Iterator[BenchmarkRecord]:
        """The record after each network."""
        for number, model in enumerate(self.settings.models, start=1):
            place = f"{model} ({number} of {len(self.settings.models)})"
            batch_size = self.settings.batch_size or default_batch(model, self.settings.device)
            self.done.append(self._measure(Subject(model, batch_size, self.peer), place))
            yield self._record()

    def _measure(self, subject: Subject, place: str) -> _Raw:
        with machine_state(self.settings.threads, self.device, self.settings.precision):
            notes: list[str] = []
            contenders = line_up(subject, notes)
            raw = _Raw(subject, [contender.kind for contender in contenders], notes=notes)
            for contender in contenders:
                contender.network.to(self.device)
            check_equal(contenders, subject.batch(self.device)[0], self.settings.precision)
            if self.settings.memory:
                self._measure_memory(raw, place)
            for mode in MODES:
                self._measure_mode(raw, contenders, mode, place)
        return raw

    def _measure_memory(self, raw: _Raw, place: str) -> None:
        for mode in MODES:
            for kind in raw.kinds:
                self.on_stage(f"{place}: memory of {_WORDS[mode]}, {kind}")
                try:
                    task = MemoryTask(raw.subject, kind, mode, self.settings)
                    raw.memory[kind, mode] = peak_in_own_process(task)
                except BenchmarkError as error:
                    raw.notes.append(str(error))

    def _measure_mode(self, raw: _Raw, contenders: list[Contender], mode: Mode, place: str) -> None:
        probes = probe_steps(probe_sizes(self.device), self.device, self.settings.precision)
        steps: dict[str, Step] = {}
        for contender in contenders:
            self.on_stage(f"{place}: {_WORDS[mode]}, warming up {contender.kind}")
            step = make_step(contender, raw.subject, mode, self.settings.precision)
            step()  # makes what later steps find ready, such as the filters of an evaluation
            raw.work[contender.kind, mode] = operations(step)
            steps[contender.kind] = step
            if contender.kind == "ours" and mode == "train":
                raw.algorithms = algorithms_in_use(contender.network)
        for step in probes.values():
            step()
        raw.seconds[mode] = interleave(
            {**steps, **probes},
            self.settings.rounds,
            time_step=stopwatch(self.device),
            on_round=lambda number: self.on_stage(
                f"{place}: {_WORDS[mode]}, round {number} of {self.settings.rounds}"
            ),
        )

    def _record(self) -> BenchmarkRecord:
        peaks = self._peaks()
        with machine_state(self.settings.threads, self.device, self.settings.precision):
            machine = provenance.machine(self.device)
        return BenchmarkRecord(
            settings=self.settings,
            peaks=peaks,
            models=tuple(_result(raw, peaks) for raw in self.done),
            peer=None if self.peer is None else self.peer.commit,
            versions=provenance.versions(),
            machine=machine,
            commit=self.commit[0],
            clean=self.commit[1],
            started=self.started,
            finished=provenance.now(),
        )

    def _peaks(self) -> Peaks:
        every = [seconds for raw in self.done for seconds in raw.seconds.values()]
        fastest = {name: min(min(seconds[name]) for seconds in every) for name in _PROBES}
        return probe_sizes(self.device).peaks(fastest)


def algorithms_in_use(network: nn.Module) -> dict[str, str]:
    """Which algorithm computed which layer last, by the layer's name."""
    caches = {
        name: getattr(module, "filter_cache", None)
        for name, module in network.named_modules()
        if isinstance(module, SteerableConv2d)
    }
    return {name: cache.algorithm for name, cache in caches.items() if cache is not None and cache.algorithm}


def _result(raw: _Raw, peaks: Peaks) -> ModelResult:
    return ModelResult(
        model=raw.subject.model,
        method=raw.subject.method,
        batch_size=raw.subject.batch_size,
        image_shape=raw.subject.image_shape,
        plain=raw.subject.plain,
        kinds=tuple(_kind(raw, kind, peaks) for kind in raw.kinds),
        probes={mode: probes_of(seconds) for mode, seconds in raw.seconds.items()},
        algorithms=raw.algorithms,
        notes=tuple(raw.notes),
    )


def _kind(raw: _Raw, kind: Kind, peaks: Peaks) -> KindResult:
    train, evaluate = (
        Measured(
            seconds=Timing.of(raw.seconds[mode][kind]),
            peak_bytes=raw.memory.get((kind, mode)),
            work=summary(raw.work[kind, mode], peaks),
        )
        for mode in MODES
    )
    return KindResult(kind=kind, train=train, evaluate=evaluate)
