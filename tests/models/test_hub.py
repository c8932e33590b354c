"""Folders and repositories of the hub: what is written, and that nothing but the weights file is read."""

import builtins
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
import yaml
from torch import nn

from equiscale import create_model
from equiscale.errors import CheckpointError, MissingExtraError, SettingError
from equiscale.models.hub import from_pretrained, push_to_hub, save_pretrained
from equiscale.models.settings_json import encode
from equiscale.models.weights import load, weights_info

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def network() -> nn.Module:
    return create_model("mnist_ses_scalar_28", num_classes=3, channels=(2, 3, 4), hidden=8).eval()


def assert_same(loaded: nn.Module, network: nn.Module) -> None:
    assert loaded.settings == network.settings
    saved = network.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.state_dict().items())


def test_a_folder_is_loaded_as_it_was_saved(network: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    save_pretrained(network, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_same(from_pretrained(folder), network)
    assert_same(from_pretrained(str(folder)), network)


def test_the_weights_are_stored_as_asked(network: nn.Module, tmp_path: Path) -> None:
    save_pretrained(network, tmp_path, dtype=torch.float16, notes={"license": "cc-by-4.0", "error": 2.5})
    info = weights_info(tmp_path / "model.safetensors")
    assert info.tensors["main.0.weight"][0] == "F16"
    assert info.notes == {"license": "cc-by-4.0", "error": 2.5}


def test_configuration_and_card_tell_what_the_file_holds(network: nn.Module, tmp_path: Path) -> None:
    save_pretrained(network, tmp_path, notes={"license": "mit", "error": 2.5})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["library_name"] == "equiscale"
    assert (config["model"], config["settings"]) == ("mnist_ses_scalar_28", encode(network.settings))
    _, head, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert (head["library_name"], head["license"]) == ("equiscale", "mit")
    assert {"scale-equivariant", "pytorch"} <= set(head["tags"])
    assert "# mnist_ses_scalar_28" in body
    assert "Sosnovik, Szmaja, Smeulders: Scale-Equivariant Steerable Networks. ICLR 2020" in body
    assert '"num_classes": 3' in body
    assert '"error": 2.5' in body


def test_the_cards_code_loads_the_network(network: nn.Module, tmp_path: Path) -> None:
    save_pretrained(network, tmp_path)
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("owner/name", str(tmp_path)), names)
    assert_same(names["network"], network)


def test_without_a_licence_the_card_has_none(network: nn.Module, tmp_path: Path) -> None:
    save_pretrained(network, tmp_path)
    assert "license" not in (tmp_path / "README.md").read_text().split("---\n")[1]


def test_a_card_of_ones_own_stays_and_the_weights_are_replaced(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(network, tmp_path)
    with torch.no_grad():
        network.linear[0].weight.add_(1)
    save_pretrained(network, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert_same(from_pretrained(tmp_path), network)


def test_loading_a_folder_reads_nothing_but_the_weights(network: nn.Module, tmp_path: Path) -> None:
    save_pretrained(network, tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "README.md").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle is read")
    assert_same(from_pretrained(tmp_path), network)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors, got: No such file"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("licence", ["MIT", "mit\ntags: x", 3, ""])
def test_licences_that_are_none_of_the_hubs_are_refused(
    network: nn.Module, tmp_path: Path, licence: object
) -> None:
    with pytest.raises(SettingError, match="names of licences in lower case, such as 'mit', got"):
        save_pretrained(network, tmp_path, notes={"license": licence})
    assert list(tmp_path.iterdir()) == []


# --- repositories, without a network ---


def test_a_repository_is_fetched_as_one_file(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(network, tmp_path)
    fetch = create_autospec(huggingface_hub.hf_hub_download)
    fetch.return_value = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert_same(from_pretrained("somebody/some-network", revision="v2", token="t"), network)
    (call,) = fetch.call_args_list
    assert call.args == ("somebody/some-network", "model.safetensors")
    assert call.kwargs == {"revision": "v2", "token": "t", "cache_dir": None, "local_files_only": False}


def test_what_was_fetched_before_is_found_in_the_hubs_own_cache(network: nn.Module, tmp_path: Path) -> None:
    """The hub's layout of fetched files, read by its own client, which is told to stay offline."""
    repository, commit = tmp_path / "models--somebody--some-network", "a" * 40
    save_pretrained(network, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    options: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    assert_same(from_pretrained("somebody/some-network", **options), network)
    with pytest.raises(
        CheckpointError, match="in the repository somebody/else, got LocalEntryNotFoundError: "
    ):
        from_pretrained("somebody/else", **options)


@pytest.mark.parametrize("name", ["network", "a/b/c", "../weights", "somebody/", "some body/network", ""])
def test_names_that_are_none_of_repositories_are_refused(
    network: nn.Module, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda: push_to_hub(network, name), lambda: from_pretrained(name or "no")):
        with pytest.raises(CheckpointError, match="a folder that exists or a repository as owner/name, got"):
            call()


@pytest.mark.parametrize("has_card", [False, True])
def test_a_network_is_pushed_as_its_folder(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_card: bool
) -> None:
    uploaded: dict[str, Any] = {}

    def upload(**options: Any) -> SimpleNamespace:
        uploaded.update(options, files=sorted(path.name for path in Path(options["folder_path"]).iterdir()))
        uploaded["network"] = load(Path(options["folder_path"]) / "model.safetensors")
        return SimpleNamespace(commit_url="https://hub/commit")

    hub = create_autospec(huggingface_hub.HfApi, instance=True)
    hub.upload_folder.side_effect = upload
    hub.file_exists.return_value = has_card
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: hub)
    assert push_to_hub(network, "somebody/some-network", private=True) == "https://hub/commit"
    hub.create_repo.assert_called_once_with("somebody/some-network", private=True, exist_ok=True)
    assert uploaded["files"] == FILES
    assert uploaded["ignore_patterns"] == (["README.md"] if has_card else None)
    assert uploaded["commit_message"] == "mnist_ses_scalar_28 of equiscale"
    assert_same(uploaded["network"], network)
    assert not Path(uploaded["folder_path"]).exists()


def test_nothing_is_pushed_that_cannot_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = create_autospec(huggingface_hub.HfApi, instance=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: hub)
    with pytest.raises(CheckpointError, match="a network of create_model, got a Linear"):
        push_to_hub(nn.Linear(1, 1), "somebody/some-network")
    assert hub.method_calls == []


def test_without_the_package_folders_work_and_repositories_say_what_to_install(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="huggingface_hub")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    importlib.reload(importlib.import_module("equiscale.models.hub"))
    save_pretrained(network, tmp_path)
    assert_same(from_pretrained(tmp_path), network)
    for call in (lambda: push_to_hub(network, "a/b"), lambda: from_pretrained("somebody/some-network")):
        with pytest.raises(MissingExtraError, match=r"'huggingface_hub', got none; .*equiscale\[hub\]"):
            call()
