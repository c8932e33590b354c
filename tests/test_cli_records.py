"""``equiscale records``: shown, verified, merged and tidied, in 80 columns."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.execute import checkpoint_path
from equiscale.experiments.records import record_path, write_record
from tests.experiments.conftest import make_record


def records(*arguments: object) -> tuple[int, str]:
    options = {"COLUMNS": "80"}
    result = CliRunner().invoke(app, ["records", *map(str, arguments)], env=options)
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for realisation in range(2):
        write_record(tmp_path / "runs", make_record(realisation=realisation, error=2.0 + realisation))
    failed = make_record(realisation=2).model_copy(
        update={"status": "failed", "failure": "no memory", "test": None}
    )
    write_record(tmp_path / "runs", failed)
    return tmp_path / "runs"


def test_records_are_listed(folder: Path) -> None:
    code, output = records("show", "--results", folder)
    assert code == 0
    lines = output.splitlines()
    assert lines[0].split() == ["record", "test", "error", "minutes"]
    assert [line.split()[1:] for line in lines[1:4]] == [
        ["2.00", "%", "0.1"],
        ["3.00", "%", "0.1"],
        ["failed", "0.1"],
    ]
    assert lines[4] == "2 of 3 finished"
    assert max(map(len, lines)) <= 80


def test_a_single_record_says_what_made_it(folder: Path) -> None:
    code, output = records("show", "*-r1-*", "--results", folder)
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in output.splitlines() if line[0] != " ")
    assert facts["network"].strip() == "mnist_cnn_28"
    assert facts["images"].strip() == "1000 train, 197 validation, 600 test"
    assert facts["commit"].strip() == "an installed package"
    assert facts["machine"].strip() == "device cpu"
    assert "3.000 % after epoch 3" in output
    assert max(map(len, output.splitlines())) <= 80


def test_a_failed_record_says_why(folder: Path) -> None:
    code, output = records("show", "*-r2-*", "--results", folder)
    assert code == 0
    assert "failed: no memory" in output


def test_runs_under_way_are_shown(folder: Path) -> None:
    claim = Claims(claims_of(folder, "small")).claim("a-run")
    code, output = records("show", "--results", folder)
    assert code == 0
    assert f"under way: small/a-run on {os.uname().nodename}, process {os.getpid()}" in output
    assert records("show", "a-run", "--results", folder)[0] == 0
    claim.release()
    assert "under way" not in records("show", "--results", folder)[1]


def test_no_record_is_an_error_that_says_what_to_do(folder: Path) -> None:
    code, output = records("show", "nothing", "--results", folder)
    assert code == 2
    assert "whose names match 'nothing', got none; give another pattern" in output


def test_verify_says_what_is_wrong(folder: Path) -> None:
    assert records("verify", "--results", folder) == (0, f"3 of 3 records in {folder} are sound\n")
    damaged = record_path(folder, make_record().settings)
    damaged.write_text("{")
    code, output = records("verify", "--results", folder)
    assert code == 1
    assert output.startswith(f"small/{damaged.name}: expected a valid run record")
    assert output.endswith(f"2 of 3 records in {folder} are sound\n")


def test_merge_copies_and_reports_conflicts(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_record(other, make_record(realisation=0, error=9.0))
    write_record(other, make_record(realisation=7))
    code, output = records("merge", other, "--into", folder)
    assert code == 1
    assert output.startswith("conflict ")
    assert "test error 9 %, and 2 % in the target" in output
    assert output.endswith(f"into {folder}: 1 conflict, 1 copied\n")
    assert records("merge", tmp_path / "missing", "--into", folder)[0] == 2


def test_gc_lists_before_it_deletes(folder: Path) -> None:
    assert records("gc", "--results", folder) == (0, "nothing to delete\n")
    checkpoint = checkpoint_path(folder, make_record().settings)
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"\0" * 2**20)
    code, output = records("gc", "--results", folder)
    assert code == 0
    assert "1.0 MiB  checkpoint of a finished run: small/checkpoints/" in output
    assert output.endswith("1 file, 1.0 MiB, to delete with --delete\n")
    assert checkpoint.exists()
    assert records("gc", "--results", folder, "--delete")[1].endswith("1 file, 1.0 MiB, deleted\n")
    assert not checkpoint.exists()
