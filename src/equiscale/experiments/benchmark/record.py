"""One JSON record a benchmark: what was measured of which networks, on what machine."""

from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equiscale._files import atomic_path
from equiscale.errors import SettingError
from equiscale.experiments.records import read_validated
from equiscale.experiments.spec import Many, PositiveInt, problems

Kind = Literal["ours", "dense", "cnn", "peer"]
Mode = Literal["train", "evaluate"]
Precision = Literal["float32", "tf32", "bfloat16"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODES: tuple[Mode, ...] = get_args(Mode)

_MAX_RECORD_BYTES = 8 * 2**20
_POSITIVE = Field(gt=0)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchmarkSettings(_Frozen):
    """Everything that decides what is measured, but for the machine and the public checkout.

    Args:
        models: The names of the networks.
        batch_size: Images a step, at least two; None: the protocol's 128, of photographs on a CPU 4.
        rounds: Timed steps of each kind; one more warms up.
        threads: Threads on the CPU.
        device: "cpu" or "cuda", with an index where there are several.
        precision: "bfloat16" for autocast; "tf32" allows it on CUDA wherever float32 is multiplied.
        keep_memory: Whether freed memory stays with the process, as in the runs of a suite.
        memory: Whether peak memory is measured, each in a process of its own.
    """

    models: Annotated[Many[str], Field(min_length=1)]
    batch_size: Annotated[int, Field(ge=2)] | None = None
    rounds: PositiveInt = 9
    threads: PositiveInt = 1
    device: str = "cpu"
    precision: Precision = "float32"
    keep_memory: bool = False
    memory: bool = True


class Timing(_Frozen):
    """Seconds of one step over the rounds: the median and the quartiles."""

    median: Annotated[float, _POSITIVE]
    quartile_1: Annotated[float, _POSITIVE]
    quartile_3: Annotated[float, _POSITIVE]
    rounds: PositiveInt

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """The summary of one or more rounds.

        Example:
            >>> Timing.of([3.0, 1.0, 2.0]).quartile_3
            2.5
        """
        several = seconds if len(seconds) > 1 else [*seconds, *seconds]
        low, median, high = quantiles(several, n=4, method="inclusive")
        return cls(median=median, quartile_1=low, quartile_3=high, rounds=len(seconds))


class Work(_Frozen):
    """What torch's operations do in one step.

    Args:
        flops: Floating-point operations of convolutions and matrix products, a multiplication and an
            addition counted as two.
        bytes: What all operations read and write, if each meets its operands once.
        bound_seconds: The time of these operations, one after the other, at the machine's measured peak and
            bandwidth, each limited by the one that takes it longer.
    """

    flops: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    bound_seconds: Annotated[float, Field(ge=0)]


class Measured(_Frozen):
    """One kind in one mode.

    Args:
        seconds: Of a step.
        peak_bytes: Memory that the step takes on top of the network and its images; None: not measured.
        work: The arithmetic and the traffic of the step.
    """

    seconds: Timing
    peak_bytes: Annotated[int, Field(ge=0)] | None = None
    work: Work


class KindResult(_Frozen):
    """One kind of one network.

    Args:
        kind: "ours", "dense" (the published formulation), "cnn" (the plain network of the same size) or
            "peer" (the public code).
        train: A training step: forward, backward, optimiser.
        evaluate: The forward pass in evaluation.
    """

    kind: Kind
    train: Measured
    evaluate: Measured

    def mode(self, mode: Mode) -> Measured:
        """What was measured in a mode."""
        return self.train if mode == "train" else self.evaluate


class Probes(_Frozen):
    """Three operations of torch alone, timed in every round between the networks.

    They tell a slow machine from a slow network, and their fastest rounds are the machine's peak.
    """

    product: Timing
    convolution: Timing
    traffic: Timing


class ModelResult(_Frozen):
    """All kinds of one network, measured interleaved.

    Args:
        model: Its name.
        method: The method's name in tables.
        batch_size: Images a step.
        image_shape: ``(C, H, W)``.
        plain: The plain network beside it; None where it is one itself.
        kinds: What was measured.
        probes: The machine's own speed meanwhile, by mode.
        algorithms: Which algorithm computed which layer of ours in training, where there is a choice.
        notes: Why a kind, or a part of it, is missing.
    """

    model: str
    method: str
    batch_size: PositiveInt
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    plain: str | None
    kinds: Many[KindResult]
    probes: dict[Mode, Probes]
    algorithms: dict[str, str] = Field(default_factory=dict)
    notes: Many[str] = ()

    def kind(self, kind: Kind) -> KindResult | None:
        """What was measured of a kind; None if it was not."""
        return next((result for result in self.kinds if result.kind == kind), None)

    def ratio(self, slow: Kind, fast: Kind, mode: Mode) -> float | None:
        """The median time of one kind over that of another; None unless both were measured."""
        above, below = self.kind(slow), self.kind(fast)
        if above is None or below is None:
            return None
        return above.mode(mode).seconds.median / below.mode(mode).seconds.median

    def memory_ratio(self, large: Kind, small: Kind, mode: Mode) -> float | None:
        """The peak memory of one kind over that of another; None unless both were measured."""
        above, below = self.kind(large), self.kind(small)
        if above is None or below is None:
            return None
        peaks = above.mode(mode).peak_bytes, below.mode(mode).peak_bytes
        return None if not peaks[0] or not peaks[1] else peaks[0] / peaks[1]


class Peaks(_Frozen):
    """The machine's speed, of the fastest round of each probe.

    Args:
        product: Floating-point operations a second of a large matrix product.
        convolution: The same of a large convolution.
        bandwidth: Bytes a second, read and written by a large copy.
    """

    product: Annotated[float, _POSITIVE]
    convolution: Annotated[float, _POSITIVE]
    bandwidth: Annotated[float, _POSITIVE]

    @property
    def flops(self) -> float:
        """The faster of product and convolution."""
        return max(self.product, self.convolution)


class BenchmarkRecord(_Frozen):
    """What a benchmark measured.

    Args:
        schema_version: Of this format.
        settings: What was asked for.
        peaks: What the machine can do.
        models: One entry a network.
        peer: The commit of the public checkout, "unknown" without one; None where it was not measured.
        versions: Of Python and packages.
        machine: Processor, cores, threads, device.
        commit: Of equiscale; None for an installed package.
        clean: Whether its source tree had no changes.
        started: In UTC.
        finished: In UTC.
    """

    schema_version: Literal[1] = 1
    settings: BenchmarkSettings
    peaks: Peaks
    models: Many[ModelResult]
    peer: str | None = None
    versions: dict[str, str]
    machine: dict[str, str]
    commit: str | None
    clean: bool | None
    started: str
    finished: str


def make_settings(**settings: Any) -> BenchmarkSettings:
    """Settings from loose values.

    Raises:
        SettingError: For illegal values, with all that is wrong.

    Example:
        >>> make_settings(models=["mnist_cnn_28"]).rounds
        9
    """
    try:
        return BenchmarkSettings.model_validate(settings)
    except ValidationError as error:
        raise SettingError(f"expected valid settings, got {problems(error, 'benchmark')}") from error


def write_benchmark(path: Path, record: BenchmarkRecord) -> None:
    """Write a record atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n")


def read_benchmark(path: Path) -> BenchmarkRecord:
    """Read and validate a record.

    Raises:
        RecordError: If the file is missing, too large, or no valid record, with the reason.
    """
    return read_validated(
        path,
        BenchmarkRecord,
        _MAX_RECORD_BYTES,
        what="the record of a benchmark",
        cure="'equiscale bench' writes one",
    )
