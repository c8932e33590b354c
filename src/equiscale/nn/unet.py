"""The building blocks of a U-Net of scale maps."""

from typing import Literal, TypeAlias, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from equiscale._typing import PaddingMode, ScaleMap
from equiscale.basis import SteerableBasis
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import is_whole
from equiscale.functional.project import check_scale_map
from equiscale.nn.conv import ScaleConv2d
from equiscale.nn.lift import LiftConv2d
from equiscale.nn.norm import ScaleBatchNorm2d
from equiscale.nn.pool import ScaleAvgPool2d, ScaleMaxPool2d
from equiscale.nn.steerable import check_channels
from equiscale.nn.upsample import ScaleUpsample2d
from equiscale.scales import ScaleGrid

UNetPool: TypeAlias = Literal["avg", "max"]

_FACTOR = 2


class UNetOptions(TypedDict, total=False):
    """What the convolutions of a block share, as in `ScaleConv2d`; "same" padding is theirs already."""

    kernel_size: int
    grid: ScaleGrid
    basis: SteerableBasis
    padding_mode: PaddingMode


class ScaleDoubleConv2d(nn.Sequential):
    """Twice a scale convolution, batch norm and ReLU; the first may lift an image.

    Shapes:
        input ``(B, C, S, H, W)``, or ``(B, C, H, W)`` where it lifts; output ``(B, C', S, H, W)``.

    Args:
        in_channels: C.
        out_channels: C'.
        lifts: Whether the input is an image.
        **options: ``kernel_size``, ``grid``, and where wanted ``basis`` and ``padding_mode``, as in
            `ScaleConv2d`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels or options.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        That of its layers: circular shifts are exact with circular padding, scaling by the grid's step up
        to the error of sampling.

    Source:
        Ronneberger, Fischer, Brox, *U-Net*, MICCAI 2015, with scale convolutions, "same" padding and batch
        norm.

    Example:
        >>> block = ScaleDoubleConv2d(4, 8, kernel_size=7, grid=ScaleGrid([1.0, 1.41]))
        >>> block(torch.randn(1, 4, 2, 16, 16)).shape
        torch.Size([1, 8, 2, 16, 16])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, lifts: bool = False, **options: Unpack[UNetOptions]
    ) -> None:
        first = LiftConv2d if lifts else ScaleConv2d
        super().__init__(
            first(in_channels, out_channels, padding="same", bias=False, **options),
            ScaleBatchNorm2d(out_channels),
            nn.ReLU(),
            ScaleConv2d(out_channels, out_channels, padding="same", bias=False, **options),
            ScaleBatchNorm2d(out_channels),
            nn.ReLU(),
        )


class ScaleUNetDown2d(nn.Sequential):
    """One step down: pooling of 2 × 2 pixels, then `ScaleDoubleConv2d`.

    Shapes:
        input ``(B, C, S, H, W)``; output ``(B, C', S, H // 2, W // 2)``.

    Args:
        in_channels: C.
        out_channels: C'.
        pool: "avg", or "max" as published, which jumps from pixel to pixel and is less equivariant.
        **options: As in `ScaleDoubleConv2d`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels, pooling or options.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Shifts by even numbers of pixels become shifts by half of them, exactly with circular padding.
        Scaling is about the same centre where H and W are even.

    Source:
        Ronneberger, Fischer, Brox, *U-Net*, MICCAI 2015. Deviation: means instead of maxima, unless asked
        for.

    Example:
        >>> down = ScaleUNetDown2d(4, 8, kernel_size=7, grid=ScaleGrid([1.0, 1.41]))
        >>> down(torch.randn(1, 4, 2, 16, 16)).shape
        torch.Size([1, 8, 2, 8, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, pool: UNetPool = "avg", **options: Unpack[UNetOptions]
    ) -> None:
        if pool not in get_args(UNetPool):
            raise SettingError(f"expected a pool of {', '.join(get_args(UNetPool))}, got {pool!r}")
        pooling = ScaleAvgPool2d if pool == "avg" else ScaleMaxPool2d
        super().__init__(pooling(_FACTOR), ScaleDoubleConv2d(in_channels, out_channels, **options))


class ScaleUNetUp2d(nn.Module):
    """One step up: twice the pixels, beside the skipped scale map, then `ScaleDoubleConv2d`.

    What pooling left out of a skipped map of odd size, its last row or column, is filled in with the
    neighbouring row or column: pixel i of the pooled map keeps standing for pixels 2 i and 2 i + 1.

    Shapes:
        input ``(B, C, S, H, W)``, skip ``(B, C_skip, S, H', W')`` with H' // 2 = H; output
        ``(B, C', S, H', W')``.

    Args:
        in_channels: C.
        out_channels: C'.
        skip_channels: C_skip.
        **options: As in `ScaleDoubleConv2d`.

    Raises:
        BasisError: If the basis cannot be sampled, or is degenerate on a scale.
        SettingError: For illegal channels or options.
        ShapeError: From the forward pass, for maps that do not fit one another.

    Exactness:
        Shifts of both maps, by d and 2 d pixels: exact away from the border. Scaling about the same centre
        where H' and W' are even.

    Source:
        Ronneberger, Fischer, Brox, *U-Net*, MICCAI 2015; interpolation as in Sangalli et al., *Scale
        Equivariant U-Net*, BMVC 2022, in place of the published transposed convolution.

    Example:
        >>> up = ScaleUNetUp2d(8, 4, skip_channels=4, kernel_size=7, grid=ScaleGrid([1.0, 1.41]))
        >>> up(torch.randn(1, 8, 2, 8, 8), torch.randn(1, 4, 2, 17, 16)).shape
        torch.Size([1, 4, 2, 17, 16])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, skip_channels: int, **options: Unpack[UNetOptions]
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, 1)
        if not is_whole(skip_channels):
            raise SettingError(f"expected at least 1 skipped channel, got {skip_channels!r}")
        self.in_channels, self.skip_channels = in_channels, skip_channels
        self.upsample = ScaleUpsample2d(_FACTOR)
        self.conv = ScaleDoubleConv2d(in_channels + skip_channels, out_channels, **options)

    def forward(self, x: Tensor, skip: Tensor) -> ScaleMap:
        """Map ``(B, C, S, H, W)`` and the skipped ``(B, C_skip, S, H', W')`` to ``(B, C', S, H', W')``."""
        self._check(x, skip)
        larger = self.upsample(x)
        missing = [there - here for there, here in zip(skip.shape[3:], larger.shape[3:], strict=True)]
        if any(missing):
            larger = pad(larger, [0, missing[1], 0, missing[0], 0, 0], mode="replicate")
        y: Tensor = self.conv(torch.cat([larger, skip], 1))
        return y

    def _check(self, x: Tensor, skip: Tensor) -> None:
        check_scale_map("ScaleUNetUp2d", x)
        check_scale_map("ScaleUNetUp2d", skip)
        if x.shape[0] != skip.shape[0] or x.device != skip.device or x.dtype != skip.dtype:
            raise ShapeError(
                f"ScaleUNetUp2d: expected two batches of one size, type and device, got {x.shape[0]} and "
                f"{skip.shape[0]} maps of {x.dtype} on {x.device} and {skip.dtype} on {skip.device}"
            )
        if (x.shape[1], skip.shape[1]) != (self.in_channels, self.skip_channels):
            raise ShapeError(
                f"ScaleUNetUp2d: expected {self.in_channels} channels and {self.skip_channels} skipped ones, "
                f"got {x.shape[1]} and {skip.shape[1]}"
            )
        halved = [side // _FACTOR for side in skip.shape[3:]]
        if skip.shape[2] != x.shape[2] or list(x.shape[3:]) != halved:
            raise ShapeError(
                f"ScaleUNetUp2d: expected a scale map of half the skipped one's pixels, rounded down, "
                f"({skip.shape[2]}, {halved[0]}, {halved[1]}), got {tuple(x.shape[2:])}"
            )
