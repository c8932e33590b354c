"""
A rhythm at another tempo
=========================

Four rhythms of plucked notes are to be told apart. The training hears them at one tempo; the test plays them
slower and faster, as a tape does. A network of :class:`equiscale.nn.LiftConv1d` and
:class:`equiscale.nn.ScaleConv1d` is compared with one of ordinary convolutions and as many weights.
"""

# %%
# The rhythms
# -----------
# A rhythm is four notes with three pauses between them. No rhythm is another one stretched. Each note is a
# short decaying chirp; the whole is rendered from its formula at any tempo, shifted at random, of random
# loudness, and with noise. A factor of 2 is half the tempo: everything lasts twice as long.

import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from equiscale import ScaleGrid
from equiscale.basis import BSplineBasis
from equiscale.nn import LiftConv1d, ScaleAvgPool1d, ScaleBatchNorm1d, ScaleConv1d, ScaleProjection1d

torch.set_num_threads(1)  # a second thread would mostly wait
RHYTHMS = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 1.0], [2.0, 1.0, 1.0], [4 / 3, 4 / 3, 4 / 3]])
LENGTH, BEAT = 256, 20.0


def note(t: Tensor) -> Tensor:
    """A plucked note: a fast attack, a decay, and a pitch that falls."""
    envelope = torch.where(t > 0, 1 - torch.exp(-t.clamp_min(0) / 0.6), 0) * torch.exp(-t.clamp_min(0) / 4)
    return envelope * torch.sin(1.1 * t - 0.02 * t**2)


def played(labels: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Rhythms ``(B, 1, L)`` of a tempo about the middle of the recording."""
    count = len(labels)
    onsets = torch.cat([torch.zeros(count, 1), RHYTHMS[labels].cumsum(1)], 1) * BEAT  # (B, 4)
    onsets = onsets - 2 * BEAT + 8 * (torch.rand(count, 1, generator=generator) - 0.5)
    time = (torch.arange(LENGTH) - LENGTH / 2) / factor
    notes = note(time - onsets[:, :, None])  # (B, 4, L)
    loudness = 0.6 + 0.8 * torch.rand(count, 4, 1, generator=generator)
    noise = 0.05 * torch.randn(count, 1, LENGTH, generator=generator)
    return (notes * loudness).sum(1, keepdim=True) + noise


# %%
# Two networks
# ------------
# The plain one has filters of 7 weights. The other one has the same 7 weights a filter, as those of B-splines
# on 7 knots, which lie 1, 1.4, 2 … pixels apart on its scales. A stage ends with the mean of two neighbours.

GRID = ScaleGrid.geometric(1.0, 2**0.5, 5)
STEERABLE = {"kernel_size": 37, "grid": GRID, "basis": BSplineBasis(7), "padding": "same", "bias": False}
CHANNELS = (1, 8, 12, 12, 16)


class GlobalMax(nn.Module):
    """The maximum over time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(-1)


def plain_network() -> nn.Sequential:
    stages: list[nn.Module] = []
    for c_in, c_out in pairwise(CHANNELS):
        conv = nn.Conv1d(c_in, c_out, 7, padding=3, bias=False)
        stages += [conv, nn.BatchNorm1d(c_out), nn.ReLU(), nn.AvgPool1d(2)]
    return nn.Sequential(*stages, GlobalMax(), nn.Linear(CHANNELS[-1], 4))


def scale_network() -> nn.Sequential:
    stages: list[nn.Module] = []
    for c_in, c_out in pairwise(CHANNELS):
        conv = (LiftConv1d if not stages else ScaleConv1d)(c_in, c_out, **STEERABLE)
        stages += [conv, ScaleBatchNorm1d(c_out), nn.ReLU(), ScaleAvgPool1d(2)]
    return nn.Sequential(*stages, ScaleProjection1d(), GlobalMax(), nn.Linear(CHANNELS[-1], 4))


# %%
# Training at one tempo
# ---------------------


def trained(network: nn.Sequential, steps: int = 120) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        labels = torch.randint(4, (32,), generator=generator)
        loss = nn.functional.cross_entropy(network(played(labels, 1.0, generator)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Sequential, factor: float) -> float:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(400) % 4
    return float((network(played(labels, factor, generator)).argmax(1) == labels).float().mean())


torch.manual_seed(0)
networks = {"ordinary convolutions": plain_network(), "scale convolutions": scale_network()}
counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
print(counts)
for network in networks.values():
    trained(network)

# %%
# Other tempos
# ------------
# Chance is 25 %. The axis of scales has an end: what the training saw on the largest scale is beyond it in a
# slower recording, and what it saw on the smallest one in a faster one.

FACTORS = [2 ** (power / 4) for power in range(-4, 5)]
curves = {name: [100 * accuracy(network, factor) for factor in FACTORS] for name, network in networks.items()}
print(f"{'factor':>24}" + "".join(f"{factor:7.2f}" for factor in FACTORS))
for name, curve in curves.items():
    print(f"{name:>24}" + "".join(f"{value:7.1f}" for value in curve))

figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), layout="constrained")
example = torch.Generator().manual_seed(2)
for offset, factor in enumerate((0.7, 1.0, 1.5)):
    signal = played(torch.tensor([0]), factor, example)[0, 0]
    top.plot(signal / 2 + offset, linewidth=1, label=f"factor {factor}")
top.set(title="One rhythm at three tempos", xlabel="time in samples", yticks=[])
top.legend(loc="upper right")
for name, curve in curves.items():
    bottom.plot(FACTORS, curve, marker="o", label=name)
bottom.axhline(25, color="grey", linestyle=":", label="chance")
bottom.set_xscale("log", base=math.sqrt(2))
bottom.set_xticks(FACTORS[::2], [f"{factor:.2f}" for factor in FACTORS[::2]])
bottom.set(title="Trained at factor 1", xlabel="duration", ylabel="accuracy in %")
bottom.legend()
plt.show()
