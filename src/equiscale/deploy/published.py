"""Move checkpoints of the public SESN code over to the same network here."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from equiscale.errors import CheckpointError

# The public code builds its bases in float32.
_BASIS_TOLERANCE = 1e-5
_SHOWN = 12


def load_published_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the public SESN code into the same network.

    Every tensor is compared before anything is loaded: names, shapes, finite values, and the
    published checkpoint's own sampled bases against the model's (a checkpoint of another scale
    grid has the same shapes). The prefixes of data parallelism ("module.") and of the published
    56×56 wrapper ("1.") are taken off.

    Args:
        model: The network, for example from ``create_model("mnist_ses_scalar_28")``.
        state_dict: Tensors under their published names, for example from
            ``torch.load(path, weights_only=True)``.

    Raises:
        CheckpointError: If anything does not fit; the message lists it, and nothing is loaded.

    Exactness:
        Outputs agree with the published code to 1e-4 in float32 (``tests/deploy/test_published.py``).

    Source:
        Names and layout: Sosnovik et al. 2020, their public code.

    Example:
        >>> from equiscale import create_model
        >>> model = create_model("mnist_cnn_28")
        >>> load_published_state_dict(model, create_model("mnist_cnn_28").state_dict())
    """
    tensors = _without_prefixes(state_dict)
    bases = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == "basis"}
    weights = {name: tensor for name, tensor in tensors.items() if name not in bases}
    complaints = [*_misfits(model.state_dict(), weights), *_foreign_bases(model, bases)]
    if complaints:
        listing = "\n  ".join(complaints[:_SHOWN])
        more = f"\n  … and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
        raise CheckpointError(
            f"expected the state dict of this network, got {len(complaints)} tensors that do not fit "
            f"(nothing was loaded; check the model's name):\n  {listing}{more}"
        )
    model.load_state_dict(weights)


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"expected tensors in the state dict, got {type(value).__name__} as {name!r}"
            )
    tensors = dict(state_dict)
    for prefix in ("module.", "1."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _misfits(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    missing = [
        f"{name}: missing, expected {tuple(expected[name].shape)}" for name in expected if name not in got
    ]
    unknown = [f"{name}: not part of this network" for name in got if name not in expected]
    wrong = [_misfit(name, expected[name], got[name]) for name in expected if name in got]
    return [*missing, *unknown, *(complaint for complaint in wrong if complaint)]


def _misfit(name: str, expected: Tensor, got: Tensor) -> str | None:
    if expected.shape != got.shape:
        return f"{name}: expected {tuple(expected.shape)}, got {tuple(got.shape)}"
    if not bool(torch.isfinite(got).all()):
        return f"{name}: expected finite values, got {int((~torch.isfinite(got)).sum())} that are not"
    return None


def _foreign_bases(model: nn.Module, bases: Mapping[str, Tensor]) -> list[str]:
    own = dict(model.named_buffers())
    return [complaint for name, basis in bases.items() if (complaint := _foreign(name, own.get(name), basis))]


def _foreign(name: str, own: Tensor | None, basis: Tensor) -> str | None:
    if own is None:
        return f"{name}: not part of this network"
    if own.shape != basis.shape:
        return f"{name}: expected a basis {tuple(own.shape)}, got {tuple(basis.shape)}"
    difference = float((own.double().cpu() - basis.double().cpu()).abs().max())
    if not difference <= _BASIS_TOLERANCE:
        return f"{name}: another basis (largest difference {difference:.1e}); the scales or mult differ"
    return None
