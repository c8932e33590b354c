"""What a filter family must offer to serve in a lifting or scale convolution."""

from typing import Protocol, runtime_checkable

from equiscale._typing import BasisTensor
from equiscale.scales import ScaleGrid


@runtime_checkable
class SteerableBasis(Protocol):
    """A family of F functions that can be sampled on every scale of a grid.

    Any object with these two members plugs into `equiscale.nn.LiftConv2d` and
    `equiscale.nn.ScaleConv2d`. One that also has ``sample_nd(kernel_size, grid, ndim)``, the functions of
    ``ndim`` dimensions with axes ``(F, S, K, …, K)``, plugs into the layers for signals and volumes.
    """

    @property
    def num_functions(self) -> int:
        """F, the number of functions, and so of learned weights per pair of channels."""
        ...

    def sample(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        """The functions on the pixel grid, float64, axes ``(F, S, K, K)``."""
        ...
