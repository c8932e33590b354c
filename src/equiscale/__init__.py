"""Scale-equivariant convolutional networks in PyTorch."""

from equiscale import functional, nn
from equiscale.basis import HermiteBasis, SteerableBasis
from equiscale.deploy import load_published_state_dict
from equiscale.models import create_model, list_models
from equiscale.scales import ScaleGrid

__version__ = "0.1.0"

__all__ = [
    "HermiteBasis",
    "ScaleGrid",
    "SteerableBasis",
    "__version__",
    "create_model",
    "functional",
    "list_models",
    "load_published_state_dict",
    "nn",
]
