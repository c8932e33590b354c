"""The registry: from a model's name to its settings, builder and citation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, Protocol

from torch import nn

from equiscale.citations import Citation
from equiscale.errors import ModelError
from equiscale.models.pretrained import load_pretrained


class ModelSettings(Protocol):
    """What every settings dataclass holds; the rest is the model's own."""

    @property
    def num_classes(self) -> int: ...

    @property
    def in_channels(self) -> int: ...


@dataclass(frozen=True)
class ModelEntry:
    """One named model: its published settings as data, and the function that builds it.

    Args:
        name: The registry's key.
        method: The method's name in tables.
        settings: A frozen dataclass; `create_model` replaces fields of it.
        builder: From settings to module.
        citation: Where the method was published.
    """

    name: str
    method: str
    settings: ModelSettings
    builder: Callable[[Any], nn.Module]
    citation: Citation


@dataclass(frozen=True)
class Registered:
    """What a network was built from; `create_model` leaves it with the network as ``registered``.

    Args:
        name: The registry's key.
        settings: All settings, overrides among them.
    """

    name: str
    settings: ModelSettings


_REGISTRY: dict[str, ModelEntry] = {}


def check_same_size(effective_size: int, actual: int, what: str) -> None:
    """Raise unless an ``effective_size`` is that of what decides it, so that no override is ignored.

    Raises:
        ModelError: If they differ.
    """
    if effective_size != actual:
        raise ModelError(
            f"expected effective_size={actual}, that of {what}, got {effective_size}; override both"
        )


def register(entry: ModelEntry) -> None:
    """Add a model.

    Raises:
        ModelError: If the name is taken.
    """
    if entry.name in _REGISTRY:
        raise ModelError(f"expected a new model name, got {entry.name!r}, which is registered already")
    _REGISTRY[entry.name] = entry


def list_models(pattern: str = "*") -> list[str]:
    """The names of the registered models that match a shell pattern, sorted.

    Example:
        >>> list_models("mnist_cnn_*")
        ['mnist_cnn_28', 'mnist_cnn_56']
    """
    return sorted(name for name in _REGISTRY if fnmatch(name, pattern))


def model_entry(name: str) -> ModelEntry:
    """The registry's entry of a model.

    Raises:
        ModelError: For an unknown name; the message names the most similar ones.
    """
    if name not in _REGISTRY:
        similar = get_close_matches(name, list_models(), n=4, cutoff=0.3)
        raise ModelError(
            f"expected a model of list_models(), such as {', '.join(similar or list_models()[:4])}, "
            f"got {name!r}"
        )
    return _REGISTRY[name]


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int | None = None,
    pretrained: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Build a registered model.

    Args:
        name: One of `list_models`.
        num_classes: Number of outputs.
        in_channels: Channels of the input images; None: as published.
        pretrained: Load trained weights, see `equiscale.models.pretrained`: of the published settings, and
            for the data that `pretrained_weights` names.
        **overrides: Fields of the model's settings to replace, for example ``dropout=0.5``.

    Returns:
        The module, with fresh weights from torch's default generator, and its ``settings``. With trained
        weights it is in evaluation mode.

    Raises:
        ModelError: For an unknown name or override, or if there are no trained weights of these settings.
        CheckpointError: If the file of trained weights is missing or damaged.

    Example:
        >>> model = create_model("mnist_ses_vector_28", num_classes=7, dropout=0.5)
        >>> sum(parameter.numel() for parameter in model.parameters())
        493778
    """
    entry = model_entry(name)
    known = [field.name for field in _setting_fields(entry)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ModelError(f"expected overrides of {', '.join(known)} for {name!r}, got {', '.join(unknown)}")
    if in_channels is not None:
        overrides["in_channels"] = in_channels
    if min(num_classes, overrides.get("in_channels", 1)) < 1:
        raise ModelError(f"expected at least one class and channel, got {num_classes} and {in_channels}")
    settings = replace(entry.settings, num_classes=num_classes, **overrides)  # type: ignore[type-var]
    if pretrained and settings != entry.settings:
        raise ModelError(
            f"expected the published settings of {name!r} with pretrained=True, got {settings}; leave "
            "num_classes, in_channels and overrides out, and exchange the last layer of the result"
        )
    network = build(entry, settings)
    if pretrained:
        load_pretrained(network, name, settings)
    return network


def build(entry: ModelEntry, settings: ModelSettings) -> nn.Module:
    """The network of an entry with these settings, and both as its ``registered``."""
    network = entry.builder(settings)
    network.registered = Registered(entry.name, settings)  # type: ignore[assignment]
    return network


def registered_of(model: nn.Module) -> Registered | None:
    """What a network was built from; None for one that does not come from the registry."""
    found = getattr(model, "registered", None)
    return found if isinstance(found, Registered) else None


def _setting_fields(entry: ModelEntry) -> Iterator[Any]:
    return (field for field in fields(entry.settings) if field.name != "num_classes")  # type: ignore[arg-type]
