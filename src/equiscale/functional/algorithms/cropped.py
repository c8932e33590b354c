"""Each scale at its own window, cropped to what ever meets a pixel."""

from collections.abc import Iterator

from torch.nn.functional import conv2d

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed


def cropped(convolution: Convolution) -> Iterator[Image]:
    """One ordinary convolution a scale."""
    geometry = convolution.geometry
    for scale, window in enumerate(convolution.sides):
        x, margin = framed(convolution.seen(scale), convolution.margin(window), geometry)
        filters = convolution.filters(scale)
        yield conv2d(x, filters, convolution.bias, geometry.stride, margin, groups=geometry.groups)
