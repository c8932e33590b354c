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


def test_cells_are_matched_by_their_own_data_set(sizes_suite, sizes_records):
    table = aggregate(sizes_suite, sizes_records)
    assert [(cell.place, cell.n) for cell in table.cells] == [
        ("CNN, size 1", 2),
        ("CNN, size 2", 1),
        ("Pyramid, size 2", 2),
    ]
    assert table.cell("Pyramid", "size 1") is None
    assert table.notes == ("CNN, size 2: 1 of 2 realisations (missing: no. 1).",)
    elsewhere = sizes_records[0].settings.model_copy(update={"dataset": "size-4"})
    notes = aggregate(sizes_suite, [sizes_records[0].model_copy(update={"settings": elsewhere})]).notes
    assert notes == ("Not in the table: 1 run of cnn (size-4, augmentation none).",)


def test_overrides_are_part_of_what_is_matched(natural_suite, natural_record):
    assert aggregate(natural_suite, [natural_record]).cell("WRN", "10-2").n == 1
    other = natural_record.settings.model_copy(update={"overrides": (("depth", 16),)})
    notes = aggregate(natural_suite, [natural_record.model_copy(update={"settings": other})]).notes
    assert notes == (
        "Not in the table: 1 run of wrn with depth 16 (photographs, augmentation crop-flip-cutout).",
    )


def test_errors_on_smaller_trained_and_larger_sizes(sizes_suite, sizes_records):
    table = aggregate(sizes_suite, sizes_records)
    found = {
        cell.place: [(group.name, group.mean, group.std) for group in cell.by_size] for cell in table.cells
    }
    assert found == {
        "CNN, size 1": [
            ("trained", 1.5, pytest.approx(0.5**0.5)),
            ("larger", 55.0, pytest.approx(50**0.5)),
        ],
        "CNN, size 2": [("smaller", 50.0, None), ("trained", 2.0, None), ("larger", 40.0, None)],
        "Pyramid, size 2": [
            ("smaller", 3.5, pytest.approx(0.5**0.5)),
            ("trained", 0.0, 0.0),
            ("larger", 2.5, pytest.approx(0.5**0.5)),
        ],
    }


def test_without_sizes_beside_the_trained_ones_there_are_no_such_errors(suite, make_record):
    record = make_record()
    assert aggregate(suite, [record]).cell("CNN", "28×28").by_size == ()
    data = record.data.model_copy(update={"train_factors": (0.3001, 0.9999)})
    table = aggregate(suite, [record.model_copy(update={"data": data})])
    assert table.cell("CNN", "28×28").by_size == ()


def test_a_bin_that_ends_where_the_trained_sizes_begin_is_smaller(sizes_suite, sizes_records):
    """As in a histogram, an edge belongs to the bin above it."""
    first = sizes_records[0]
    data = first.data.model_copy(update={"train_factors": (1.414, 2.0)})
    cell = aggregate(sizes_suite, [first.model_copy(update={"data": data})]).cell("CNN", "size 1")
    assert [(group.name, group.mean) for group in cell.by_size] == [
        ("smaller", 1.0),
        ("trained", 20.0),
        ("larger", 80.0),
    ]


def test_runs_with_other_bins_than_the_first_are_left_out(sizes_suite, sizes_records):
    first, second, *_ = sizes_records
    bins = second.test.by_factor.model_copy(update={"edges": (0.5, 1.5, 3.0, 6.0)})
    second = second.model_copy(update={"test": second.test.model_copy(update={"by_factor": bins})})
    none = second.model_copy(update={"test": second.test.model_copy(update={"by_factor": None})})
    for other in (second, none):
        cell = aggregate(sizes_suite, [first, other]).cell("CNN", "size 1")
        assert (cell.n, [group.errors for group in cell.by_size]) == (2, [(1.0,), (50.0,)])


def test_gaps_are_told_in_few_words(suite, make_record):
    everything = [("cnn", "none"), ("cnn", "scale"), ("ses", "none"), ("ses_p", "scale")]
    once = [make_record(model, augment) for model, augment in everything]
    gap = "1 of 3 realisations (missing: no. 1, 2)."
    assert aggregate(suite, once).notes == (f"All cells with runs: {gap}",)
    more = [make_record("ses_p", "scale", number) for number in (1, 2)]
    assert aggregate(suite, once + more).notes == (f"CNN; SESN, 28×28: {gap}",)


def test_numbers_in_a_row_are_told_as_a_range(suite, make_record):
    long = suite.model_copy(update={"realisations": tuple(range(9))})
    notes = aggregate(long, [make_record(realisation=number) for number in (0, 4)]).notes
    assert notes == ("CNN, 28×28: 2 of 9 realisations (missing: no. 1–3, 5–8).",)


def test_many_runs_outside_the_table_are_counted(suite, make_record):
    notes = aggregate(suite, [make_record(f"other{number}") for number in range(7)]).notes
    assert notes[0].startswith("Not in the table: 1 run of other0 (toy-digits, augmentation none); ")
    assert notes[0].endswith("; 3 runs of 3 more.")


def test_changed_data_names_the_data_set_where_there_are_several(sizes_suite, sizes_records):
    data = sizes_records[3].data.model_copy(update={"checksum": "changed"})
    changed = sizes_records[3].model_copy(update={"data": data})
    notes = aggregate(sizes_suite, [*sizes_records[:3], changed]).notes
    assert "Not all runs of realisation 0 of size-2 saw the same data: 2 checksums." in notes
