"""Networks for images of any size: one trunk with global pooling, with the convolution of each method."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from equiscale.basis import DiscoBasis, HermiteBasis, SteerableBasis
from equiscale.citations import DISCO, FOVEATED_PYRAMID, RESCALED_KERNELS, SESN
from equiscale.errors import ModelError, ShapeError
from equiscale.models.registry import ModelEntry, check_same_size, register
from equiscale.nn import (
    InputPyramid,
    LiftConv2d,
    RescaledKernelLift2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleMaxPool2d,
    ScalePool,
    ScaleProjection,
)
from equiscale.scales import ScaleGrid

_GRID = ScaleGrid.geometric(1.0, 2**0.5, 4)
_BASIS = HermiteBasis(5)


@dataclass(frozen=True)
class AnySizeSettings:
    """The trunk: stages of convolution, batch norm, ReLU and 2×2 pooling, then the maximum over the image.

    Args:
        channels: Output channels of the stages.
        effective_size: Side of the ordinary filter with the same number of weights; odd.
        in_channels: Channels of the images.
        num_classes: Number of outputs.
    """

    channels: tuple[int, ...] = (16, 32, 32, 64)
    effective_size: int = 5
    in_channels: int = 1
    num_classes: int = 10

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ModelError(f"expected positive channel counts, got {self.channels}")
        if self.effective_size < 1 or self.effective_size % 2 == 0:
            raise ModelError(f"expected an odd effective_size, got {self.effective_size}")


@dataclass(frozen=True)
class SteerableAnySizeSettings(AnySizeSettings):
    """The trunk with steerable filters.

    Args:
        grid: The scales.
        kernel_size: K, the side of the filter on the largest scale.
        basis: The family of functions.
    """

    grid: ScaleGrid = _GRID
    kernel_size: int = 13
    basis: SteerableBasis = _BASIS

    def __post_init__(self) -> None:
        super().__post_init__()
        size = getattr(self.basis, "effective_size", self.effective_size)
        check_same_size(self.effective_size, size, str(self.basis))

    @property
    def conv_options(self) -> dict[str, object]:
        """What every steerable convolution of the network is given."""
        return {
            "kernel_size": self.kernel_size,
            "grid": self.grid,
            "basis": self.basis,
            "padding": "same",
            "bias": False,
        }


@dataclass(frozen=True)
class PyramidAnySizeSettings(AnySizeSettings):
    """The trunk's settings, and the factors of the pyramid.

    Args:
        factors: By which the image is rescaled, on a canvas that grows and shrinks with it.
    """

    factors: tuple[float, ...] = (0.25, 0.5**1.5, 0.5, 0.5**0.5, 1.0, 2**0.5, 2.0)


@dataclass(frozen=True)
class KernelSizesAnySizeSettings(AnySizeSettings):
    """The trunk's settings, and the sides of the rescaled kernels.

    Args:
        kernel_sizes: Odd and increasing; the first is learned.
    """

    kernel_sizes: tuple[int, ...] = (5, 7, 9, 13)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_same_size(self.effective_size, self.kernel_sizes[0], f"kernel_sizes={self.kernel_sizes}")


class AnySizeNetwork(nn.Module):
    """A trunk, the maximum over the image, and a linear classifier.

    Shapes:
        input ``(B, C, H, W)``, H and W at least ``2**len(channels)``, in a pyramid's smallest copy too;
        output ``(B, num_classes)``.

    Args:
        main: The trunk, from images to feature images.
        settings: Its sizes.
        smallest_factor: By which the trunk itself shrinks the image at most.

    Raises:
        ShapeError: From the forward pass, for images that are too small or of another channel count.

    Exactness:
        The maximum over the image does not see shifts by multiples of the pooling's stride, away from
        the border (``tests/models/test_scale_generalisation.py``).
    """

    def __init__(
        self, main: nn.Sequential, settings: AnySizeSettings, *, smallest_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.settings = settings
        self.smallest = math.ceil(2 ** len(settings.channels) / smallest_factor)
        self.main = main
        self.linear = nn.Linear(settings.channels[-1], settings.num_classes)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of images that it takes."""
        return self.settings.in_channels, max(64, self.smallest), max(64, self.smallest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, H, W)``."""
        if x.ndim != 4 or x.shape[1] != self.settings.in_channels or min(x.shape[2:]) < self.smallest:
            raise ShapeError(
                f"AnySizeNetwork: expected images (B, {self.settings.in_channels}, H, W) of at least "
                f"{self.smallest}×{self.smallest} pixels, got {tuple(x.shape)}"
            )
        logits: Tensor = self.linear(torch.amax(self.main(x), dim=(2, 3)))
        return logits


def image_stages(settings: AnySizeSettings, conv: Callable[[int, int], list[nn.Module]]) -> nn.Sequential:
    """The trunk of the methods whose features are images; ``conv`` makes one convolution."""
    widths = (settings.in_channels, *settings.channels)
    stages = [
        [*conv(c_in, c_out), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]
        for c_in, c_out in pairwise(widths)
    ]
    return nn.Sequential(*(layer for stage in stages for layer in stage))


def scale_map_stages(
    settings: AnySizeSettings, lift: Callable[[int, int], nn.Module], conv: Callable[[int, int], nn.Module]
) -> nn.Sequential:
    """The trunk of the methods whose features are scale maps, projected at its end."""
    widths = (settings.in_channels, *settings.channels)
    stages = [
        [(lift if index == 0 else conv)(c_in, c_out), ScaleBatchNorm2d(c_out), nn.ReLU(), ScaleMaxPool2d(2)]
        for index, (c_in, c_out) in enumerate(pairwise(widths))
    ]
    return nn.Sequential(*(layer for stage in stages for layer in stage), ScaleProjection())


def plain_conv(settings: AnySizeSettings) -> Callable[[int, int], list[nn.Module]]:
    """The convolution of the plain CNN."""
    size = settings.effective_size
    return lambda c_in, c_out: [nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)]


class GlobalMax(nn.Module):
    """The maximum over the image, ``(B, C, H, W)`` to ``(B, C, 1, 1)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Reduce the pixels."""
        return torch.amax(x, dim=(2, 3), keepdim=True)


def build_pyramid(settings: PyramidAnySizeSettings) -> AnySizeNetwork:
    """The plain CNN on a pyramid of rescaled images; each copy is pooled over its own image first."""
    trunk = nn.Sequential(*image_stages(settings, plain_conv(settings)), GlobalMax())
    pyramid = InputPyramid(trunk, settings.factors, canvas="resized")
    return AnySizeNetwork(nn.Sequential(pyramid), settings, smallest_factor=min(settings.factors))


def build_rescaled(settings: KernelSizesAnySizeSettings) -> AnySizeNetwork:
    """One kernel interpolated to several sizes in every layer, with pixel pooling over scales."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        sizes = settings.kernel_sizes
        lift = RescaledKernelLift2d(c_in, c_out, kernel_sizes=sizes, padding="same", bias=False)
        return [lift, ScalePool("pixel")]

    return AnySizeNetwork(image_stages(settings, conv), settings)


def build_cnn(settings: AnySizeSettings) -> AnySizeNetwork:
    """The plain CNN."""
    return AnySizeNetwork(image_stages(settings, plain_conv(settings)), settings)


def build_ses_scalar(settings: SteerableAnySizeSettings) -> AnySizeNetwork:
    """SESN, scalar: every lifting convolution is followed by the maximum over scales."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        lift = LiftConv2d(c_in, c_out, projection="max", **settings.conv_options)  # type: ignore[arg-type]
        return [lift, nn.Identity()]  # in the projection's place, so that the names of the weights stay

    return AnySizeNetwork(image_stages(settings, conv), settings)


def build_ses_vector(settings: SteerableAnySizeSettings) -> AnySizeNetwork:
    """SESN, vector: the scale axis is kept to the end of the trunk."""

    def lift(c_in: int, c_out: int) -> nn.Module:
        return LiftConv2d(c_in, c_out, **settings.conv_options)  # type: ignore[arg-type]

    def conv(c_in: int, c_out: int) -> nn.Module:
        return ScaleConv2d(c_in, c_out, **settings.conv_options)  # type: ignore[arg-type]

    return AnySizeNetwork(scale_map_stages(settings, lift, conv), settings)


for _entry in (
    ModelEntry("scale_cnn", "CNN, any size", AnySizeSettings(), build_cnn, SESN),
    ModelEntry(
        "scale_pyramid", "CNN pyramid, any size", PyramidAnySizeSettings(), build_pyramid, FOVEATED_PYRAMID
    ),
    ModelEntry(
        "scale_ses_scalar", "SESN scalar, any size", SteerableAnySizeSettings(), build_ses_scalar, SESN
    ),
    ModelEntry(
        "scale_ses_vector", "SESN vector, any size", SteerableAnySizeSettings(), build_ses_vector, SESN
    ),
    ModelEntry(
        "scale_disco",
        "DISCO, any size",
        SteerableAnySizeSettings(kernel_size=13, basis=DiscoBasis(5)),
        build_ses_vector,
        DISCO,
    ),
    ModelEntry(
        "scale_rescaled",
        "Rescaled kernels, any size",
        KernelSizesAnySizeSettings(),
        build_rescaled,
        RESCALED_KERNELS,
    ),
):
    register(_entry)
