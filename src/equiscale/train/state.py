"""What changes during a training, and its checkpoints: after an epoch, or within one at any step."""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from equiscale.errors import CheckpointError
from equiscale.train.average import WeightAverage
from equiscale.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from equiscale.train.config import Select


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


class Position:
    """How far the pass over the training images is.

    The sums stay on the device, so that it never waits for the processor.

    Args:
        device: Of the training.

    Attributes:
        steps: Batches that are behind it.
        images: Images that are behind it.
        loss: Sum of their losses, ``()``.
        mistakes: Sum of their mistakes, ``()``.
        random: The states of torch's generators after these steps, as `random_states` gives them.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.images = 0
        self.loss = torch.zeros((), device=device)
        self.mistakes = torch.zeros((), device=device)
        self.random: dict[str, Tensor] = {}
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that was spent on the epoch, without that between a stop and its resumption."""
        return time.monotonic() - self._started

    def add(self, loss: Tensor, mistakes: Tensor, images: int) -> None:
        """Count one more batch."""
        self.steps += 1
        self.images += images
        self.loss += loss
        self.mistakes += mistakes

    def tensors(self) -> dict[str, Tensor]:
        """The sums and the random states."""
        return {"loss": self.loss, "mistakes": self.mistakes, **self.random}

    def numbers(self) -> dict[str, float]:
        """The counts and the seconds."""
        return {"steps": self.steps, "images": self.images, "seconds": self.seconds}

    @classmethod
    def restored(
        cls, numbers: dict[str, float], tensors: dict[str, Tensor], device: torch.device
    ) -> "Position":
        """The inverse of `numbers` and `tensors`."""
        position = cls(device)
        position.steps, position.images = int(numbers["steps"]), int(numbers["images"])
        position._started -= float(numbers["seconds"])
        position.loss, position.mistakes = tensors["loss"].to(device), tensors["mistakes"].to(device)
        position.random = {name: tensors[name] for name in tensors if name not in ("loss", "mistakes")}
        return position


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's default generators, of the CPU and of a GPU that is trained on."""
    states = {"random cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_states`; on another kind of device the numbers are others anyway."""
    if "random cpu" in states:
        torch.set_rng_state(states["random cpu"])
    if device.type == "cuda" and "random cuda" in states:
        torch.cuda.set_rng_state(states["random cuda"], device)


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
        position: Where in the present epoch the training is; None between epochs.
        notes: What went wrong without harm to the result, for example a checkpoint that found no room.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    select: Select = "best-validation"
    average: WeightAverage | None = None
    history: list[EpochResult] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    position: Position | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.model.parameters()).device

    def record(self, result: EpochResult) -> None:
        """Append an epoch, and keep its weights if it is the one to keep so far."""
        self.position = None
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


def save_state(state: TrainState, path: Path, identity: str) -> None:
    """Write a checkpoint atomically."""
    position = state.position
    groups = {
        "model": dict(state.model.state_dict()),
        "best": {} if state.select == "last" else state.best,  # the last epoch's weights are there anyway
        "optimizer": optimizer_tensors(state.optimizer),
        "average": {} if state.average is None else state.average.tensors,
        "position": {} if position is None else position.tensors(),
    }
    progress = {
        "history": [asdict(result) for result in state.history],
        "best_epoch": state.best_epoch,
        "average_steps": 0 if state.average is None else state.average.steps,
        "position": None if position is None else position.numbers(),
    }
    save_checkpoint(path, groups, identity=identity, progress=progress)


def restore_state(state: TrainState, path: Path, identity: str) -> None:
    """Put a checkpoint into a fresh state.

    Raises:
        CheckpointError: If the file is damaged, or of another training.
    """
    groups, progress = load_checkpoint(path, identity=identity)
    try:
        state.history = [EpochResult(**entry) for entry in progress["history"]]
        state.model.load_state_dict(groups["model"])
        restore_optimizer(state.optimizer, groups.get("optimizer", {}))
        if state.average is not None:
            state.average.steps = int(progress["average_steps"])
            for name, tensor in state.average.tensors.items():
                tensor.copy_(groups["average"][name])
        if progress["position"] is not None:
            state.position = Position.restored(progress["position"], groups["position"], state.device)
        if state.select != "last":
            state.best = {name: tensor.to(state.device) for name, tensor in groups.get("best", {}).items()}
            state.best_epoch = int(progress["best_epoch"])
        elif state.position is None:
            state.keep(len(state.history))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"expected a complete checkpoint in {path}, got: {error}; delete it") from error
