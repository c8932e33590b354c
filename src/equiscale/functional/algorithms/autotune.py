"""Measure which algorithm is the fastest for every convolution of a network, and remember it."""

import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from equiscale.functional.algorithms.choices import (
    TABLE,
    Choice,
    Key,
    Problem,
    choices_file,
    place_of,
    problem_of,
)
from equiscale.functional.algorithms.convolution import Convolution, FilterCache
from equiscale.functional.algorithms.planner import ALGORITHMS, compute, estimate, observed

_T = TypeVar("_T")
_Part = TypeVar("_Part", Tensor, Tensor | None)

# After a first run, which pays for what is made once, and after each round, who is slower than the fastest so
# many times is not run again. A first run of less than so many seconds proves nothing.
_HOPELESS_FIRST: Final = 4.0
_FIRST_RUN: Final = 0.1
_HOPELESS: Final = 1.5
# Rounds of one problem, at most and at least; the seconds after which no further one is begun; and so many
# times as long after which one round is enough.
_MOST_ROUNDS: Final = 9
_FEWEST_ROUNDS: Final = 3
_BUDGET: Final = 1.0
_PATIENCE: Final = 4.0

_WIDTH: Final = 80


@dataclass(frozen=True)
class Measurement:
    """One distinct convolution of a network, and how fast each algorithm is.

    Args:
        layers: Names of the modules that compute it, in the order of the forward pass.
        problem: Its shapes and types.
        algorithm: The fastest.
        seconds: The median time of each algorithm, slow ones measured once; None for those that failed.
        remembered: Whether it was measured by an earlier call.
    """

    layers: tuple[str, ...]
    problem: Problem
    algorithm: str
    seconds: Mapping[str, float | None]
    remembered: bool


@dataclass(frozen=True)
class AutotuneReport:
    """What `equiscale.autotune` has found; as text a table of 80 columns.

    Args:
        measurements: One for each distinct convolution, in the order of the forward pass.
        file: Where the choices are kept, or None for this process alone.
    """

    measurements: tuple[Measurement, ...]
    file: Path | None

    def __str__(self) -> str:
        if not self.measurements:
            return "No lifting or scale convolution was computed: there is nothing to choose."
        lines = [_row(("layer", "input", "filters", "chosen", "time"))]
        for measurement in self.measurements:
            lines += [_row(_cells(measurement)), *_relative(measurement)]
        where = "this process alone" if self.file is None else str(self.file)
        return "\n".join([*lines, f"Kept in {where}."])


def autotune(
    model: nn.Module, example: Tensor | tuple[Any, ...], *, backward: bool | None = None
) -> AutotuneReport:
    """Measure every algorithm on every lifting and scale convolution of a network, and use the fastest.

    The network runs once on the example, to show which convolutions it makes; then each distinct one is
    computed by all algorithms in turn, on noise. The fastest is used from now on for convolutions of the
    same shapes and types, on this processor or device with as many threads, by any network and in every
    later process: choices are kept in ``autotune.json`` in the folder ``EQUISCALE_CACHE_DIR``, or else
    ``~/.cache/equiscale``. With ``EQUISCALE_AUTOTUNE=off`` that file is neither read nor written. What is
    kept is not measured again, and never changes by itself; `clear_autotune` forgets it.

    Parameters, gradients, buffers and the states of torch's generators are the same after it as before. It
    takes some seconds a distinct convolution, and the memory of the most wasteful algorithm.

    Args:
        model: The network, in training or in evaluation mode and on its device.
        example: An input of the size that it will see, or a tuple of all its arguments.
        backward: Measure with the backward pass, for training. None: as the mode of the network says.

    Returns:
        What was measured; print it.

    Exactness:
        All algorithms agree up to rounding (``tests/functional/algorithms``). The runs of
        `equiscale.experiments` go by the cost model alone, so that no file changes their bits.

    Example:
        >>> import equiscale
        >>> grid = equiscale.ScaleGrid.geometric(0.9, 1.41, 3)
        >>> lift = equiscale.nn.LiftConv2d(1, 4, kernel_size=7, grid=grid)
        >>> report = equiscale.autotune(lift, torch.randn(2, 1, 16, 16))
        >>> report.measurements[0].algorithm in str(lift)
        True
        >>> equiscale.clear_autotune()
    """
    seen = _observe(model, example, model.training if backward is None else backward)
    report = _remembered_or_measured(seen)
    for problem, layers in seen.items():
        choice = next(found for found in report.measurements if found.problem == problem)
        for layer in layers:
            if layer.convolution.cache is not None:
                layer.convolution.cache.clear()  # of what the algorithm of the first look has kept
                layer.convolution.cache.algorithm = choice.algorithm
    return report


def clear_autotune() -> None:
    """Forget every measured choice, in this process and in the file.

    Example:
        >>> clear_autotune()
    """
    TABLE.clear()


@dataclass(frozen=True)
class _Seen:
    """A convolution that a module has made; of its input only what it was like."""

    layer: str
    convolution: Convolution
    device: torch.device


def _observe(
    model: nn.Module, example: Tensor | tuple[Any, ...], backward: bool
) -> dict[Problem, list[_Seen]]:
    found: dict[Problem, list[_Seen]] = {}
    running: list[str] = []

    def look(convolution: Convolution) -> None:
        like = torch.empty_like(convolution.x, device="meta")
        seen = _Seen(running[-1] if running else "", replace(convolution, x=like), convolution.weight.device)
        found.setdefault(problem_of(convolution), []).append(seen)

    arguments = example if isinstance(example, tuple) else (example,)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.enter_context(_named(module, name or type(module).__name__, running))
        stack.enter_context(_unchanged(model))
        stack.enter_context(_eager())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(observed(look))
        model(*arguments)
    return found


@contextmanager
def _named(module: nn.Module, name: str, running: list[str]) -> Iterator[None]:
    """The names of the modules whose forward pass is running are those in the list."""
    hooks = (
        module.register_forward_pre_hook(lambda *_: running.append(name), prepend=True),
        module.register_forward_hook(lambda *_: (running.pop(), None)[1], always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """What a forward pass changes is put back: buffers, and the states of torch's generators."""
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    accelerators = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=accelerators):
        try:
            yield
        finally:
            with torch.no_grad():
                for owner, name, buffer, before in buffers:
                    owner[name] = buffer
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


def _eager() -> Any:
    """Networks that are compiled run as they are written; without a compiler's import there are none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _remembered_or_measured(seen: Mapping[Problem, list[_Seen]]) -> AutotuneReport:
    found: dict[Key, Choice] = {}
    measurements = []
    for problem, layers in seen.items():
        key = place_of(layers[0].device), problem
        choice = TABLE.known.get(key)
        # An algorithm that there was not then may be faster.
        remembered = choice is not None and set(choice.seconds) == set(ALGORITHMS)
        if choice is None or not remembered:
            choice = found[key] = _measure(problem, layers[0])
        names = tuple(layer.layer for layer in layers)
        measurements.append(Measurement(names, problem, choice.algorithm, choice.seconds, remembered))
    return AutotuneReport(tuple(measurements), TABLE.add(found) if found else choices_file())


def _measure(problem: Problem, seen: _Seen) -> Choice:
    autocast = getattr(torch, problem.autocast) if problem.autocast else None
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(bool(problem.gradients)),
        torch.autocast(seen.device.type, dtype=autocast, enabled=bool(problem.autocast)),
    ):
        convolution = _operands(problem, seen)
        first = estimate(convolution)  # likely the fastest: the others are held against it
        names = [first, *(name for name in ALGORITHMS if name != first)]
        seconds = race({name: _runner(convolution, name, seen.device) for name in names})
    ran = {name: taken for name, taken in seconds.items() if taken is not None}
    return Choice(min(ran, key=lambda name: ran[name]), {name: seconds[name] for name in ALGORITHMS})


def _operands(problem: Problem, seen: _Seen) -> Convolution:
    """A convolution as the one that was seen, of noise that lies in memory as its input did."""
    like, device = seen.convolution.x, seen.device
    strides = like.stride()
    order = sorted(range(like.ndim), key=lambda axis: -strides[axis])
    generator = torch.Generator(device).manual_seed(0)
    shape = [like.shape[axis] for axis in order]
    noise = torch.randn(shape, generator=generator, device=device, dtype=like.dtype)
    x = noise.permute([order.index(axis) for axis in range(like.ndim)])
    return replace(
        seen.convolution,
        x=x.requires_grad_("x" in problem.gradients),
        weight=_fresh(seen.convolution.weight, "weight" in problem.gradients),
        basis=_fresh(seen.convolution.basis, "basis" in problem.gradients),
        bias=_fresh(seen.convolution.bias, bool(problem.gradients)),
        cache=FilterCache() if problem.keeps else None,
    )


def _fresh(part: _Part, wanted: bool) -> _Part:
    """The same values, with a gradient of their own."""
    return part if part is None else part.detach().requires_grad_(wanted)


def _runner(convolution: Convolution, name: str, device: torch.device) -> Callable[[], float]:
    """A call that takes the seconds of one convolution, and of its gradients where there are any."""
    operands = replace(convolution, cache=None if convolution.cache is None else FilterCache())
    parts = (operands.x, operands.weight, operands.basis, operands.bias)
    wanted = [part for part in parts if part is not None and part.requires_grad]

    def run() -> float:
        fresh = replace(operands)  # holds nothing of the last time
        seconds, y = _timed(lambda: compute(fresh, name), device)
        if wanted:
            grad = torch.ones_like(y)
            with torch.autocast(device.type, enabled=False):  # as in a training step
                seconds += _timed(lambda: torch.autograd.grad(y, wanted, grad), device)[0]
        return seconds

    return run


def _timed(run: Callable[[], _T], device: torch.device) -> tuple[float, _T]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter  # what else runs there meanwhile is not counted
    _wait(device)
    begun = clock()
    result = run()
    _wait(device)
    return clock() - begun, result


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def race(
    contenders: Mapping[str, Callable[[], float]], *, budget: float = _BUDGET
) -> dict[str, float | None]:
    """The median seconds of calls that return their seconds, made in turn, so that noise hits all alike.

    Args:
        contenders: The calls by name.
        budget: Seconds after which no further round is begun.

    Returns:
        By name; None for a call that failed.

    Raises:
        RuntimeError: If all fail; that of the first.

    Example:
        >>> race({"slow": lambda: 2.0, "fast": lambda: 1.0})
        {'slow': 2.0, 'fast': 1.0}
    """
    _first(next(iter(contenders.values())))  # what is the first in a process pays for all
    results = {name: _first(run) for name, run in contenders.items()}
    ran = {name: seconds for name, seconds in results.items() if seconds is not None}
    if not ran:
        next(iter(contenders.values()))()
    limit = max(_HOPELESS_FIRST * min(ran.values()), _FIRST_RUN)
    times: dict[str, list[float]] = {name: [] for name, seconds in ran.items() if seconds <= limit}
    begun = time.perf_counter()
    for number in range(_MOST_ROUNDS):
        spent = time.perf_counter() - begun
        if spent > budget * (1 if number >= _FEWEST_ROUNDS else _PATIENCE) and number:
            break
        for name in times:
            times[name].append(contenders[name]())
        results.update({name: statistics.median(taken) for name, taken in times.items()})
        limit = _HOPELESS * min(map(min, times.values()))
        times = {name: taken for name, taken in times.items() if number == 0 or min(taken) <= limit}
    return results


def _first(run: Callable[[], float]) -> float | None:
    try:
        return run()
    except RuntimeError:  # out of memory, or an operation that a device does not have
        return None


def _row(cells: Sequence[str]) -> str:
    widths = (25, 17, 18, 11)
    left = "".join(
        f"{_shortened(cell, width - 1):<{width}}" for cell, width in zip(cells, widths, strict=False)
    )
    return f"{left}{cells[-1]:>9}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _cells(measurement: Measurement) -> tuple[str, ...]:
    problem, first, others = measurement.problem, measurement.layers[0], len(measurement.layers) - 1
    side, seconds = max(problem.windows), measurement.seconds[measurement.algorithm]
    filters = (*problem.weight[:2], side, side)
    return (
        f"{first} (+{others})" if others else first,
        "×".join(map(str, problem.x)),
        "×".join(map(str, filters)),
        measurement.algorithm,
        _in_words(seconds or 0.0),
    )


def _in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def _relative(measurement: Measurement) -> list[str]:
    """Lines with the others' times, as multiples of the fastest."""
    ran = {name: seconds for name, seconds in measurement.seconds.items() if seconds is not None}
    best = ran[measurement.algorithm]
    slower = sorted((seconds / best, name) for name, seconds in ran.items() if name != measurement.algorithm)
    parts = [f"{name} {ratio:.1f}×" if ratio < 100 else f"{name} {ratio:.0f}×" for ratio, name in slower]
    parts += [f"{name} failed" for name, seconds in measurement.seconds.items() if seconds is None]
    return textwrap.wrap(", ".join(parts), _WIDTH, initial_indent="    ", subsequent_indent="    ")
