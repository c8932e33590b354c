"""Measured choices of a test's own."""

from pathlib import Path

import pytest

from equiscale.functional.algorithms import autotune, choices
from equiscale.functional.algorithms.choices import ChoiceTable


@pytest.fixture
def choices_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that autotune fills in this test; nothing has been measured yet."""
    monkeypatch.setenv("EQUISCALE_AUTOTUNE", "on")
    monkeypatch.setenv("EQUISCALE_CACHE_DIR", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache" / "autotune.json"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: the file is read at the next convolution."""
    table = ChoiceTable()
    monkeypatch.setattr(choices, "TABLE", table)
    monkeypatch.setattr(autotune, "TABLE", table)
