r"""Discrete Fourier transforms of images as products with small matrices.

On tens of pixels a product with a matrix at the speed of matrix products beats a fast transform, takes any
period, and costs nothing for zeros around the image and for pixels of the result that are not wanted. Images
are real, so half of the frequencies along one axis do. Everything lies in memory as ``(W, H, B, C)``: then
each axis in turn is the first or the last of a matrix, and nothing is ever transposed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

# Matrices that are kept; images of ever new sizes have ever new ones.
_MOST: Final = 1024

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


def spectrum(x: Tensor, periods: Periods) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part of the transform of images.

    Shapes:
        x: ``(W, H, B, C)``, contiguous; each part: ``(n, B, C)`` for n frequencies.
    """
    width, height, batch, channels = x.shape
    along_width = _matrix(_forward_half, (width, periods.width), x)  # (2·half, W)
    partial = (along_width @ x.view(width, -1)).view(periods.half, 2 * height, batch * channels)
    real, imaginary = (
        torch.bmm(
            _matrix(build, (height, periods.height), x).expand(periods.half, -1, -1),
            partial,  # (P, 2·H)
        ).view(periods.frequencies, batch, channels)
        for build in (_forward_real, _forward_imaginary)
    )
    return real, imaginary


def synthesis(
    parts: tuple[Tensor, Tensor], periods: Periods, rows: Sequence[int], columns: Sequence[int]
) -> Tensor:
    """The pixels in the given rows and columns, modulo the periods, of images with given transforms.

    Shapes:
        parts: real and imaginary ``(n, B, C)``; result: ``(W', H', B, C)``.
    """
    batch, channels = parts[0].shape[1:]
    real, imaginary = (part.reshape(periods.half, periods.height, batch * channels) for part in parts)
    along_height = tuple(rows), periods.height
    from_real = _matrix(_inverse_of_real, along_height, real).expand(periods.half, -1, -1)  # (2·H', P)
    from_imaginary = _matrix(_inverse_of_imaginary, along_height, real).expand(periods.half, -1, -1)
    along_width = _matrix(_inverse_columns, (tuple(columns), periods.width), real)  # (W', 2·half)
    partial = torch.bmm(from_real, real).baddbmm_(from_imaginary, imaginary)
    del parts, real, imaginary  # not held together with the pixels, where the caller does not either
    pixels = along_width @ partial.view(2 * periods.half, len(rows) * batch * channels)
    return pixels.view(len(columns), len(rows), batch, channels)


def filter_spectrum(basis: Tensor, periods: Periods) -> Tensor:
    """The conjugate transform of the functions in their window, real part and imaginary part.

    Shapes:
        basis: ``(F, k, k)``; result: ``(2, n, F)``.
    """
    transform = torch.fft.rfft2(basis, s=(periods.height, periods.width)).conj()  # (F, P, half)
    parts = torch.stack([transform.real, transform.imag])
    return parts.permute(0, 3, 2, 1).reshape(2, periods.frequencies, len(basis))


def _matrix(build: Any, key: tuple[Any, int], like: Tensor) -> Tensor:
    """A constant matrix in the dtype and on the device of a tensor, kept for the next time."""
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        traced: Tensor = build(*key).to(like)  # not to be kept
        return traced
    place = (build, *key, like.dtype, like.device)
    kept = _kept.get(place)
    if kept is None:
        if len(_kept) >= _MOST:
            _kept.clear()
        with torch.inference_mode(False), torch.no_grad():
            kept = _kept[place] = build(*key).to(like)
    return kept


def _phases(positions: Any, frequencies: int, period: int) -> Tensor:
    """2π·k·t / P, the product reduced modulo P first: (frequencies, positions)."""
    turns = torch.outer(torch.arange(frequencies), torch.as_tensor(positions)) % period
    return turns.double() * (2 * math.pi / period)


def _forward_half(size: int, period: int) -> Tensor:
    angles = _phases(range(size), period // 2 + 1, period)
    return torch.stack([angles.cos(), -angles.sin()], 1).flatten(0, 1)


def _forward_real(size: int, period: int) -> Tensor:
    """From (cosine, sine) along W to the real part along both axes: (P, 2·H)."""
    angles = _phases(range(size), period, period)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _forward_imaginary(size: int, period: int) -> Tensor:
    angles = _phases(range(size), period, period)
    return torch.cat([-angles.sin(), angles.cos()], 1)


def _inverse_of_real(rows: tuple[int, ...], period: int) -> Tensor:
    """From a real part along both axes to (real, imaginary) along W: (2·H', P)."""
    angles = _phases(rows, period, period).T
    return torch.cat([angles.cos(), angles.sin()]) / period


def _inverse_of_imaginary(rows: tuple[int, ...], period: int) -> Tensor:
    angles = _phases(rows, period, period).T
    return torch.cat([-angles.sin(), angles.cos()]) / period


def _inverse_columns(columns: tuple[int, ...], period: int) -> Tensor:
    angles = _phases(columns, period // 2 + 1, period).T
    twice = torch.full((period // 2 + 1,), 2.0, dtype=torch.float64)  # a frequency and its conjugate
    twice[0] = 1
    if period % 2 == 0:
        twice[-1] = 1
    return torch.stack([angles.cos() * twice, -angles.sin() * twice], 2).flatten(1) / period
