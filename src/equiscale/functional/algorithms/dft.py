r"""Discrete Fourier transforms of images as products with small matrices.

On tens of pixels a product with a matrix at the speed of matrix products beats a fast transform, takes any
period, and costs nothing for zeros around the image and for pixels of the result that are not wanted. Images
are real, so half of the frequencies along one axis do. Everything lies in memory as ``(W, H, B, C)``: then each
axis in turn is the first or the last of a matrix, and nothing is ever transposed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_kept: dict[Any, Tensor] = {}


@dataclass(frozen=True)
class Periods:
    """A transform of given period along both axes.

    Args:
        height: P, the period along H.
        width: Q, the period along W.
    """

    height: int
    width: int

    @property
    def half(self) -> int:
        """Frequencies along W that determine a real image."""
        return self.width // 2 + 1

    @property
    def frequencies(self) -> int:
        """Of a real image, those along both axes."""
        return self.half * self.height


def spectrum(x: Tensor, periods: Periods) -> Tensor:
    r"""The transform of images, as three planes (−imaginary, real, imaginary).

    Shapes:
        x: ``(W, H, B, C)``, contiguous; result: ``(n, 3, B, C)`` for n frequencies.

    The first two planes are i times the last two, so that a complex product takes two real ones.
    """
    width, height, batch, channels = x.shape
    along_width = _matrix(_forward_half, (width, periods.width), x)  # (2·half, W)
    along_height = _matrix(_forward_planes, (height, periods.height), x)  # (3·P, 2·H)
    partial = (along_width @ x.reshape(width, -1)).view(periods.half, 2 * height, batch * channels)
    planes = torch.bmm(along_height.expand(periods.half, -1, -1), partial)
    return planes.view(periods.frequencies, 3, batch, channels)


def synthesis(y: Tensor, periods: Periods, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """The pixels in the given rows and columns, modulo the periods, of images with given transforms.

    Shapes:
        y: ``(n, 2, B, C)``; result: ``(W', H', B, C)``.
    """
    batch, channels = y.shape[2:]
    along_height = _matrix(_inverse_rows, (tuple(rows), periods.height), y)  # (2·H', 2·P)
    along_width = _matrix(_inverse_columns, (tuple(columns), periods.width), y)  # (W', 2·half)
    partial = torch.bmm(
        along_height.expand(periods.half, -1, -1),
        y.reshape(periods.half, 2 * periods.height, batch * channels),
    )
    pixels = along_width @ partial.view(2 * periods.half, len(rows) * batch * channels)
    return pixels.view(len(columns), len(rows), batch, channels)


def filter_spectrum(basis: Tensor, periods: Periods) -> Tensor:
    """The conjugate transform of the functions in their window, as real and imaginary planes.

    Shapes:
        basis: ``(F, k, k)``; result: ``(n, 2, F)``.
    """
    transform = torch.fft.rfft2(basis, s=(periods.height, periods.width)).conj()  # (F, P, half)
    planes = torch.stack([transform.real, transform.imag], -1)
    return planes.permute(2, 1, 3, 0).reshape(periods.frequencies, 2, len(basis))


def _matrix(build: Any, key: tuple[Any, int], like: Tensor) -> Tensor:
    """A constant matrix in the dtype and on the device of a tensor, kept for the next time."""
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return build(*key).to(like)  # a traced constant must not be kept
    place = (build, *key, like.dtype, like.device)
    if place not in _kept:
        with torch.inference_mode(False), torch.no_grad():
            _kept[place] = build(*key).to(like)
    return _kept[place]


def _phases(positions: Any, frequencies: int, period: int) -> Tensor:
    """2π·k·t / P, the product reduced modulo P first: (frequencies, positions)."""
    turns = torch.outer(torch.arange(frequencies), torch.as_tensor(positions)) % period
    return turns.double() * (2 * math.pi / period)


def _forward_half(size: int, period: int) -> Tensor:
    angles = _phases(range(size), period // 2 + 1, period)
    return torch.stack([angles.cos(), -angles.sin()], 1).flatten(0, 1)


def _forward_planes(size: int, period: int) -> Tensor:
    angles = _phases(range(size), period, period)
    cos, sin = angles.cos(), angles.sin()
    real, imaginary = torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)  # (P, 2, H)
    return torch.stack([-imaginary, real, imaginary], 1).flatten(2).flatten(0, 1)


def _inverse_rows(rows: tuple[int, ...], period: int) -> Tensor:
    angles = _phases(rows, period, period).T
    cos, sin = angles.cos() / period, angles.sin() / period
    real, imaginary = torch.stack([cos, -sin], 2), torch.stack([sin, cos], 2)  # (H', P, 2)
    return torch.cat([real, imaginary]).flatten(1)


def _inverse_columns(columns: tuple[int, ...], period: int) -> Tensor:
    angles = _phases(columns, period // 2 + 1, period).T
    twice = torch.full((period // 2 + 1,), 2.0, dtype=torch.float64)  # a frequency and its conjugate
    twice[0] = 1
    if period % 2 == 0:
        twice[-1] = 1
    return torch.stack([angles.cos() * twice, -angles.sin() * twice], 2).flatten(1) / period
