"""The training loop: best validation epoch, a checkpoint an epoch, exact resumption."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale.errors import CheckpointError, TrainingError
from equiscale.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from equiscale.train.config import TrainConfig
from equiscale.train.seeding import derive_seed


class Batches(Protocol):
    """A source of batches; one pass draws its order and augmentation from the given generator."""

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, on the model's device."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept after every epoch.

    Args:
        path: The file.
        belongs_to: What the training depends on beside the network and its settings, for example the
            data's checksum: a checkpoint of anything else is refused.
    """

    path: Path
    belongs_to: str = ""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave; errors in percent, the epoch counted from 1."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_error: float
    validation_error: float
    seconds: float


@dataclass
class TrainState:
    """Everything that changes during a training.

    Args:
        model: The module, trained in place.
        optimizer: Its optimiser.
        history: One entry an epoch.
        best: The state dict of the epoch with the least validation error, the first one on ties.
        best_epoch: That epoch, counted from 1.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    history: list[EpochResult] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def record(self, result: EpochResult) -> None:
        """Append an epoch, and keep its weights if it is the best so far."""
        self.history.append(result)
        errors = [earlier.validation_error for earlier in self.history]
        if errors.index(min(errors)) == len(errors) - 1:
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best_epoch = result.epoch


def fit(
    model: nn.Module,
    train: Batches,
    *,
    validation: Batches,
    config: TrainConfig,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> TrainState:
    """Train a classifier with Adam and cross entropy; keep the best validation epoch.

    Every epoch draws from seeds derived from ``config.seed`` and the epoch's number, so that a
    training resumed from its checkpoint goes on with the same numbers. torch's default generator is
    left as it was.

    Args:
        model: The module, trained in place, with logits as output.
        train: Training batches.
        validation: Validation batches.
        config: Epochs, learning rates and seed.
        checkpoint: Written after every epoch; if it exists, training goes on from it.
        on_epoch: Called after every epoch, when its checkpoint is safe; for a resumed training
            first with the epochs it has behind it.

    Returns:
        The final state; ``state.best`` holds the weights to test.

    Raises:
        TrainingError: If the loss or a weight is not finite. The epoch's number is in the message,
            and the epoch is not kept.
        CheckpointError: If the checkpoint is damaged, or is one of another network, other settings, or
            of something else than it belongs to.

    Exactness:
        On the CPU with a fixed number of threads the weights have the same bits for the same seed,
        resumed or not (``tests/experiments/test_sweep.py`` kills real processes).
    """
    state = TrainState(model, torch.optim.Adam(model.parameters(), lr=config.learning_rate))
    identity = _identity(model, config, checkpoint)
    if checkpoint is not None and checkpoint.path.exists():
        _resume(state, checkpoint.path, identity)
    for result in state.history:
        _tell(on_epoch, result)
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        result = _run_epoch(state, train, validation, config, epoch)
        state.record(result)
        if checkpoint is not None:
            _save(state, checkpoint.path, identity)
        _tell(on_epoch, result)
    return state


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of all images, in evaluation mode; the module's mode is restored.

    Returns:
        Two int64 tensors ``(N,)`` on the CPU.

    Raises:
        TrainingError: If an output is not finite.
    """
    was_training = model.training
    model.eval()
    predictions, labels, finite = [], [], []
    for images, targets in batches.epoch():
        logits = model(images)
        predictions.append(logits.argmax(1))
        labels.append(targets)
        finite.append(torch.isfinite(logits).all())
    model.train(was_training)
    if not bool(torch.stack(finite).all()):
        raise TrainingError("expected finite outputs, got others; lower the learning rate or check the data")
    return torch.cat(predictions).cpu(), torch.cat(labels).cpu()


def error_percent(predictions: Tensor, labels: Tensor) -> float:
    """Percent of predictions that differ from the labels."""
    return 100.0 * float((predictions != labels).double().mean())


def _tell(on_epoch: Callable[[EpochResult], None] | None, result: EpochResult) -> None:
    if on_epoch is not None:
        on_epoch(result)


def _run_epoch(
    state: TrainState, train: Batches, validation: Batches, config: TrainConfig, epoch: int
) -> EpochResult:
    started = time.monotonic()
    learning_rate = config.learning_rate_at(epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    device = next(state.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(config.seed, "dropout", epoch))
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "batches", epoch))
        loss, error = _train_pass(state, train, generator)
    _check_finite(loss, state.model, f"in epoch {epoch} at learning rate {learning_rate:g}")
    validation_error = error_percent(*evaluate(state.model, validation))
    seconds = time.monotonic() - started
    return EpochResult(epoch, learning_rate, loss, error, validation_error, seconds)


def _check_finite(loss: float, model: nn.Module, when: str) -> None:
    cure = "lower the learning rate or check the data"
    if not math.isfinite(loss):
        raise TrainingError(f"expected a finite loss, got {loss} {when}; {cure}")
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"expected finite weights, got others in {name} {when}; {cure}")


def _train_pass(state: TrainState, train: Batches, generator: torch.Generator) -> tuple[float, float]:
    """One pass; loss and error stay on the device until its end."""
    state.model.train()
    total_loss, total_mistakes, seen = torch.zeros(()), torch.zeros(()), 0
    for images, labels in train.epoch(generator):
        state.optimizer.zero_grad()
        logits = state.model(images)
        loss = cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        total_loss = total_loss.to(loss.device) + loss.detach() * len(labels)
        total_mistakes = total_mistakes.to(loss.device) + (logits.detach().argmax(1) != labels).sum()
        seen += len(labels)
    if not seen:
        raise TrainingError("expected at least one training batch, got none")
    return float(total_loss) / seen, 100.0 * float(total_mistakes) / seen


def _identity(model: nn.Module, config: TrainConfig, checkpoint: Checkpoint | None) -> str:
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())
    belongs_to = checkpoint.belongs_to if checkpoint else ""
    return f"{config} {belongs_to} {type(model).__name__} {shapes}"


def _save(state: TrainState, path: Path, identity: str) -> None:
    groups = {
        "model": dict(state.model.state_dict()),
        "best": state.best,
        "optimizer": optimizer_tensors(state.optimizer),
    }
    progress = {"history": [asdict(result) for result in state.history], "best_epoch": state.best_epoch}
    save_checkpoint(path, groups, identity=identity, progress=progress)


def _resume(state: TrainState, path: Path, identity: str) -> None:
    groups, progress = load_checkpoint(path, identity=identity)
    try:
        state.history = [EpochResult(**entry) for entry in progress["history"]]
        state.best_epoch = int(progress["best_epoch"])
        device = next(state.model.parameters()).device
        state.best = {name: tensor.to(device) for name, tensor in groups["best"].items()}
        state.model.load_state_dict(groups["model"])
        restore_optimizer(state.optimizer, groups["optimizer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"expected a complete checkpoint in {path}, got: {error}; delete it") from error
