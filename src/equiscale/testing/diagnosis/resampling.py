"""Features as functions of real positions: read between the pixels, and beyond them."""

import torch
from torch import Tensor

from equiscale.functional.rescale import CUBIC_KEYS


def cosine_matrix(size: int, positions: Tensor) -> Tensor:
    r"""Read a line of pixels at any position, as the cosine series through all of them.

    .. math:: u(p) = \sum_i u_i \frac{1}{n} \Big( 1 + 2 \sum_{m = 1}^{n - 1}
        \cos \frac{\pi m (p + 1/2)}{n} \cos \frac{\pi m (i + 1/2)}{n} \Big)

    The series is even about both ends of the line, so that it goes on beyond them without a jump.

    Shapes:
        positions: ``(P,)``, in pixels; result: ``(P, size)``.

    Args:
        size: n.
        positions: p.

    Exactness:
        At the pixels themselves the identity up to rounding.
    """
    orders = torch.arange(1, size, dtype=torch.float64)
    pixels = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(torch.pi * orders * (positions.double()[:, None] + 0.5) / size)  # (P, n - 1)
    own = torch.cos(torch.pi * orders * (pixels[:, None] + 0.5) / size)  # (n, n - 1)
    return (1 + 2 * waves @ own.T) / size


def cubic_matrix(size: int, positions: Tensor) -> Tensor:
    """Read a line of pixels at any position by Keys' cubic; the border pixel is repeated.

    Shapes:
        positions: ``(P,)``, in pixels; result: ``(P, size)``.

    Args:
        size: The number of pixels.
        positions: Where to read.
    """
    positions = positions.double()
    first = positions.floor()
    matrix = torch.zeros(len(positions), size, dtype=torch.float64)
    for tap in (-1, 0, 1, 2):
        place = (first + tap).clamp(0, size - 1).long()
        matrix.scatter_add_(1, place[:, None], _keys((positions - first - tap).abs())[:, None])
    return matrix


def _keys(distance: Tensor) -> Tensor:
    a, d = CUBIC_KEYS, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def read(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply a matrix to the rows and one to the columns of ``(..., H, W)``."""
    return rows.to(x) @ x @ columns.to(x).T


def interlace(y: Tensor, fine: int) -> Tensor:
    """Fine² copies, each a part of a pixel further on, as one finer picture.

    Shapes:
        y: ``(fine * fine * B, ..., H, W)``, the row's phase outermost; result:
        ``(B, ..., fine * H, fine * W)``.

    Args:
        y: The copies.
        fine: How many to a pixel, along each axis.
    """
    y = y.reshape(fine, fine, -1, *y.shape[1:])  # (fine, fine, B, ..., H, W)
    y = y.movedim(0, -2).movedim(0, -1)  # (B, ..., H, fine, W, fine)
    return y.flatten(-4, -3).flatten(-2, -1)
