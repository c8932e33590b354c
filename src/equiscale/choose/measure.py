"""How far a candidate is from equivariance on the data's own images."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from equiscale.choose.candidates import Candidate
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.scales import ScaleGrid
from equiscale.testing import equivariance_error

CROP: Final = 64
_CHANNELS: Final = 8
_DRAWS: Final = 3


class Probe(nn.Module):
    """A lifting convolution, ReLU, and a scale convolution, with weights drawn from a seed.

    Args:
        candidate: Grid, kernel and basis.
        in_channels: Of the images.
        seed: Of the weights.
    """

    def __init__(self, candidate: Candidate, *, in_channels: int, seed: int) -> None:
        super().__init__()
        if candidate.basis is None:
            raise ValueError("a candidate without a basis is not measured")
        options = {"kernel_size": candidate.kernel_size, "grid": candidate.grid, "basis": candidate.basis}
        self.lift = LiftConv2d(in_channels, _CHANNELS, padding="same", bias=False, **options)  # type: ignore[arg-type]
        self.conv = ScaleConv2d(_CHANNELS, _CHANNELS, padding="same", bias=False, **options)  # type: ignore[arg-type]
        self.grid: ScaleGrid = candidate.grid
        generator = torch.Generator().manual_seed(seed)
        self.lift.reset_parameters(generator)
        self.conv.reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        """The scale map."""
        y: Tensor = self.conv(self.lift(x).relu())
        return y


def error_on_grid(candidate: Candidate, images: Tensor, seed: int) -> float:
    r"""The equivariance error for enlargements from one scale of the grid to each other one.

    .. math:: \sqrt{\textstyle\frac{1}{D (S - 1)} \sum_{d, k} \epsilon_d(a^k)^2}, \qquad k = 1, \dots, S - 1

    over D draws of weights. Images are enlarged only: made smaller without a filter they would alias, and the
    pair of images is the same. What is nearer to the border than a quarter of the shorter side is left out.
    """
    step = candidate.grid.step or 1.0
    factors = [step**k for k in range(1, len(candidate.grid))]
    probes = (Probe(candidate, in_channels=images.shape[1], seed=seed + draw) for draw in range(_DRAWS))
    return root_mean_square(
        [error for probe in probes for error in equivariance_error(probe, images, factors).errors]
    )


def error_between(step: float, images: Tensor, *, effective_size: int, seed: int) -> float:
    """What an enlargement by half a step changes in the features of a plain network of the same weights.

    It is a property of the data and of the step alone: a basis that sees less detail is not rewarded for it.
    """
    errors: list[float] = []
    for draw in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed + draw)
        plain = _plain(images.shape[1], effective_size, generator)
        errors += equivariance_error(plain, images, [math.sqrt(step)]).errors
    return root_mean_square(errors)


def _plain(in_channels: int, side: int, generator: torch.Generator) -> nn.Sequential:
    convolutions = [
        nn.Conv2d(channels, _CHANNELS, side, padding=side // 2, bias=False)
        for channels in (in_channels, _CHANNELS)
    ]
    for convolution in convolutions:
        nn.init.kaiming_uniform_(convolution.weight, a=math.sqrt(5), generator=generator)
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])


def root_mean_square(values: Sequence[float]) -> float:
    """Of numbers.

    Example:
        >>> root_mean_square([3.0, 4.0]) == 12.5**0.5
        True
    """
    return math.sqrt(sum(value * value for value in values) / len(values))


# --- images ---


def prepared(images: Tensor, count: int, seed: int) -> Tensor:
    """At most so many images, cropped at random, in units of their deviation; the border's median is zero.

    So the zeros around an image go on with its background.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)[:count].sort().values
    x = torch.stack([_cropped(images[index], generator) for index in order.tolist()]).float()
    edges = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], dim=-1)  # (N, C, 2H + 2W)
    x = x - edges.median(-1).values[..., None, None]
    return x / x.std().clamp(min=1e-12)


def _cropped(image: Tensor, generator: torch.Generator) -> Tensor:
    for axis in (-2, -1):
        room = max(0, image.shape[axis] - CROP)
        start = int(torch.randint(room + 1, (), generator=generator))
        image = image.narrow(axis, start, min(CROP, image.shape[axis]))
    return image


def neighbour_correlation(images: Tensor) -> float:
    """Of neighbouring pixels, along both axes, between 0 and 0.99."""
    x = images.double()
    x = x - x.mean((2, 3), keepdim=True)
    across = (x[..., 1:] * x[..., :-1]).mean() + (x[..., 1:, :] * x[..., :-1, :]).mean()
    return min(0.99, max(0.0, float(across / (2 * x.square().mean()).clamp(min=1e-300))))
