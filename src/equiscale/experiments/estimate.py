"""How long a sweep will take: a few timed steps of each network, on the machine that will do it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale._machine import available_cores
from equiscale.data import DatasetInfo, dataset_info
from equiscale.experiments.execute import build_network, evaluation_splits
from equiscale.experiments.records import RunSettings
from equiscale.experiments.runner import devices_of
from equiscale.functional.algorithms import unmeasured

_REPEATS = 2
_PATIENCE = 0.15  # seconds: a batch that takes longer is large enough to stand for a larger one
_FIRST_BATCH = 4


@dataclass(frozen=True)
class Speed:
    """Seconds an image, in training and in evaluation."""

    train: float
    evaluate: float


@dataclass(frozen=True)
class Estimate:
    """What one network with one data set and schedule costs.

    Args:
        settings: One of the runs that are alike but for augmentation and realisation.
        runs: How many there are.
        seconds: Of one of them.
    """

    settings: RunSettings
    runs: int
    seconds: float

    @property
    def total(self) -> float:
        """Seconds of all of them, one after the other."""
        return self.runs * self.seconds


@unmeasured()  # as in the runs
def estimate_runs(
    runs: Iterable[RunSettings],
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    on_model: Callable[[str], None] | None = None,
) -> list[Estimate]:
    """Time a few training and evaluation steps of every network, on random images, and extrapolate.

    Augmentation, loading and start-up are not counted. What the timing does not know: compiled networks, CUDA
    graphs, the order of channels in memory, gradients summed over several batches, and the step of the
    optimiser. On a CPU it is of one thread, also where a run gets more.

    Args:
        runs: The planned runs.
        device: Where they will run; on a CPU one core does one run.
        data_root: The folder of prepared data; None: the default. Only descriptions are read.
        on_model: Called with the name of each network before it is timed.

    Returns:
        One estimate for every network, data set and schedule, in the order of the runs.

    Raises:
        ModelError: For an unknown network or override.
        SettingError: For an unknown data set, or a network that is not for its images.
    """
    alike: dict[object, list[RunSettings]] = {}
    for run in runs:
        alike.setdefault((run.model, run.overrides, run.dataset, run.protocol), []).append(run)
    estimates = []
    for group in alike.values():
        if on_model is not None:
            on_model(group[0].model)
        info = dataset_info(group[0].dataset, root=data_root)
        speed = _measure(group[0], info, torch.device(device))
        estimates.append(Estimate(group[0], len(group), _seconds(group[0], info, speed)))
    return estimates


def runs_abreast(jobs: int, device: str) -> int:
    """How many of so many runs at a time do not take turns: one a core, or one a GPU."""
    places = len(devices_of(device)) if device.startswith("cuda") else available_cores()
    return min(jobs, places)


def _seconds(run: RunSettings, info: DatasetInfo, speed: Speed) -> float:
    """Every epoch trains, and validates where it can; one is tested, and others as the protocol says."""
    sizes, epochs = info.split_sizes, run.protocol.epochs
    validation, test = evaluation_splits(info)
    validated = 0 if validation is None else sizes[validation]
    tests = 1 + (epochs // run.protocol.test_every if run.protocol.test_every else 0)
    evaluated = epochs * validated + tests * sizes[test]
    return epochs * sizes["train"] * speed.train + evaluated * speed.evaluate


def _measure(run: RunSettings, info: DatasetInfo, device: torch.device) -> Speed:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the runs of a sweep, one to a core
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(run, info).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=run.protocol.precision == "bfloat16"):
                return _measure_network(network, info, device, run.protocol.batch_size)
    finally:
        torch.set_num_threads(before)


def _measure_network(network: nn.Module, info: DatasetInfo, device: torch.device, largest: int) -> Speed:
    size = min(_FIRST_BATCH, largest)
    while True:
        images = torch.randn(size, *info.image_shape, device=device)
        labels = torch.zeros(size, dtype=torch.long, device=device)
        train = _time(lambda: _train_step(network.train(), images, labels), device)  # noqa: B023 (called at once)
        if train > _PATIENCE or size >= largest:
            break
        size = min(largest, 4 * size)
    with torch.no_grad():
        evaluate = _time(lambda: network.eval()(images), device)
    return Speed(train / size, evaluate / size)


def _train_step(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.zero_grad()
    cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]


def _time(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one step, the fastest, without the first one."""
    return min([_stopwatch(step, device) for _ in range(_REPEATS + 1)][1:])


def _stopwatch(step: Callable[[], object], device: torch.device) -> float:
    """On a CPU its own time: what else runs there meanwhile is not counted."""
    if device.type == "cpu":
        started = time.process_time()
        step()
        return time.process_time() - started
    started = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started
