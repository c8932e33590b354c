"""Selections of runs, and their identities."""

from pathlib import Path

import pytest

from equiscale.errors import SettingError
from equiscale.experiments.plan import (
    Selection,
    ad_hoc_run,
    format_overrides,
    parse_numbers,
    parse_overrides,
    plan_runs,
)
from equiscale.experiments.records import RunSettings, read_record
from equiscale.experiments.spec import Suite, Treatment, load_suite, make_protocol

SUITE = load_suite("mnist-scale")


def test_all_runs_once_and_the_tables_first() -> None:
    runs = plan_runs(SUITE)
    published, ours = 24 * 2 * 6, 12 * 2 * 6  # networks, augmentations, realisations
    assert len(runs) == len({run.run_id for run in runs}) == published + ours
    assert sum(run.model not in SUITE.extra_models for run in runs) == published == 288
    shown = (10 * 4 + 6 * 2 + 3 * 4) * 6  # rows by columns, realisations; families have one size
    cells = {(cell.model, cell.augment) for method in SUITE.methods for cell in method.cells.values()}
    assert all((run.model, run.augment) in cells for run in runs[:shown])
    assert not any((run.model, run.augment) in cells for run in runs[shown:])


def test_a_selection() -> None:
    runs = plan_runs(SUITE, Selection("mnist_cnn_*", ["scale"], [2, 5], epochs=6))
    assert [(run.model, run.augment, run.realisation) for run in runs] == [
        ("mnist_cnn_28", "scale", 2),
        ("mnist_cnn_56", "scale", 2),
        ("mnist_cnn_28", "scale", 5),
        ("mnist_cnn_56", "scale", 5),
    ]
    assert {run.protocol.epochs for run in runs} == {6}


def test_identities_are_stable_and_depend_on_every_setting() -> None:
    run = plan_runs(SUITE, Selection("mnist_cnn_28", ["none"], [0]))[0]
    assert run.run_id == "mnist_cnn_28-r0-s0-e60-5538286f"
    changed = run.model_copy(update={"protocol": run.protocol.model_copy(update={"learning_rate": 0.02})})
    assert changed.run_id != run.run_id


RECORDS = sorted(
    path
    for path in (Path(__file__).parents[2] / "results").glob("*/*.json")
    if path.parent.name != "benchmarks"
)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_records_keep_their_identity(path: Path) -> None:
    """New settings have the defaults of the time before them."""
    assert read_record(path).settings.run_id == path.stem


def test_there_are_committed_records() -> None:
    assert len(RECORDS) > 10


SEVERAL = """
name = "several"
title = "Cells on several data sets"
dataset = "mnist-scale"
realisations = [0, 1]
columns = ["MNIST", "digits", "wide"]

[protocol]
epochs = 4
batch_size = 8
learning_rate = 0.1
lr_steps = [2]
lr_gamma = 0.1

[[methods]]
name = "CNN"
cells.MNIST = { model = "mnist_cnn_28", augment = "none" }
cells.digits = { model = "mnist_cnn_28", augment = "scale", dataset = "digits-scale" }
cells.wide = { model = "mnist_cnn_28", augment = "none", overrides = { hidden = 512, channels = [8, 8, 8] } }
"""


@pytest.fixture
def several(tmp_path: Path) -> Suite:
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL)
    return load_suite(str(path))


def test_cells_have_data_sets_and_overrides_of_their_own(several: Suite) -> None:
    wide = (("channels", (8, 8, 8)), ("hidden", 512))
    treatments = [
        Treatment("mnist_cnn_28", (), "none", "mnist-scale"),
        Treatment("mnist_cnn_28", wide, "none", "mnist-scale"),
        Treatment("mnist_cnn_28", (), "scale", "digits-scale"),
    ]
    runs = plan_runs(several)
    assert [(run.treatment, run.realisation) for run in runs] == [
        (treatment, realisation) for realisation in (0, 1) for treatment in treatments
    ], "the combinations of the table and no others"
    assert len({run.run_id for run in runs}) == 6
    assert set(several.treatments) == set(treatments)
    assert RunSettings.model_validate_json(runs[1].model_dump_json()) == runs[1]


def test_a_selection_of_data_sets(several: Suite) -> None:
    runs = plan_runs(several, Selection(datasets="digits*"))
    assert {run.dataset for run in runs} == {"digits-scale"}
    with pytest.raises(
        SettingError, match="a pattern that matches a data set of mnist-scale, digits-scale, got 'x'"
    ):
        plan_runs(several, Selection(datasets="x"))


def test_one_data_set_crosses_networks_and_augmentations(several: Suite) -> None:
    cells = {
        name: cell.model_copy(update={"dataset": None}) for name, cell in several.methods[0].cells.items()
    }
    one = several.model_copy(update={"methods": (several.methods[0].model_copy(update={"cells": cells}),)})
    runs = plan_runs(one)
    assert (
        len(runs) == len({run.run_id for run in runs}) == 2 * 2 * 2
    )  # networks, augmentations, realisations
    assert [run.treatment in one.treatments for run in runs] == [True] * 6 + [False] * 2


def test_a_run_of_no_suite() -> None:
    protocol = make_protocol(epochs=1, batch_size=8, learning_rate=0.1, lr_steps=(), lr_gamma=0.1)
    plain, wide = (
        ad_hoc_run(Treatment("mnist_cnn_28", overrides, "none", "digits-scale"), protocol=protocol)
        for overrides in ((), (("hidden", 512),))
    )
    assert plain.suite == "train"
    assert plain.run_id != wide.run_id


def test_a_selection_that_no_run_fits_is_refused(several: Suite) -> None:
    chosen = Selection(datasets="digits*", augment=["none"])
    message = (
        r"a selection with runs in several, got none of models '\*' with augment none on data 'digits\*'"
    )
    with pytest.raises(SettingError, match=message):
        plan_runs(several, chosen)


def test_overrides_are_written_as_they_are_read() -> None:
    texts = ["channels=8,8,16", "depth=10", "dropout=0.5", "kind=a,b", "wide=true"]
    assert format_overrides(parse_overrides(texts)) == texts


def test_overrides() -> None:
    assignments = ["width=2", "dropout=0.5", "channels=8,8,16", "kind=scalar", "flag=true", "odd=null"]
    assert dict(parse_overrides(assignments)) == {
        "width": 2,
        "dropout": 0.5,
        "channels": (8, 8, 16),
        "kind": "scalar",
        "flag": True,
        "odd": "null",
    }


@pytest.mark.parametrize("assignments", [["depth"], ["=3"], ["a b=3"], ["depth=1", "depth=2"]])
def test_what_is_no_override(assignments: list[str]) -> None:
    with pytest.raises(SettingError, match="expected each setting once, as name=value, got"):
        parse_overrides(assignments)


def test_numbers() -> None:
    assert parse_numbers("3") == [3]
    assert parse_numbers("0-2, 5") == [0, 1, 2, 5]


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1--2", "0-99999999999999999"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(SettingError, match="expected numbers and ranges such as 0-2,5"):
        parse_numbers(text)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(models="resnet*"),
            "expected a pattern that matches a model of mnist_cnn_28, .* got 'resnet",
        ),
        (Selection(realisations=[6]), r"expected realisations of \[0, 1, 2, 3, 4, 5\], got \[6\]"),
        (Selection(augment=[]), r"expected augment of \['none', 'scale'\], got \[\]"),
        (Selection(epochs=0), "at least one epoch"),
    ],
)
def test_selections_of_nothing(selection: Selection, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        plan_runs(SUITE, selection)
