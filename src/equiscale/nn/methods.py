"""Which layers belong to which published method."""

from dataclasses import dataclass

from torch import nn

from equiscale import citations
from equiscale.citations import Citation
from equiscale.nn.conv import PointwiseScaleConv2d, ScaleConv2d
from equiscale.nn.deep_scale_space import ScaleSpaceConv2d, ScaleSpaceLift2d
from equiscale.nn.dropout import ScaleChannelDropout, ScaleDropout2d
from equiscale.nn.learnable_scale import LearnableLiftConv2d, LearnableScaleConv2d, LearnableScales
from equiscale.nn.lift import LiftConv2d
from equiscale.nn.nd import (
    LiftConv1d,
    LiftConv3d,
    ScaleAvgPool1d,
    ScaleAvgPool3d,
    ScaleBatchNorm1d,
    ScaleBatchNorm3d,
    ScaleConv1d,
    ScaleConv3d,
    ScaleDropout1d,
    ScaleDropout3d,
    ScaleMaxPool1d,
    ScaleMaxPool3d,
    ScaleProjection1d,
    ScaleProjection3d,
)
from equiscale.nn.norm import ScaleBatchNorm2d
from equiscale.nn.pool import ScaleAvgPool2d, ScaleMaxPool2d
from equiscale.nn.project import ScaleProjection
from equiscale.nn.pyramid import InputPyramid
from equiscale.nn.rescaled_kernel import RescaledKernelConv2d, RescaledKernelLift2d, ScalePool
from equiscale.nn.scale_steerable import ScaleSteeredConv2d
from equiscale.nn.scale_wise import ScaleWise
from equiscale.nn.si_convnet import LocallyScaleInvariantConv2d
from equiscale.nn.sicnn import ColumnBatchNorm2d, MultiColumnConv2d, MultiColumnLift2d
from equiscale.nn.unet import ScaleDoubleConv2d, ScaleUNetDown2d, ScaleUNetUp2d
from equiscale.nn.upsample import ScaleConvTranspose2d, ScaleUpsample2d
from equiscale.nn.vector_field import (
    VectorFieldBatchNorm2d,
    VectorFieldConv2d,
    VectorFieldDropout,
    VectorFieldDropout2d,
    VectorFieldLift2d,
    VectorFieldMagnitude,
    VectorFieldMaxPool2d,
)


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    Args:
        name: What the tables call it.
        summary: What it does, in a few words.
        layers: Its modules.
        citation: Where it was published.
    """

    name: str
    summary: str
    layers: tuple[type[nn.Module], ...]
    citation: Citation


# The one place that says which layer is whose; a test finds every public layer here.
METHODS = (
    Method(
        "Input pyramid",
        "a plain network with shared weights on a pyramid of rescaled images",
        (InputPyramid,),
        citations.FOVEATED_PYRAMID,
    ),
    Method(
        "SI-ConvNet",
        "one kernel on rescaled inputs, the strongest answer kept",
        (LocallyScaleInvariantConv2d,),
        citations.SI_CONVNET,
    ),
    Method(
        "SiCNN",
        "one kernel resized to a column of features for each scale",
        (MultiColumnLift2d, MultiColumnConv2d, ColumnBatchNorm2d),
        citations.SICNN,
    ),
    Method(
        "SEVF",
        "vector fields: the length is the strongest answer, the angle its scale",
        (
            VectorFieldLift2d,
            VectorFieldConv2d,
            VectorFieldMaxPool2d,
            VectorFieldBatchNorm2d,
            VectorFieldDropout,
            VectorFieldDropout2d,
            VectorFieldMagnitude,
        ),
        citations.SEVF,
    ),
    Method(
        "DSS",
        "deep scale-spaces: a discrete-Gaussian lift and dilated scale correlation",
        (ScaleSpaceLift2d, ScaleSpaceConv2d),
        citations.DSS,
    ),
    Method(
        "SS-CNN",
        "log-radial harmonics, steered in phase to several sizes",
        (ScaleSteeredConv2d,),
        citations.SS_CNN,
    ),
    Method(
        "SESN",
        "steerable filters on a grid of scales",
        (
            LiftConv2d,
            ScaleConv2d,
            PointwiseScaleConv2d,
            ScaleProjection,
            ScaleBatchNorm2d,
            ScaleMaxPool2d,
            ScaleAvgPool2d,
            ScaleDropout2d,
            ScaleChannelDropout,
            ScaleWise,
        ),
        citations.SESN,
    ),
    Method(
        "DISCO",
        "SESN with filters that commute with rescaling on the pixel grid",
        (LiftConv2d, ScaleConv2d),
        citations.DISCO,
    ),
    Method(
        "Rescaled kernels",
        "one kernel interpolated to many sizes; pixel, slice or energy pooling",
        (RescaledKernelLift2d, RescaledKernelConv2d, ScalePool),
        citations.RESCALED_KERNELS,
    ),
    Method(
        "Learnable scales",
        "SESN with the smallest scale and the range as parameters",
        (LearnableScales, LearnableLiftConv2d, LearnableScaleConv2d),
        citations.LEARNABLE_SCALES,
    ),
    Method(
        "SESN in one and three dimensions",
        "steerable filters for signals and volumes",
        (
            *(LiftConv1d, ScaleConv1d, ScaleBatchNorm1d, ScaleMaxPool1d, ScaleAvgPool1d),
            *(ScaleProjection1d, ScaleDropout1d),
            *(LiftConv3d, ScaleConv3d, ScaleBatchNorm3d, ScaleMaxPool3d, ScaleAvgPool3d),
            *(ScaleProjection3d, ScaleDropout3d),
        ),
        citations.SESN,
    ),
    Method(
        "Scale-equivariant U-Net",
        "scale maps pooled, enlarged about the same centre, and joined with those that were skipped",
        (ScaleUpsample2d, ScaleConvTranspose2d, ScaleDoubleConv2d, ScaleUNetDown2d, ScaleUNetUp2d),
        citations.SEU_NET,
    ),
)
