"""A training that stops at any safe point goes on as if it had not: weights, history and best epoch."""

import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from equiscale.data import TensorBatches
from equiscale.errors import TrainingStoppedError
from equiscale.train import (
    Checkpoint,
    EpochResult,
    Numerics,
    OptimizerSettings,
    Splits,
    TrainConfig,
    TrainState,
    fit,
)
from equiscale.train import loop as loop_module

STEPS = 5
VALIDATION_BATCHES = 2
POLLS_AN_EPOCH = STEPS + VALIDATION_BATCHES
CONFIGS = {
    "adam, best epoch": TrainConfig(epochs=3, learning_rate=0.05, lr_steps=(1,), seed=3),
    "sgd, last epoch, average": TrainConfig(
        epochs=3, learning_rate=0.1, optimizer=OptimizerSettings("sgd"), ema_decay=0.9, select="last"
    ),
    "parts of a batch": TrainConfig(epochs=2, learning_rate=0.05, accumulate=2),
}


def noisy(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """An augmentation that draws another number of numbers a batch, as batches are of several sizes."""
    return images + 0.1 * torch.randn(images.shape, generator=generator)


def make_splits() -> Splits:
    points = torch.randn(150, 2, generator=torch.Generator().manual_seed(1))
    labels = (points.prod(1) > 0).long()
    return Splits(
        TensorBatches(points, labels, batch_size=32, shuffle=True, transform=noisy),
        TensorBatches(points[:40], labels[:40], batch_size=20),
    )


def train(config: TrainConfig, **options) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    return fit(model, make_splits(), config=config, **options)


def after(polls: int) -> Callable[[], bool]:
    """Asks to stop at one safe point, counted from 1."""
    asked = count(1)
    return lambda: next(asked) == polls


def outcome(state: TrainState) -> list[object]:
    """Everything a training gives but its times."""
    history = [(r.epoch, r.train_loss, r.train_error, r.validation_error) for r in state.history]
    tensors = [
        {name: tensor.tolist() for name, tensor in tensors.items()}
        for tensors in (state.model.state_dict(), state.best)
    ]
    return [history, state.best_epoch, tensors]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, config: TrainConfig) -> None:
    expected = outcome(train(config))
    for polls in range(1, config.epochs * POLLS_AN_EPOCH + 1):
        checkpoint = Checkpoint(tmp_path / f"{polls}.safetensors")
        with pytest.raises(TrainingStoppedError, match="stopped in epoch"):
            train(config, checkpoint=checkpoint, should_stop=after(polls))
        assert outcome(train(config, checkpoint=checkpoint)) == expected, polls


def test_stopped_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    config, checkpoint, stops = CONFIGS["adam, best epoch"], Checkpoint(tmp_path / "c.safetensors"), 0
    while True:
        try:
            state = train(config, checkpoint=checkpoint, should_stop=after(3))
        except TrainingStoppedError:
            stops += 1
        else:
            break
    assert stops >= config.epochs * POLLS_AN_EPOCH // 4
    assert outcome(state) == outcome(train(config))


def test_the_random_states_of_a_stop_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without them dropout draws other numbers, and the weights are others."""
    config, checkpoint = CONFIGS["adam, best epoch"], Checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(TrainingStoppedError):
        train(config, checkpoint=checkpoint, should_stop=after(3))
    monkeypatch.setattr(loop_module, "restore_random_states", lambda *_: None)
    assert outcome(train(config, checkpoint=checkpoint)) != outcome(train(config))


def test_the_message_says_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(TrainingStoppedError, match="stopped in epoch 2 after 3 steps"):
        train(CONFIGS["adam, best epoch"], should_stop=after(POLLS_AN_EPOCH + 3))


def test_a_long_epoch_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    saved: list[int] = []
    save = loop_module.save_state

    def save_and_die(state: TrainState, path: Path, identity: str) -> None:
        save(state, path, identity)
        saved.append(0 if state.position is None else state.position.steps)
        if len(saved) == STEPS:
            raise KilledError

    config, checkpoint = CONFIGS["adam, best epoch"], Checkpoint(tmp_path / "c.safetensors", every=0.0)
    monkeypatch.setattr(loop_module, "save_state", save_and_die)
    with pytest.raises(KilledError):
        train(config, checkpoint=checkpoint)
    assert saved == [1, 2, 3, 4, 5]
    monkeypatch.setattr(loop_module, "save_state", save)
    assert outcome(train(config, checkpoint=checkpoint)) == outcome(train(config))


def test_a_resumed_epoch_counts_its_time_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0.0, 10.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    config, checkpoint = CONFIGS["adam, best epoch"], Checkpoint(tmp_path / "c.safetensors", every=1e9)
    whole = train(config, checkpoint=checkpoint).history[0].seconds
    checkpoint.path.unlink()
    with pytest.raises(TrainingStoppedError):
        train(config, checkpoint=checkpoint, should_stop=after(4))
    assert train(config, checkpoint=checkpoint).history[0].seconds == pytest.approx(whole, abs=50)


def test_a_full_disk_is_noted_and_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = outcome(train(CONFIGS["adam, best epoch"]))
    monkeypatch.setattr(loop_module, "save_state", full)
    told: list[EpochResult] = []
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    state = train(CONFIGS["adam, best epoch"], checkpoint=checkpoint, on_epoch=told.append)
    assert outcome(state) == expected
    assert [note.partition(":")[0] for note in state.notes] == [
        f"no checkpoint after epoch {epoch}" for epoch in (1, 2, 3)
    ]
    assert len(told) == 3
    assert not checkpoint.path.exists()


def test_the_mode_comes_back_when_an_evaluation_stops() -> None:
    model = nn.Linear(2, 2).train()

    def stop() -> None:
        raise TrainingStoppedError("stopped")

    with pytest.raises(TrainingStoppedError):
        loop_module.evaluate(model, make_splits().validation, on_batch=stop)
    assert model.training


def test_deterministic_algorithms_are_taken_in_the_training_alone() -> None:
    seen: list[bool] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return x

    for numerics in (Numerics(), Numerics(deterministic=True)):
        model = nn.Sequential(nn.Linear(2, 2), Watch())
        fit(model, make_splits(), config=TrainConfig(epochs=1, learning_rate=0.1, numerics=numerics))
        assert not torch.are_deterministic_algorithms_enabled()
    polls = STEPS + VALIDATION_BATCHES
    assert seen == [False] * polls + [True] * polls
