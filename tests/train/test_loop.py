"""The loop: learns, keeps the best epoch, is reproducible, resumes exactly, and stops at NaN."""

from pathlib import Path

import pytest
import torch
from torch import nn

from equiscale.data import TensorBatches
from equiscale.errors import CheckpointError, TrainingError
from equiscale.train import Checkpoint, EpochResult, Splits, TrainConfig, TrainState, evaluate, fit
from equiscale.train.loop import error_percent

CONFIG = TrainConfig(epochs=4, learning_rate=0.05, lr_steps=(2,), seed=3)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def make_batches(shuffle: bool = True) -> TensorBatches:
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    return TensorBatches(points, (points.prod(1) > 0).long(), batch_size=32, shuffle=shuffle)


def batches_in_order() -> TensorBatches:
    return make_batches(shuffle=False)


def train(config: TrainConfig = CONFIG, **options) -> TrainState:
    return fit(make_model(), Splits(make_batches(), batches_in_order()), config=config, **options)


def same(first: TrainState, second: TrainState) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def without_times(state: TrainState) -> list[tuple]:
    return [
        (result.epoch, result.learning_rate, result.train_loss, result.train_error, result.validation_error)
        for result in state.history
    ]


def test_it_learns_what_a_linear_model_cannot() -> None:
    untrained = error_percent(*evaluate(make_model(), batches_in_order()))
    state = train(TrainConfig(epochs=20, learning_rate=0.05))
    assert untrained > 25
    assert state.history[-1].validation_error < 8


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    torch.manual_seed(99)  # the caller's generator must not matter
    first = train()
    assert same(first, train())
    assert without_times(first) == without_times(train())
    assert not same(first, train(TrainConfig(epochs=4, learning_rate=0.05, lr_steps=(2,), seed=4)))


def test_the_callers_generator_is_left_alone() -> None:
    model, batches = make_model(), make_batches()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, Splits(batches, batches_in_order()), config=CONFIG)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    class InterruptedTestError(Exception):
        pass

    def interrupt(result: EpochResult) -> None:
        if result.epoch == stop_after:
            raise InterruptedTestError

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTestError):
        train(checkpoint=Checkpoint(path), on_epoch=interrupt)
    told: list[int] = []
    resumed = train(checkpoint=Checkpoint(path), on_epoch=lambda result: told.append(result.epoch))
    whole = train()
    assert same(resumed, whole)
    assert without_times(resumed) == without_times(whole)
    assert resumed.best_epoch == whole.best_epoch
    assert all(torch.equal(resumed.best[name], whole.best[name]) for name in whole.best)
    assert told == [1, 2, 3, 4]


def test_the_first_of_the_best_epochs_is_kept() -> None:
    model = nn.Linear(1, 1)
    state = TrainState(model, torch.optim.Adam(model.parameters()))
    for epoch, error in enumerate([5.0, 3.0, 4.0, 3.0], start=1):
        with torch.no_grad():
            model.weight.fill_(epoch)
        state.record(EpochResult(epoch, 0.1, 1.0, 1.0, error, 0.0))
    assert state.best_epoch == 2
    assert state.best["weight"].item() == 2


def test_weights_that_overflow_in_the_last_step_are_noticed_and_not_kept(tmp_path: Path) -> None:
    """The loss of the last step is still finite; only the weights show it."""
    path = tmp_path / "checkpoint.safetensors"
    points = torch.tensor([[3e38, 1.0], [-3e38, 1.0]])
    batches = TensorBatches(points, torch.tensor([0, 1]), batch_size=2)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    with pytest.raises(
        TrainingError, match=r"expected finite weights, got others in 0.running_var in epoch 1"
    ):
        fit(model, Splits(batches, batches), config=CONFIG, checkpoint=Checkpoint(path))
    assert not path.exists()


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(checkpoint=Checkpoint(path, belongs_to="these data"))
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of TrainConfig.* those data"):
        train(checkpoint=Checkpoint(path, belongs_to="those data"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(value: float) -> None:
    points = torch.full((8, 2), value)
    broken = TensorBatches(points, torch.zeros(8, dtype=torch.int64), batch_size=4)
    with pytest.raises(
        TrainingError, match=r"expected a finite loss, got nan in epoch 1 at learning rate 0.05"
    ):
        fit(make_model(), Splits(broken, broken), config=CONFIG)


def test_no_batches_is_an_error() -> None:
    empty = TensorBatches(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), batch_size=4)
    with pytest.raises(TrainingError, match="at least one training batch"):
        fit(make_model(), Splits(empty, empty), config=CONFIG)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(checkpoint=Checkpoint(path))
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of TrainConfig\(epochs=9"):
        train(TrainConfig(epochs=9, learning_rate=0.05), checkpoint=Checkpoint(path))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(checkpoint=Checkpoint(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        train(checkpoint=Checkpoint(path))


def test_evaluate_restores_the_mode_and_keeps_the_order() -> None:
    model, batches = make_model().train(), make_batches(shuffle=False)
    predictions, labels = evaluate(model, batches)
    assert model.training
    assert torch.equal(labels, batches.labels)
    with torch.no_grad():
        assert torch.equal(predictions, model.eval()(batches.images).argmax(1))
