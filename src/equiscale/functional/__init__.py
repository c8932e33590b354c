"""Pure functions on tensors: the mathematics of the layers."""

from equiscale.functional.conv import lift_conv2d, pointwise_scale_conv2d, scale_conv2d
from equiscale.functional.deep_scale_space import discrete_gaussian, scale_space_conv2d, scale_space_lift2d
from equiscale.functional.dropout import scale_channel_dropout, scale_dropout2d, value_dropout
from equiscale.functional.filters import support_windows, synthesize_filters
from equiscale.functional.geometry import ConvGeometry, GeometryOptions
from equiscale.functional.learnable_scale import sample_hermite
from equiscale.functional.nd import (
    lift_conv_nd,
    scale_avg_pool_nd,
    scale_conv_nd,
    scale_dropout_nd,
    scale_max_pool_nd,
    scale_projection_nd,
)
from equiscale.functional.pool import image_max_pool2d, scale_avg_pool2d, scale_max_pool2d
from equiscale.functional.project import scale_projection
from equiscale.functional.pyramid import input_pyramid
from equiscale.functional.rescale import rescale
from equiscale.functional.rescaled_kernel import (
    rescaled_kernel_basis,
    rescaled_kernel_conv2d,
    rescaled_kernel_valid_conv2d,
    scale_pool,
)
from equiscale.functional.scale_steerable import scale_steered_conv2d, steer_in_scale
from equiscale.functional.si_convnet import locally_scale_invariant_conv2d
from equiscale.functional.sicnn import multi_column_basis, multi_column_conv2d
from equiscale.functional.upsample import scale_conv_transpose2d, scale_upsample2d
from equiscale.functional.vector_field import (
    ScaleAngles,
    vector_field_batch_norm2d,
    vector_field_conv2d,
    vector_field_dropout,
    vector_field_lift2d,
    vector_field_magnitude,
    vector_field_max_pool2d,
    vector_field_variance,
)

__all__ = [
    "ConvGeometry",
    "GeometryOptions",
    "ScaleAngles",
    "discrete_gaussian",
    "image_max_pool2d",
    "input_pyramid",
    "lift_conv2d",
    "lift_conv_nd",
    "locally_scale_invariant_conv2d",
    "multi_column_basis",
    "multi_column_conv2d",
    "pointwise_scale_conv2d",
    "rescale",
    "rescaled_kernel_basis",
    "rescaled_kernel_conv2d",
    "rescaled_kernel_valid_conv2d",
    "sample_hermite",
    "scale_avg_pool2d",
    "scale_avg_pool_nd",
    "scale_channel_dropout",
    "scale_conv2d",
    "scale_conv_nd",
    "scale_conv_transpose2d",
    "scale_dropout2d",
    "scale_dropout_nd",
    "scale_max_pool2d",
    "scale_max_pool_nd",
    "scale_pool",
    "scale_projection",
    "scale_projection_nd",
    "scale_space_conv2d",
    "scale_space_lift2d",
    "scale_steered_conv2d",
    "scale_upsample2d",
    "steer_in_scale",
    "support_windows",
    "synthesize_filters",
    "value_dropout",
    "vector_field_batch_norm2d",
    "vector_field_conv2d",
    "vector_field_dropout",
    "vector_field_lift2d",
    "vector_field_magnitude",
    "vector_field_max_pool2d",
    "vector_field_variance",
]
