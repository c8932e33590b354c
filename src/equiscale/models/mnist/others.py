"""The other methods on MNIST-scale: SI-ConvNet, SiCNN, SEVF, DSS, SS-CNN, pyramid, rescaled kernels."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from equiscale.citations import DSS, FOVEATED_PYRAMID, RESCALED_KERNELS, SEVF, SI_CONVNET, SICNN, SS_CNN
from equiscale.models.mnist.network import (
    UPSAMPLINGS,
    MnistNetwork,
    MnistSettings,
    cnn_trunk,
    image_trunk,
)
from equiscale.models.registry import ModelEntry, check_same_size, register
from equiscale.nn import (
    ColumnBatchNorm2d,
    ImageBatchNorm2d,
    ImageMaxPool2d,
    InputPyramid,
    LocallyScaleInvariantConv2d,
    MultiColumnConv2d,
    MultiColumnLift2d,
    RescaledKernelLift2d,
    ScaleBatchNorm2d,
    ScaleMaxPool2d,
    ScalePool,
    ScaleProjection,
    ScaleSpaceConv2d,
    ScaleSpaceLift2d,
    ScaleSteeredConv2d,
    ScaleSteering,
    VectorFieldBatchNorm2d,
    VectorFieldConv2d,
    VectorFieldLift2d,
    VectorFieldMagnitude,
    VectorFieldMaxPool2d,
)

_SCALES = (0.3, 0.45, 0.67, 1.0, 1.49, 2.23, 3.33)
_STEERING = ScaleSteering()
_STEERED_SIZES = {28: (5, 7, 9, 11, 13), 56: (7, 9, 11, 13, 15, 17)}


@dataclass(frozen=True)
class ScalesSettings(MnistSettings):
    """The trunk's settings, and the scales of SI-ConvNet and SiCNN.

    Args:
        scales: The factors, increasing.
    """

    scales: tuple[float, ...] = _SCALES


@dataclass(frozen=True)
class ScaleSpaceSettings(MnistSettings):
    """The trunk's settings, and the scale space of DSS.

    Args:
        num_scales: S; the published networks have two.
        zero_scale: The blur of the image, in pixels.
        scale_size: Scales that a filter sees.
    """

    num_scales: int = 2
    zero_scale: float = 0.25
    scale_size: int = 1


@dataclass(frozen=True)
class SteeredSettings(MnistSettings):
    """The trunk's settings, and the steered filters of SS-CNN.

    Args:
        channels: As published, fewer than those of the other methods.
        steering: The harmonics, and the sizes they are steered to.
        unused: Keep the 7,410 parameters that the published network registers and never reads (a
            constant for every filter, and a batch norm), so that it has the published number of them.
    """

    channels: tuple[int, int, int] = (30, 60, 90)
    steering: ScaleSteering = _STEERING
    unused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_same_size(self.effective_size, MnistSettings.effective_size, "a steered filter, which has none")


@dataclass(frozen=True)
class PyramidSettings(MnistSettings):
    """The trunk's settings, and the factors of the pyramid.

    Args:
        factors: By which the image is rescaled; the default undoes scaling down to 1/2√2.
    """

    factors: tuple[float, ...] = (1.0, 2**0.5, 2.0, 2 * 2**0.5)


@dataclass(frozen=True)
class KernelSizesSettings(MnistSettings):
    """The trunk's settings, and the sides of the rescaled kernels.

    Args:
        kernel_sizes: Odd and increasing; the first is learned, which gives the other methods' weights.
    """

    kernel_sizes: tuple[int, ...] = (7, 9, 11, 15)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_same_size(self.effective_size, self.kernel_sizes[0], f"kernel_sizes={self.kernel_sizes}")


def build_si_convnet(settings: ScalesSettings) -> MnistNetwork:
    """SI-ConvNet: every convolution is locally invariant."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        size = settings.effective_size
        return [
            LocallyScaleInvariantConv2d(c_in, c_out, kernel_size=size, scales=settings.scales, padding="same")
        ]

    return MnistNetwork(image_trunk(settings, conv), settings)


def build_sicnn(settings: ScalesSettings) -> MnistNetwork:
    """SiCNN: one column of features for each scale, pooled over columns at the end."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    num_scales = len(settings.scales)
    options: dict[str, Any] = {"kernel_size": settings.effective_size, "scales": settings.scales}
    last = ScaleMaxPool2d(settings.last_pool, padding=2)
    main = nn.Sequential(
        *(MultiColumnLift2d(c0, c1, **options), ScaleMaxPool2d(2), nn.ReLU()),
        ColumnBatchNorm2d(c1, num_scales),
        *(MultiColumnConv2d(c1, c2, **options), ScaleMaxPool2d(2), nn.ReLU()),
        ColumnBatchNorm2d(c2, num_scales),
        *(MultiColumnConv2d(c2, c3, **options), last, nn.ReLU()),
        ColumnBatchNorm2d(c3, num_scales),
        ScaleProjection(),
    )
    return MnistNetwork(main, settings)


# The published SEVF networks list their layers by name.
_CLASSIFIER_NAMES = {"fc1": "linear.0", "fc1bn": "linear.1", "fc2": "linear.4"}
_SEVF_SCALAR_NAMES = {
    "conv1": "main.0",
    "bn1": "main.3",
    "conv2": "main.4",
    "bn2": "main.7",
    "conv3": "main.8",
}
_SEVF_VECTOR_NAMES = {
    "conv1": "main.0",
    "bn1": "main.2",
    "conv2": "main.3",
    "bn2": "main.5",
    "conv3": "main.6",
}


def build_sevf_scalar(settings: MnistSettings) -> MnistNetwork:
    """SEVF, scalar: every lift is followed by the length of its vectors."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    size = settings.effective_size
    main = nn.Sequential(
        *(VectorFieldLift2d(c0, c1, kernel_size=size), VectorFieldMagnitude()),
        *(ImageMaxPool2d(2), ImageBatchNorm2d(c1)),
        *(VectorFieldLift2d(c1, c2, kernel_size=size), VectorFieldMagnitude()),
        *(ImageMaxPool2d(2), ImageBatchNorm2d(c2)),
        *(VectorFieldLift2d(c2, c3, kernel_size=size), VectorFieldMagnitude()),
        ImageMaxPool2d(settings.last_pool, padding=2),
    )
    names = _SEVF_SCALAR_NAMES | _CLASSIFIER_NAMES
    return MnistNetwork(main, settings, hidden_bias=True, published_names=names)


def build_sevf_vector(settings: MnistSettings) -> MnistNetwork:
    """SEVF, vector: vector fields up to the classifier, with the published turn of the filters."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    size = settings.effective_size
    main = nn.Sequential(
        VectorFieldLift2d(c0, c1, kernel_size=size),
        *(VectorFieldMaxPool2d(2), VectorFieldBatchNorm2d(c1)),
        VectorFieldConv2d(c1, c2, kernel_size=size, turn="published"),
        *(VectorFieldMaxPool2d(2), VectorFieldBatchNorm2d(c2)),
        VectorFieldConv2d(c2, c3, kernel_size=size, turn="published"),
        *(VectorFieldMaxPool2d(settings.last_pool, padding=2), VectorFieldMagnitude()),
    )
    names = _SEVF_VECTOR_NAMES | _CLASSIFIER_NAMES
    return MnistNetwork(main, settings, hidden_bias=True, published_names=names)


def build_dss_scalar(settings: ScaleSpaceSettings) -> MnistNetwork:
    """DSS, scalar: lift, convolve and take the maximum over scales, three times."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        return [_scale_space_lift(settings), _scale_space_conv(settings, c_in, c_out), ScaleProjection()]

    return MnistNetwork(image_trunk(settings, conv), settings)


def build_dss_vector(settings: ScaleSpaceSettings) -> MnistNetwork:
    """DSS, vector: one lift, and the scale axis is kept to the end of the trunk."""
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    main = nn.Sequential(
        *(_scale_space_lift(settings), _scale_space_conv(settings, c0, c1), ScaleMaxPool2d(2)),
        *(nn.ReLU(), ScaleBatchNorm2d(c1), _scale_space_conv(settings, c1, c2), ScaleMaxPool2d(2)),
        *(nn.ReLU(), ScaleBatchNorm2d(c2), _scale_space_conv(settings, c2, c3)),
        *(ScaleMaxPool2d(settings.last_pool, padding=2), nn.ReLU(), ScaleBatchNorm2d(c3), ScaleProjection()),
    )
    return MnistNetwork(main, settings)


_SS_NAMES = {
    **{f"conv{i + 1}.steer_conv": f"main.{4 * i}" for i in range(3)},
    "bn1": "main.3",
    "bn2": "main.7",
    "bn3_mag": "main.11",
    "bn3": "unused_norm",
    **_CLASSIFIER_NAMES,
}


def build_ss_cnn(settings: SteeredSettings) -> MnistNetwork:
    """SS-CNN: every convolution takes the maximum over the sizes that its filter is steered to."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        options: dict[str, Any] = {"steering": settings.steering, "constant": settings.unused}
        return [ScaleSteeredConv2d(c_in, c_out, **options, padding="same")]

    trunk = image_trunk(settings, conv)
    network = MnistNetwork(trunk, settings, hidden_bias=True, published_names=_SS_NAMES)
    if settings.unused:
        network.unused_norm = nn.BatchNorm2d(settings.channels[-1])
    return network


def build_pyramid(settings: PyramidSettings) -> MnistNetwork:
    """The plain CNN on a pyramid of rescaled images, the strongest features of all kept."""
    return MnistNetwork(nn.Sequential(InputPyramid(cnn_trunk(settings), settings.factors)), settings)


def build_rescaled(settings: KernelSizesSettings) -> MnistNetwork:
    """One kernel interpolated to several sizes in every layer, with pixel pooling over scales."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        lift = RescaledKernelLift2d(c_in, c_out, kernel_sizes=settings.kernel_sizes, padding="same")
        return [lift, ScalePool("pixel")]

    return MnistNetwork(image_trunk(settings, conv), settings)


def _scale_space_lift(settings: ScaleSpaceSettings) -> ScaleSpaceLift2d:
    return ScaleSpaceLift2d(settings.num_scales, zero_scale=settings.zero_scale)


def _scale_space_conv(settings: ScaleSpaceSettings, c_in: int, c_out: int) -> ScaleSpaceConv2d:
    return ScaleSpaceConv2d(
        c_in,
        c_out,
        kernel_size=settings.effective_size,
        num_scales=settings.num_scales,
        scale_size=settings.scale_size,
    )


for _size, _upsample in UPSAMPLINGS.items():
    _vector = MnistSettings(upsample=_upsample, channels=(23, 45, 68))
    for _entry in (
        ModelEntry(
            f"mnist_kanazawa_{_size}",
            "SI-ConvNet",
            ScalesSettings(upsample=_upsample),
            build_si_convnet,
            SI_CONVNET,
        ),
        ModelEntry(f"mnist_xu_{_size}", "SiCNN", ScalesSettings(upsample=_upsample), build_sicnn, SICNN),
        ModelEntry(
            f"mnist_sevf_scalar_{_size}",
            "SEVF scalar",
            MnistSettings(upsample=_upsample),
            build_sevf_scalar,
            SEVF,
        ),
        ModelEntry(f"mnist_sevf_vector_{_size}", "SEVF vector", _vector, build_sevf_vector, SEVF),
        ModelEntry(
            f"mnist_dss_scalar_{_size}",
            "DSS scalar",
            ScaleSpaceSettings(upsample=_upsample),
            build_dss_scalar,
            DSS,
        ),
        ModelEntry(
            f"mnist_dss_vector_{_size}",
            "DSS vector",
            ScaleSpaceSettings(upsample=_upsample),
            build_dss_vector,
            DSS,
        ),
        ModelEntry(
            f"mnist_ss_{_size}",
            "SS-CNN",
            SteeredSettings(upsample=_upsample, steering=ScaleSteering(_STEERED_SIZES[_size])),
            build_ss_cnn,
            SS_CNN,
        ),
        ModelEntry(
            f"mnist_pyramid_{_size}",
            "Input pyramid",
            PyramidSettings(upsample=_upsample),
            build_pyramid,
            FOVEATED_PYRAMID,
        ),
        ModelEntry(
            f"mnist_rescaled_{_size}",
            "Rescaled kernels",
            KernelSizesSettings(upsample=_upsample),
            build_rescaled,
            RESCALED_KERNELS,
        ),
    ):
        register(_entry)
