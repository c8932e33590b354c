"""The training loop: the epoch to keep, checkpoints, a stop at any step, exact resumption."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from equiscale.errors import SettingError, TrainingError, TrainingStoppedError
from equiscale.train.average import WeightAverage, weights_of
from equiscale.train.config import Numerics, TrainConfig
from equiscale.train.group import ALONE, Batches, Group
from equiscale.train.seeding import derive_seed
from equiscale.train.state import (
    EpochResult,
    Position,
    TrainState,
    random_states,
    restore_random_states,
    restore_state,
    save_state,
)
from equiscale.train.step import Gradients, forward_of

_PLAIN = Numerics()
_TEN_MINUTES = 600.0


@dataclass(frozen=True)
class Splits:
    """The batches of a training.

    Args:
        train: What is learned from.
        validation: What selects the epoch to keep; None where the last one is kept.
        test: For the periodic test, which selects nothing; None where there is none.
        group: The processes that share out every batch.
    """

    train: Batches
    validation: Batches | None = None
    test: Batches | None = None
    group: Group = ALONE


@dataclass(frozen=True)
class Checkpoint:
    """Where and when a training is kept: after every epoch, when it is stopped, and now and then.

    Args:
        path: The file.
        belongs_to: What the training depends on beside the network and its settings, for example the
            data's checksum: a checkpoint of anything else is refused.
        every: Seconds of a long epoch after which it is kept once more; what a killed training loses.
    """

    path: Path
    belongs_to: str = ""
    every: float = _TEN_MINUTES


def fit(
    model: nn.Module,
    splits: Splits,
    *,
    config: TrainConfig,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train a classifier with cross entropy; keep the best validation epoch, or the last.

    Every epoch draws from seeds derived from ``config.seed`` and the epoch's number, so that a
    training resumed from its checkpoint goes on with the same numbers. torch's default generator is
    left as it was.

    Args:
        model: The module, trained in place, with logits as output.
        splits: Batches for training, validation and the periodic test.
        config: Epochs, learning rates, optimiser, precision and seed.
        checkpoint: Written after every epoch and at a stop; if it exists, training goes on from it. One
            that cannot be written, for want of room, is noted in the state and stops nothing.
        on_epoch: Called after every epoch, when its checkpoint is safe; for a resumed training
            first with the epochs it has behind it.
        should_stop: Asked after every step and every batch of an evaluation.

    Returns:
        The final state; ``state.best`` holds the weights to test.

    Raises:
        SettingError: If the best validation epoch is to be kept or a test is due, and there are no
            batches for it, or the numerics cannot be had on the module's device.
        TrainingError: If the loss or a weight is not finite. The epoch's number is in the message,
            and the epoch is not kept.
        TrainingStoppedError: If it was to stop; the checkpoint has been written.
        CheckpointError: If the checkpoint is damaged, or is one of another network, other settings, or
            of something else than it belongs to.

    Exactness:
        On the CPU with a fixed number of threads the weights have the same bits for the same seed,
        resumed or not (``tests/experiments/test_sweep.py`` kills real processes); on a GPU with
        deterministic numerics.
    """
    group = splits.group
    _check_splits(splits, config)
    group.check(splits.train, config)
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
        restore_state(state, checkpoint.path, identity)
    steps = state.position.steps if state.position else 0
    group.check_same(f"{identity} after {len(state.history)} epochs and {steps} steps")
    for result in state.history:
        _tell(on_epoch, result)
    own_checkpoint = checkpoint if group.rank == 0 else None
    keeper = _Keeper(state, own_checkpoint, identity, group.agreed(should_stop))
    gradients = group.gradients(model, config)
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        try:
            result = _run_epoch(state, splits, config, gradients, epoch, keeper)
        except TrainingStoppedError:
            keeper.save()
            group.any(False)  # nobody is gone, or begins again, before the checkpoint is there
            raise
        state.record(result)
        keeper.save()
        _tell(on_epoch, result)
    return state


class _Keeper:
    """Keeps a training when it is time to, and stops it when it is to stop."""

    def __init__(
        self,
        state: TrainState,
        checkpoint: Checkpoint | None,
        identity: str,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.state, self.checkpoint, self.identity = state, checkpoint, identity
        self.should_stop = should_stop or (lambda: False)
        self.saved = time.monotonic()

    def after_step(self) -> None:
        """A safe point: weights, optimiser, sums and random states are of the same step."""
        stop, now = self.should_stop(), time.monotonic()
        due = self.checkpoint is not None and now - self.saved >= self.checkpoint.every
        if (stop or due) and self.state.position is not None:
            self.state.position.random = random_states(self.state.device)
        if due and not stop:
            self.save()
        self._stop_if(stop)

    def between_batches(self) -> None:
        """A safe point of an evaluation, after which its first batch is the next one again."""
        self._stop_if(self.should_stop())

    def save(self) -> None:
        """Write the checkpoint. A full disk must not cost a training that may yet find room at its end."""
        self.saved = time.monotonic()
        if self.checkpoint is None:
            return
        try:
            save_state(self.state, self.checkpoint.path, self.identity)
        except OSError as error:
            self.state.notes.append(f"no checkpoint after epoch {len(self.state.history)}: {error}")

    def _stop_if(self, stop: bool) -> None:
        if stop:
            epoch, position = len(self.state.history) + 1, self.state.position
            raise TrainingStoppedError(
                f"stopped in epoch {epoch} after {position.steps if position else 0} steps"
            )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    numerics: Numerics = _PLAIN,
    on_batch: Callable[[], None] | None = None,
    group: Group = ALONE,
) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of all images, in evaluation mode; the module's mode is restored.

    Args:
        model: The module, with logits as output.
        batches: The images and labels.
        numerics: Precision and layout of the forward pass.
        on_batch: Called after every batch; an exception ends the evaluation.
        group: The processes that share out every batch; each gets the predictions of all.

    Returns:
        Two int64 tensors ``(N,)`` on the CPU.

    Raises:
        TrainingError: If an output is not finite.
    """
    was_training, device = model.training, _device_of(model)
    model.eval()
    forward = forward_of(model, numerics)
    predictions, labels, finite = [], [], []
    try:
        with numerics.algorithms():
            for images, targets in group.shares(batches):
                logits = forward(images.to(device))
                predictions.append(logits.argmax(1))
                labels.append(targets)
                finite.append(torch.isfinite(logits).all())
                if on_batch is not None:
                    on_batch()
    finally:
        model.train(was_training)
    if group.any(not bool(torch.stack(finite).all())):
        raise TrainingError("expected finite outputs, got others; lower the learning rate or check the data")
    joined = group.joined(predictions, [len(targets) for targets in labels])
    return joined.cpu(), torch.cat(labels).cpu()


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
    state: TrainState,
    splits: Splits,
    config: TrainConfig,
    gradients: Gradients,
    epoch: int,
    keeper: _Keeper,
) -> EpochResult:
    position = state.position = state.position or Position(state.device)
    processes = splits.group
    learning_rate = config.learning_rate_at(epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    devices = [state.device] if state.device.type == "cuda" else []
    with config.numerics.algorithms(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(config.seed, processes.dropout_stream(position.steps), epoch))
        restore_random_states(position.random if processes.rank == 0 else {}, state.device)
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "batches", epoch))
        batches = processes.shares(splits.train, generator, parts=config.accumulate)
        with processes.training(state.model):
            loss, error = _train_pass(state, position, batches, gradients, keeper)
    _check_finite(loss, state.model, f"in epoch {epoch} at learning rate {learning_rate:g}")
    with weights_of(state.model, state.average.tensors if state.average else None):
        validation_error = _error(state.model, splits.validation, config, keeper, processes)
        test_batches = splits.test if config.tests_at(epoch) else None
        test_error = _error(state.model, test_batches, config, keeper, processes)
    return EpochResult(epoch, learning_rate, loss, error, validation_error, position.seconds, test_error)


def _error(
    model: nn.Module, batches: Batches | None, config: TrainConfig, keeper: _Keeper, group: Group
) -> float | None:
    if batches is None:
        return None
    on_batch = keeper.between_batches
    return error_percent(*evaluate(model, batches, numerics=config.numerics, on_batch=on_batch, group=group))


def _check_finite(loss: float, model: nn.Module, when: str) -> None:
    cure = "lower the learning rate or check the data"
    if not math.isfinite(loss):
        raise TrainingError(f"expected a finite loss, got {loss} {when}; {cure}")
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"expected finite weights, got others in {name} {when}; {cure}")


def _train_pass(
    state: TrainState,
    position: Position,
    batches: Iterator[tuple[Tensor, Tensor]],
    gradients: Gradients,
    keeper: _Keeper,
) -> tuple[float, float]:
    """One pass, or what is left of it; the mean loss and the error in percent.

    The batches that are behind it are drawn again, so that the generator is where it was.
    """
    state.model.train()
    for images, labels in islice(batches, position.steps, None):
        loss, mistakes = gradients(images.to(state.device), labels.to(state.device))
        state.optimizer.step()
        if state.average is not None:
            state.average.update(state.model)
        position.add(loss, mistakes, len(labels))
        keeper.after_step()
    if not position.images:
        raise TrainingError("expected at least one training batch, got none")
    return float(position.loss) / position.images, 100.0 * float(position.mistakes) / position.images


def _identity(model: nn.Module, config: TrainConfig, checkpoint: Checkpoint | None) -> str:
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())
    belongs_to = checkpoint.belongs_to if checkpoint else ""
    return f"{config} {belongs_to} {type(model).__name__} {shapes}"
