"""Modules: parameters, checks, and one call of `equiscale.functional` each."""

from equiscale.nn.conv import PointwiseScaleConv2d, ScaleConv2d
from equiscale.nn.deep_scale_space import ScaleSpaceConv2d, ScaleSpaceLift2d
from equiscale.nn.dropout import ScaleChannelDropout, ScaleDropout2d, ValueDropout
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
from equiscale.nn.norm import ImageBatchNorm2d, ScaleBatchNorm2d
from equiscale.nn.pool import ImageMaxPool2d, ScaleAvgPool2d, ScaleMaxPool2d
from equiscale.nn.project import ScaleProjection
from equiscale.nn.pyramid import InputPyramid
from equiscale.nn.rescaled_kernel import RescaledKernelConv2d, RescaledKernelLift2d, ScalePool
from equiscale.nn.scale_steerable import ScaleSteeredConv2d, ScaleSteering
from equiscale.nn.scale_wise import ScaleWise
from equiscale.nn.si_convnet import LocallyScaleInvariantConv2d
from equiscale.nn.sicnn import ColumnBatchNorm2d, MultiColumnConv2d, MultiColumnLift2d
from equiscale.nn.steerable import SteerableConv2d
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

__all__ = [
    "ColumnBatchNorm2d",
    "ImageBatchNorm2d",
    "ImageMaxPool2d",
    "InputPyramid",
    "LearnableLiftConv2d",
    "LearnableScaleConv2d",
    "LearnableScales",
    "LiftConv1d",
    "LiftConv2d",
    "LiftConv3d",
    "LocallyScaleInvariantConv2d",
    "MultiColumnConv2d",
    "MultiColumnLift2d",
    "PointwiseScaleConv2d",
    "RescaledKernelConv2d",
    "RescaledKernelLift2d",
    "ScaleAvgPool1d",
    "ScaleAvgPool2d",
    "ScaleAvgPool3d",
    "ScaleBatchNorm1d",
    "ScaleBatchNorm2d",
    "ScaleBatchNorm3d",
    "ScaleChannelDropout",
    "ScaleConv1d",
    "ScaleConv2d",
    "ScaleConv3d",
    "ScaleConvTranspose2d",
    "ScaleDoubleConv2d",
    "ScaleDropout1d",
    "ScaleDropout2d",
    "ScaleDropout3d",
    "ScaleMaxPool1d",
    "ScaleMaxPool2d",
    "ScaleMaxPool3d",
    "ScalePool",
    "ScaleProjection",
    "ScaleProjection1d",
    "ScaleProjection3d",
    "ScaleSpaceConv2d",
    "ScaleSpaceLift2d",
    "ScaleSteeredConv2d",
    "ScaleSteering",
    "ScaleUNetDown2d",
    "ScaleUNetUp2d",
    "ScaleUpsample2d",
    "ScaleWise",
    "SteerableConv2d",
    "ValueDropout",
    "VectorFieldBatchNorm2d",
    "VectorFieldConv2d",
    "VectorFieldDropout",
    "VectorFieldDropout2d",
    "VectorFieldLift2d",
    "VectorFieldMagnitude",
    "VectorFieldMaxPool2d",
]
