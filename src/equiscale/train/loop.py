"""The training loop: the epoch to keep, a checkpoint an epoch, exact resumption."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from equiscale.errors import CheckpointError, SettingError, TrainingError
from equiscale.train.average import WeightAverage, weights_of
from equiscale.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from equiscale.train.config import Numerics, Select, TrainConfig
from equiscale.train.seeding import derive_seed
from equiscale.train.step import Gradients, forward_of, gradients_of

_PLAIN = Numerics()


class Batches(Protocol):
    """A source of batches; one pass draws its order and augmentation from the given generator."""

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels; what is not on the model's device is moved there."""
        ...


@dataclass(frozen=True)
class Splits:
    """The batches of a training.

    Args:
        train: What is learned from.
        validation: What selects the epoch to keep; None where the last one is kept.
        test: For the periodic test, which selects nothing; None where there is none.
    """

    train: Batches
    validation: Batches | None = None
    test: Batches | None = None


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
    """What one epoch gave; errors in percent, None where not measured, the epoch counted from 1."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_error: float
    validation_error: float | None
    seconds: float
    test_error: float | None = None


@dataclass
class TrainState:
    """Everything that changes during a training.

    Args:
        model: The module, trained in place.
        optimizer: Its optimiser.
        select: Which epoch is kept.
        average: The moving average of the weights, where it is evaluated in their place.
        history: One entry an epoch.
        best: The state dict of the epoch that is kept: of the least validation error, the first one on
            ties, or the last one.
        best_epoch: That epoch, counted from 1.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    select: Select = "best-validation"
    average: WeightAverage | None = None
    history: list[EpochResult] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def record(self, result: EpochResult) -> None:
        """Append an epoch, and keep its weights if it is the one to keep so far."""
        self.history.append(result)
        if self.select == "last" or self._is_first_best():
            self.keep(result.epoch)

    def keep(self, epoch: int) -> None:
        """Make the weights of now the ones to keep."""
        weights = self.model.state_dict() if self.average is None else self.average.tensors
        self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.best_epoch = epoch

    def _is_first_best(self) -> bool:
        errors = [
            math.inf if past.validation_error is None else past.validation_error for past in self.history
        ]
        return errors.index(min(errors)) == len(errors) - 1


def fit(
    model: nn.Module,
    splits: Splits,
    *,
    config: TrainConfig,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> TrainState:
    """Train a classifier with cross entropy; keep the best validation epoch, or the last.

    Every epoch draws from seeds derived from ``config.seed`` and the epoch's number, so that a
    training resumed from its checkpoint goes on with the same numbers. torch's default generator is
    left as it was.

    Args:
        model: The module, trained in place, with logits as output.
        splits: Batches for training, validation and the periodic test.
        config: Epochs, learning rates, optimiser, precision and seed.
        checkpoint: Written after every epoch; if it exists, training goes on from it.
        on_epoch: Called after every epoch, when its checkpoint is safe; for a resumed training
            first with the epochs it has behind it.

    Returns:
        The final state; ``state.best`` holds the weights to test.

    Raises:
        SettingError: If the best validation epoch is to be kept or a test is due, and there are no
            batches for it, or the numerics cannot be had on the module's device.
        TrainingError: If the loss or a weight is not finite. The epoch's number is in the message,
            and the epoch is not kept.
        CheckpointError: If the checkpoint is damaged, or is one of another network, other settings, or
            of something else than it belongs to.

    Exactness:
        On the CPU with a fixed number of threads the weights have the same bits for the same seed,
        resumed or not (``tests/experiments/test_sweep.py`` kills real processes).
    """
    _check_splits(splits, config)
    config.numerics.check(_device_of(model))
    config.numerics.prepare(model)
    state = TrainState(
        model,
        config.optimizer.build(model, config.learning_rate),
        config.select,
        None if config.ema_decay is None else WeightAverage(model, config.ema_decay),
    )
    identity = _identity(model, config, checkpoint)
    if checkpoint is not None and checkpoint.path.exists():
        _resume(state, checkpoint.path, identity)
    for result in state.history:
        _tell(on_epoch, result)
    gradients = gradients_of(model, config)
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        result = _run_epoch(state, splits, config, gradients, epoch)
        state.record(result)
        if checkpoint is not None:
            _save(state, checkpoint.path, identity)
        _tell(on_epoch, result)
    return state


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, *, numerics: Numerics = _PLAIN) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of all images, in evaluation mode; the module's mode is restored.

    Args:
        model: The module, with logits as output.
        batches: The images and labels.
        numerics: Precision and layout of the forward pass.

    Returns:
        Two int64 tensors ``(N,)`` on the CPU.

    Raises:
        TrainingError: If an output is not finite.
    """
    was_training, device = model.training, _device_of(model)
    model.eval()
    forward = forward_of(model, numerics)
    predictions, labels, finite = [], [], []
    for images, targets in batches.epoch():
        logits = forward(images.to(device))
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


def _check_splits(splits: Splits, config: TrainConfig) -> None:
    if config.select == "best-validation" and splits.validation is None:
        raise SettingError(
            "expected a validation split to select the best epoch, got none; keep the last epoch with "
            'select = "last"'
        )
    if config.test_every is not None and splits.test is None:
        raise SettingError("expected test batches for a periodic test, got none; leave out test_every")


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _run_epoch(
    state: TrainState, splits: Splits, config: TrainConfig, gradients: Gradients, epoch: int
) -> EpochResult:
    started = time.monotonic()
    learning_rate = config.learning_rate_at(epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    device = _device_of(state.model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(config.seed, "dropout", epoch))
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "batches", epoch))
        loss, error = _train_pass(state, splits.train, gradients, generator)
    _check_finite(loss, state.model, f"in epoch {epoch} at learning rate {learning_rate:g}")
    with weights_of(state.model, state.average.tensors if state.average else None):
        validation_error = _error(state.model, splits.validation, config)
        test_error = _error(state.model, splits.test if config.tests_at(epoch) else None, config)
    seconds = time.monotonic() - started
    return EpochResult(epoch, learning_rate, loss, error, validation_error, seconds, test_error)


def _error(model: nn.Module, batches: Batches | None, config: TrainConfig) -> float | None:
    if batches is None:
        return None
    return error_percent(*evaluate(model, batches, numerics=config.numerics))


def _check_finite(loss: float, model: nn.Module, when: str) -> None:
    cure = "lower the learning rate or check the data"
    if not math.isfinite(loss):
        raise TrainingError(f"expected a finite loss, got {loss} {when}; {cure}")
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"expected finite weights, got others in {name} {when}; {cure}")


def _train_pass(
    state: TrainState, train: Batches, gradients: Gradients, generator: torch.Generator
) -> tuple[float, float]:
    """One pass; loss and error stay on the device until its end, so that it never waits for the processor."""
    state.model.train()
    device = _device_of(state.model)
    total_loss, total_mistakes, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for images, labels in train.epoch(generator):
        loss, mistakes = gradients(images.to(device), labels.to(device))
        state.optimizer.step()
        if state.average is not None:
            state.average.update(state.model)
        total_loss += loss
        total_mistakes += mistakes
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
        "best": {} if state.select == "last" else state.best,  # the last epoch's weights are there anyway
        "optimizer": optimizer_tensors(state.optimizer),
        "average": {} if state.average is None else state.average.tensors,
    }
    progress = {
        "history": [asdict(result) for result in state.history],
        "best_epoch": state.best_epoch,
        "average_steps": 0 if state.average is None else state.average.steps,
    }
    save_checkpoint(path, groups, identity=identity, progress=progress)


def _resume(state: TrainState, path: Path, identity: str) -> None:
    groups, progress = load_checkpoint(path, identity=identity)
    try:
        state.history = [EpochResult(**entry) for entry in progress["history"]]
        state.model.load_state_dict(groups["model"])
        restore_optimizer(state.optimizer, groups.get("optimizer", {}))
        if state.average is not None:
            state.average.steps = int(progress["average_steps"])
            for name, tensor in state.average.tensors.items():
                tensor.copy_(groups["average"][name])
        if state.select == "last":
            state.keep(len(state.history))
        else:
            state.best, state.best_epoch = (
                _to_device(groups["best"], state.model),
                int(progress["best_epoch"]),
            )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"expected a complete checkpoint in {path}, got: {error}; delete it") from error


def _to_device(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = _device_of(model)
    return {name: tensor.to(device) for name, tensor in tensors.items()}
