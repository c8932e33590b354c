"""The suites that train on some sizes and test on all: every cell can be run on its data."""

import pytest

from equiscale.data import dataset_info
from equiscale.experiments.execute import check_networks
from equiscale.experiments.plan import plan_runs
from equiscale.experiments.spec import load_suite

COLUMNS = {
    "mnist-large-scale": {f"size {size}": f"mnist-large-scale-{size}" for size in (1, 2, 4)},
    "mnist-stir": {
        "17–32": "mnist-stir-small",
        "25–48": "mnist-stir-medium",
        "33–64": "mnist-stir-large",
    },
}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_method_has_every_column_on_its_data(name: str) -> None:
    suite = load_suite(name)
    for method in suite.methods:
        assert {column: cell.dataset for column, cell in method.cells.items()} == COLUMNS[name]
        assert len({cell.model for cell in method.cells.values()}) == 1
        assert not any(cell.claims for cell in method.cells.values())  # none was checked, none is claimed
    assert len(plan_runs(suite)) == len(suite.methods) * 3 * len(suite.realisations)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_network_takes_the_images(name: str) -> None:
    suite = load_suite(name)
    check_networks(run for run in plan_runs(suite) if run.dataset == suite.dataset)


@pytest.mark.parametrize("name", COLUMNS)
def test_sizes_are_counted_one_by_one(name: str) -> None:
    edges = [dataset_info(dataset).factor_edges for dataset in load_suite(name).datasets]
    assert None not in edges
    assert len(set(edges)) == 1  # so that the columns can be compared
