"""Schedules and seeds."""

import pytest

from equiscale.errors import SettingError
from equiscale.train import TrainConfig, derive_seed


def test_the_published_schedule() -> None:
    config = TrainConfig(epochs=60, learning_rate=0.01, lr_steps=(20, 40))
    rates = [config.learning_rate_at(epoch) for epoch in range(1, 61)]
    assert rates == pytest.approx([0.01] * 20 + [0.001] * 20 + [0.0001] * 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "learning_rate": 0.1}, "expected at least one epoch, got 0"),
        ({"epochs": 1, "learning_rate": 0.0}, "expected positive learning_rate"),
        ({"epochs": 1, "learning_rate": float("nan")}, "expected positive learning_rate"),
        ({"epochs": 9, "learning_rate": 0.1, "lr_steps": (5, 2)}, r"increasing lr_steps, got \[5, 2\]"),
    ],
)
def test_illegal_settings(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TrainConfig(**settings)


def test_seeds_of_streams_and_epochs_differ() -> None:
    seeds = {derive_seed(seed, stream, index) for seed in (0, 1) for stream in "ab" for index in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "weights") == derive_seed(0, "weights", 0)
