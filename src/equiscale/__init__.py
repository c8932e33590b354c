"""Scale-equivariant convolutional networks in PyTorch.

Names are loaded when they are first used: the command line and the report start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equiscale import basis, choose, data, deploy, functional, models, nn, testing
    from equiscale.basis import HermiteBasis, SteerableBasis
    from equiscale.deploy import ConversionPolicy, convert, export, fold, load_published_state_dict
    from equiscale.functional.algorithms import algorithm
    from equiscale.functional.algorithms.autotune import autotune, clear_autotune
    from equiscale.models import create_model, list_models
    from equiscale.models.weights import load, save
    from equiscale.scales import ScaleGrid

__version__ = "0.1.0"

_SUBPACKAGES = ("basis", "choose", "data", "deploy", "functional", "models", "nn", "testing")
_HOMES = {
    "ConversionPolicy": "equiscale.deploy",
    "HermiteBasis": "equiscale.basis",
    "ScaleGrid": "equiscale.scales",
    "SteerableBasis": "equiscale.basis",
    "algorithm": "equiscale.functional.algorithms",
    "autotune": "equiscale.functional.algorithms.autotune",
    "clear_autotune": "equiscale.functional.algorithms.autotune",
    "convert": "equiscale.deploy",
    "create_model": "equiscale.models",
    "export": "equiscale.deploy",
    "fold": "equiscale.deploy",
    "list_models": "equiscale.models",
    "load": "equiscale.models.weights",
    "load_published_state_dict": "equiscale.deploy",
    "save": "equiscale.models.weights",
}

__all__ = [
    "ConversionPolicy",
    "HermiteBasis",
    "ScaleGrid",
    "SteerableBasis",
    "__version__",
    "algorithm",
    "autotune",
    "basis",
    "choose",
    "clear_autotune",
    "convert",
    "create_model",
    "data",
    "deploy",
    "export",
    "fold",
    "functional",
    "list_models",
    "load",
    "load_published_state_dict",
    "models",
    "nn",
    "save",
    "testing",
]


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return import_module(f"equiscale.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'equiscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
