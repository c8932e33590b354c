"""The numbers of the table, and that unlike runs are never averaged."""

import math
import re

import pytest

from equiscale.errors import RecordError
from equiscale.report.aggregate import aggregate, protocol_deviation


def test_mean_and_sample_standard_deviation(suite, records):
    cell = aggregate(suite, records).cell("CNN", "28×28")
    assert (cell.mean, cell.n, cell.missing, cell.failed, cell.mark) == (2.5, 3, (), (), "")
    assert cell.std == pytest.approx(0.5, abs=1e-12)  # ddof = 1: sqrt((0.25 + 0 + 0.25) / 2)
    assert cell.difference == pytest.approx(2.5 - 2.56)


def test_one_run_has_no_standard_deviation(suite, records):
    cell = aggregate(suite, records).cell("CNN", "28×28 +")
    assert (cell.mean, cell.std, cell.n, cell.missing, cell.difference) == (2.25, None, 1, (1, 2), None)


def test_failed_runs_are_kept_apart(suite, records):
    table = aggregate(suite, records)
    cell = table.cell("SESN", "28×28")
    assert cell.mean == pytest.approx(1.6)
    assert cell.std == pytest.approx(math.sqrt(0.02))
    assert [run.settings.realisation for run in cell.failed] == [2]
    assert [run.failure for run in table.failed] == ["the loss is not finite in epoch 2"]
    assert "SESN, 28×28: 2 of 3 realisations (failed: no. 2)." in table.notes


def test_cell_without_runs(suite, records):
    cell = aggregate(suite, records).cell("SESN", "28×28 +")
    assert (cell.mean, cell.n, cell.protocol, cell.missing) == (None, 0, None, (0, 1, 2))


def test_no_records_at_all(suite):
    table = aggregate(suite, [])
    assert [cell.n for cell in table.cells] == [0, 0, 0, 0]
    assert (table.runs, table.failed, table.notes) == ((), (), ())


def test_the_checked_claim_is_printed(suite, records):
    table = aggregate(suite, records)
    assert [table.cell(method, "28×28").claim.checked for method in ("CNN", "SESN")] == [False, True]
    assert table.cell("SESN", "28×28").claim.mean == 1.95


def test_protocols_are_never_mixed(suite, make_record):
    published = suite.protocol
    short = [make_record(realisation=r, error=9.0, protocol=published.cut(2)) for r in range(3)]
    seeded = [
        make_record(realisation=r, error=5.0, protocol=published.model_copy(update={"seed": 1}))
        for r in (0, 1)
    ]
    full = [make_record(realisation=0, error=2.0)]

    def cell(records):
        return aggregate(suite, records).cell("CNN", "28×28")

    assert (cell(short).mean, cell(short).deviation) == (9.0, "2 of 6 epochs")
    assert (cell(short + seeded).mean, cell(short + seeded).deviation) == (5.0, "seed 1 instead of 0")
    shown = cell(short + seeded + full)
    assert (shown.mean, shown.n, shown.missing, shown.left_out) == (2.0, 1, (1, 2), 5)
    notes = aggregate(suite, short + seeded + full).notes
    assert "CNN, 28×28: 5 more runs by another protocol not averaged in." in notes


def test_among_equally_near_protocols_the_largest_group_is_shown(suite, make_record):
    def seeded(seed, realisations, error):
        protocol = suite.protocol.model_copy(update={"seed": seed})
        return [make_record(realisation=r, error=error, protocol=protocol) for r in realisations]

    cell = aggregate(suite, seeded(1, [0], 9.0) + seeded(2, [0, 1], 3.0)).cell("CNN", "28×28")
    assert (cell.mean, cell.n) == (3.0, 2)


def test_a_failed_full_run_does_not_hide_a_finished_short_one(suite, make_record):
    failed = make_record(status="failed", failure="killed", test=None)
    short = make_record(error=4.0, protocol=suite.protocol.cut(2))
    table = aggregate(suite, [failed, short])
    assert (table.cell("CNN", "28×28").mean, table.failed) == (4.0, (failed,))


def test_deviations_get_one_mark_each(suite, make_record):
    records = [
        make_record("cnn", "none", protocol=suite.protocol.cut(2)),
        make_record("cnn", "scale", protocol=suite.protocol.cut(3)),
        make_record("ses", "none", protocol=suite.protocol.cut(2)),
    ]
    assert [cell.mark for cell in aggregate(suite, records).cells] == ["‡", "§", "‡", ""]


def test_deviation_in_words(suite):
    protocol = suite.protocol.model_copy(update={"epochs": 9, "lr_steps": (3, 6), "batch_size": 64})
    assert protocol_deviation(protocol, suite.protocol) == (
        "9 instead of 6 epochs, batch size 64 instead of 128"
    )
    assert protocol_deviation(suite.protocol, suite.protocol) == ""


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"model": "other"}, "1 run of other (toy-digits, augmentation none)"),
        ({"augment": "scale", "model": "ses"}, "1 run of ses (toy-digits, augmentation scale)"),
        ({"realisation": 7}, "1 run of cnn (toy-digits, augmentation none)"),
        ({"dataset": "elsewhere"}, "1 run of cnn (elsewhere, augmentation none)"),
    ],
)
def test_records_outside_the_table_are_listed_and_not_counted(suite, make_record, changes, listed):
    table = aggregate(suite, [make_record(**changes)])
    assert sum(cell.n for cell in table.cells) == 0
    assert table.notes == (f"Not in the table: {listed}.",)


def test_changed_data_is_noted(suite, make_record):
    other = make_record(augment="scale")
    other = other.model_copy(update={"data": other.data.model_copy(update={"checksum": "changed"})})
    notes = aggregate(suite, [make_record(), other]).notes
    assert "Not all runs of realisation 0 saw the same data: 2 checksums." in notes


def test_two_records_of_one_run_are_refused(suite, make_record):
    with pytest.raises(RecordError, match=r"expected one record a run, got two of cnn-r0-s0-e6-\w+; delete"):
        aggregate(suite, [make_record(error=2.0), make_record(error=3.0)])


def test_bins_that_do_not_fit_their_edges_are_refused(suite, make_record):
    record = make_record()
    bins = record.test.by_factor.model_copy(update={"edges": (0.0, 1.0)})
    record = record.model_copy(update={"test": record.test.model_copy(update={"by_factor": bins})})
    message = re.escape(f"between the 2 edges of {record.settings.run_id}, got 3 and 3 bins")
    with pytest.raises(RecordError, match=message):
        aggregate(suite, [record])
