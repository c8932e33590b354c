"""A training that several processes share: each computes its own share of every batch.

All draw the same order and the same augmentation, and have the same weights after every step. But for
rounding, the loss is that of one process, however many there are.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from equiscale.errors import LostProcessError, SettingError, TrainingStoppedError
from equiscale.nn.sync_norm import shared_statistics
from equiscale.train.config import TrainConfig
from equiscale.train.group import Batches
from equiscale.train.step import part_count

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TEN_MINUTES = 600.0


@runtime_checkable
class SharedBatches(Protocol):
    """Batches of which a process can have its share, as `equiscale.data.TensorBatches`."""

    @property
    def sizes(self) -> list[int]:
        """The number of images of each batch."""
        ...

    def epoch(
        self, generator: torch.Generator | None = None, *, share: Callable[[int], Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch the images at the places that ``share`` gives for its size, and all labels."""
        ...


def local_rank() -> int:
    """The number of this process on its machine."""
    return _whole("LOCAL_RANK")


def local_size() -> int:
    """How many of the processes are on this machine; all, where nobody says."""
    return _whole("LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in os.environ else "WORLD_SIZE")


@contextmanager
def processes(device: str, *, timeout: float = _TEN_MINUTES) -> Iterator["Processes"]:
    """Meet the other processes; leave together with them.

    Where it is left by an error, the others are told by the end of this process.

    Args:
        device: "cpu" for gloo; "cuda", with the index of this process's own, for NCCL.
        timeout: Seconds to wait for a process that does not answer.

    Raises:
        SettingError: If the variables of torchrun are missing or are no numbers.
        LostProcessError: If the others do not come.
    """
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise SettingError(
            f"expected the variables {', '.join(_VARIABLES)}, got none of {', '.join(missing)}; start with "
            "torchrun -m equiscale train …"
        )
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(torch.device(device))
    with _lost_as_error():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=_whole("RANK"),
            world_size=_whole("WORLD_SIZE"),
            timeout=timedelta(seconds=timeout),
            device_id=torch.device(device) if on_gpu else None,
        )
    together = Processes()
    try:
        yield together
    except TrainingStoppedError:  # in all at the same step
        together.leave()
        raise
    together.leave()


class Processes:
    """All processes of torch's default group, as the `equiscale.train.group.Group` of a training.

    Every process calls the same methods in the same order.

    Raises:
        LostProcessError: From any method, if another process has ended or does not answer.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def check(self, train: Batches, config: TrainConfig) -> None:
        """Refuse a training that these processes cannot share.

        Raises:
            SettingError: For compiled steps or CUDA graphs, batches of which no share can be had, or a
                batch, or part of one, with fewer images than processes.
        """
        for name in ("cuda_graphs", "compile"):
            if getattr(config.numerics, name):
                raise SettingError(
                    f"expected {name} = false in a training under torchrun, got true; leave it out"
                )
        for images in sorted(set(_shared(train).sizes)):
            parts = part_count(images, config.accumulate)
            if images // parts < self.size:
                raise SettingError(
                    f"expected batches of at least one image for each of {self.size} processes, got one of "
                    f"{images} images in {parts} parts; choose another batch size, or start fewer processes"
                )

    def check_same(self, training: str) -> None:
        """Refuse to go on where the processes would not train the same.

        Raises:
            SettingError: If they have another network, other data or settings, or not the same checkpoint.
        """
        digest = hashlib.sha256(training.encode()).digest()[:7]  # a whole number that a float could hold
        own = torch.tensor([int.from_bytes(digest, "big")])
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        with _lost_as_error():
            dist.all_gather(gathered, own)
        different = [rank for rank, other in enumerate(gathered) if not torch.equal(other, gathered[0])]
        if different:
            raise SettingError(
                "expected the same network, data, settings and checkpoint in all processes, got others in "
                f"process {', '.join(map(str, different))} than in process 0; give all the same data, and a "
                "results folder that all of them see"
            )

    @contextmanager
    def training(self, model: nn.Module) -> Iterator[None]:
        """Batch norms see the batches of all processes as one."""
        with shared_statistics(model, _world()):
            yield

    def gradients(self, model: nn.Module, config: TrainConfig) -> "SharedGradients":
        """What computes the gradients.

        Raises:
            SettingError: If several processes would evaluate by the statistics of their shares.
        """
        if self.size > 1:
            _check_statistics(model)
        return SharedGradients(model, config, self)

    def shares(
        self, batches: Batches, generator: torch.Generator | None = None, *, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch, computed in so many parts, the images of this process and the labels of all.

        Where there is no image for this process, it is given the first one.
        """
        return _shared(batches).epoch(generator, share=lambda images: self._places(images, parts))

    def own_parts(self, images: int, parts: int) -> list[int]:
        """How many images of each part of a batch are this process' own."""
        return [len(part.tensor_split(self.size)[self.rank]) for part in _parts(images, parts)]

    def joined(self, predictions: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The predictions of all processes for batches of these sizes, from one's own for its shares."""
        counts = torch.tensor([[len(s) for s in torch.arange(n).tensor_split(self.size)] for n in sizes])
        counts = counts.view(len(sizes), self.size)  # one row a batch
        pairs = zip(predictions, counts[:, self.rank].tolist(), strict=True)
        own = torch.cat([some[:count] for some, count in pairs]).cpu()
        padded = own.new_zeros(int(counts.sum(0).max()))
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        with _lost_as_error():
            dist.all_gather(gathered, padded)
        by_rank = [
            found[: sum(column)].split(column)  # type: ignore[no-untyped-call]
            for found, column in zip(gathered, counts.T.tolist(), strict=True)
        ]
        return torch.cat([share for shares in zip(*by_rank, strict=True) for share in shares])

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all must ask."""
        return bool(self.sum(torch.tensor([float(flag)])))

    def agreed(self, should_stop: Callable[[], bool] | None) -> Callable[[], bool]:
        """The same question, to which all processes get one answer."""
        return lambda: self.any(should_stop is not None and should_stop())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        with _lost_as_error():
            dist.all_reduce(values)
        return values

    def description(self) -> dict[str, str]:
        """How many processes."""
        return {"processes": str(self.size)}

    def dropout_stream(self, steps: int) -> str:
        """The name of this process' random numbers of an epoch that goes on after so many steps.

        The checkpoint has the generator of process 0 alone; the others start anew.
        """
        return "dropout" if self.rank == 0 else f"dropout in process {self.rank} from step {steps}"

    def leave(self) -> None:
        """Wait for the others, and part."""
        self.any(False)  # nobody may leave while another still talks to it
        dist.destroy_process_group()

    def _places(self, images: int, parts: int) -> Tensor:
        own = torch.cat([part.tensor_split(self.size)[self.rank] for part in _parts(images, parts)])
        return own if len(own) else torch.zeros(1, dtype=torch.int64)


class SharedGradients:
    """The gradient of the batch's mean loss, from the shares of all processes.

    It is summed while the backward pass goes on; where a batch is cut into parts, in that of the last one.
    A step may leave parameters out, in all processes or in some: what no process uses has no gradient.

    Args:
        model: The module.
        config: Its numerics, and the parts into which each batch is cut.
        together: The processes.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, together: Processes) -> None:
        self.model, self.config, self.together = model, config, together
        self.network: DistributedDataParallel | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The whole batch's summed loss and its mistakes.

        Args:
            images: Of this process' share.
            labels: Of the whole batch.
        """
        with _lost_as_error():
            self.network = self.network or _parallel(self.model)
            self.model.zero_grad()
            sums = torch.zeros(2, dtype=torch.float64, device=images.device)
            parts = list(self._parts(images, labels))
            for index, part in enumerate(parts):
                with self._summing(self.network, last=index == len(parts) - 1):
                    sums += self._backward(self.network, part, len(labels))
        loss, mistakes = self.together.sum(sums).unbind()
        return loss, mistakes

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """This process' images and labels of each part of the batch."""
        own = self.together._places(len(labels), self.config.accumulate)
        sizes = self.together.own_parts(len(labels), self.config.accumulate)
        targets = labels[own.to(labels.device)]
        return zip(images.split(sizes), targets.split(sizes), strict=True)  # type: ignore[no-untyped-call]

    def _summing(self, network: DistributedDataParallel, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else network.no_sync()

    def _backward(
        self, network: DistributedDataParallel, part: tuple[Tensor, Tensor], batch_size: int
    ) -> Tensor:
        """Add a part's share of the gradient; its summed loss and mistakes."""
        images, labels = part
        logits = self.config.numerics.logits(network, images)
        loss = cross_entropy(logits, labels, reduction="sum")
        # The processes' gradients are averaged, and the batch's is their sum.
        (loss * (self.together.size / batch_size)).backward()  # type: ignore[no-untyped-call]
        mistakes = (logits.detach().argmax(1) != labels).sum()
        return torch.stack([loss.detach().double(), mistakes.double()])


def _shared(batches: Batches) -> SharedBatches:
    if not isinstance(batches, SharedBatches):
        raise SettingError(
            "expected batches of which several processes can have their shares, got "
            f"{type(batches).__name__}; use TensorBatches"
        )
    return batches


class _WithSpare(nn.Module):
    """A module, and a parameter that no output depends on: torch warns where it looks for one in vain."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.spare = nn.Parameter(next(model.parameters()).detach().new_zeros(1))

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def _parallel(model: nn.Module) -> DistributedDataParallel:
    # Statistics are shared already; the setting has another name in newer versions, which warn of the old.
    newer = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    setting: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    # Any step may use others than the last one did, and nobody can know which.
    return DistributedDataParallel(_WithSpare(model), find_unused_parameters=True, **setting)


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise SettingError(
                "expected batch norms with running statistics, as each process evaluates its own share, got "
                f"{type(module).__name__} {name} without; make it with track_running_stats=True, or train it "
                "in one process"
            )


def _parts(images: int, parts: int) -> tuple[Tensor, ...]:
    """The places in a batch, by its parts."""
    return torch.arange(images).tensor_split(part_count(images, parts))


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise SettingError("expected processes that have met, got none; use equiscale.train.distributed")
    return group


def _whole(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise SettingError(f"expected a whole number in the variable {variable}, got {text!r}")
    return int(text)


@contextmanager
def _lost_as_error() -> Iterator[None]:
    """torch's errors of a group that has broken, in one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise LostProcessError(
            f"expected all processes to go on, got: {reason}; look for the error of the one that ended "
            "first, and start again: the training goes on from its checkpoint"
        ) from error
