"""Who computes a training: one process alone, or several that share out every batch."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from equiscale.train.config import TrainConfig
from equiscale.train.step import Gradients, gradients_of


def is_launched() -> bool:
    """Whether this process was started as one of several, by torchrun or as it does.

    Example:
        >>> is_launched()
        False
    """
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE"))


class Batches(Protocol):
    """A source of batches; one pass draws its order and augmentation from the given generator."""

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels; what is not on the model's device is moved there."""
        ...


class Group(Protocol):
    """The processes of a training; `equiscale.train.distributed.Processes` are several."""

    @property
    def rank(self) -> int:
        """The number of this process; that of rank 0 writes the checkpoints."""
        ...

    def check(self, train: Batches, config: TrainConfig) -> None:
        """Refuse a training that these processes cannot share."""
        ...

    def check_same(self, training: str) -> None:
        """Refuse to go on where the processes would not train the same."""
        ...

    def training(self, model: nn.Module) -> AbstractContextManager[None]:
        """The context of all steps."""
        ...

    def gradients(self, model: nn.Module, config: TrainConfig) -> Gradients:
        """What computes the gradients."""
        ...

    def shares(
        self, batches: Batches, generator: torch.Generator | None = None, *, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch, computed in so many parts, the images of this process and the labels of all."""
        ...

    def joined(self, predictions: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The predictions of all processes for batches of these sizes, from one's own for its shares."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all must ask."""
        ...

    def agreed(self, should_stop: Callable[[], bool] | None) -> Callable[[], bool] | None:
        """The same question, to which all processes get one answer."""
        ...

    def description(self) -> dict[str, str]:
        """What a record says of the processes."""
        ...

    def dropout_stream(self, steps: int) -> str:
        """The name of this process' random numbers of an epoch that goes on after so many steps."""
        ...


class Alone:
    """One process, which computes whole batches."""

    rank: Final = 0

    def check(self, train: Batches, config: TrainConfig) -> None:
        """Nothing is refused."""

    def check_same(self, training: str) -> None:
        """There is no other."""

    def training(self, model: nn.Module) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def gradients(self, model: nn.Module, config: TrainConfig) -> Gradients:
        """What computes the gradients."""
        return gradients_of(model, config)

    def shares(
        self, batches: Batches, generator: torch.Generator | None = None, *, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches."""
        return batches.epoch(generator)

    def joined(self, predictions: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The predictions, one after the other."""
        return torch.cat(list(predictions))

    def any(self, flag: bool) -> bool:
        """Whether it is so."""
        return flag

    def agreed(self, should_stop: Callable[[], bool] | None) -> Callable[[], bool] | None:
        """The question."""
        return should_stop

    def description(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def dropout_stream(self, steps: int) -> str:
        """The stream's name."""
        return "dropout"


ALONE: Final = Alone()
