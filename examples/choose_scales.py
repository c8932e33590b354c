"""
Choose scales, kernel and basis
===============================

Which scales should a scale-equivariant layer have, how large a kernel, which basis? As many scales as the
sizes of the objects in your images ask for, as fine as you can afford, and of what is then left the basis of
least equivariance error on your images. :func:`equiscale.choose.suggest` tries and measures.
"""

# %%
# Images
# ------
#
# Discs, rings and stripes that are up to twice as large as the smallest. Nothing is downloaded.

import matplotlib.pyplot as plt
import torch

from equiscale.choose import SearchSpace, factor_range, strongest_scales, suggest
from equiscale.report.trade_off import Option, paint_trade_off

SIDE, SMALLEST, LARGEST = 48, 1.6, 3.2


def shape(size: float, kind: int, angle: float) -> torch.Tensor:
    """One soft-edged object of a size, the standard deviation of its envelope."""
    x = (torch.arange(SIDE) - (SIDE - 1) / 2) / size
    radius = (x[:, None] ** 2 + x**2).sqrt()
    along = x[:, None] * torch.sin(torch.tensor(angle)) + x * torch.cos(torch.tensor(angle))
    inside = torch.sigmoid((2.2 - radius) * 4)
    pattern = (torch.ones_like(radius), torch.sigmoid((radius - 1.1) * 4), (2 * along).cos() / 2 + 0.5)[kind]
    return (inside * pattern)[None]


generator = torch.Generator().manual_seed(0)
sizes = SMALLEST * (LARGEST / SMALLEST) ** torch.rand(48, generator=generator)
images = torch.stack([shape(float(size), index % 3, 0.8 * index) for index, size in enumerate(sizes)])

figure, grid = plt.subplots(2, 6, figsize=(7.2, 2.5), layout="constrained")
for axes, index in zip(grid.flat, sizes.argsort()[::4], strict=True):
    axes.imshow(images[index, 0], cmap="gray", vmin=0, vmax=1)
    axes.set_title(f"{sizes[index]:.1f} px", fontsize=9)
    axes.set_axis_off()

# %%
# How different are the sizes?
# ----------------------------
#
# Best is to know: from masks or boxes (``equiscale suggest --objects``), or from the set-up of the camera.
# Where nobody knows, the scale at which a blob detector answers most strongly is a guess. Here it overshoots:
# it takes the bars of a striped object, and the thin line of a ring, for objects of their own.

for name, found in {"known": sizes, "estimated": strongest_scales(images)}.items():
    low, high = factor_range(found.tolist())
    print(f"{name:>10}: from {low:.2f} to {high:.2f} of the median, a factor of {high / low:.2f}")

# %%
# Search
# ------
#
# A budget of five plain convolutions, counted in multiply-adds. The table has the least error on top; ``>``
# marks the chosen one, ``*`` the Pareto set.

found = suggest(
    images,
    factor_range=(1.0, LARGEST / SMALLEST),
    budget=5.0,
    space=SearchSpace(kernel_sizes=(5, 7, 9, 11), images=8, measured=16),
)
print(found)

# %%
# What is bought with more arithmetic
# -----------------------------------
#
# Every step down is a finer grid or a better basis. To the left of the line is what the budget allows.

figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
paint_trade_off(axes, [Option(**row) for row in found.trade_off()], budget=found.budget)
plt.show()

# %%
# Use it
# ------
#
# The last lines of the table are Python, and work as they stand.

scope: dict[str, object] = {}
exec(found.code, scope)
lift = scope["lift"]
print(lift)
print(tuple(lift(images[:2]).shape))
