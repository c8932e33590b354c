"""Modules: parameters, checks, and one call of `equiscale.functional` each."""

from equiscale.nn.conv import PointwiseScaleConv2d, ScaleConv2d
from equiscale.nn.deep_scale_space import ScaleSpaceConv2d, ScaleSpaceLift2d
from equiscale.nn.dropout import ScaleChannelDropout, ScaleDropout2d
from equiscale.nn.learnable_scale import LearnableLiftConv2d, LearnableScaleConv2d, LearnableScales
from equiscale.nn.lift import LiftConv2d
from equiscale.nn.norm import ScaleBatchNorm2d
from equiscale.nn.pool import ScaleAvgPool2d, ScaleMaxPool2d
from equiscale.nn.project import ScaleProjection
from equiscale.nn.steerable import SteerableConv2d
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
    "LearnableLiftConv2d",
    "LearnableScaleConv2d",
    "LearnableScales",
    "LiftConv2d",
    "PointwiseScaleConv2d",
    "ScaleAvgPool2d",
    "ScaleBatchNorm2d",
    "ScaleChannelDropout",
    "ScaleConv2d",
    "ScaleDropout2d",
    "ScaleMaxPool2d",
    "ScaleProjection",
    "ScaleSpaceConv2d",
    "ScaleSpaceLift2d",
    "SteerableConv2d",
    "VectorFieldBatchNorm2d",
    "VectorFieldConv2d",
    "VectorFieldDropout",
    "VectorFieldDropout2d",
    "VectorFieldLift2d",
    "VectorFieldMagnitude",
    "VectorFieldMaxPool2d",
]
