"""Tensors whose axes lie in memory in another order than they are named."""

import torch

# Contiguous, channels last, as products in the Fourier domain leave them, and one that nothing is made for.
MAP_ORDERS = [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (2, 4, 3, 0, 1), (3, 0, 4, 1, 2)]
IMAGE_ORDERS = [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 0, 1), (2, 0, 3, 1)]


def laid(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same values, with the axes in this order in memory."""
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])


def tied(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """-1, 0 or 1: of any few values some are equal."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(5)).to(dtype)
