"""Trained weights of named networks: which there are, what they reached, and where their files lie."""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final

from torch import nn

from equiscale.errors import CheckpointError, ModelError
from equiscale.models.settings_json import encode
from equiscale.models.weights_file import fill, read_header

WEIGHTS_VARIABLE: Final = "EQUISCALE_WEIGHTS_DIR"
MANIFEST: Final = Path(__file__).with_name("pretrained.json")
# Where a source checkout has them; in an installed package there is no such folder.
_CHECKOUT: Final = Path(__file__).parents[3] / "weights"


@dataclass(frozen=True)
class PretrainedWeights:
    """One file of trained weights, and the run that made it.

    Args:
        model: The registered name.
        file: The file's name.
        sha256: Of the file, as hex digits.
        run: The run, whose record is ``results/<suite>/<run>.json``.
        suite: Its suite.
        dataset: What it was trained on.
        realisation: Which realisation of it.
        epochs: Of the training.
        augment: "none", or how the training images were varied.
        test_error: Percent of mistakes in the record.
        stored_error: Percent of mistakes with the weights as the file stores them.
        mean: Of pixel values in 0…1; ``(x - mean) / std`` is what the network was trained on.
        std: Their standard deviation.
    """

    model: str
    file: str
    sha256: str
    run: str
    suite: str
    dataset: str
    realisation: int
    epochs: int
    augment: str
    test_error: float
    stored_error: float
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]


def list_pretrained() -> list[str]:
    """The names of the networks with trained weights, sorted.

    Example:
        >>> "mnist_ses_vector_28" in list_pretrained()
        True
    """
    return sorted(_manifest())


def pretrained_weights(name: str) -> PretrainedWeights:
    """What is known of a network's trained weights: their data, normalisation, error and run.

    Raises:
        ModelError: If there are none.

    Example:
        >>> pretrained_weights("mnist_ses_vector_28").dataset
        'mnist-scale'
    """
    if name not in _manifest():
        similar = get_close_matches(name, list_pretrained(), n=1, cutoff=0.0)
        raise ModelError(
            f"expected a network of list_pretrained(), such as {', '.join(similar)}, got {name!r}, for "
            "which there are no trained weights; use pretrained=False and train it"
        )
    return _manifest()[name]


def pretrained_path(name: str) -> Path:
    """The file of a network's trained weights, checked against its SHA-256.

    It is looked for in the folder that the environment variable ``EQUISCALE_WEIGHTS_DIR`` names, and else in
    ``weights/`` of a source checkout. Nothing is downloaded.

    Raises:
        ModelError: If there are no trained weights for this network.
        CheckpointError: If the file is not there, or is another.
    """
    weights = pretrained_weights(name)
    folder = os.environ.get(WEIGHTS_VARIABLE)
    path = (Path(folder) if folder else _CHECKOUT) / weights.file
    try:
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"expected the trained weights of {name!r} at {path}, got: {error.strerror or error}; get "
            f"weights/{weights.file} of the source repository and name its folder in {WEIGHTS_VARIABLE}"
        ) from error
    if found != weights.sha256:
        raise CheckpointError(
            f"expected the SHA-256 {weights.sha256} of {path}, got {found}; it is damaged or of another "
            f"version, get weights/{weights.file} of this version's source repository"
        )
    return path


def load_pretrained(network: nn.Module, name: str, settings: Any) -> None:
    """Load the trained weights into a network of the published settings, and set it to evaluation.

    Raises:
        ModelError: If there are no trained weights for this network.
        CheckpointError: If the file is missing, damaged, or of another network.
    """
    file = read_header(pretrained_path(name))
    if (file.model, file.settings) != (name, encode(settings)):
        raise CheckpointError(
            f"expected the published settings of {name!r} in {file.path}, got those of {file.model!r} or "
            "others; use the file of this version's source repository"
        )
    fill(network, file)
    network.eval()


@cache
def _manifest() -> dict[str, PretrainedWeights]:
    rows = json.loads(MANIFEST.read_text())["weights"]
    return {row["model"]: _row(row) for row in rows}


def _row(row: dict[str, Any]) -> PretrainedWeights:
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(PretrainedWeights)}
    for name in ("mean", "std"):
        values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    return PretrainedWeights(**values)
