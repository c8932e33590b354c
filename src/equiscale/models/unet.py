"""A U-Net of scale maps: from an image to one value a class and pixel."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from equiscale._typing import PaddingMode, Projection
from equiscale.basis import HermiteBasis, SteerableBasis
from equiscale.citations import U_NET
from equiscale.errors import ModelError, ShapeError
from equiscale.models.registry import ModelEntry, register
from equiscale.nn import ScaleDoubleConv2d, ScaleProjection, ScaleUNetDown2d, ScaleUNetUp2d
from equiscale.nn.unet import UNetOptions
from equiscale.scales import ScaleGrid

_GRID = ScaleGrid.geometric(1.0, 2**0.5, 4)
_BASIS = HermiteBasis(3)


@dataclass(frozen=True)
class UNetSettings:
    """The sizes of a U-Net, and its scales.

    Args:
        channels: Of the steps, from the whole image down; each has half the pixels of the one before.
        kernel_size: K, the side of the filter on the largest scale.
        grid: The scales, in pixels of every step.
        basis: The family of functions.
        pool: "avg", or "max" as published, which is less equivariant.
        projection: How the scales are reduced before the classifier.
        padding_mode: What the convolutions see beyond the border.
        in_channels: Channels of the images.
        num_classes: Number of outputs a pixel.
    """

    channels: tuple[int, ...] = (8, 16, 32)
    kernel_size: int = 17
    grid: ScaleGrid = _GRID
    basis: SteerableBasis = _BASIS
    pool: Literal["avg", "max"] = "avg"
    projection: Literal["max", "mean", "logsumexp"] = "max"
    padding_mode: PaddingMode = "zeros"
    in_channels: int = 1
    num_classes: int = 10

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ModelError(f"expected positive channel counts, got {self.channels}")
        differentiable = [mode for mode in get_args(Projection) if mode != "argmax-scale"]
        if self.projection not in differentiable:
            raise ModelError(f"expected a projection of {', '.join(differentiable)}, got {self.projection!r}")


class ScaleUNet(nn.Module):
    """A lift, steps down, steps up beside what was skipped, the projection, and a 1×1 classifier.

    Shapes:
        input ``(B, C, H, W)``, H and W at least ``2**(len(channels) − 1)``; output
        ``(B, num_classes, H, W)``.

    Args:
        settings: Its sizes.

    Raises:
        ShapeError: From the forward pass, for images that are too small or of another channel count.

    Exactness:
        Shifts by multiples of ``2**(len(channels) − 1)`` pixels: exact as far from the border as the filters
        reach. Scaling is about the same centre where H and W are such multiples, by the grid's step up to the
        error of sampling and, at the projection, of the scales that leave and enter the axis:
        ``tests/models/test_unet.py`` measures both.

    Source:
        Ronneberger, Fischer, Brox, *U-Net*, MICCAI 2015. Deviations: scale convolutions, "same" padding,
        batch norm, means for maxima, interpolation for transposed convolutions.
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        self.settings = settings
        widths, options = settings.channels, _options(settings)
        self.lift = ScaleDoubleConv2d(settings.in_channels, widths[0], lifts=True, **options)
        self.down = nn.ModuleList(
            ScaleUNetDown2d(upper, lower, pool=settings.pool, **options) for upper, lower in pairwise(widths)
        )
        self.up = nn.ModuleList(
            ScaleUNetUp2d(lower, upper, skip_channels=upper, **options)
            for lower, upper in pairwise(widths[::-1])
        )
        self.projection = ScaleProjection(settings.projection)
        self.classifier = nn.Conv2d(widths[0], settings.num_classes, 1)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of images that it takes."""
        return self.settings.in_channels, 64, 64

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes, H, W)`` of images ``(B, C, H, W)``."""
        logits: Tensor = self.classifier(self.projection(self.scale_map(x)))
        return logits

    def scale_map(self, x: Tensor) -> Tensor:
        """The features ``(B, C', S, H, W)`` before the projection."""
        smallest = 2 ** len(self.down)
        if x.ndim != 4 or x.shape[1] != self.settings.in_channels or min(x.shape[2:]) < smallest:
            raise ShapeError(
                f"ScaleUNet: expected images (B, {self.settings.in_channels}, H, W) of at least "
                f"{smallest}×{smallest} pixels, got {tuple(x.shape)}"
            )
        maps = [self.lift(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        y: Tensor = maps.pop()
        for up in self.up:
            y = up(y, maps.pop())
        return y


def _options(settings: UNetSettings) -> UNetOptions:
    return {
        "kernel_size": settings.kernel_size,
        "grid": settings.grid,
        "basis": settings.basis,
        "padding_mode": settings.padding_mode,
    }


register(ModelEntry("ses_unet", "SESN U-Net", UNetSettings(), ScaleUNet, U_NET))
