"""Pure functions on tensors: the mathematics of the layers."""

from equiscale.functional.conv import lift_conv2d, pointwise_scale_conv2d, scale_conv2d
from equiscale.functional.dropout import scale_channel_dropout, scale_dropout2d
from equiscale.functional.filters import support_windows, synthesize_filters
from equiscale.functional.geometry import ConvGeometry, GeometryOptions
from equiscale.functional.learnable_scale import sample_hermite
from equiscale.functional.pool import scale_avg_pool2d, scale_max_pool2d
from equiscale.functional.project import scale_projection

__all__ = [
    "ConvGeometry",
    "GeometryOptions",
    "lift_conv2d",
    "pointwise_scale_conv2d",
    "sample_hermite",
    "scale_avg_pool2d",
    "scale_channel_dropout",
    "scale_conv2d",
    "scale_dropout2d",
    "scale_max_pool2d",
    "scale_projection",
    "support_windows",
    "synthesize_filters",
]
