"""Layers for signals and volumes."""

from equiscale.nn.nd.companions import (
    ScaleAvgPool1d,
    ScaleAvgPool3d,
    ScaleBatchNorm1d,
    ScaleBatchNorm3d,
    ScaleDropout1d,
    ScaleDropout3d,
    ScaleMaxPool1d,
    ScaleMaxPool3d,
    ScaleProjection1d,
    ScaleProjection3d,
)
from equiscale.nn.nd.conv import LiftConv1d, LiftConv3d, ScaleConv1d, ScaleConv3d, SteerableConvNd

__all__ = [
    "LiftConv1d",
    "LiftConv3d",
    "ScaleAvgPool1d",
    "ScaleAvgPool3d",
    "ScaleBatchNorm1d",
    "ScaleBatchNorm3d",
    "ScaleConv1d",
    "ScaleConv3d",
    "ScaleDropout1d",
    "ScaleDropout3d",
    "ScaleMaxPool1d",
    "ScaleMaxPool3d",
    "ScaleProjection1d",
    "ScaleProjection3d",
    "SteerableConvNd",
]
