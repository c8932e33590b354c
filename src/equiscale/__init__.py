"""Scale-equivariant convolutional networks in PyTorch."""

from equiscale.basis import HermiteBasis, SteerableBasis
from equiscale.scales import ScaleGrid

__version__ = "0.1.0"

__all__ = ["HermiteBasis", "ScaleGrid", "SteerableBasis", "__version__"]
