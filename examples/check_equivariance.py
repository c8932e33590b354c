"""
Why is my network not scale-equivariant?
========================================

A network is built from scale-equivariant layers, and still its features do not follow the size of an object.
:func:`equiscale.testing.equivariance_report` measures every layer, and finds the causes by taking them away
one after the other.
"""

# %%
# A broken network
# ----------------
# Three things are wrong with it. The kernel of the first layer is too small for its largest scale. Its stride
# does not fit images of 64 pixels. And a plain convolution in the middle sees every scale through filters of
# the same size.

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from equiscale import ScaleGrid
from equiscale.nn import LiftConv2d, ScaleBatchNorm2d, ScaleConv2d
from equiscale.report.equivariance import paint
from equiscale.testing import BandLimitedImage, equivariance_report

torch.manual_seed(0)
grid = ScaleGrid.geometric(1.0, 2**0.5, 3)


class ScaleByScale(nn.Module):
    """A plain layer on every scale."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        flat = self.layer(x.transpose(1, 2).flatten(0, 1))
        return flat.unflatten(0, (len(x), -1)).transpose(1, 2)


broken = nn.Sequential(
    LiftConv2d(1, 6, kernel_size=7, grid=grid, padding="same", stride=2),
    ScaleBatchNorm2d(6),
    nn.ReLU(),
    ScaleByScale(nn.Conv2d(6, 6, 5, padding=2)),
    nn.ReLU(),
    ScaleConv2d(6, 6, kernel_size=17, grid=grid, padding="same"),
)

# %%
# The images are analytic: they are rendered at every size, and never resampled. Their objects stay in the
# middle of the canvas, so that the border is out of play.


def images(size: int) -> BandLimitedImage:
    """Objects in the middle."""
    generator = torch.Generator().manual_seed(0)
    image = BandLimitedImage.random(1, 1, size=(size, size), generator=generator, band=0.5, blobs=4)
    return BandLimitedImage(
        image.size, image.centers * 0.2, image.widths, image.frequencies, image.phases, image.amplitudes
    )


step = 2**0.5
before = equivariance_report(broken, images(64), [0.5, 1 / step, step, 2.0])
print(before)

# %%
# The repaired network
# --------------------
# What the sentences say: a kernel as large as needed, an image of 65 pixels, and a scale convolution.

torch.manual_seed(0)
repaired = nn.Sequential(
    LiftConv2d(1, 6, kernel_size=15, grid=grid, padding="same", stride=2),
    ScaleBatchNorm2d(6),
    nn.ReLU(),
    ScaleConv2d(6, 6, kernel_size=17, grid=grid, padding="same"),
    nn.ReLU(),
    ScaleConv2d(6, 6, kernel_size=17, grid=grid, padding="same"),
)
after = equivariance_report(repaired, images(65), [0.5, 1 / step, step, 2.0])
print(after)

# %%
# In one picture
# --------------

figure = plt.figure(figsize=(11.5, 4))
paint(figure, before.as_dict(), title="before")
figure = plt.figure(figsize=(11.5, 4))
paint(figure, after.as_dict(), title="after")
plt.show()
