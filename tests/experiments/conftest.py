"""A suite and a folder of photographs, small enough to be trained in a test."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a data set of 16×16 colour images in three classes, two of them easy to tell apart."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.RandomState(0)
    for split, count in (("train", 12), ("test", 5)):
        for label, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 128, (16, 16, 3)).astype(np.uint8)
                pixels[..., 2 - label] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return f"image-folder:{folder}?size=16"
