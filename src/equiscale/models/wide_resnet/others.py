"""Wide residual networks of the other methods: SI-ConvNet, SiCNN, SS-CNN and DSS."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equiscale.citations import DSS, SI_CONVNET, SICNN, SS_CNN
from equiscale.errors import ModelError
from equiscale.models.wide_resnet.network import Place, PlainMethod, WideResNetSettings, register_sizes
from equiscale.nn import (
    ColumnBatchNorm2d,
    LocallyScaleInvariantConv2d,
    MultiColumnConv2d,
    MultiColumnLift2d,
    PointwiseScaleConv2d,
    ScaleBatchNorm2d,
    ScaleSpaceConv2d,
    ScaleSpaceLift2d,
    ScaleSteeredConv2d,
    ScaleSteering,
)


@dataclass(frozen=True)
class ScalesWideResNetSettings(WideResNetSettings):
    """The shared settings, and the scales of SI-ConvNet or SiCNN.

    Args:
        scales: Increasing; larger than 1 enlarges.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)


class SiConvNetMethod(PlainMethod[ScalesWideResNetSettings]):
    """Every convolution of the plain network but the shortcuts sees its input at several scales."""

    def conv(self, place: Place) -> nn.Module:
        """The locally scale-invariant convolution."""
        return LocallyScaleInvariantConv2d(
            place.in_channels,
            place.out_channels,
            kernel_size=self.settings.kernel_size,
            scales=self.settings.scales,
            stride=place.stride,
            padding="same",
            bias=False,
        )


class SicnnMethod(PlainMethod[ScalesWideResNetSettings]):
    """One column of features a scale; the largest column counts, after the average over pixels."""

    project_before = "linear"

    def stem(self, in_channels: int, out_channels: int) -> nn.Module:
        """The image, seen by every column."""
        size, scales = self.settings.kernel_size, self.settings.scales
        return MultiColumnLift2d(in_channels, out_channels, kernel_size=size, scales=scales)

    def conv(self, place: Place) -> nn.Module:
        """Every column with the kernel of its scale."""
        return MultiColumnConv2d(
            place.in_channels,
            place.out_channels,
            kernel_size=self.settings.kernel_size,
            scales=self.settings.scales,
            stride=place.stride,
        )

    def pointwise(self, place: Place) -> nn.Module:
        """The same 1×1 convolution in all columns."""
        return PointwiseScaleConv2d(place.in_channels, place.out_channels, stride=place.stride, bias=False)

    def norm(self, channels: int) -> nn.Module:
        """A mean and variance for each column."""
        return ColumnBatchNorm2d(channels, len(self.settings.scales))


@dataclass(frozen=True)
class SsWideResNetSettings(WideResNetSettings):
    """The shared settings, and the filters' sizes in SS-CNN.

    Args:
        stem_sizes: Sides of the stem's filters in pixels.
        block_sizes: Sides of all other filters. Published: one size, because the list of three did not
            reach the blocks; give them all for SS-CNN as it is described.
        order: k, turns of phase from the centre to the kernel's corner.
        unused: Keep the constant of every filter that the published network registers and never reads, so
            that it has the published number of parameters.
    """

    stem_sizes: tuple[int, ...] = (3, 5, 7)
    block_sizes: tuple[int, ...] = (3,)
    order: float = 1.0
    unused: bool = True


class SsMethod(PlainMethod[SsWideResNetSettings]):
    """Filters of log-radial harmonics, steered to several sizes, in narrower stages."""

    def channels(self) -> tuple[int, int, int, int]:
        """Fewer channels make up for the weights that each filter has."""
        width = self.settings.width
        return 11, 11 * width, 22 * width, 44 * width

    def stem(self, in_channels: int, out_channels: int) -> nn.Module:
        """The steered convolution of the image."""
        return self._conv(Place(in_channels, out_channels, 1, stage=0, entry=False), self.settings.stem_sizes)

    def conv(self, place: Place) -> nn.Module:
        """The steered convolution of a block."""
        return self._conv(place, self.settings.block_sizes)

    def published_names(self, network: nn.Module) -> dict[str, str]:
        """The public code keeps the weights in a module of their own."""
        steered = (path for path, part in network.named_modules() if isinstance(part, ScaleSteeredConv2d))
        return {f"{path}.steer_conv": path for path in steered}

    def reset(self, conv: nn.Module, generator: torch.Generator | None) -> None:
        """Steered convolutions keep their own fresh weights, as published."""
        if isinstance(conv, ScaleSteeredConv2d):
            conv.reset_parameters(generator)
        else:
            super().reset(conv, generator)

    def _conv(self, place: Place, sizes: tuple[int, ...]) -> ScaleSteeredConv2d:
        base_size, orders = self.settings.kernel_size, (self.settings.order,)
        steering = ScaleSteering(kernel_sizes=sizes, base_size=base_size, orders=orders)
        channels = place.in_channels, place.out_channels
        return ScaleSteeredConv2d(
            *channels,
            steering=steering,
            constant=self.settings.unused,
            stride=place.stride,
            padding="same",
        )


@dataclass(frozen=True)
class DssWideResNetSettings(WideResNetSettings):
    """The shared settings, and the scale-space of DSS.

    Args:
        num_scales: S, of the stem; each of the first two stages leaves scale_size // 2 of them out.
        scale_size: N, the scales that the first convolution of the first two stages sees.
        base: β, the ratio of neighbouring scales.
        zero_scale: σ₀, the blur in pixels that images have already.
    """

    num_scales: int = 4
    scale_size: int = 2
    base: int = 2
    zero_scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_size < 1 or self.scales_after(1) < self.scale_size or self.scales_after(2) < 1:
            raise ModelError(
                f"expected a scale_size of at least 1 and more num_scales, since two stages leave "
                f"scale_size // 2 of them out each, got {self.scale_size} of {self.num_scales}"
            )

    def scales_after(self, stages: int) -> int:
        """How many scales are left after this many stages; the third stage leaves none out."""
        return self.num_scales - min(stages, 2) * (self.scale_size // 2)


class DssMethod(PlainMethod[DssWideResNetSettings]):
    """Deep scale-spaces: the image and its blurred copies, dilated filters, and ever fewer scales."""

    project_before = "pool"

    def channels(self) -> tuple[int, int, int, int]:
        """Fewer channels in the second stage make up for the weights that see several scales."""
        stem, first, second, third = super().channels()
        fewer = math.ceil(second / self.settings.width / math.sqrt((6 + self.settings.scale_size) / 7))
        return stem, first, fewer * self.settings.width, third

    def lift(self) -> nn.Module:
        """The scale-space of the image."""
        settings = self.settings
        return ScaleSpaceLift2d(settings.num_scales, base=settings.base, zero_scale=settings.zero_scale)

    def stem(self, in_channels: int, out_channels: int) -> nn.Module:
        """A convolution of every scale by itself."""
        return self._conv(Place(in_channels, out_channels, 1, stage=0, entry=False), scales=self._scales(0))

    def conv(self, place: Place) -> nn.Module:
        """Dilated filters; the first of a stage sees neighbouring scales, and the next leaves some out."""
        if not place.entry:
            return self._conv(place, scales=self._scales(place.stage + 1))
        scale_size = self.settings.scale_size if place.stage < 2 else 1
        return self._conv(place, scales=self._scales(place.stage), scale_size=scale_size)

    def shortcut(self, place: Place) -> nn.Module | None:
        """A 1×1 convolution of the scales that the block keeps, or these scales themselves."""
        scales = self._scales(place.stage + 1)
        if place.changes_channels:
            return self._conv(place, scales=scales, kernel_size=1)
        return FirstScales(scales) if place.entry else None

    def norm(self, channels: int) -> nn.Module:
        """One mean and variance for all scales."""
        return ScaleBatchNorm2d(channels)

    def published_names(self, network: nn.Module) -> dict[str, str]:
        """The scale-space of the image is named after its Bessel functions."""
        return {"bessel": "lift"}

    def reset(self, conv: nn.Module, generator: torch.Generator | None) -> None:
        """Every layer at first hands its channels through, as published."""
        conv.reset_parameters(generator, init="delta")  # type: ignore[operator]

    def _scales(self, stages: int) -> int:
        return self.settings.scales_after(stages)

    def _conv(
        self, place: Place, *, scales: int, scale_size: int = 1, kernel_size: int | None = None
    ) -> ScaleSpaceConv2d:
        return ScaleSpaceConv2d(
            place.in_channels,
            place.out_channels,
            kernel_size=kernel_size or self.settings.kernel_size,
            num_scales=scales,
            scale_size=scale_size,
            base=self.settings.base,
            stride=place.stride,
        )


class FirstScales(nn.Module):
    """Keep the first scales of a scale map.

    Args:
        num_scales: How many.
    """

    def __init__(self, num_scales: int) -> None:
        super().__init__()
        self.num_scales = num_scales

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, S, H, W)`` to the same with fewer scales."""
        return x[:, :, : self.num_scales]


register_sizes(
    "_kanazawa", SiConvNetMethod, ScalesWideResNetSettings(), name="SI-ConvNet", citation=SI_CONVNET
)
_XU = ScalesWideResNetSettings(scales=(0.67, 1.0, 1.5))
register_sizes("_xu", SicnnMethod, _XU, name="SiCNN", citation=SICNN)
register_sizes("_ss", SsMethod, SsWideResNetSettings(), name="SS-CNN", citation=SS_CNN)
register_sizes("_dss", DssMethod, DssWideResNetSettings(), name="DSS", citation=DSS)
