"""The catalogue: everything registered is in it, every public layer has its method, the page is current."""

from pathlib import Path

import pytest
from torch import nn

import equiscale.nn
from equiscale.basis import list_bases
from equiscale.catalogue import KINDS, catalogue, markdown, terminal
from equiscale.data import list_datasets
from equiscale.errors import SettingError
from equiscale.experiments.spec import list_suites
from equiscale.models import list_models
from equiscale.nn.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "catalogue.md"
# The base class of several methods' layers, and torch's own layers made fast.
SHARED = {"SteerableConv2d", "ImageBatchNorm2d", "ImageMaxPool2d", "ValueDropout"}


def test_every_registered_name_is_listed() -> None:
    names = {kind: [entry.name for entry in catalogue() if entry.kind == kind] for kind in KINDS}
    assert names == {
        "method": [method.name for method in METHODS],
        "basis": list_bases(),
        "model": list_models(),
        "data": [*list_datasets(), "image-folder:PATH"],
        "suite": list_suites(),
    }
    assert min(map(len, names.values())) >= 6


def test_every_public_layer_belongs_to_a_method() -> None:
    layers = {
        name
        for name in equiscale.nn.__all__
        if isinstance(getattr(equiscale.nn, name), type)
        and issubclass(getattr(equiscale.nn, name), nn.Module)
    }
    claimed = {layer.__name__ for method in METHODS for layer in method.layers}
    assert claimed == layers - SHARED


def test_everything_published_has_a_year_and_a_source() -> None:
    ours = {entry.name for entry in catalogue() if entry.citation is None}
    assert ours == {
        "digits-scale",
        "imagenette96",
        "image-folder:PATH",
    }  # the suites; the data sets of these names have sources
    assert all(1990 < entry.year <= 2026 for entry in catalogue() if entry.citation)


def test_the_page_in_the_documentation_is_current() -> None:
    assert PAGE.read_text() == markdown(), "run 'equiscale list --into docs/catalogue.md'"


def test_one_kind_can_be_shown() -> None:
    (table,) = terminal("basis")
    assert table.row_count == len(list_bases())
    with pytest.raises(
        SettingError, match="expected a kind of method, basis, model, data, suite, got 'layer'"
    ):
        terminal("layer")
