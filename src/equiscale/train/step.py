"""The forward pass and the gradient of a step: as they are, compiled, or captured as a CUDA graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale.errors import TrainingError
from equiscale.train.config import Numerics, TrainConfig

Forward: TypeAlias = Callable[[Tensor], Tensor]

# Libraries choose their algorithms and take their workspaces in the first passes, which no graph may hold.
_WARM_UP = 3


class Gradients(Protocol):
    """Puts the gradient of a batch's mean loss into the parameters."""

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's summed loss and its mistakes, which stay on the device."""
        ...


def gradients_of(model: nn.Module, config: TrainConfig) -> Gradients:
    """What computes the gradients of a training."""
    eager = EagerGradients(model, config)
    return GraphedGradients(eager) if config.numerics.cuda_graphs else eager


def forward_of(model: nn.Module, numerics: Numerics) -> Forward:
    """What maps images to the module's logits, in its present mode and in single precision at least."""
    network = CompiledForward(model) if numerics.compile else model
    return lambda images: numerics.logits(network, images)


class CompiledForward:
    """A module's forward pass, compiled for the shape of its first batch.

    Batches of another shape, as an epoch's last one, take the eager way: each would be compiled anew.

    Args:
        model: The module; its state dict is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.compiled = torch.compile(model, dynamic=False)
        self.shape: torch.Size | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.shape is None:
            self.shape = images.shape
        network: Forward = self.compiled if images.shape == self.shape else self.model
        return network(images)


class EagerGradients:
    """The gradient of the batch's mean loss, summed over its parts.

    Args:
        model: The module.
        config: Its numerics, and the parts into which each batch is cut.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.forward = forward_of(model, config.numerics)
        self.accumulate = config.accumulate

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.model.zero_grad()
        loss, mistakes = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
        for part in _parts(images, labels, self.accumulate):
            part_loss, part_mistakes = _backward(self.forward, part, len(labels))
            loss += part_loss * len(part[1])
            mistakes += part_mistakes
        return loss, mistakes


class GraphedGradients:
    """The same, recorded once as a CUDA graph for the first batch's size, and replayed.

    One launch replaces those of all its kernels. Batches of another size, as an epoch's last one, take the
    eager way. Recording runs the step a few times, after which the module's buffers and the random
    generators are as before.

    Args:
        eager: What is recorded.
    """

    def __init__(self, eager: EagerGradients) -> None:
        self.eager = eager
        self.parameters = list(eager.model.parameters())
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.graph is None:
            self.graph = self._capture(images, labels)
        if images.shape != self.images.shape:
            return self.eager(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        with torch.cuda.device_of(self.images):  # type: ignore[no-untyped-call]
            self.graph.replay()
        # The replay wrote into these tensors, wherever an eager step has left others.
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss, self.mistakes

    def _capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self.images, self.labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device_of(images), _undone(self.eager.model, images.device):  # type: ignore[no-untyped-call]
                _warm_up(lambda: self.eager(self.images, self.labels))
                self.eager.model.zero_grad()
                with torch.cuda.graph(graph):
                    self.loss, self.mistakes = self.eager(self.images, self.labels)
        except RuntimeError as error:
            raise TrainingError(
                f"expected a network whose step can be recorded as a CUDA graph, got: {error}; leave out "
                "cuda_graphs"
            ) from error
        self.gradients = [parameter.grad for parameter in self.parameters]
        return graph


def part_count(images: int, wanted: int) -> int:
    """Into how many parts a batch is cut, of at least two images each, which batch norm needs.

    Example:
        >>> part_count(64, 4), part_count(5, 4)
        (4, 2)
    """
    return max(1, min(wanted, images // 2))


def _backward(forward: Forward, part: tuple[Tensor, Tensor], batch_size: int) -> tuple[Tensor, Tensor]:
    """Add a part's share of the gradient of the batch's mean loss; the part's mean loss and mistakes."""
    images, labels = part
    logits = forward(images)
    loss = cross_entropy(logits, labels)
    (loss * (len(labels) / batch_size)).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), (logits.detach().argmax(1) != labels).sum()


def _parts(images: Tensor, labels: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in equal parts; a small last batch in fewer."""
    count = part_count(len(labels), count)
    return zip(images.tensor_split(count), labels.tensor_split(count), strict=True)


def _warm_up(step: Callable[[], object]) -> None:
    """Beside the stream in use, as recording demands it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _undone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards the module's buffers and the random generators are as they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
