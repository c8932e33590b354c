"""The exponential moving average of a training's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    r"""An exponential moving average of a module's state dict.

    .. math:: \bar w_t = d_t \bar w_{t-1} + (1 - d_t)\, w_t, \qquad
        d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    after step t = 1, 2, …; the smaller decay of the first steps forgets the random weights at the
    start. The running statistics of batch norm are averaged like weights, counters are copied.

    Args:
        model: The module; its present weights are the average's start.
        decay: d, in [0, 1).

    Source:
        The decay of the first steps is that of TensorFlow's ExponentialMovingAverage.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(layer, 0.99)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> average.update(layer)
        >>> average.steps
        1
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors = _copy(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)


@contextmanager
def weights_of(model: nn.Module, tensors: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Lend a module other weights; its own come back afterwards. None: its own."""
    if tensors is None:
        yield
        return
    own = _copy(model)
    model.load_state_dict(tensors)
    try:
        yield
    finally:
        model.load_state_dict(own)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
