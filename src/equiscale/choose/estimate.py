"""What a network will cost: parameters, arithmetic, time and memory of a step, before anything is trained."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import nn

from equiscale.choose.step import Mode, StepTask, make_step, peak_bytes, seconds
from equiscale.errors import SettingError
from equiscale.experiments.benchmark.work import operations
from equiscale.experiments.runner import check_device
from equiscale.train import Numerics, OptimizerSettings
from equiscale.train.config import OptimizerName, Precision

_FIRST: Final = 2  # images: batch norm needs two
_PATIENCE: Final = 0.4  # seconds: a step that takes longer stands for a larger one
_REPEATS: Final = 5
_TRIED: Final = 2
_FARTHEST: Final = 4  # times the images that are measured, and not more, time is extrapolated to
_FARTHEST_MEMORY: Final = 2  # and memory: of few images other things are the peak than of many


@dataclass(frozen=True)
class EstimateOptions:
    """Where and how the network will run.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", or "bfloat16" for autocast.
        optimizer: "adam", or "sgd" with momentum.
        training: Whether a training step is estimated too.
        memory: Whether memory is, which on a CPU starts up to four processes of some seconds.
        patience: Seconds: the smallest batch whose step takes longer stands for the real one.

    Raises:
        SettingError: For an unknown or missing device, or values that are not legal.

    Example:
        >>> EstimateOptions(precision="bfloat16").optimizer
        'adam'
    """

    device: str = "auto"
    precision: Precision = "float32"
    optimizer: OptimizerName = "adam"
    training: bool = True
    memory: bool = True
    patience: float = _PATIENCE

    def __post_init__(self) -> None:
        check_device(self.device)
        Numerics(self.precision)
        OptimizerSettings(self.optimizer)
        if not self.patience >= 0:
            raise SettingError(f"expected a patience of at least 0 seconds, got {self.patience}")


@dataclass(frozen=True)
class StepCost:
    """What one step takes.

    Args:
        multiply_adds: Of convolutions and matrix products.
        seconds: Of the step.
        peak_bytes: At the peak, above the network and its images; None where it was not asked for.
        measured_images: Images of the largest step that was timed; as many as in the real batch where
            nothing was extrapolated.
    """

    multiply_adds: float
    seconds: float
    peak_bytes: float | None
    measured_images: int


@dataclass(frozen=True)
class CostEstimate:
    """What a network costs.

    Args:
        parameters: Learned numbers.
        input_shape: (B, C, H, W).
        train: A training step; None where it was not asked for.
        evaluate: A forward pass without gradients.

    Example:
        >>> step = StepCost(1e9, 0.5, 2e8, 16)
        >>> print(CostEstimate(1000, (128, 3, 96, 96), None, step))
        1,000 parameters; steps of 128 images of 3×96×96
                          time       memory   multiply-adds   measured with
          evaluation   500.0 ms     200.0 MB           1.0 G       16 images
    """

    parameters: int
    input_shape: tuple[int, int, int, int]
    train: StepCost | None
    evaluate: StepCost

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return asdict(self)

    def __str__(self) -> str:
        batch, *image = self.input_shape
        steps = {"training": self.train, "evaluation": self.evaluate}
        return "\n".join(
            [
                f"{self.parameters:,} parameters; steps of {batch} images of {'×'.join(map(str, image))}",
                f"{'time':>22}{'memory':>13}{'multiply-adds':>16}{'measured with':>16}",
                *(_row(name, step) for name, step in steps.items() if step),
            ]
        )


def _row(name: str, step: StepCost) -> str:
    memory = "" if step.peak_bytes is None else f"{step.peak_bytes / 1e6:.1f} MB"
    arithmetic = f"{step.multiply_adds / 1e9:.1f} G"
    return (
        f"  {name:<11}{1e3 * step.seconds:>7.1f} ms{memory:>13}{arithmetic:>16}"
        f"{step.measured_images:>9} images"
    )


def estimate(
    model: nn.Module, input_shape: tuple[int, int, int, int], *, options: EstimateOptions | None = None
) -> CostEstimate:
    r"""Estimate what steps of a network cost, from steps with few images.

    The number of images is doubled from a quarter of the batch on, until a step takes longer than the
    patience, or has all images. From there the line through that step and the one with half its images is
    followed:

    .. math:: t(B) = t(b) + \big(t(b) - t(b / 2)\big) \, \frac{B - b}{b / 2}

    and so for multiply-adds, and for memory from half the batch at least. Layers compute the small steps by
    the algorithms that the planner takes for the real batch. The time is of the threads that torch uses now,
    by the processor's clock where that is one; memory on a CPU is the growth of a process of its own, without
    the gaps in its heap.

    Shapes:
        input_shape: ``(B, C, H, W)``.

    Args:
        model: The network; it is copied and left as it is. Outputs ``(B, D)`` are taken for logits.
        input_shape: Of the real step.
        options: Device, precision, optimiser; None: `EstimateOptions` as by default.

    Returns:
        Parameters, and for a training step and an evaluation multiply-adds, seconds and bytes.

    Raises:
        SettingError: For a shape that is none, or fewer than two images.
        ShapeError: From the network, for images that do not fit it.
        BenchmarkError: If memory cannot be measured.

    Exactness:
        Multiply-adds are linear in the images and exact. Time and memory are not: what caches hold, and in
        what pieces memory is taken, changes with the batch. ``benchmarks/estimate.py`` compares with
        steps of the real batch.

    Example:
        >>> layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
        >>> found = estimate(layer, (8, 1, 8, 8), options=EstimateOptions(memory=False))
        >>> found.parameters, round(found.evaluate.multiply_adds)
        (750, 10944)
    """
    options = options or EstimateOptions()
    if len(input_shape) != 4 or min(input_shape) < 1 or input_shape[0] < _FIRST:
        raise SettingError(
            f"expected a shape (B, C, H, W) of at least {_FIRST} images, got {tuple(input_shape)}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.random.fork_rng(devices=[]):
        evaluate = _estimate_step(model, input_shape, "evaluate", options)
        train = _estimate_step(model, input_shape, "train", options) if options.training else None
    return CostEstimate(parameters, input_shape, train, evaluate)


def _estimate_step(
    model: nn.Module, input_shape: tuple[int, int, int, int], mode: Mode, options: EstimateOptions
) -> StepCost:
    batch, *image_shape = input_shape
    device = check_device(options.device)

    def task(images: int) -> StepTask:
        numerics, optimizer = Numerics(options.precision), OptimizerSettings(options.optimizer)
        channels, height, width = image_shape
        return StepTask(model, (channels, height, width), images, batch, mode, device, numerics, optimizer)

    large = _stand_in(task, batch, options.patience)
    sizes = _pair(large, batch)
    steps = [make_step(task(size)) for size in dict.fromkeys(sizes)]
    times = seconds(steps, _REPEATS, device)
    arithmetic = [_multiply_adds(task(size)) for size in dict.fromkeys(sizes)]
    heavy = _pair(max(large, math.ceil(batch / _FARTHEST_MEMORY)), batch)
    memory = [float(peak_bytes(task(size))) for size in dict.fromkeys(heavy)] if options.memory else None
    return StepCost(
        multiply_adds=_at(batch, sizes, arithmetic),
        seconds=_at(batch, sizes, times),
        peak_bytes=None if memory is None else _at(batch, heavy, memory),
        measured_images=large,
    )


def _pair(large: int, batch: int) -> tuple[int, int]:
    """Half as many images, and these; twice the whole batch where nothing has to be extrapolated."""
    return large if large == batch else max(_FIRST, large // 2), large


def _stand_in(task: Callable[[int], StepTask], batch: int, patience: float) -> int:
    """The images whose step takes long enough, doubled from a quarter of the batch on; at most all."""
    images = min(batch, max(2 * _FIRST, math.ceil(batch / _FARTHEST)))
    while images < batch:
        (taken,) = seconds([make_step(task(images))], _TRIED, task(images).device)
        if taken > patience:
            break
        images = min(batch, 2 * images)
    return images


def _multiply_adds(task: StepTask) -> float:
    return sum(operation.flops for operation in operations(make_step(task))) / 2


def _at(batch: int, sizes: tuple[int, int], values: list[float]) -> float:
    """On the line through both values; never below the larger one, nor above what is in proportion to it."""
    (small, large), low, high = sizes, values[0], values[-1]
    if small == large:  # the whole batch, or as few images as there may be
        return high * batch / large
    line = high + (high - low) * (batch - large) / (large - small)
    return min(max(line, high), high * batch / large)
