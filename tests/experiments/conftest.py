"""A suite and a folder of photographs, small enough to be trained in a test."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equiscale.experiments.records import (
    DataRecord,
    EpochRecord,
    Provenance,
    RunRecord,
    RunSettings,
    TestRecord,
    encode_predictions,
)
from equiscale.experiments.spec import Protocol

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
# The same with a network that is trained in a moment.
TINY_SUITE = SMALL_SUITE.replace(
    'augment = "none" }', 'augment = "none", overrides = { channels = [4, 8, 8], hidden = 16 } }'
)
# And long enough that it can be stopped on the way.
LONG_SUITE = TINY_SUITE.replace("epochs = 3", "epochs = 30")


def make_record(*, realisation: int = 0, error: float = 2.0) -> RunRecord:
    """A finished run of the small suite, as it could have been."""
    protocol = Protocol(epochs=3, batch_size=250, learning_rate=0.01, lr_steps=(2,), lr_gamma=0.1)
    return RunRecord(
        status="finished",
        settings=RunSettings(
            suite="small",
            dataset="digits-scale",
            model="mnist_cnn_28",
            augment="none",
            realisation=realisation,
            protocol=protocol,
        ),
        parameters=494_549,
        data=DataRecord(checksum="0" * 64, train=1000, validation=197, test=600),
        epochs=tuple(
            EpochRecord(
                epoch=epoch,
                learning_rate=0.01,
                train_loss=1 / epoch,
                train_error=error,
                validation_error=error,
                seconds=1.5,
            )
            for epoch in (1, 2, 3)
        ),
        test=TestRecord(epoch=3, error=error, predictions=encode_predictions([0] * 600)),
        provenance=Provenance(
            versions={"torch": "2.13.0"},
            machine={"device": "cpu"},
            commit=None,
            clean=None,
            started="2026-01-01T00:00:00+00:00",
            finished="2026-01-01T00:01:00+00:00",
            train_seconds=4.5,
            test_seconds=1.0,
        ),
    )


@pytest.fixture
def small_suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TINY_SUITE)
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
