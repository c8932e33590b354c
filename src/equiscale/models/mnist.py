"""The networks of the MNIST-scale comparison: one trunk, with the convolution of each method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equiscale.basis import HermiteBasis
from equiscale.basis.hermite import DegeneratePolicy
from equiscale.citations import SESN
from equiscale.errors import ModelError, ShapeError
from equiscale.models.registry import ModelEntry, register
from equiscale.nn import LiftConv2d, ScaleBatchNorm2d, ScaleConv2d, ScaleMaxPool2d, ScaleProjection
from equiscale.scales import ScaleGrid

IMAGE_SIZE = 28


@dataclass(frozen=True)
class MnistSettings:
    """The trunk that all methods share: three convolutions, pooling, one hidden layer.

    Args:
        upsample: 1 for the 28×28 networks, 2 for the 56×56 ones (nearest neighbour, in front).
        channels: Output channels of the three convolutions.
        effective_size: Side of the ordinary filter with the same number of weights.
        hidden: Units of the hidden layer.
        dropout: Probability of dropping a hidden unit.
        in_channels: Channels of the images.
        num_classes: Number of outputs.
    """

    upsample: int = 1
    channels: tuple[int, int, int] = (32, 63, 95)
    effective_size: int = 7
    hidden: int = 256
    dropout: float = 0.7
    in_channels: int = 1
    num_classes: int = 10

    def __post_init__(self) -> None:
        if len(self.channels) != 3 or min(self.channels) < 1:
            raise ModelError(f"expected three positive channel counts, got {self.channels}")

    @property
    def last_pool(self) -> int:
        """The last pooling window: the trunk ends with 2×2 pixels at both input sizes."""
        return 4 * self.upsample


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


class MnistNetwork(nn.Module):
    """A trunk from images to 2×2 pixels, and the classifier on top.

    Shapes:
        input ``(B, C, 28, 28)``; output ``(B, num_classes)``, logits.

    Args:
        main: The trunk.
        settings: The sizes of the classifier, and the upsampling in front.

    Raises:
        ShapeError: From the forward pass, for images of another size or channel count.

    Source:
        Sosnovik et al. 2020, section 6.1; the state dict's keys are the published ones.
    """

    def __init__(self, main: nn.Sequential, settings: MnistSettings) -> None:
        super().__init__()
        self.settings = settings
        self.main = main
        self.linear = nn.Sequential(
            nn.Linear(4 * settings.channels[-1], settings.hidden, bias=False),
            nn.BatchNorm1d(settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, 28, 28)``."""
        expected = (self.settings.in_channels, IMAGE_SIZE, IMAGE_SIZE)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ShapeError(
                f"MnistNetwork: expected images (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}"
            )
        if self.settings.upsample > 1:
            x = torch.nn.functional.interpolate(x, scale_factor=self.settings.upsample, mode="nearest")
        logits: Tensor = self.linear(self.main(x).flatten(1))
        return logits


def build_cnn(settings: MnistSettings) -> MnistNetwork:
    """The plain CNN."""
    if settings.effective_size % 2 == 0:
        raise ModelError(f"expected an odd effective_size for a plain CNN, got {settings.effective_size}")

    def conv(in_channels: int, out_channels: int) -> list[nn.Module]:
        padding = settings.effective_size // 2
        return [nn.Conv2d(in_channels, out_channels, settings.effective_size, padding=padding)]

    return MnistNetwork(_image_trunk(settings, conv), settings)


def build_ses_scalar(settings: SesSettings) -> MnistNetwork:
    """SESN, scalar: every lifting convolution is followed by the maximum over scales."""

    def conv(in_channels: int, out_channels: int) -> list[nn.Module]:
        return [LiftConv2d(in_channels, out_channels, **_ses_options(settings)), ScaleProjection()]

    return MnistNetwork(_image_trunk(settings, conv), settings)


def build_ses_vector(settings: SesSettings) -> MnistNetwork:
    """SESN, vector: the scale axis is kept until after the third convolution."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    options = _ses_options(settings)
    main = nn.Sequential(
        *(LiftConv2d(c0, c1, **options), nn.ReLU(), ScaleMaxPool2d(2), ScaleBatchNorm2d(c1)),
        *(ScaleConv2d(c1, c2, **options), nn.ReLU(), ScaleMaxPool2d(2), ScaleBatchNorm2d(c2)),
        *(ScaleConv2d(c2, c3, **options), ScaleProjection(), *_last_stage(settings)),
    )
    return MnistNetwork(main, settings)


def _image_trunk(settings: MnistSettings, conv: Callable[[int, int], list[nn.Module]]) -> nn.Sequential:
    """The trunk of the methods whose features are images; ``conv`` makes one convolution."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    return nn.Sequential(
        *(*conv(c0, c1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(c1)),
        *(*conv(c1, c2), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(c2)),
        *(*conv(c2, c3), *_last_stage(settings)),
    )


def _last_stage(settings: MnistSettings) -> list[nn.Module]:
    pool = nn.MaxPool2d(settings.last_pool, padding=2)
    return [nn.ReLU(), pool, nn.BatchNorm2d(settings.channels[-1])]


def _ses_options(settings: SesSettings) -> dict[str, Any]:
    return {
        "kernel_size": settings.kernel_size,
        "grid": settings.grid,
        "basis": settings.basis,
        "padding": "same",
    }


# Scales S, range, smallest scale, mult, kernel; "p" is the published second configuration for "+".
_SES_CELLS = {
    "vector_28": (3, 3.0, 1.5, 1.5, 13),
    "vector_28p": (3, 3.0, 1.5, 1.4, 15),
    "vector_56": (4, 2.0, 2.0, 1.5, 15),
    "vector_56p": (4, 2.0, 1.5, 1.4, 13),
    "scalar_28": (4, 3.0, 1.7, 1.5, 15),
    "scalar_28p": (4, 3.0, 1.5, 1.4, 13),
    "scalar_56": (3, 2.0, 2.0, 1.4, 15),
    "scalar_56p": (3, 3.0, 1.0, 1.4, 17),
}


def _ses_settings(cell: str) -> SesSettings:
    num_scales, scale_range, min_scale, mult, kernel_size = _SES_CELLS[cell]
    return SesSettings(
        upsample=2 if "56" in cell else 1,
        num_scales=num_scales,
        scale_range=scale_range,
        min_scale=min_scale,
        mult=mult,
        kernel_size=kernel_size,
    )


for _size, _upsample in ((28, 1), (56, 2)):
    register(ModelEntry(f"mnist_cnn_{_size}", "CNN", MnistSettings(upsample=_upsample), build_cnn, SESN))

for _cell in _SES_CELLS:
    _kind = _cell.split("_")[0]
    _builder = build_ses_scalar if _kind == "scalar" else build_ses_vector
    register(ModelEntry(f"mnist_ses_{_cell}", f"SESN {_kind}", _ses_settings(_cell), _builder, SESN))
