"""SESN on MNIST-scale, scalar and vector: the eight published cells, and vector with learnable scales."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from equiscale.basis import HermiteBasis
from equiscale.basis.hermite import DegeneratePolicy
from equiscale.citations import LEARNABLE_SCALES, SESN
from equiscale.models.mnist.network import UPSAMPLINGS, MnistNetwork, MnistSettings, image_trunk, last_stage
from equiscale.models.registry import ModelEntry, register
from equiscale.nn import (
    LearnableLiftConv2d,
    LearnableScaleConv2d,
    LearnableScales,
    LiftConv2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
)
from equiscale.scales import ScaleGrid


@dataclass(frozen=True)
class SesSettings(MnistSettings):
    """The trunk's settings and the published cell of an SES network: its scales and basis B.

    Args:
        num_scales: S.
        scale_range: The ratio of the largest to the smallest scale.
        min_scale: The smallest scale.
        mult: q, the ratio of the basis's internal scales.
        kernel_size: K, the side of the filter on the largest scale.
        max_order: Largest total order of the Hermite polynomials.
        degenerate: The published cells are degenerate on their smallest scales, hence "allow".
    """

    num_scales: int = 3
    scale_range: float = 3.0
    min_scale: float = 1.5
    mult: float = 1.5
    kernel_size: int = 13
    max_order: int = 4
    degenerate: DegeneratePolicy = "allow"

    @property
    def grid(self) -> ScaleGrid:
        """The scale grid, rounded to two decimals as published."""
        if self.num_scales == 1:
            return ScaleGrid([self.min_scale])
        factor = self.scale_range ** (1 / (self.num_scales - 1))
        return ScaleGrid([round(self.min_scale * factor**i, 2) for i in range(self.num_scales)])

    @property
    def basis(self) -> HermiteBasis:
        """The basis, kind B."""
        return HermiteBasis(self.effective_size, "B", self.max_order, self.mult, self.degenerate)

    @property
    def conv_options(self) -> dict[str, Any]:
        """What every steerable convolution of the network is given."""
        return {
            "kernel_size": self.kernel_size,
            "grid": self.grid,
            "basis": self.basis,
            "padding": "same",
        }


def build_ses_scalar(settings: SesSettings) -> MnistNetwork:
    """SESN, scalar: every lifting convolution is followed by the maximum over scales."""

    def conv(in_channels: int, out_channels: int, pooling: int = 1) -> list[nn.Module]:
        options = settings.conv_options | {"projection": "max", "pooling": pooling}
        return [LiftConv2d(in_channels, out_channels, **options), nn.Identity()]  # where the projection was

    def pooled(in_channels: int, out_channels: int) -> list[nn.Module]:
        return [*conv(in_channels, out_channels, pooling=2), nn.Identity()]  # and where the pooling was

    return MnistNetwork(image_trunk(settings, conv, pooled), settings)


def build_ses_vector(settings: SesSettings) -> MnistNetwork:
    """SESN, vector: the scale axis is kept until after the third convolution."""
    return MnistNetwork(vector_trunk(settings, settings.conv_options), settings)


def vector_trunk(
    settings: MnistSettings,
    options: dict[str, Any],
    lift: Callable[..., nn.Module] = LiftConv2d,
    conv: Callable[..., nn.Module] = ScaleConv2d,
) -> nn.Sequential:
    """The trunk of the steerable networks whose features are scale maps; ``options`` of each convolution.

    The convolutions project and pool; nothing stands where published networks do, for the weights' names.
    """
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    return nn.Sequential(
        *(lift(c0, c1, pooling=2, **options), nn.Identity(), nn.ReLU(), ScaleBatchNorm2d(c1)),
        *(conv(c1, c2, pooling=2, **options), nn.Identity(), nn.ReLU(), ScaleBatchNorm2d(c2)),
        *(conv(c2, c3, projection="max", **options), nn.Identity(), *last_stage(settings)),
    )


def build_learnable(settings: SesSettings) -> MnistNetwork:
    """SESN, vector, with the smallest scale and the range as parameters that all layers share."""
    scales = LearnableScales(
        settings.num_scales, min_scale=settings.min_scale, scale_range=settings.scale_range
    )
    options = settings.conv_options | {"scales": scales}
    del options["grid"]
    return MnistNetwork(vector_trunk(settings, options, LearnableLiftConv2d, LearnableScaleConv2d), settings)


# Scales S, range, smallest scale, mult, kernel; "p" is the published second configuration for "+".
_CELLS = {
    "vector_28": (3, 3.0, 1.5, 1.5, 13),
    "vector_28p": (3, 3.0, 1.5, 1.4, 15),
    "vector_56": (4, 2.0, 2.0, 1.5, 15),
    "vector_56p": (4, 2.0, 1.5, 1.4, 13),
    "scalar_28": (4, 3.0, 1.7, 1.5, 15),
    "scalar_28p": (4, 3.0, 1.5, 1.4, 13),
    "scalar_56": (3, 2.0, 2.0, 1.4, 15),
    "scalar_56p": (3, 3.0, 1.0, 1.4, 17),
}


def _settings(cell: str) -> SesSettings:
    num_scales, scale_range, min_scale, mult, kernel_size = _CELLS[cell]
    size = int(cell.split("_")[1].removesuffix("p"))
    return SesSettings(
        upsample=UPSAMPLINGS[size],
        num_scales=num_scales,
        scale_range=scale_range,
        min_scale=min_scale,
        mult=mult,
        kernel_size=kernel_size,
    )


for _cell in _CELLS:
    _kind = _cell.split("_")[0]
    _builder = build_ses_scalar if _kind == "scalar" else build_ses_vector
    register(ModelEntry(f"mnist_ses_{_cell}", f"SESN {_kind}", _settings(_cell), _builder, SESN))

for _size in UPSAMPLINGS:
    _start = _settings(f"vector_{_size}")
    register(
        ModelEntry(f"mnist_learnable_{_size}", "Learnable scales", _start, build_learnable, LEARNABLE_SCALES)
    )
