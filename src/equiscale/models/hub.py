"""Networks as folders and repositories of the Hugging Face hub: one weights file, one card, no code."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.errors import CheckpointError, SettingError
from equiscale.models.registry import model_entry
from equiscale.models.weights import load, save, weights_info
from equiscale.models.weights_file import WeightsFile

WEIGHTS_NAME: Final = "model.safetensors"
CONFIG_NAME: Final = "config.json"
CARD_NAME: Final = "README.md"
_TAGS: Final = ("equiscale", "scale-equivariant", "equivariance", "pytorch", "image-classification")
_PART: Final = r"\w(?:[\w.-]{0,94}\w)?"
_REPOSITORY: Final = re.compile(f"{_PART}/{_PART}", re.ASCII)
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}", re.ASCII)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a network's folder as the hub knows it: ``model.safetensors``, ``config.json``, ``README.md``.

    `from_pretrained` reads the weights file alone; the configuration and the card are for people, and the
    hub's search. A README.md that is there already is left as it is. Needs no package of the hub.

    Args:
        model: A network of `create_model`.
        folder: The folder; it is made when it is missing.
        dtype: As in `equiscale.models.weights.save`.
        notes: Likewise; ``license``, one of the hub's names such as "mit", also goes to the card's head.

    Raises:
        CheckpointError: If the network cannot be saved, see `equiscale.models.weights.save`.
        SettingError: For another dtype or licence, or notes that have no JSON form.

    Example:
        >>> from equiscale import create_model
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_pretrained(create_model("mnist_cnn_28"), folder, notes={"license": "mit"})
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> from_pretrained(folder).settings.hidden
        256
    """
    _check_licence((notes or {}).get("license"))
    folder = Path(folder)
    save(model, folder / WEIGHTS_NAME, dtype=dtype, notes=notes)
    file = weights_info(folder / WEIGHTS_NAME)
    _write(folder / CONFIG_NAME, _config(file))
    if not (folder / CARD_NAME).exists():
        _write(folder / CARD_NAME, model_card(file))


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Load a network from a folder of `save_pretrained`, or from a repository of the hub.

    From a repository the one file ``model.safetensors`` is fetched, and read by
    `equiscale.models.weights.load`: nothing of the repository is executed.

    Args:
        source: A folder, or a repository's ``owner/name``; a folder that exists comes first.
        revision: A branch, tag or commit of the repository.
        token: Of the hub; None: the one that is stored.
        cache_dir: Where fetched files lie; None: the hub's own place.
        local_files_only: Fetch nothing, take what was fetched before.

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: If there is no such folder or repository, or its file is none of a network.
        MissingExtraError: If a repository is asked for and the package ``huggingface_hub`` is missing.

    Example:
        >>> try:
        ...     from_pretrained("no folder and no repository")
        ... except CheckpointError as error:
        ...     print(str(error).split(",")[0])
        expected a folder that exists or a repository as owner/name
    """
    if Path(source).is_dir():
        return load(Path(source) / WEIGHTS_NAME)
    repository = _checked_repository(str(source))
    with needs_extra("hub"):
        from huggingface_hub import hf_hub_download
    try:
        path = hf_hub_download(
            repository,
            WEIGHTS_NAME,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except Exception as error:  # the hub's client has dozens
        raise CheckpointError(
            f"expected {WEIGHTS_NAME} in the repository {repository}, got {type(error).__name__}: {error}; "
            "check the name, the revision and the network"
        ) from error
    return load(path)


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Save a network as `save_pretrained` does, and upload the folder to a repository of the hub.

    A card that the repository has already is left as it is.

    Args:
        model: A network of `create_model`.
        repository: ``owner/name``; it is made when it is missing.
        private: Whether a new repository is private; None: as the account says.
        token: Of the hub; None: the one that is stored.
        dtype: As in `save_pretrained`.
        notes: Likewise.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: If the network cannot be saved, or the name is none of a repository.
        MissingExtraError: If the package ``huggingface_hub`` is missing.
        SettingError: As in `save_pretrained`.
    """
    repository = _checked_repository(repository)
    with needs_extra("hub"):
        from huggingface_hub import HfApi
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, dtype=dtype, notes=notes)
        hub = HfApi(token=token, library_name="equiscale")
        hub.create_repo(repository, private=private, exist_ok=True)
        has_card = hub.file_exists(repository, CARD_NAME)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"{weights_info(Path(folder) / WEIGHTS_NAME).model} of equiscale",
            ignore_patterns=[CARD_NAME] if has_card else None,
        )
    return str(commit.commit_url)


def model_card(file: WeightsFile) -> str:
    """The README.md of a repository: tags, how to load, the settings, the notes and whom to cite.

    Raises:
        ModelError: If the network is not registered here.
        SettingError: If the note of its licence is none of the hub's names.
    """
    entry = model_entry(file.model)
    licence = file.notes.get("license")
    _check_licence(licence)
    head = ["library_name: equiscale", "tags:", *(f"- {tag}" for tag in _TAGS)]
    head += [f"license: {licence}"] if licence else []
    code = [
        '# pip install "equiscale[hub]"',
        "from equiscale.models.hub import from_pretrained",
        "",
        'network = from_pretrained("owner/name")  # this repository',
    ]
    return "\n".join(
        [
            *("---", *head, "---", "", f"# {file.model}", ""),
            *(
                f"{entry.method}, a network of equiscale, saved by version {file.version}.",
                "",
            ),
            *("```python", *code, "```", "", "Settings:", ""),
            *("```json", json.dumps(file.settings, indent=1, ensure_ascii=False), "```", "", "Notes:", ""),
            *("```json", json.dumps(file.notes, indent=1, ensure_ascii=False), "```", ""),
            *("Please cite the method:", "", f"> {entry.citation}", ""),
        ]
    )


def _config(file: WeightsFile) -> str:
    document = {
        "library_name": "equiscale",
        "equiscale_version": file.version,
        "model": file.model,
        "settings": file.settings,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # of half a surrogate pair


def _checked_repository(name: str) -> str:
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(
            f"expected a folder that exists or a repository as owner/name, got {name!r}; check the spelling"
        )
    return name


def _check_licence(licence: object) -> None:
    if licence is not None and not (isinstance(licence, str) and _LICENCE.fullmatch(licence)):
        raise SettingError(
            f"expected one of the hub's names of licences in lower case, such as 'mit', got {licence!r}"
        )
