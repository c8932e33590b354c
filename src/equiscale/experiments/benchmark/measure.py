"""The clock: steps of several kinds in turn, with the machine's own speed between them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy

from equiscale.experiments.benchmark.contenders import Contender, Subject
from equiscale.experiments.benchmark.record import Mode, Peaks, Precision, Probes, Timing
from equiscale.train import Numerics

Step = Callable[[], object]

# Small enough to leave the weights where they are: all rounds compute with the same kind of numbers.
_LEARNING_RATE: Final = 1e-4


@dataclass(frozen=True)
class ProbeSizes:
    """How large the probes are: enough for the machine's full speed, some ten milliseconds each.

    Args:
        product: Rows and columns of the matrices.
        channels: Of the 3×3 convolution, in and out.
        images: Of the convolution.
        pixels: Side of its images.
        copied: Bytes that the copy reads, and writes again.
    """

    product: int
    channels: int
    images: int
    pixels: int
    copied: int

    def peaks(self, seconds: Mapping[str, float]) -> Peaks:
        """The speeds in which the probes took these seconds; zeros around the images count as nothing."""
        taps = 3 * self.pixels - 2  # on one axis: the first and the last place have one on a zero
        return Peaks(
            product=2 * self.product**3 / seconds["product"],
            convolution=2 * self.images * (self.channels * taps) ** 2 / seconds["convolution"],
            bandwidth=2 * self.copied / seconds["traffic"],
        )


_CPU: Final = ProbeSizes(product=1536, channels=128, images=16, pixels=28, copied=2**27)
_GPU: Final = ProbeSizes(product=8192, channels=256, images=256, pixels=56, copied=2**30)


def probe_sizes(device: torch.device) -> ProbeSizes:
    """The sizes for a device."""
    return _CPU if device.type == "cpu" else _GPU


def probe_steps(sizes: ProbeSizes, device: torch.device, precision: Precision) -> dict[str, Step]:
    """A matrix product, a convolution and a copy, by name: the speed of the machine and torch alone."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.ones(sizes.product, sizes.product, device=device, dtype=dtype) for _ in range(2))
    x = torch.ones(sizes.images, sizes.channels, sizes.pixels, sizes.pixels, device=device, dtype=dtype)
    filters = torch.ones(sizes.channels, sizes.channels, 3, 3, device=device, dtype=dtype)
    source = torch.ones(sizes.copied, device=device, dtype=torch.uint8)
    product, target = torch.empty_like(a), torch.empty_like(source)
    return {
        "product": lambda: torch.mm(a, b, out=product),
        "convolution": lambda: conv2d(x, filters, padding=1),
        "traffic": lambda: target.copy_(source),
    }


def make_step(contender: Contender, subject: Subject, mode: Mode, precision: Precision) -> Step:
    """A training step, as the training loop does it, or the forward pass of an evaluation.

    The contender's network is put into the mode, and stays there.
    """
    network = contender.network
    device = next(network.parameters()).device
    images, labels = subject.batch(device)
    numerics = Numerics("bfloat16" if precision == "bfloat16" else "float32")
    optimizer = subject.family.optimizer.build(network, _LEARNING_RATE)
    network.train(mode == "train")

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(numerics.logits(network, images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def evaluate() -> Tensor:
        with torch.no_grad():
            return numerics.logits(network, images)

    return train if mode == "train" else evaluate


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    *,
    time_step: Callable[[Step], float],
    on_round: Callable[[int], None],
) -> dict[str, list[float]]:
    """Seconds of every step in every round, one step of each in turn.

    A slow moment of the machine so hits all of them. Every round begins with another step, so that none is
    always the one behind the same neighbour. The steps have run once before, to warm up.

    Args:
        steps: By name.
        rounds: How many.
        time_step: Runs a step and gives its seconds.
        on_round: Called before each round, with its number from 1.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        on_round(number + 1)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(time_step(steps[name]))
    return seconds


def stopwatch(device: torch.device) -> Callable[[Step], float]:
    """A clock for steps on a device; on a GPU it waits for what was started, before and after."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def time_step(step: Step) -> float:
        wait()
        started = time.perf_counter()
        step()
        wait()
        return time.perf_counter() - started

    return time_step


def probes_of(seconds: Mapping[str, list[float]]) -> Probes:
    """The probes' rounds among those of the kinds."""
    return Probes(**{name: Timing.of(seconds[name]) for name in ("product", "convolution", "traffic")})


@contextmanager
def machine_state(threads: int, device: torch.device, precision: Precision) -> Iterator[None]:
    """Threads, random numbers and CUDA's choices as the benchmark wants them; everything is restored.

    On CUDA the fastest of cuDNN's algorithms is searched for, as in the public training scripts. TF32 is
    allowed for "tf32" only, and then for products and convolutions alike: torch's own default allows it for
    convolutions, which would be compared with products in float32.
    """
    cudnn = torch.backends.cudnn
    threads_before = torch.get_num_threads()
    products_before = torch.get_float32_matmul_precision()
    cudnn_before = cudnn.benchmark, cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    cudnn.benchmark, cudnn.allow_tf32 = True, precision == "tf32"
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(products_before)
        cudnn.benchmark, cudnn.allow_tf32 = cudnn_before
