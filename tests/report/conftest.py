"""A small suite with records of known numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equiscale.experiments.records import (
    DataRecord,
    EpochRecord,
    FactorErrors,
    LayerEquivariance,
    Provenance,
    RunRecord,
    RunSettings,
    TestRecord,
    encode_predictions,
    record_path,
    write_record,
)
from equiscale.experiments.spec import Protocol, Suite

PROTOCOL = Protocol(epochs=6, batch_size=128, learning_rate=0.01, lr_steps=(2, 4), lr_gamma=0.1)
EDGES = (0.3, 0.5, 0.7, 1.0)
Make = Callable[..., RunRecord]


def build_record(
    model: str = "cnn", augment: str = "none", realisation: int = 0, error: float = 2.0, **changes: Any
) -> RunRecord:
    """A finished record whose by-factor mistakes and epochs follow from its error."""
    protocol = changes.pop("protocol", PROTOCOL)
    settings = RunSettings(
        suite=changes.pop("suite", "toy"),
        dataset=changes.pop("dataset", "toy-digits"),
        model=model,
        overrides=changes.pop("overrides", ()),
        augment=augment,  # type: ignore[arg-type]
        realisation=realisation,
        protocol=protocol,
    )
    epochs = tuple(
        EpochRecord(
            epoch=epoch,
            learning_rate=0.01,
            train_loss=1 / epoch,
            train_error=8 * error / epoch,
            validation_error=error * (1 + 6 / epoch**2),
            seconds=2.0,
        )
        for epoch in range(1, protocol.epochs + 1)
    )
    bins = FactorErrors(edges=EDGES, images=(100, 200, 300), mistakes=(round(5 * error), round(3 * error), 2))
    fields: dict[str, Any] = {
        "status": "finished",
        "settings": settings,
        "parameters": 494549,
        "data": DataRecord(checksum=f"data-{realisation}", train=1000, validation=200, test=600),
        "epochs": epochs,
        "test": TestRecord(epoch=3, error=error, predictions=encode_predictions([1, 2]), by_factor=bins),
        "equivariance": tuple(
            LayerEquivariance(layer=f"main.{4 * index}", factor=0.7, error=0.1 * error * (index + 1))
            for index in range(3)
        ),
        "provenance": Provenance(
            versions={"python": "3.11.9", "torch": "2.13.0"},
            machine={"processor": "Example CPU", "device": "cpu", "cores": "2"},
            commit="0123456789abcdef0123456789abcdef01234567",
            clean=True,
            started=f"2026-01-0{realisation % 9 + 1}T08:00:00+00:00",
            finished=f"2026-01-0{realisation % 9 + 1}T09:00:00+00:00",
            train_seconds=120.0,
            test_seconds=3.0,
        ),
    }
    return RunRecord(**{**fields, **changes})


def build_arrays(seed: int = 0, *, scales: tuple[float, ...] = (1.0, 2.0, 4.0)) -> dict[str, Any]:
    """Arrays of an inspection: blobs whose width follows the scale."""
    random = np.random.default_rng(seed)
    axis = np.arange(28) - 13.5
    blob = lambda width: np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * width**2))  # noqa: E731
    arrays: dict[str, Any] = {
        "samples": np.stack([np.uint8(255 * blob(2 + n % 5)) for n in range(12)]),
        "sample_labels": np.arange(12) % 10,
        "sample_predictions": np.where(np.arange(12) == 5, 9, np.arange(12) % 10),
        "sample_factors": np.linspace(0.3, 1.0, 12),
        "feature_inputs": np.stack([np.uint8(255 * blob(width)) for width in (2, 4, 8)]),
        "feature_factors": np.array([0.25, 0.5, 1.0]),
    }
    for layer, size in (("main.0", 28), ("main.4", 14), ("main.8", 7)):
        arrays[f"filters/{layer}"] = random.normal(size=(8, len(scales), 7, 7)).astype(np.float16)
        arrays[f"filter_scales/{layer}"] = np.array(scales)
        response = [[blob(2 * s) * np.exp(-((i - j) ** 2)) for j, s in enumerate(scales)] for i in range(3)]
        arrays[f"features/{layer}"] = np.array(response)[..., :: 28 // size, :: 28 // size].astype(np.float16)
    return arrays


SIZE_EDGES = (0.707, 1.414, 2.828, 5.657)


def build_size_record(
    model: str, dataset: str, realisation: int, mistakes: tuple[int, ...], trained: float
) -> RunRecord:
    """A record of a network that was trained on one size and tested on the sizes 1, 2 and 4."""
    record = build_record(model, realisation=realisation, suite="sizes", dataset=dataset)
    bins = FactorErrors(edges=SIZE_EDGES, images=(200,) * 3, mistakes=mistakes)
    error = sum(mistakes) / 6
    return record.model_copy(
        update={
            "test": record.test.model_copy(update={"error": error, "by_factor": bins}),  # type: ignore[union-attr]
            "data": record.data.model_copy(update={"train_factors": (trained, trained)}),
        }
    )


@pytest.fixture(scope="session")
def make_record() -> Make:
    return build_record


@pytest.fixture(scope="session")
def sizes_suite() -> Suite:
    """Two networks, each trained on two sizes, which are two data sets; one of the four cells is missing."""
    return Suite.model_validate(
        {
            "name": "sizes",
            "title": "Sizes: classification error in percent",
            "dataset": "size-1",
            "realisations": [0, 1],
            "columns": ["size 1", "size 2"],
            "protocol": PROTOCOL.model_dump(),
            "methods": [
                {
                    "name": "CNN",
                    "cells": {
                        "size 1": {"model": "cnn", "augment": "none"},
                        "size 2": {"model": "cnn", "augment": "none", "dataset": "size-2"},
                    },
                },
                {
                    "name": "Pyramid",
                    "cells": {"size 2": {"model": "pyramid", "augment": "none", "dataset": "size-2"}},
                },
            ],
        }
    )


@pytest.fixture(scope="session")
def sizes_records() -> list[RunRecord]:
    """Mistakes of 200 images at each of the sizes 1, 2, 4; the pyramid makes none at the size it trained."""
    return [
        build_size_record("cnn", "size-1", 0, (2, 40, 160), trained=1.0),
        build_size_record("cnn", "size-1", 1, (4, 60, 180), trained=1.0),
        build_size_record("cnn", "size-2", 0, (100, 4, 80), trained=2.0),
        build_size_record("pyramid", "size-2", 0, (6, 0, 4), trained=2.0),
        build_size_record("pyramid", "size-2", 1, (8, 0, 6), trained=2.0),
    ]


@pytest.fixture(scope="session")
def natural_suite() -> Suite:
    """One network on photographs, by SGD, without validation."""
    protocol = PROTOCOL.model_copy(
        update={"optimizer": "sgd", "weight_decay": 0.0005, "select": "last", "test_every": 2}
    )
    cell = {"model": "wrn", "overrides": {"depth": 10}, "augment": "crop-flip-cutout"}
    return Suite.model_validate(
        {
            "name": "photographs",
            "title": "Photographs: classification error in percent",
            "dataset": "photographs",
            "realisations": [0],
            "columns": ["10-2"],
            "protocol": protocol.model_dump(),
            "methods": [{"name": "WRN", "cells": {"10-2": cell}}],
        }
    )


@pytest.fixture(scope="session")
def natural_record(natural_suite: Suite) -> RunRecord:
    """Its run: no factors, no validation error, the test error of every second epoch."""
    record = build_record(
        "wrn",
        "crop-flip-cutout",
        suite="photographs",
        dataset="photographs",
        overrides={"depth": 10},
        protocol=natural_suite.protocol,
        equivariance=(),
        notes=("no equivariance: ShapeError: the layer gives no image",),
    )
    epochs = tuple(
        epoch.model_copy(
            update={
                "validation_error": None,
                "test_error": None if epoch.epoch % 2 else 60.0 / epoch.epoch,
            }
        )
        for epoch in record.epochs
    )
    test = record.test.model_copy(update={"by_factor": None})  # type: ignore[union-attr]
    data = record.data.model_copy(update={"validation": 0, "train_factors": (1.0, 1.0)})
    return record.model_copy(update={"epochs": epochs, "test": test, "data": data})


@pytest.fixture(scope="session")
def make_arrays() -> Callable[..., dict[str, Any]]:
    return build_arrays


@pytest.fixture(scope="session")
def suite() -> Suite:
    """Two methods, two columns; a checked, an unchecked and two missing claims."""
    return Suite.model_validate(
        {
            "name": "toy",
            "title": "Toy digits: classification error in percent",
            "dataset": "toy-digits",
            "realisations": [0, 1, 2],
            "columns": ["28×28", "28×28 +"],
            "sources": {"paper": "A. Author: A Paper. 2020", "copy": "The reproduction"},
            "left_open": ["The seed is not published; it is 0 here."],
            "protocol": PROTOCOL.model_dump(),
            "methods": [
                {
                    "name": "CNN",
                    "cells": {
                        "28×28": {
                            "model": "cnn",
                            "augment": "none",
                            "claims": [{"mean": 2.56, "source": "paper", "checked": False}],
                        },
                        "28×28 +": {"model": "cnn", "augment": "scale"},
                    },
                },
                {
                    "name": "SESN",
                    "cells": {
                        "28×28": {
                            "model": "ses",
                            "augment": "none",
                            "claims": [
                                {"mean": 2.1, "source": "paper", "checked": False},
                                {"mean": 1.95, "std": 0.17, "source": "copy", "checked": True},
                            ],
                        },
                        "28×28 +": {
                            "model": "ses_p",
                            "augment": "scale",
                            "claims": [{"mean": 2.5, "std": 0.1, "source": "copy", "checked": True}],
                        },
                    },
                },
            ],
        }
    )


@pytest.fixture(scope="session")
def records() -> list[RunRecord]:
    """CNN complete; CNN + once; SESN with a failure and fewer epochs; SESN + never."""
    short = PROTOCOL.cut(2)
    failed = {"status": "failed", "failure": "the loss is not finite in epoch 2", "test": None}
    return [
        build_record("cnn", "none", 0, 2.0),
        build_record("cnn", "none", 1, 2.5),
        build_record("cnn", "none", 2, 3.0),
        build_record("cnn", "scale", 0, 2.25),
        build_record("ses", "none", 0, 1.5, protocol=short),
        build_record("ses", "none", 1, 1.7, protocol=short),
        build_record("ses", "none", 2, 0.0, protocol=short, **failed),
    ]


@pytest.fixture(scope="session")
def make_folder(records: list[RunRecord]) -> Callable[[Path], Path]:
    """Writes the records; the first run of each network gets its pictures."""

    def make(folder: Path) -> Path:
        for record in records:
            if record.settings.realisation == 0:
                path = record_path(folder, record.settings).with_suffix(".npz")
                path.parent.mkdir(parents=True, exist_ok=True)
                scales = (1.0,) if record.settings.model == "cnn" else (1.0, 2.0, 4.0, 8.0, 16.0)
                np.savez_compressed(path, **build_arrays(scales=scales))
                record = record.model_copy(update={"inspection": path.name})
            write_record(folder, record)
        return folder

    return make


@pytest.fixture
def folder(make_folder: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_folder(tmp_path)
