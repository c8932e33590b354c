"""The vector trunk of the 56×56 networks with each family of filters, DISCO among them."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from equiscale.basis import (
    BSplineBasis,
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    HermiteBasis,
    LogRadialBasis,
    SteerableBasis,
)
from equiscale.citations import BSPLINE, DISCO, FOURIER_BESSEL, GAUSSIAN_DERIVATIVE, SESN, SS_CNN, Citation
from equiscale.models.mnist.network import MnistNetwork, MnistSettings
from equiscale.models.mnist.ses import vector_trunk
from equiscale.models.registry import ModelEntry, check_same_size, register
from equiscale.nn import (
    ImageBatchNorm2d,
    ImageMaxPool2d,
    LiftConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
)
from equiscale.scales import ScaleGrid

_STEP = 2 ** (1 / 3)
_DISCO_GRID = ScaleGrid([1.0, 1.26, 1.59, 2.0])
_DISCO_BASIS = DiscoBasis(7, "B", sigma=1.9, degenerate="allow")

# In the public code upsampling is the trunk's first layer.
_SHIFTED = {f"main.{index + 1}": f"main.{index}" for index in range(13)}


@dataclass(frozen=True)
class FamilySettings(MnistSettings):
    """The trunk's settings, the scales and the family of filters.

    Args:
        upsample: 2, for images of 56×56 pixels.
        grid: The scales; published: four of ratio 2^(1/3), rounded to two decimals.
        kernel_size: K, the side of the filter on the largest scale.
        basis: The family.
    """

    upsample: int = 2
    grid: ScaleGrid = _DISCO_GRID
    kernel_size: int = 15
    basis: SteerableBasis = _DISCO_BASIS

    def __post_init__(self) -> None:
        super().__post_init__()
        size = getattr(self.basis, "effective_size", self.effective_size)
        check_same_size(self.effective_size, size, str(self.basis))

    @property
    def conv_options(self) -> dict[str, Any]:
        """What every steerable convolution of the network is given."""
        return {
            "kernel_size": self.kernel_size,
            "grid": self.grid,
            "basis": self.basis,
            "padding": "same",
        }


def build_family(settings: FamilySettings) -> MnistNetwork:
    """The trunk of SESN vector with another family of filters."""
    trunk = vector_trunk(settings, settings.conv_options)
    return MnistNetwork(trunk, settings, published_names=_SHIFTED)


def build_disco(settings: FamilySettings) -> MnistNetwork:
    """DISCO: average instead of maximum pooling in the trunk, and a finer pooling at its end."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    options = settings.conv_options
    window = settings.last_pool - 1
    main = nn.Sequential(
        *(LiftConv2d(c0, c1, **options), nn.ReLU(), ScaleAvgPool2d(2), ScaleBatchNorm2d(c1)),
        *(ScaleConv2d(c1, c2, **options), nn.ReLU(), ScaleAvgPool2d(2), ScaleBatchNorm2d(c2)),
        *(ScaleConv2d(c2, c3, projection="max", **options), nn.Identity()),
        *(ImageMaxPool2d(window, stride=1), nn.ReLU(), nn.AvgPool2d(2, stride=4), ImageBatchNorm2d(c3)),
    )
    return MnistNetwork(main, settings, published_names=_SHIFTED | {"pool.4": "main.13"})


def _grid(smallest: float) -> ScaleGrid:
    return ScaleGrid([round(smallest * _STEP**index, 2) for index in range(4)])


# The published settings for MNIST-scale without "+"; those of the two corrected families are the nearest to
# them, and Gaussian derivatives have none.
_FAMILIES: dict[str, tuple[str, float, SteerableBasis, Citation]] = {
    "hermite": ("SESN, DISCO's grid", 1.5, HermiteBasis(7, "B", mult=1.4, degenerate="allow"), SESN),
    "bspline": ("B-spline", 1.0, BSplineBasis(7, spread=1.0, degenerate="allow"), BSPLINE),
    "fourier_bessel": (
        "Fourier–Bessel",
        0.88,
        FourierBesselBasis(7, radius=7.5, degenerate="allow"),
        FOURIER_BESSEL,
    ),
    "log_radial": (
        "Log-radial",
        0.1,
        LogRadialBasis(7, rotations=10, angular_width=0.2, degenerate="allow"),
        SS_CNN,
    ),
    "gaussian_derivative": (
        "Gaussian derivatives",
        1.16,
        GaussianDerivativeBasis(7, degenerate="allow"),
        GAUSSIAN_DERIVATIVE,
    ),
}

register(ModelEntry("mnist_disco", "DISCO", FamilySettings(), build_disco, DISCO))
for _name, (_title, _smallest, _basis, _citation) in _FAMILIES.items():
    _settings = FamilySettings(grid=_grid(_smallest), basis=_basis)
    register(ModelEntry(f"mnist_{_name}", _title, _settings, build_family, _citation))
