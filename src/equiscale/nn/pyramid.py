"""An ordinary network over an image pyramid, with shared weights."""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn

from equiscale.errors import SettingError
from equiscale.functional import input_pyramid
from equiscale.functional.pyramid import Canvas, PyramidPool
from equiscale.functional.rescale import Method
from equiscale.scales import ScaleGrid


class InputPyramid(nn.Module):
    r"""Apply a module to the image rescaled by every factor, and pool what it returns.

    .. math:: y = \max_i \Phi(T_{f_i} x) \quad\text{or}\quad \tfrac{1}{S} \sum_i \Phi(T_{f_i} x)

    Copies of one size pass through the module in one call, so that batch norm in training sees
    them together. The state dict holds the module's under ``module.``.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, ...)``, the module's own.

    Args:
        module: Φ, which must return the same shape for every size it is given.
        factors: f, increasing; larger than 1 enlarges the object.
        pool: "max" or "mean" over the copies.
        canvas: "same": the canvas keeps its size, and enlarged copies are cut; "resized": it grows and
            shrinks with the object.
        method: "bicubic" or "bilinear".

    Raises:
        ScaleGridError: If the factors are not positive and increasing.
        SettingError: For an unknown pool, canvas or method.
        ShapeError: From the forward pass, if the input is not an image, or the outputs are not of one shape.

    Exactness:
        The copy of factor 1 is the input bit for bit; with the factor 1 alone this is the module. On
        factors of equal ratio a, scaling the image by a moves the copies by one, up to interpolating
        twice, and loses one at the end: ``tests/nn/test_pyramid.py`` measures what remains. Pooled feature
        maps are compared pixel by pixel, each copy in its own size: pool over pixels before.

    Source:
        Jansson, Lindeberg, *Scale-Invariant Scale-Channel Networks*, 2022, section 4 ("FovMax", "FovAvg").

    Example:
        >>> import torch
        >>> module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> InputPyramid(module, [0.5, 1.0, 2.0])(torch.randn(2, 1, 16, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        module: nn.Module,
        factors: Sequence[float],
        *,
        pool: PyramidPool = "max",
        canvas: Canvas = "same",
        method: Method = "bicubic",
    ) -> None:
        super().__init__()
        legal = (("pool", pool, PyramidPool), ("canvas", canvas, Canvas), ("method", method, Method))
        for name, value, choices in legal:
            if value not in get_args(choices):
                raise SettingError(f"expected a {name} of {', '.join(get_args(choices))}, got {value!r}")
        if not callable(module):
            raise SettingError(f"expected a module of images, got {module!r}")
        self.module, self.factors = module, ScaleGrid(factors)
        self.pool, self.canvas, self.method = pool, canvas, method

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to every copy of ``(B, C, H, W)`` and pool."""
        return input_pyramid(
            self.module, x, self.factors.values, pool=self.pool, canvas=self.canvas, method=self.method
        )

    def extra_repr(self) -> str:
        """Factors, pool, canvas and method."""
        return (
            f"factors={list(self.factors)}, pool={self.pool!r}, canvas={self.canvas!r}, "
            f"method={self.method!r}"
        )
