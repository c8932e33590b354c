"""Results folders: what is wrong is found, merging overwrites nothing, and only garbage is garbage."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from equiscale.errors import SettingError
from equiscale.experiments.claims import Claims, claims_of
from equiscale.experiments.execute import checkpoint_path, weights_path
from equiscale.experiments.index import record_files
from equiscale.experiments.maintenance import collect, garbage, merge, verify
from equiscale.experiments.records import (
    FactorErrors,
    RunRecord,
    RunSettings,
    encode_predictions,
    read_record,
    record_path,
    write_record,
)
from equiscale.models import create_model
from equiscale.models.weights import save
from tests.experiments.conftest import make_record


def put(folder: Path, record: RunRecord) -> Path:
    """A record with its weights and pictures."""
    pictures = record_path(folder, record.settings).with_suffix(".npz")
    record = record.model_copy(update={"inspection": pictures.name})
    path = write_record(folder, record)
    np.savez(pictures, filters=np.zeros(3))
    weights = weights_path(folder, record.settings)
    weights.parent.mkdir(exist_ok=True)
    torch.manual_seed(0)
    save(create_model(record.settings.model), weights)
    return path


def problems(folder: Path) -> list[str]:
    return [problem for _, found in verify(folder) for problem in found]


def test_a_sound_folder_has_no_problems(tmp_path: Path) -> None:
    put(tmp_path, make_record())
    write_record(
        tmp_path, make_record(realisation=1)
    )  # without weights: they do not travel with every record
    assert [found for _, found in verify(tmp_path)] == [[], []]


def change(record: RunRecord, **update) -> RunRecord:
    return record.model_copy(update=update)


HARM: dict[str, tuple[Callable[[RunRecord], RunRecord], str]] = {
    "no test": (lambda record: change(record, test=None), "is finished and has no test"),
    "epochs missing": (lambda record: change(record, epochs=record.epochs[:2]), "has 2 epochs of 3"),
    "epochs twice": (
        lambda record: change(record, epochs=record.epochs[:1] * 3),
        "its epochs are not numbered 1, 2, …",
    ),
    "wrong epoch": (lambda record: change(record, test=change(record.test, epoch=4)), "tested epoch 4 of 3"),
    "few predictions": (
        lambda record: change(record, test=change(record.test, predictions=encode_predictions([1, 2]))),
        "has 2 predictions for 600 test images",
    ),
    "damaged predictions": (
        lambda record: change(record, test=change(record.test, predictions="????")),
        "expected predictions as base64",
    ),
    "errors by factor": (
        lambda record: change(
            record,
            test=change(record.test, by_factor=FactorErrors(edges=(0.3, 1.0), images=(600,), mistakes=(1,))),
        ),
        "its errors by factor, 1 of 600, are not its test error",
    ),
    "no factors": (
        lambda record: change(
            record,
            data=change(record.data, test=0),
            test=change(
                record.test,
                predictions=encode_predictions([]),
                by_factor=FactorErrors(edges=(), images=(), mistakes=()),
            ),
        ),
        "it was tested on no images",
    ),
    "pictures elsewhere": (
        lambda record: change(record, inspection="../secret.npz"),
        "its pictures '../secret.npz' are not beside it",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_wrong_with_a_record_is_found(tmp_path: Path, harm: str) -> None:
    make, message = HARM[harm]
    write_record(tmp_path, make(make_record()))
    (found,) = problems(tmp_path)
    assert message in found


def test_what_is_wrong_with_files_is_found(tmp_path: Path) -> None:
    path = put(tmp_path, make_record())
    record = read_record(path)
    weights = weights_path(tmp_path, record.settings)
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    assert "cannot be read" in problems(tmp_path)[0]
    weights.write_bytes(good[:-4] + b"\0\0\0\x40")  # one number is another one
    assert "are not those that were written" in problems(tmp_path)[0]
    save_file({"x": torch.tensor([float("nan")] * record.parameters)}, weights)
    assert "are not finite" in problems(tmp_path)[0]
    save_file({"x": torch.zeros(7)}, weights)
    assert "are 7 numbers for 494549 parameters" in problems(tmp_path)[0]
    weights.unlink()
    pictures = path.with_suffix(".npz")
    pictures.write_bytes(b"PK nonsense")
    assert "its pictures" in problems(tmp_path)[0]
    pictures.unlink()
    assert "are missing" in problems(tmp_path)[0]
    path.rename(path.with_name("mnist_cnn_28-r0-s0-e3-00000000.json"))
    assert "its settings belong to" in problems(tmp_path)[0]
    path.with_name("mnist_cnn_28-r0-s0-e3-00000000.json").write_text("[]")
    assert "expected a valid run record" in problems(tmp_path)[0]


def elsewhere(folder: Path, path: Path, suite: str) -> Path:
    """A copy of a record that lies in one suite and says that it is of another."""
    forged = folder / "forged" / path.name
    forged.parent.mkdir()
    forged.write_text(path.read_text().replace('"suite": "small"', f'"suite": "{suite}"'))
    return forged


@pytest.mark.parametrize("suite", ["../elsewhere", "/etc", "..", "other"])
def test_a_record_of_another_place_is_reported_and_touches_nothing_there(tmp_path: Path, suite: str) -> None:
    folder = tmp_path / "results"
    path = write_record(tmp_path / "scratch", make_record())
    (folder / "other").mkdir(parents=True)
    forged = elsewhere(folder, path, suite)
    precious = []
    for place in (tmp_path / "elsewhere", folder / "other"):
        for kind in ("checkpoints", "weights"):
            for stem in (path.stem, record_of_other(suite).run_id):
                precious.append(place / kind / f"{stem}.safetensors")
                precious[-1].parent.mkdir(parents=True, exist_ok=True)
                precious[-1].write_text("mine")

    ((reported, (problem,)),) = verify(folder)
    assert reported == forged
    assert ("its settings belong to other/" if suite == "other" else "String should match pattern") in problem
    (merged,) = merge([folder], tmp_path / "target")
    assert (merged.fate, merged.path) == ("invalid", forged)
    assert not record_files(tmp_path / "target")
    collect(garbage(folder))
    assert all(file.read_text() == "mine" for file in precious)


def record_of_other(suite: str) -> RunSettings:
    return make_record().settings.model_copy(update={"suite": suite})


def test_the_weights_of_another_record_are_not_looked_at(tmp_path: Path) -> None:
    path = put(tmp_path, make_record())
    weights_path(tmp_path, make_record().settings).write_bytes(b"damaged")
    path.rename(path.with_name("mnist_cnn_28-r0-s0-e3-00000000.json"))
    path.with_suffix(".npz").rename(path.with_name("x.npz"))
    assert [problem[:23] for problem in problems(tmp_path)] == [
        "its settings belong to ",
        "its pictures mnist_cnn_",
    ]


def test_folders_of_two_machines_become_one(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    put(ours, make_record(realisation=0))
    copied = put(theirs, make_record(realisation=1))
    put(theirs, make_record(realisation=0))
    fates = {merged.path.name: merged.fate for merged in merge([theirs], ours)}
    assert sorted(fates.values()) == ["copied", "same"]
    assert fates[copied.name] == "copied"
    settings = read_record(copied).settings
    assert record_path(ours, settings).read_bytes() == copied.read_bytes()
    assert record_path(ours, settings).with_suffix(".npz").exists()
    expected, found = (load_file(weights_path(folder, settings)) for folder in (theirs, ours))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert problems(ours) == []


def test_a_conflict_is_reported_and_nothing_is_overwritten(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    kept = put(ours, make_record(error=2.0))
    put(theirs, make_record(error=2.5))
    before = kept.read_bytes()
    (merged,) = merge([theirs], ours)
    assert merged.fate == "conflict"
    assert "test error 2.5 %, and 2 % in the target" in merged.message
    assert kept.read_bytes() == before


def test_finished_records_replace_failed_ones_and_never_the_other_way_round(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    failed = change(make_record(), status="failed", failure="no memory", test=None)
    write_record(ours, failed)
    put(theirs, make_record())
    assert [merged.fate for merged in merge([theirs], ours)] == ["copied"]
    (path,) = record_files(ours)
    assert read_record(path).status == "finished"
    write_record(tmp_path / "more", failed)
    assert [merged.fate for merged in merge([tmp_path / "more"], ours)] == ["kept"]
    assert read_record(path).status == "finished"


def test_what_is_not_sound_is_not_merged(tmp_path: Path) -> None:
    path = put(tmp_path / "theirs", make_record())
    path.write_text(path.read_text()[:-50])
    (merged,) = merge([tmp_path / "theirs"], tmp_path / "ours")
    assert merged.fate == "invalid"
    assert not record_files(tmp_path / "ours")


def test_a_folder_is_not_merged_with_itself_or_with_nothing(tmp_path: Path) -> None:
    for source in (tmp_path / ".." / tmp_path.name, tmp_path / "missing"):
        with pytest.raises(SettingError, match="expected results folders other than"):
            list(merge([source], tmp_path))


def test_only_garbage_is_garbage(tmp_path: Path) -> None:
    path = put(tmp_path, make_record())
    settings = read_record(path).settings
    open_settings = make_record(realisation=1).settings
    checkpoint_path(tmp_path, settings).parent.mkdir()
    for run in (settings, open_settings):
        checkpoint_path(tmp_path, run).write_bytes(b"12345")
    half = path.with_name(f".{path.name}.{'0' * 32}.tmp")
    half.write_text("{")
    half.with_name(f".folder.{'1' * 32}.tmp").mkdir()
    (tmp_path / "notes.tmp").write_text("mine")
    kill = "import os, sys; from pathlib import Path; from equiscale.experiments.claims import Claims; "
    kill += "Claims(Path(sys.argv[1])).claim('dead'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", kill, str(claims_of(tmp_path, settings.suite))], check=False)
    before = {file for file in tmp_path.rglob("*") if file.is_file()}

    found = {item.path.name: item.reason for item in garbage(tmp_path)}
    assert found == {
        checkpoint_path(tmp_path, settings).name: "checkpoint of a finished run",
        half.name: "half written",
        f".folder.{'1' * 32}.tmp": "half written",
        "dead.1.claim": "claim of a dead worker",
    }
    collect(garbage(tmp_path))
    gone = before - {file for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.name for file in gone} == found.keys() - {f".folder.{'1' * 32}.tmp"}
    assert list(garbage(tmp_path)) == []
    assert problems(tmp_path) == []


def test_nothing_of_a_living_worker_is_garbage(tmp_path: Path) -> None:
    path = put(tmp_path, make_record())
    settings = read_record(path).settings
    claim = Claims(claims_of(tmp_path, settings.suite)).claim(settings.run_id)
    checkpoint_path(tmp_path, settings).parent.mkdir()
    checkpoint_path(tmp_path, settings).write_bytes(b"")
    path.with_name(f".{path.name}.{os.urandom(16).hex()}.tmp").write_text("{")
    assert list(garbage(tmp_path)) == []
    claim.release()
    assert len(list(garbage(tmp_path))) == 2
