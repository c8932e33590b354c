"""Wide residual networks of steerable scale convolutions: SESN A, B and C, and DISCO."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from equiscale.basis import DiscoBasis, HermiteBasis, SteerableBasis
from equiscale.citations import DISCO, SESN
from equiscale.errors import ModelError
from equiscale.models.wide_resnet.network import Place, PlainMethod, WideResNetSettings, register_sizes
from equiscale.nn import (
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleMaxPool2d,
    ScaleProjection,
)
from equiscale.scales import ScaleGrid

_GRID, _GRID_C = ScaleGrid.geometric(0.9, 1.41, 3), ScaleGrid.geometric(1.1, 1.41, 3)
_GRID_DISCO = ScaleGrid.geometric(1.0, 2**0.5, 3)
_BASIS = HermiteBasis(3)


@dataclass(frozen=True)
class SesWideResNetSettings(WideResNetSettings):
    """The shared settings, and the scales of an SES network.

    Args:
        grid: The scales.
        basis: ψ, the family of filters.
        lift_again: Stages (0, 1 or 2) that begin with the maximum over scales and lift again.
        scale_sizes: For each stage the number of scales that its first convolution sees.
    """

    kernel_size: int = 7
    grid: ScaleGrid = _GRID
    basis: SteerableBasis = _BASIS
    lift_again: tuple[int, ...] = ()
    scale_sizes: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.lift_again) <= {0, 1, 2}:
            raise ModelError(f"expected stages of 0, 1, 2 in lift_again, got {self.lift_again}")
        if len(self.scale_sizes) != 3:
            raise ModelError(f"expected three scale_sizes, one a stage, got {self.scale_sizes}")
        clash = [stage for stage in self.lift_again if self.scale_sizes[stage] > 1]
        if clash:
            raise ModelError(
                f"expected a scale size of 1 where a stage lifts again, since an image has no scales, "
                f"got {self.scale_sizes} with lift_again={self.lift_again}"
            )


class SesMethod(PlainMethod[SesWideResNetSettings]):
    """Scale-equivariant steerable networks: lift, keep the scale axis, take its maximum at the end."""

    project_before = "norm"

    def stem(self, in_channels: int, out_channels: int) -> nn.Module:
        """The lifting convolution."""
        return LiftConv2d(in_channels, out_channels, **self._options(1))

    def conv(self, place: Place) -> nn.Module:
        """A scale convolution, or where the stage lifts again a projection and a lifting convolution."""
        channels, options = (place.in_channels, place.out_channels), self._options(place.stride)
        if place.entry and place.stage in self.settings.lift_again:
            return nn.Sequential(ScaleProjection(), LiftConv2d(*channels, **options))
        scale_size = self.settings.scale_sizes[place.stage] if place.entry else 1
        return ScaleConv2d(*channels, scale_size=scale_size, **options)

    def pointwise(self, place: Place) -> nn.Module:
        """The 1×1 scale convolution."""
        return PointwiseScaleConv2d(place.in_channels, place.out_channels, stride=place.stride, bias=False)

    def norm(self, channels: int) -> nn.Module:
        """One mean and variance for all scales."""
        return ScaleBatchNorm2d(channels)

    def _options(self, stride: int) -> dict[str, Any]:
        settings = self.settings
        family = {"kernel_size": settings.kernel_size, "grid": settings.grid, "basis": settings.basis}
        return {**family, "stride": stride, "padding": "same", "bias": False}


class DiscoMethod(SesMethod):
    """Discrete scale convolutions: as SESN, but halving by maximum pooling in place of strides."""

    def conv(self, place: Place) -> nn.Module:
        """A convolution of every pixel, and pooling where the stage halves."""
        return self._pooled(super().conv(replace(place, stride=1)), place.stride)

    def pointwise(self, place: Place) -> nn.Module:
        """The 1×1 scale convolution, and pooling where the stage halves."""
        return self._pooled(super().pointwise(replace(place, stride=1)), place.stride)

    @staticmethod
    def _pooled(conv: nn.Module, stride: int) -> nn.Module:
        return conv if stride == 1 else nn.Sequential(conv, ScaleMaxPool2d(stride))


_A = SesWideResNetSettings()
register_sizes("_ses_a", SesMethod, _A, name="SESN A", citation=SESN)
register_sizes("_ses_b", SesMethod, replace(_A, lift_again=(1, 2)), name="SESN B", citation=SESN)
_C = replace(_A, grid=_GRID_C, scale_sizes=(2, 1, 1))
register_sizes("_ses_c", SesMethod, _C, name="SESN C", citation=SESN)
_DISCO = replace(_A, kernel_size=5, grid=_GRID_DISCO, basis=DiscoBasis(3), lift_again=(1, 2))
register_sizes("_disco", DiscoMethod, _DISCO, name="DISCO", citation=DISCO)
