"""A suite small enough to be trained in a test."""

from pathlib import Path

import pytest

SMALL_SUITE = """
name = "small"
title = "A small suite"
dataset = "digits-scale"
realisations = [0, 1]
columns = ["28×28"]

[protocol]
epochs = 3
batch_size = 250
learning_rate = 0.01
lr_steps = [2]
lr_gamma = 0.1

[[methods]]
name = "CNN"
cells = { "28×28" = { model = "mnist_cnn_28", augment = "none" } }
"""


@pytest.fixture
def small_suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL_SUITE)
    return path
