"""Trained weights: every file is what the manifest says, and the manifest what the record says."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from equiscale import create_model
from equiscale.data import load, mnist_scale, normalize
from equiscale.errors import CheckpointError, ModelError, SettingError
from equiscale.experiments.execute import RunOptions, execute_run, weights_path
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.records import (
    RunRecord,
    decode_predictions,
    read_record,
    record_path,
    write_record,
)
from equiscale.experiments.spec import load_suite
from equiscale.models import model_entry, pretrained
from equiscale.models.pretrained import list_pretrained, pretrained_path, pretrained_weights
from equiscale.models.weights import load as load_network
from equiscale.models.weights import save, weights_info
from tests.data.conftest import mnist_source

__all__ = ["mnist_source"]

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "add_pretrained.py"
NAMES = pytest.mark.parametrize("name", list_pretrained())
# Of so many test images, and how far (in points of percent) their error may be from that of all 50,000: three
# standard deviations of a mean of mistakes with probability 2.5 %.
IMAGES, NEAR = 2000, 1.05


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A manifest and a folder of weights that a test may change."""
    path = tmp_path / "pretrained.json"
    path.write_text(pretrained.MANIFEST.read_text())
    monkeypatch.setattr(pretrained, "MANIFEST", path)
    monkeypatch.setenv("EQUISCALE_WEIGHTS_DIR", str(tmp_path))
    pretrained._manifest.cache_clear()
    yield path
    pretrained._manifest.cache_clear()


def record_of(name: str) -> RunRecord:
    weights = pretrained_weights(name)
    return read_record(ROOT / "results" / weights.suite / f"{weights.run}.json")


def test_weights_are_there_for_a_steerable_network_and_its_baseline() -> None:
    assert {"mnist_cnn_28", "mnist_ses_vector_28"} <= set(list_pretrained())


@NAMES
def test_the_file_is_the_one_that_the_manifest_names(name: str) -> None:
    content = pretrained_path(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == pretrained_weights(name).sha256
    assert len(content) < 1.1e6, "float16, about a megabyte"


@NAMES
def test_the_manifest_agrees_with_the_record_and_the_file(name: str) -> None:
    weights, record, info = pretrained_weights(name), record_of(name), weights_info(pretrained_path(name))
    assert record.settings.run_id == weights.run == info.notes["run"]
    assert (record.settings.model, info.model) == (name, name)
    assert record.settings.overrides == ()
    assert (record.settings.dataset, record.settings.realisation) == (weights.dataset, weights.realisation)
    assert (record.settings.protocol.epochs, record.settings.augment) == (weights.epochs, weights.augment)
    assert weights.test_error == record.test.error
    assert abs(weights.stored_error - weights.test_error) < 0.01, "what float16 changes"
    assert (weights.mean, weights.std) == (info.notes["mean"], info.notes["std"])


@NAMES
def test_create_model_gives_the_trained_network_ready_for_use(name: str) -> None:
    network, fresh = create_model(name, pretrained=True), create_model(name)
    assert not network.training
    assert network.settings == model_entry(name).settings
    shapes = {key: tensor.shape for key, tensor in fresh.state_dict().items()}
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == shapes
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    stored = load_network(pretrained_path(name)).state_dict()
    assert all(torch.equal(stored[key], tensor) for key, tensor in network.state_dict().items())
    assert not torch.equal(network.main[0].weight, fresh.main[0].weight)
    assert network.main[3].num_batches_tracked > 1000, "trained, not fresh"


@NAMES
def test_the_claimed_error_is_the_error(
    name: str, mnist_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = pretrained_weights(name)
    root = tmp_path_factory.getbasetemp() / "prepared_for_weights"
    mnist_scale.prepare(root, source=mnist_source, realisations=[weights.realisation])
    test = load(weights.dataset, split="test", realisation=weights.realisation, root=root)
    assert (test.mean, test.std) == (weights.mean, weights.std)
    some = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:IMAGES]
    images = normalize(test.images[some], weights.mean, weights.std)
    with torch.no_grad():
        network = create_model(name, pretrained=True)
        predicted = torch.cat([network(batch).argmax(1) for batch in images.split(200)])
    error = 100 * float((predicted != test.labels[some]).float().mean())
    assert abs(error - weights.stored_error) < NEAR
    recorded = decode_predictions(record_of(name).test.predictions)[some.numpy()]
    assert int((predicted.numpy() != recorded).sum()) <= 2, "what float16 turns"
    with torch.no_grad():
        raw = torch.cat([network(batch).argmax(1) for batch in test.images[some[:400]].float().split(200)])
    assert (raw.numpy() != recorded[:400]).mean() > 0.1, "without the normalisation it is another network"


# --- what is refused ---


@pytest.mark.parametrize(
    "overrides", [{"num_classes": 3}, {"in_channels": 3}, {"dropout": 0.5}, {"channels": (4, 4, 4)}]
)
def test_other_settings_are_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(
        ModelError, match=r"published settings of 'mnist_cnn_28' with pretrained=True, got Mnist"
    ):
        create_model("mnist_cnn_28", pretrained=True, **overrides)


def test_the_published_settings_may_be_spelt_out() -> None:
    create_model("mnist_cnn_28", pretrained=True, num_classes=10, in_channels=1, dropout=0.7)


def test_a_missing_file_says_where_to_get_it(manifest: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"trained weights of 'mnist_cnn_28' at .*, got: No such file.*; get "
        r"weights/mnist_cnn_28.safetensors of the source repository and name its folder in "
        r"EQUISCALE_WEIGHTS_DIR",
    ):
        create_model("mnist_cnn_28", pretrained=True)


def test_another_file_is_refused(manifest: Path) -> None:
    target = manifest.parent / "mnist_cnn_28.safetensors"
    save(create_model("mnist_cnn_28"), target)
    with pytest.raises(
        CheckpointError, match=r"expected the SHA-256 [0-9a-f]{64} of .*, got [0-9a-f]{64}; it is"
    ):
        create_model("mnist_cnn_28", pretrained=True)


def test_a_file_of_another_network_is_refused_even_with_its_hash(manifest: Path) -> None:
    target = manifest.parent / "mnist_cnn_28.safetensors"
    for other in (create_model("mnist_cnn_56"), create_model("mnist_cnn_28", dropout=0.1)):
        save(other, target)
        rows = json.loads(manifest.read_text())
        for row in rows["weights"]:
            row["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(rows))
        pretrained._manifest.cache_clear()
        with pytest.raises(
            CheckpointError, match=r"published settings of 'mnist_cnn_28' in .*, got those of"
        ):
            create_model("mnist_cnn_28", pretrained=True)


def test_the_folder_of_the_environment_comes_first(manifest: Path) -> None:
    target = manifest.parent / "mnist_cnn_28.safetensors"
    target.write_bytes((ROOT / "weights" / target.name).read_bytes())
    assert pretrained_path("mnist_cnn_28") == target


# --- the tool that adds them ---


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("add_pretrained", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add(manifest: Path, weights: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--manifest", manifest, "add", weights, record, "--weights", manifest.parent]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    load_tool().main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """One epoch of a network in its published settings."""
    folder = tmp_path_factory.mktemp("run")
    run = plan_runs(load_suite("digits-scale"), Selection(realisations=[0], epochs=1))[0]
    record = execute_run(
        run.model_copy(update={"model": "mnist_cnn_28", "overrides": ()}), RunOptions(folder)
    )
    assert record.status == "finished"
    return folder, record


def test_the_weights_of_a_run_are_added_and_replaced(
    finished: tuple[Path, RunRecord],
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, record = finished
    weights, path = weights_path(folder, record.settings), record_path(folder, record.settings)
    others = [asdict(pretrained_weights(name)) for name in list_pretrained() if name != "mnist_cnn_28"]
    add(manifest, weights, path, monkeypatch)
    assert "predictions are not the record's\nmnist_cnn_28: " in capsys.readouterr().out
    pretrained._manifest.cache_clear()
    row = pretrained_weights("mnist_cnn_28")
    assert (row.run, row.dataset, row.test_error) == (
        record.settings.run_id,
        "digits-scale",
        record.test.error,
    )
    assert [asdict(pretrained_weights(name)) for name in list_pretrained() if name != row.model] == others
    network, trained = create_model("mnist_cnn_28", pretrained=True), load_network(weights)
    torch.testing.assert_close(network.main[0].weight, trained.main[0].weight, rtol=2**-11, atol=1e-7)
    assert not torch.equal(network.main[0].weight, trained.main[0].weight)


def test_plain_tensors_of_earlier_runs_are_added_likewise(
    finished: tuple[Path, RunRecord], manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = finished
    plain = manifest.parent / "plain.safetensors"
    save_file(load_file(weights_path(folder, record.settings)), plain)
    added = []
    for weights in (plain, weights_path(folder, record.settings)):
        add(manifest, weights, record_path(folder, record.settings), monkeypatch)
        added.append(weights_info(manifest.parent / "mnist_cnn_28.safetensors").digest)
    assert added[0] == added[1]


def test_weights_of_another_run_are_not_added(
    finished: tuple[Path, RunRecord], manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = finished
    other, another = manifest.parent / "other.safetensors", manifest.parent / "another.safetensors"
    save(create_model("mnist_cnn_28"), other)
    save(create_model("mnist_cnn_56"), another)
    path, before = record_path(folder, record.settings), manifest.read_text()
    with pytest.raises(CheckpointError, match="these are not the weights of this record"):
        add(manifest, other, path, monkeypatch)
    with pytest.raises(SettingError, match="expected weights of mnist_cnn_28, got mnist_cnn_56"):
        add(manifest, another, path, monkeypatch)
    overridden = record.settings.model_copy(update={"overrides": (("hidden", 8),)})
    path = write_record(manifest.parent, record.model_copy(update={"settings": overridden}))
    with pytest.raises(SettingError, match=r"published settings, got overrides \{'hidden': 8\}"):
        add(manifest, other, path, monkeypatch)
    assert manifest.read_text() == before
    assert not (manifest.parent / "mnist_cnn_28.safetensors").exists()


def test_the_table_of_the_document_is_the_manifests(tmp_path: Path) -> None:
    document = ROOT / "docs" / "weights.md"
    copy = tmp_path / "weights.md"
    copy.write_text(document.read_text())
    command = [sys.executable, str(TOOL), "table", "--into", str(copy)]
    subprocess.run(command, capture_output=True, check=True)
    assert copy.read_text() == document.read_text(), f"run: python {TOOL.name} table --into docs/weights.md"
    for name in list_pretrained():
        assert f"| `{name}` |" in document.read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "weights.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block {index + 1}" for index in range(len(BLOCKS))])
def test_the_documents_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})
    assert len(BLOCKS) == 5


def test_weights_of_a_run_hold_its_settings_and_normalisation(finished: tuple[Path, RunRecord]) -> None:
    folder, record = finished
    info = weights_info(weights_path(folder, record.settings))
    assert info.notes["run"] == record.settings.run_id
    assert info.notes["settings"]["protocol"]["epochs"] == 1
    test = load("digits-scale", split="test", realisation=0)
    assert (info.notes["mean"], info.notes["std"]) == (test.mean, test.std)
    network = load_network(weights_path(folder, record.settings))
    with torch.no_grad():
        predicted = network(normalize(test.images, test.mean, test.std)).argmax(1)
    assert np.array_equal(predicted.numpy(), decode_predictions(record.test.predictions))
