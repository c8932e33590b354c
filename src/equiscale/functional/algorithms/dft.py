r"""Discrete Fourier transforms of images as products with small matrices.

On tens of pixels a product with a matrix at the speed of matrix products beats a fast transform, takes any
period, and costs nothing for zeros around the image and for pixels of the result that are not wanted. Images
are real, so half of the frequencies along one axis do. Everything lies in memory as ``(W, H, B, C)``: then
each axis in turn is the first or the last of a matrix, and nothing is ever transposed.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

Parts: TypeAlias = tuple[Tensor, Tensor]  # real and imaginary

_ALL: Final = slice(None)

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


def spectrum(x: Tensor, periods: Periods, band: slice = _ALL) -> Parts:
    """The real and the imaginary part of the transform of images.

    Shapes:
        x: ``(W, H, B, C)``, contiguous; each part: ``(n, B, C)`` for the n frequencies of a band along W.
    """
    width, height, batch, channels = x.shape
    along_width = _of_band(_matrix(_forward_half, (width, periods.width), x), band)  # (2·half, W)
    partial = (along_width @ x.view(width, -1)).view(-1, 2 * height, batch * channels)
    real, imaginary = (
        torch.bmm(matrix.expand(len(partial), -1, -1), partial).view(-1, batch, channels)
        for matrix in _along_height(periods, height, x)
    )
    return real, imaginary


def add_spectrum_adjoint(parts: Parts, periods: Periods, band: slice, out: Tensor) -> None:
    """Add to images (W, H, B, C) what the adjoint of `spectrum` makes of the parts of a band."""
    width, height = out.shape[:2]
    of_real, of_imaginary = _along_height(periods, height, out)  # (P, 2·H)
    partial = _bmm_sum((of_real.T, of_imaginary.T), parts, periods)  # (half, 2·H, B·C)
    along_width = _of_band(_matrix(_forward_half, (width, periods.width), out), band)
    out.view(width, -1).addmm_(along_width.T, partial.view(len(along_width), -1))


@dataclass(frozen=True)
class Pixels:
    """Those of an image that are wanted of its transform.

    Args:
        periods: Of the transform.
        rows: Their rows, modulo the period.
        columns: Their columns.
    """

    periods: Periods
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def along_height(self, like: Tensor) -> Parts:
        """From the real and from the imaginary part to (real, imaginary) along W: (2·H', P)."""
        key = self.rows, self.periods.height
        return _matrix(_inverse_of_real, key, like), _matrix(_inverse_of_imaginary, key, like)

    def along_width(self, like: Tensor) -> Tensor:
        """From (real, imaginary) along W: (W', 2·half)."""
        return _matrix(_inverse_columns, (self.columns, self.periods.width), like)


def synthesis(parts: Parts, wanted: Pixels) -> Tensor:
    """The wanted pixels of images with given transforms.

    Shapes:
        parts: real and imaginary ``(n, B, C)``; result: ``(W', H', B, C)``.
    """
    batch, channels = parts[0].shape[1:]
    along_width = wanted.along_width(parts[0])
    partial = _bmm_sum(wanted.along_height(parts[0]), parts, wanted.periods)
    del parts  # not held together with the pixels, where the caller does not either
    pixels = along_width @ partial.view(2 * wanted.periods.half, -1)
    return pixels.view(len(wanted.columns), len(wanted.rows), batch, channels)


def add_synthesis(parts: Parts, wanted: Pixels, band: slice, out: Tensor) -> None:
    """Add what a band contributes to the wanted pixels (W', H', B, C); the first band overwrites them."""
    along_width = _of_band(wanted.along_width(out).T, band)  # (2·half, W')
    partial = _bmm_sum(wanted.along_height(out), parts, wanted.periods)
    beta = 0 if band.start == 0 else 1
    out.view(len(out), -1).addmm_(along_width.T, partial.view(len(along_width), -1), beta=beta)


def synthesis_adjoint(pixels: Tensor, wanted: Pixels, band: slice) -> Parts:
    """The adjoint of `synthesis`, of one band: from (W', H', B, C) to (n, B, C)."""
    width, height, batch, channels = pixels.shape
    along_width = _of_band(wanted.along_width(pixels).T, band)
    partial = (along_width @ pixels.view(width, -1)).view(-1, 2 * height, batch * channels)
    real, imaginary = (
        torch.bmm(matrix.T.expand(len(partial), -1, -1), partial).view(-1, batch, channels)
        for matrix in wanted.along_height(pixels)
    )
    return real, imaginary


def _along_height(periods: Periods, height: int, like: Tensor) -> Parts:
    """From (cosine, sine) along W to the real and to the imaginary part: (P, 2·H)."""
    key = height, periods.height
    return _matrix(_forward_real, key, like), _matrix(_forward_imaginary, key, like)


def _bmm_sum(matrices: Parts, parts: Parts, periods: Periods) -> Tensor:
    """A matrix of the real and one of the imaginary part, added up: (n, B, C) to (half, M, B·C)."""
    real, imaginary = (part.reshape(-1, periods.height, part[0].numel()) for part in parts)
    of_real, of_imaginary = (matrix.expand(len(real), -1, -1) for matrix in matrices)
    return torch.bmm(of_real, real).baddbmm_(of_imaginary, imaginary)


def _of_band(along_width: Tensor, band: slice) -> Tensor:
    """The rows of real and imaginary parts of a band."""
    return along_width if band == _ALL else along_width[2 * band.start : 2 * band.stop]


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
