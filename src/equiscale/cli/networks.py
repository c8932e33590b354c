"""Networks that a command takes: by name, or from a file."""

from typing import TYPE_CHECKING

from equiscale.errors import SettingError

if TYPE_CHECKING:
    from torch import nn


def is_file(model: str) -> bool:
    """Whether this names a file of weights, not a registered network."""
    return model.endswith(".safetensors")


def build(model: str, settings: list[str], *, seed: int = 0, pretrained: bool = False) -> "nn.Module":
    """The network of a file, or a named one with trained weights or weights of a seed.

    Raises:
        SettingError: If a file is given settings or asked for other weights.
        ModelError: For an unknown name or setting, or without trained weights.
        CheckpointError: If a file is missing or damaged.
    """
    if is_file(model):
        if settings:
            raise SettingError(f"expected no --set for a file, which holds its settings, got {settings[0]!r}")
        if pretrained:
            raise SettingError("expected no --pretrained for a file, which holds its weights; leave it out")
        from equiscale.models.weights import load

        return load(model)
    import torch

    from equiscale.experiments.plan import parse_overrides
    from equiscale.models import create_model

    torch.manual_seed(seed)
    overrides = dict(parse_overrides(settings))
    return create_model(model, pretrained=pretrained, **overrides)  # type: ignore[arg-type]
