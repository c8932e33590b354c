"""The settings of a training."""

from bisect import bisect_right
from dataclasses import dataclass

from equiscale.errors import SettingError


@dataclass(frozen=True)
class TrainConfig:
    """Adam with a stepped learning rate.

    Args:
        epochs: Passes over the training batches.
        learning_rate: At the start.
        lr_steps: Epochs after which the rate is multiplied by ``lr_gamma``, increasing.
        lr_gamma: The factor.
        seed: Of the order of batches, augmentation and dropout.

    Raises:
        SettingError: For a value outside its legal range.

    Example:
        >>> config = TrainConfig(epochs=60, learning_rate=0.5, lr_steps=(20, 40), lr_gamma=0.5)
        >>> [config.learning_rate_at(epoch) for epoch in (1, 20, 21, 41)]
        [0.5, 0.5, 0.25, 0.125]
    """

    epochs: int
    learning_rate: float
    lr_steps: tuple[int, ...] = ()
    lr_gamma: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingError(f"expected at least one epoch, got {self.epochs}")
        if not self.learning_rate > 0 or not self.lr_gamma > 0:
            raise SettingError(
                f"expected positive learning_rate and lr_gamma, got {self.learning_rate} and {self.lr_gamma}"
            )
        if list(self.lr_steps) != sorted(self.lr_steps):
            raise SettingError(f"expected increasing lr_steps, got {list(self.lr_steps)}")

    def learning_rate_at(self, epoch: int) -> float:
        """The rate of an epoch, counted from 1."""
        return self.learning_rate * self.lr_gamma ** bisect_right(self.lr_steps, epoch - 1)
