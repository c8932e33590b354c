"""Selections of runs, and their identities."""

import pytest

from equiscale.errors import SettingError
from equiscale.experiments.plan import Selection, parse_numbers, plan_runs
from equiscale.experiments.spec import load_suite

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
