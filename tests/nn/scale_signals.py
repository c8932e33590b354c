"""Blobs of known sizes, and the filter that answers to one size: what scale selection is measured with."""

import torch
from torch import Tensor

from equiscale.testing import BandLimitedImage

STEP = 2**0.5


def blobs(
    *, size: tuple[int, int], widths: tuple[float, float], generator: torch.Generator
) -> BandLimitedImage:
    """Four images of four bright Gaussian blobs each, whose standard deviations lie between two widths."""
    shape, (narrow, wide) = (4, 1, 4), widths

    def uniform(*trailing: int) -> Tensor:
        return torch.rand(*shape, *trailing, dtype=torch.float64, generator=generator)

    centers = (uniform(2) - 0.5) * 0.4 * torch.tensor(size)
    still = torch.zeros(*shape, 2, dtype=torch.float64)
    spread = narrow + (wide - narrow) * uniform()
    return BandLimitedImage(size, centers, spread, still, still[..., 0], 0.5 + uniform())


def blob_filter(kernel_size: int, sigma: float) -> Tensor:
    """The negative Laplacian of a Gaussian, (K, K), with sum 0 and L1 norm 1."""
    pixels = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    squared = pixels[:, None] ** 2 + pixels**2
    kernel = (2 - squared / sigma**2) * torch.exp(-squared / (2 * sigma**2))
    kernel = kernel - kernel.mean()
    return kernel / kernel.abs().sum()
