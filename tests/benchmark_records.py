"""Records of benchmarks of known numbers."""

from typing import Any

from equiscale.experiments.benchmark.record import (
    BenchmarkRecord,
    BenchmarkSettings,
    Kind,
    KindResult,
    Measured,
    ModelResult,
    Peaks,
    Probes,
    Timing,
    Work,
)

# Seconds of a training step, and bytes; an evaluation takes a quarter of the time and half of the memory.
SPEEDS: dict[Kind, tuple[float, int]] = {
    "ours": (0.1, 100_000_000),
    "dense": (0.8, 300_000_000),
    "peer": (0.9, 250_000_000),
    "cnn": (0.05, 40_000_000),
}


def timing(median: float) -> Timing:
    return Timing(median=median, quartile_1=0.95 * median, quartile_3=1.1 * median, rounds=9)


def probes(slowness: float = 1.0) -> Probes:
    return Probes(**{name: timing(0.02 * slowness) for name in Probes.model_fields})


def measured(seconds: float, size: int | None, flops: int) -> Measured:
    work = Work(flops=flops, bytes=1_000_000_000, bound_seconds=seconds / 4)
    return Measured(seconds=timing(seconds), peak_bytes=size, work=work)


def kind_result(kind: Kind, factor: float = 1.0) -> KindResult:
    seconds, size = SPEEDS[kind]
    flops = {"ours": 5, "dense": 100, "peer": 100, "cnn": 6}[kind] * 10**9
    return KindResult(
        kind=kind,
        train=measured(factor * seconds, size, flops),
        evaluate=measured(factor * seconds / 4, size // 2, flops // 3),
    )


def model_result(model: str = "mnist_ses_scalar_28", **changes: Any) -> ModelResult:
    slowness = changes.pop("slowness", 1.0)
    fields: dict[str, Any] = {
        "method": "SESN scalar",
        "batch_size": 128,
        "image_shape": (1, 28, 28),
        "plain": "mnist_cnn_28",
        "kinds": tuple(kind_result(kind, slowness) for kind in SPEEDS),
        "probes": {mode: probes(slowness) for mode in ("train", "evaluate")},
        "algorithms": {"main.0": "unfolded", "main.5": "fourier", "main.10": "fourier"},
    }
    return ModelResult(model=model, **(fields | changes))


def benchmark_record(*models: ModelResult, **changes: Any) -> BenchmarkRecord:
    chosen = models or (model_result(), model_result("mnist_ses_vector_28"))
    settings = {"models": tuple(model.model for model in chosen), "threads": 2}
    fields: dict[str, Any] = {
        "settings": BenchmarkSettings(**(settings | changes.pop("settings", {}))),
        "peaks": Peaks(product=3e11, convolution=4e11, bandwidth=2e10),
        "peer": "deaa16c73ed28fc1e1ced9a8e39892f4ee8bf9ac",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {"processor": "A Processor", "cores": "2", "threads": "2", "device": "cpu"},
        "commit": "0123456789abcdef",
        "clean": True,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:10:00+00:00",
    }
    return BenchmarkRecord(models=chosen, **(fields | changes))
