"""The training step: nothing in an epoch waits for the device; compiled it computes the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from equiscale import create_model, list_models
from equiscale.data import TensorBatches
from equiscale.errors import CheckpointError, SettingError, TrainingError
from equiscale.train import (
    Checkpoint,
    Numerics,
    OptimizerSettings,
    Splits,
    TrainConfig,
    TrainState,
    evaluate,
    fit,
    group,
    step,
)
from equiscale.train.step import CompiledForward, EagerGradients, GraphedGradients, _undone, gradients_of

SETTINGS = TrainConfig(epochs=1, learning_rate=0.05, seed=3)


class CountReads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, which on a GPU waits for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def make_model(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    # No bias in front of batch norm: its gradient is rounding noise, of which Adam makes whole steps.
    front = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(144, 2))


def make_batches(count: int = 40, batch_size: int = 16, *, shuffle: bool = False) -> TensorBatches:
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorBatches(images, (images.mean((1, 2, 3)) > 0).long(), batch_size=batch_size, shuffle=shuffle)


def train(settings: TrainConfig, *, dropout: float = 0.2, **options) -> TrainState:
    splits = Splits(make_batches(shuffle=True), make_batches())
    return fit(make_model(dropout), splits, config=settings, **options)


# --- nothing waits ---


def reads_of_an_epoch(batches: int, settings: TrainConfig) -> int:
    images, labels = torch.randn(8 * batches, 1, 8, 8), torch.arange(8 * batches) % 2
    shuffled, data = (TensorBatches(images, labels, batch_size=8, shuffle=order) for order in (True, False))
    with CountReads() as mode:
        fit(make_model(), Splits(shuffled, data, data), config=settings)
    return mode.reads


@pytest.mark.parametrize(
    "extra",
    [{}, {"accumulate": 2}, {"ema_decay": 0.9}, {"numerics": Numerics("bfloat16")}, {"test_every": 1}],
)
def test_an_epoch_reads_as_many_numbers_whatever_its_length(extra: dict) -> None:
    """Those of its end: the loss, the errors, and whether the weights are finite."""
    # Adam would read its own counts of steps, which lie on the CPU.
    settings = TrainConfig(epochs=1, learning_rate=0.05, optimizer=OptimizerSettings("sgd"), **extra)
    few, many = (reads_of_an_epoch(batches, settings) for batches in (2, 9))
    assert 0 < few == many


def test_the_counter_of_reads_counts() -> None:
    with CountReads() as mode:
        float(torch.ones(())), torch.ones(1).item(), bool(torch.ones(1).any())
    assert mode.reads == 3


SMALL = [name for name in list_models() if "wrn" not in name and "unet" not in name]


@pytest.mark.parametrize("name", SMALL)
def test_no_step_of_a_network_reads_a_number(name: str) -> None:
    size = 64 if name.startswith("scale") else 28
    model, images = create_model(name), torch.randn(2, 1, size, size)

    def step() -> None:
        cross_entropy(model(images), torch.tensor([0, 1])).backward()

    step()  # on a CPU the planner looks at the basis, once
    with CountReads() as mode:
        step()
    assert mode.reads == 0


# --- compiled ---

# torch's own, when its compiler is imported.
torch_script = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


@torch_script
def test_a_compiled_training_gives_the_same_numbers() -> None:
    settings = replace(SETTINGS, epochs=2)
    eager = train(settings, dropout=0.0)
    compiled = train(replace(settings, numerics=Numerics(compile=True)), dropout=0.0)
    assert list(eager.model.state_dict()) == list(compiled.model.state_dict())
    for first, second in zip(eager.history, compiled.history, strict=True):
        assert second.train_loss == pytest.approx(first.train_loss, rel=1e-5)
        assert second.validation_error == first.validation_error
    for name, tensor in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_only_batches_of_the_first_ones_shape_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda images: model(images) + 100)
    forward = CompiledForward(nn.Identity())
    sizes = [float(forward(torch.zeros(size, 1)).max()) for size in (4, 4, 3, 4)]
    assert sizes == [100, 100, 0, 100]


def test_a_compiled_evaluation_asks_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    model = make_model()
    evaluate(model, make_batches())
    assert compiled == []
    evaluate(model, make_batches(), numerics=Numerics(compile=True))
    assert compiled == [model]


def test_a_checkpoint_of_an_eager_training_is_no_compiled_ones(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    train(SETTINGS, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of .*compile=True"):
        train(replace(SETTINGS, numerics=Numerics(compile=True)), checkpoint=checkpoint)


# --- what cannot be had ---


def test_no_compiler_is_an_error_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingError, match=r"expected a C\+\+ compiler for compile = true on cpu, got none"):
        train(replace(SETTINGS, numerics=Numerics(compile=True)))
    with pytest.raises(
        SettingError, match=r"expected a C\+\+ compiler and Triton for compile = true on cuda"
    ):
        Numerics(compile=True).check(torch.device("cuda"))


def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(SettingError, match="expected a CUDA device for cuda_graphs = true, got cpu"):
        train(replace(SETTINGS, numerics=Numerics(cuda_graphs=True)))


# --- recorded: what can be seen without a GPU, on which tests/test_gpu.py sees the rest ---


class PretendGraph:
    """Replays by doing the step again, into the tensors of the recording."""

    def __init__(self, recorded: GraphedGradients) -> None:
        self.recorded = recorded

    def replay(self) -> None:
        model = self.recorded.eager.model
        loss, mistakes = self.recorded.eager(self.recorded.images, self.recorded.labels)
        self.recorded.loss.copy_(loss)
        self.recorded.mistakes.copy_(mistakes)
        for parameter, gradient in zip(model.parameters(), self.recorded.gradients, strict=True):
            gradient.copy_(parameter.grad)
            parameter.grad = None  # a graph knows its own tensors alone


class PretendGraphedGradients(GraphedGradients):
    """Records on the CPU."""

    def _capture(self, images: Tensor, labels: Tensor) -> PretendGraph:
        self.images, self.labels = images.clone(), labels.clone()
        with _undone(self.eager.model, images.device):
            self.loss, self.mistakes = self.eager(self.images, self.labels)
        self.gradients = [parameter.grad.clone() for parameter in self.eager.model.parameters()]
        return PretendGraph(self)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_replayed_training_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    """Also its last batch of another size, and dropout and batch norm, which the recording must not see."""
    settings = replace(SETTINGS, epochs=3, accumulate=accumulate)
    eager = train(settings)
    monkeypatch.setattr(
        group, "gradients_of", lambda model, config: PretendGraphedGradients(EagerGradients(model, config))
    )
    replayed = train(settings)
    for name, tensor in eager.model.state_dict().items():
        assert torch.equal(replayed.model.state_dict()[name], tensor), name
    assert [epoch.train_loss for epoch in eager.history] == [epoch.train_loss for epoch in replayed.history]


def test_only_cuda_graphs_are_recorded() -> None:
    recorded = replace(SETTINGS, numerics=Numerics(cuda_graphs=True))
    assert isinstance(gradients_of(make_model(), recorded), GraphedGradients)
    assert isinstance(gradients_of(make_model(), SETTINGS), EagerGradients)


def test_a_step_that_cannot_be_recorded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(step, "_warm_up", refuse)
    gradients = GraphedGradients(EagerGradients(make_model(), SETTINGS))
    with pytest.raises(TrainingError, match="not permitted when stream is capturing; leave out cuda_graphs"):
        gradients(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
