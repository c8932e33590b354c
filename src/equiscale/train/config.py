"""The settings of a training."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from equiscale._machine import has_compiler
from equiscale.errors import SettingError

OptimizerName: TypeAlias = Literal["adam", "sgd"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
Select: TypeAlias = Literal["best-validation", "last"]


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimiser; its learning rate is the schedule's.

    Args:
        name: "adam", or "sgd" with momentum.
        momentum: Of SGD.
        nesterov: Whether SGD's momentum is Nesterov's.
        weight_decay: λ: λ·w is added to the gradient of every weight w.

    Raises:
        SettingError: For a value outside its legal range.

    Example:
        >>> OptimizerSettings("sgd", weight_decay=5e-4).build(nn.Linear(2, 2), 0.1).defaults["nesterov"]
        True
    """

    name: OptimizerName = "adam"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.name, get_args(OptimizerName))
        if not 0 <= self.momentum < 1:
            raise SettingError(f"expected a momentum in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0:
            raise SettingError(f"expected a weight_decay of at least 0, got {self.weight_decay}")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise SettingError(
                "expected a positive momentum with nesterov=True, got 0; set nesterov = false for plain SGD"
            )

    def build(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """The optimiser of the module's parameters."""
        parameters = list(model.parameters())
        # On a GPU one kernel updates all weights; elsewhere torch's own choice.
        fused = all(parameter.is_cuda for parameter in parameters) or None
        if self.name == "adam":
            return torch.optim.Adam(parameters, learning_rate, weight_decay=self.weight_decay, fused=fused)
        return torch.optim.SGD(
            parameters,
            learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=fused,
        )


@dataclass(frozen=True)
class Numerics:
    """How the forward pass computes; weights, gradients and the loss are always of the module's dtype.

    Args:
        precision: "bfloat16" for autocast, which rounds the operands of convolutions and products.
        channels_last: Whether images and the weights of ordinary convolutions lie in memory with their
            channels last. The numbers are the same but for rounding, and for dropout, which draws in the
            order of the memory.
        compile: Whether torch.compile translates the forward pass and its gradient: a minute or more at the
            start, and the same numbers but for rounding, and on a GPU for dropout's draws.
        cuda_graphs: Whether forward pass and gradient are recorded once as a CUDA graph and replayed, which
            costs one launch a step instead of hundreds.
        deterministic: Whether only algorithms are taken that give the same bits again. On a CPU all do, with
            the same number of threads; on a GPU some are slower, and what has none is an error of torch.

    Raises:
        SettingError: For an unknown precision.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, get_args(Precision))

    def check(self, device: torch.device) -> None:
        """Refuse what cannot be had on a device.

        Raises:
            SettingError: If the forward pass is to be compiled and there is no compiler, or a CUDA graph
                is wanted elsewhere than on a GPU.
        """
        if self.compile and not has_compiler(device.type):
            needed = "a C++ compiler" if device.type == "cpu" else "a C++ compiler and Triton"
            raise SettingError(
                f"expected {needed} for compile = true on {device.type}, got none; install it or leave it out"
            )
        if self.cuda_graphs and device.type != "cuda":
            raise SettingError(
                f"expected a CUDA device for cuda_graphs = true, got {device.type}; leave it out on others"
            )

    @contextmanager
    def algorithms(self) -> Iterator[None]:
        """The context of a training or an evaluation; torch's own choice comes back afterwards."""
        if not self.deterministic:
            yield
            return
        # cuBLAS asks for it, once, before its first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.backends.cudnn.benchmark = before[1]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def logits(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """The network's output for images, in single precision at least."""
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast(images.device):
            logits = network(images)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def prepare(self, model: nn.Module) -> None:
        """Lay out the module's weights as the images."""
        # Only ordinary convolutions: other layers' tensors of four axes are no images' filters.
        if self.channels_last:
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class TrainConfig:
    """An optimiser with a stepped learning rate, and what of the training is kept.

    Args:
        epochs: Passes over the training batches.
        learning_rate: At the start.
        lr_steps: Epochs after which the rate is multiplied by ``lr_gamma``, increasing.
        lr_gamma: The factor.
        seed: Of the order of batches, augmentation and dropout.
        optimizer: The optimiser.
        numerics: Precision and layout of the forward pass.
        accumulate: Parts into which each batch is cut to save memory, of at least two images each. The
            gradient is that of the whole batch's mean loss; batch norm sees the parts.
        ema_decay: Evaluate and keep an exponential moving average of the weights, see
            `equiscale.train.average.WeightAverage`; None: the weights themselves.
        select: Which epoch's weights are kept: the first one of the least validation error, or the last.
        test_every: Measure the test error after each so many epochs, for the history alone; None: never.

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
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    numerics: Numerics = field(default_factory=Numerics)
    accumulate: int = 1
    ema_decay: float | None = None
    select: Select = "best-validation"
    test_every: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingError(f"expected at least one epoch, got {self.epochs}")
        if not self.learning_rate > 0 or not self.lr_gamma > 0:
            raise SettingError(
                f"expected positive learning_rate and lr_gamma, got {self.learning_rate} and {self.lr_gamma}"
            )
        if list(self.lr_steps) != sorted(self.lr_steps):
            raise SettingError(f"expected increasing lr_steps, got {list(self.lr_steps)}")
        if self.accumulate < 1:
            raise SettingError(f"expected accumulate of at least 1, got {self.accumulate}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise SettingError(f"expected an ema_decay in [0, 1), got {self.ema_decay}")
        if self.test_every is not None and self.test_every < 1:
            raise SettingError(f"expected test_every of at least 1 epoch, got {self.test_every}")
        _check_choice("select", self.select, get_args(Select))

    def learning_rate_at(self, epoch: int) -> float:
        """The rate of an epoch, counted from 1."""
        return self.learning_rate * self.lr_gamma ** bisect_right(self.lr_steps, epoch - 1)

    def tests_at(self, epoch: int) -> bool:
        """Whether the test error is measured after an epoch, counted from 1."""
        return self.test_every is not None and epoch % self.test_every == 0


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"expected {name} of {', '.join(choices)}, got {value!r}")
