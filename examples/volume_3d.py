"""
Blobs of several sizes in a volume
==================================

A volume holds bright blobs of several sizes. A layer of :class:`equiscale.nn.LiftConv3d` whose weights make
it a Laplacian finds each on the scale of its size, and a network of
:class:`equiscale.nn.LiftConv3d` and :class:`equiscale.nn.ScaleConv3d` moves its features along when
the volume is enlarged.
"""

# %%
# The volume
# ----------
# Gaussian blobs, longer along one axis than along the others, are rendered from their formula at any scale.

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from equiscale import ScaleGrid
from equiscale.basis import GaussianDerivativeBasis
from equiscale.nn import LiftConv3d, ScaleConv3d, ScaleProjection3d

torch.set_num_threads(1)  # a second thread would mostly wait
torch.manual_seed(0)
SIDE = 41
CENTERS = torch.tensor([[0.0, -11.0, -11.0], [0.0, -9.0, 10.0], [0.0, 10.0, -9.0], [0.0, 8.0, 9.0]])
WIDTHS = torch.tensor([1.25, 1.55, 2.4, 3.1])


def volume(scale: float = 1.0, stretch: float = 1.0, keep: slice = slice(None)) -> Tensor:
    """Blobs ``(1, 1, D, H, W)`` about the centre, ``stretch`` times as long along W."""
    x = (torch.arange(SIDE) - (SIDE - 1) / 2) / scale
    whole = torch.zeros(SIDE, SIDE, SIDE)
    for (depth, row, column), width in zip(CENTERS[keep].tolist(), WIDTHS[keep].tolist(), strict=True):
        squares = (x - depth)[:, None, None] ** 2 + (x - row)[:, None] ** 2 + ((x - column) / stretch) ** 2
        whole += torch.exp(-squares / (2 * width**2))
    return whole[None, None]


# %%
# On which scale is a blob seen?
# ------------------------------
# The Laplacian is the sum of the second derivatives along the three axes. Scale-normalised, it answers a
# Gaussian of width :math:`\sigma_0` the most on the scale :math:`\sigma_0 \sqrt{2 / 3}`.

GRID = ScaleGrid.geometric(1.0, 2 ** (1 / 3), 5)
BASIS = GaussianDerivativeBasis(3, max_order=2, radius=None)
SHARED = {"kernel_size": 21, "grid": GRID, "basis": BASIS, "padding": "same", "bias": False}

laplacian = LiftConv3d(1, 1, **SHARED)
orders = [(n, m, k) for n in range(3) for m in range(3) for k in range(3) if n + m + k <= 2]
with torch.no_grad():
    laplacian.weight.zero_()
    for order in ((2, 0, 0), (0, 2, 0), (0, 0, 2)):
        laplacian.weight[..., orders.index(order)] = -1.0
    answers = laplacian(volume())
    strongest = ScaleProjection3d("argmax-scale")(answers)[0, 0]

places = (CENTERS + (SIDE - 1) / 2).round().long()
print(f"{'blob':>8}{'expected scale':>16}{'strongest':>12}")
for place, width in zip(places, WIDTHS.tolist(), strict=True):
    scale = GRID[int(strongest[tuple(place)])]
    print(f"{width:>8.2f}{width * (2 / 3) ** 0.5:>16.2f}{scale:>12.2f}")

# %%
# Does a network follow?
# ----------------------
# Two layers with random weights see ellipsoids, and the same ones larger. At the pixels that both have, twice
# as far from the centre in the volume of twice the size, the features must be those of one scale, or
# several scales, further up.

NETWORK = ScaleGrid.geometric(1.0, 2.0**0.5, 3)
layers = {"kernel_size": 13, "grid": NETWORK, "basis": BASIS, "padding": "same"}
network = nn.Sequential(LiftConv3d(1, 4, **layers), nn.ReLU(), ScaleConv3d(4, 4, **layers)).eval()
plain = nn.Sequential(nn.Conv3d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv3d(12, 12, 5, padding=2)).eval()


def as_scale_map(y: Tensor) -> Tensor:
    """A plain network's channels, as if they were channels and scales."""
    return y if y.ndim == 6 else y.unflatten(1, (-1, len(NETWORK)))


@torch.no_grad()
def error(module: nn.Module) -> float:
    """Of the smallest scale at factor 1 against the largest at factor 2, at the pixels they share."""
    small, large = (
        as_scale_map(module(volume(factor, stretch=1.5, keep=slice(2, 3)))) for factor in (0.5, 1.0)
    )
    quarter = (SIDE - 1) // 4
    middle = slice(quarter, SIDE - quarter)
    expected = small[:, :, 0, middle, middle, middle]
    actual = large[:, :, 2, ::2, ::2, ::2]
    return float((actual - expected).norm() / expected.norm())


print(f"relative error, scale convolutions: {error(network):.3f}")
print(f"relative error, ordinary ones:      {error(plain):.3f}")

# %%
# The pictures
# ------------
# The middle slice of the volume, the Laplacian's answers on every scale, and the scale of the strongest one.

middle = SIDE // 2
figure, axes = plt.subplots(2, 4, figsize=(10, 5), layout="constrained")
pictures = [("volume", volume()[0, 0, middle])]
pictures += [(f"scale {GRID[s]:.2f}", answers[0, 0, s, middle]) for s in range(len(GRID))]
seen = torch.where(answers[0, 0].amax(0) > 0.05 * answers.max(), strongest.float(), torch.nan)
for ax, (title, picture) in zip(axes.flat, pictures, strict=False):
    ax.imshow(picture, cmap="gray", vmin=None if title == "volume" else 0)
    ax.set_title(title)
shown = axes.flat[6].imshow(seen[middle], cmap="viridis", vmin=0, vmax=len(GRID) - 1)
axes.flat[6].set_title("strongest scale")
figure.colorbar(shown, ax=axes.flat[6])
bars = axes.flat[7].bar(["scale", "ordinary"], [error(network), error(plain)])
axes.flat[7].set_title("relative error")
axes.flat[7].bar_label(bars, fmt="%.2f")
for ax in axes.flat[:7]:
    ax.axis("off")
plt.show()
