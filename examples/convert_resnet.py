"""
Convert a ResNet-18
===================

An ordinary ResNet-18, trained on shapes of one size, becomes scale-equivariant with one call. It keeps its
weights, and knows shapes of sizes that it was never trained on.
"""

# %%
# An ordinary network
# -------------------
#
# The usual definition, narrow so that this page is built in seconds. Nothing in it knows of scales.

from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale import ScaleGrid, convert


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for number, (c_in, c_out) in enumerate(pairwise(widths), start=1):
            stride = 1 if number == 1 else 2
            stage = nn.Sequential(Block(c_in, c_out, stride), Block(c_out, c_out, 1))
            self.add_module(f"layer{number}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


# %%
# Shapes of one size
# ------------------
#
# Three shapes of one of six kinds, anywhere and at any angle. They are drawn from formulas, so that a factor
# enlarges the image without resampling it.

torch.set_num_threads(1)  # such small operations gain nothing from more
SIDE = 32


def drawn(count: int, *, seed: int, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=generator)
    centers = torch.rand(count, 3, 2, 1, 1, generator=generator) * (SIDE - 12) + 6 - SIDE / 2
    radius = 4.5 * (0.9 + 0.2 * torch.rand(count, 3, 1, 1, generator=generator))
    angle = 2 * torch.pi * torch.rand(count, 3, 1, 1, generator=generator)
    pixels = round(SIDE * factor)
    position = (torch.arange(pixels) - (pixels - 1) / 2) / factor
    y, x = position[:, None] - centers[:, :, 0], position - centers[:, :, 1]  # (count, 3, pixels, pixels)
    u, v = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    distance, side = torch.hypot(u, v), torch.maximum(u.abs(), v.abs())

    def bar(along: Tensor, across: Tensor) -> Tensor:
        return torch.maximum(along.abs() - radius, across.abs() - 1)

    kinds = [
        distance - 0.9 * radius,  # disc
        (distance - 0.85 * radius).abs() - 1,  # ring
        torch.minimum(bar(u, v), bar(v, u)),  # cross
        (side - 0.8 * radius).abs() - 1,  # frame
        bar(u, v),  # bar
        torch.minimum(bar(u, v - 2), bar(u, v + 2)),  # two bars
    ]
    edge = torch.stack(kinds, 1)[torch.arange(count), labels]  # negative inside
    return torch.sigmoid(-3 * edge).amax(1, keepdim=True), labels


FACTORS = [0.5, 0.71, 1.0, 1.41, 2.0]
train, labels = drawn(800, seed=0)
tests = {factor: drawn(200, seed=1, factor=factor) for factor in FACTORS}


def fit(network: nn.Module, *, epochs: int, rate: float, count: int = 800) -> nn.Module:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(count, generator=generator).split(40):
            optimizer.zero_grad()
            cross_entropy(network(train[chosen]), labels[chosen]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracies(network: nn.Module) -> list[float]:
    return [100 * (network(x).argmax(1) == truth).float().mean().item() for x, truth in tests.values()]


torch.manual_seed(0)
resnet = fit(ResNet18(width=4), epochs=8, rate=0.005)
fit(resnet, epochs=2, rate=0.001)

# %%
# One call
# --------
#
# The 3×3 filters become filters on three scales. On the smallest they are what they were, hence the residuals
# of zero. The report says what became of every module, and what it costs.

converted, report = convert(resnet, ScaleGrid([1.0, 2**0.5, 2.0]), example=train[:2])
print(report)

# %%
# With a grid of one scale the converted network *is* the original:

same, _ = convert(resnet, ScaleGrid([1.0]), example=train[:2])
print(f"largest difference: {(same(train[:8]) - resnet(train[:8])).abs().max():.1e}")

# %%
# Before and after
# ----------------
#
# The maximum over scales changes the statistics that the head sees, so that the network is trained on for a
# moment: half an epoch, still on shapes of the one size. The original gets the same.

curves = {"ResNet-18": accuracies(resnet), "converted": accuracies(converted)}
fit(resnet, epochs=1, rate=0.0003, count=400)
fit(converted, epochs=1, rate=0.0003, count=400)
curves["ResNet-18, trained on"] = accuracies(resnet)
curves["converted, trained on"] = accuracies(converted)

print(f"{'factor':>24}" + "".join(f"{factor:7.2f}" for factor in FACTORS))
for name, values in curves.items():
    print(f"{name:>24}" + "".join(f"{value:7.1f}" for value in values))

figure, (shapes, axes) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1, 1.6), layout="constrained")
tiles = [train[labels == kind][0, 0] for kind in range(6)]
shapes.imshow(torch.cat([torch.cat(tiles[:3], 1), torch.cat(tiles[3:], 1)]), cmap="gray")
shapes.set_title("one image of each kind", fontsize="medium")
shapes.axis("off")
styles = {
    "ResNet-18": "C0o:",
    "ResNet-18, trained on": "C0o-",
    "converted": "C1s:",
    "converted, trained on": "C1s-",
}
for name, style in styles.items():
    axes.plot(FACTORS, curves[name], style, label=name)
axes.set_xscale("log", base=2)
axes.set_xticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
axes.minorticks_off()
axes.axhline(100 / 6, color="0.8", zorder=0)
axes.set_xlabel("size of the shapes, relative to those trained on")
axes.set_ylabel("accuracy in percent")
axes.set_ylim(0, 101)
axes.legend(frameon=False, loc="upper left", fontsize="small")
plt.show()

# %%
# Larger shapes gain, smaller ones do not: a 3×3 filter cannot be made smaller on the pixel grid. `The page on
# conversion <../convert.html>`_ has the same comparison on photographs.
