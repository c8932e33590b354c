"""Schedules and seeds."""

import pytest

from equiscale.errors import SettingError
from equiscale.train import Numerics, OptimizerSettings, TrainConfig, derive_seed


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "expected accumulate of at least 1, got 0"),
        ({"ema_decay": 1.0}, r"expected an ema_decay in \[0, 1\), got 1.0"),
        ({"select": "best"}, "expected select of best-validation, last, got 'best'"),
        ({"test_every": 0}, "expected test_every of at least 1 epoch, got 0"),
    ],
)
def test_illegal_settings_beside_the_schedule(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TrainConfig(epochs=1, learning_rate=0.1, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, "expected optimizer of adam, sgd, got 'lion'"),
        ({"momentum": 1.0}, r"expected a momentum in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "expected a weight_decay of at least 0, got -1.0"),
        ({"name": "sgd", "momentum": 0.0}, "expected a positive momentum with nesterov=True, got 0"),
    ],
)
def test_illegal_optimisers(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        OptimizerSettings(**settings)


def test_an_unknown_precision() -> None:
    with pytest.raises(SettingError, match="expected precision of float32, bfloat16, got 'float16'"):
        Numerics("float16")


def test_periodic_tests_are_counted_from_one() -> None:
    config = TrainConfig(epochs=6, learning_rate=0.1, test_every=3)
    assert [epoch for epoch in range(1, 7) if config.tests_at(epoch)] == [3, 6]
