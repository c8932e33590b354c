"""Scale projection as a module."""

from typing import get_args

from torch import Tensor, nn

from equiscale._typing import Projection
from equiscale.errors import SettingError
from equiscale.functional import scale_projection


class ScaleProjection(nn.Module):
    r"""From a scale map to an image, by reducing the scale axis; see `functional.scale_projection`.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C, H, W)``.

    Args:
        mode: "max", "mean", "logsumexp" or "argmax-scale" (the index of the strongest scale).

    Raises:
        SettingError: For an unknown mode.
        ShapeError: From the forward pass, if the input is not a scale map.

    Exactness:
        Invariant to permutations of the scale axis, "max" bit for bit and the sums up to rounding;
        "argmax-scale" is equivariant where one scale is strongest (of equal ones it takes the first).

    Source:
        Sosnovik et al. 2020, section 4.3 (max).

    Example:
        >>> import torch
        >>> ScaleProjection("mean")(torch.ones(2, 3, 4, 5, 5)).shape
        torch.Size([2, 3, 5, 5])
    """

    def __init__(self, mode: Projection = "max") -> None:
        super().__init__()
        if mode not in get_args(Projection):
            raise SettingError(f"expected a projection of {', '.join(get_args(Projection))}, got {mode!r}")
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Reduce the scale axis."""
        return scale_projection(x, self.mode)

    def extra_repr(self) -> str:
        """The mode."""
        return repr(self.mode)
