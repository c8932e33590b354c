"""Each scale at its own window, cropped to what ever meets a pixel."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed


def cropped(convolution: Convolution) -> Iterator[Image]:
    """One ordinary convolution a scale."""
    geometry = convolution.geometry
    for scale, window in enumerate(convolution.sides):
        x, margin = framed(_seen(convolution, scale), convolution.margin(window), geometry)
        filters = convolution.filters(scale)
        yield conv2d(x, filters, convolution.bias, geometry.stride, margin, groups=geometry.groups)


def _seen(convolution: Convolution, scale: int) -> Tensor:
    """The images of all slots, behind the channels as in the filters: (B, C·n, H, W)."""
    images = [convolution.image(slot) for slot in convolution.slots(scale)]
    return images[0] if len(images) == 1 else torch.stack(images, 2).flatten(1, 2)
