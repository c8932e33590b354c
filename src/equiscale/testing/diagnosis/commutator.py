"""How far are scaling before a layer and scaling after it from one another, under chosen conditions?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equiscale.testing.diagnosis.layers import Function, Lattice
from equiscale.testing.diagnosis.resampling import cosine_matrix, cubic_matrix, interlace, read

# Counting pixels in halves is exact; this only guards products with the factor.
_PIXEL = 1e-9


@dataclass(frozen=True)
class Scaling:
    """What is done to the features.

    Args:
        factor: a, larger than 1 enlarges.
        shift: k, by how many scales those of a scale map move up.
    """

    factor: float
    shift: int = 0

    def common(self, num_scales: int) -> tuple[int, int]:
        """The first and last + 1 of the scales that were on the axis before."""
        return max(self.shift, 0), num_scales + min(self.shift, 0)


@dataclass(frozen=True)
class Conditions:
    """What a comparison leaves out.

    Args:
        fine: The output is read from so many times as many pixels along each axis, where it lies between
            pixels; 1: from the pixels themselves, by bicubic interpolation.
        enlarged: The features go on beyond the canvas as far as the layer sees.
        aligned: The centre of scaling is that of the input, wherever the pixels of the output lie.
    """

    fine: int = 1
    enlarged: bool = False
    aligned: bool = False


@dataclass(frozen=True, eq=False)
class Features:
    """What a layer gets.

    Args:
        plain: Its input for the image.
        scaled: Its input for the scaled image, from which scales are taken that come in from outside.
    """

    plain: Tensor
    scaled: Tensor


@dataclass(frozen=True)
class Pair:
    """The layer as it works on scaled and on plain features; the same function twice, but for experiments."""

    on_scaled: Function
    on_plain: Function
    lattice: Lattice | None


def commutator(pair: Pair, features: Features, scaling: Scaling, conditions: Conditions) -> float | None:
    r"""The relative difference of scaling before a layer and after it.

    .. math:: \frac{\| L(T u) - T' L(u) \|}{\| T' L(u) \|}

    The features u between and beyond their pixels are those of a cosine series through them, which is
    scaled without interpolation. Compared are the pixels of the output whose own place and whose preimage
    are on the canvas, and the scales that were on the axis before.

    Returns:
        The error, or None where nothing can be compared.
    """
    canvas = _Canvas.of(features.plain, pair.lattice, conditions)
    actual = pair.on_scaled(canvas.scaled(features, scaling, conditions))
    if actual.ndim < 4 or min(actual.shape[-2:]) == 1:  # no pixels: an invariant
        return relative(actual, pair.on_plain(features.plain))
    finer = interlace(pair.on_plain(canvas.phases(features.plain, conditions.fine)), conditions.fine)
    places = [canvas.places(axis, actual.shape[axis - 2], scaling.factor, conditions) for axis in (0, 1)]
    readers = [
        cubic_matrix(finer.shape[axis - 2], conditions.fine * preimages)
        for axis, (_, preimages) in enumerate(places)
    ]
    if min(len(kept) for kept, _ in places) == 0:
        return None
    expected = read(finer, *readers)
    actual = actual[..., places[0][0], :][..., places[1][0]]
    return relative(*common_scales(actual, expected, features.plain, scaling))


def common_scales(actual: Tensor, expected: Tensor, x: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """The scales on both sides, where the outputs have all scales of the input."""
    if actual.ndim < 5 or expected.shape[2] != actual.shape[2]:
        return actual, expected
    first, last = scaling.common(actual.shape[2])
    return actual[:, :, first:last], expected[:, :, first - scaling.shift : last - scaling.shift]


def relative(actual: Tensor, expected: Tensor) -> float | None:
    """The relative L2 error; None for outputs that are empty, zero or of two shapes."""
    norm = float(expected.double().norm())
    if actual.shape != expected.shape or norm == 0 or not math.isfinite(norm):
        return None
    return float((actual.double() - expected.double()).norm()) / norm


def interior(size: int, factor: float) -> tuple[Tensor, Tensor]:
    """The pixels of a line whose preimages are on it, and these, about its centre."""
    return _inside(torch.arange(size), (size - 1) / 2, factor, bounds=(0.0, size - 1.0))


def _inside(
    pixels: Tensor, center: float, factor: float, *, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    preimages = center + (pixels.double() - center) / factor
    low, high = bounds[0] - _PIXEL, bounds[1] + _PIXEL
    kept = (pixels >= low) & (pixels <= high) & (preimages >= low) & (preimages <= high)
    return pixels[kept], preimages[kept]


@dataclass(frozen=True)
class _Canvas:
    """The pixels that a layer is given: those of the features, and some more around them."""

    size: tuple[int, int]
    extra: int
    lattice: Lattice

    @classmethod
    def of(cls, x: Tensor, lattice: Lattice | None, conditions: Conditions) -> "_Canvas":
        known = lattice or Lattice()
        steps = math.ceil(known.reach / known.stride) + 1 if conditions.enlarged and known.reach else 0
        return cls((x.shape[-2], x.shape[-1]), int(steps * known.stride), known)

    def scaled(self, features: Features, scaling: Scaling, conditions: Conditions) -> Tensor:
        """T u; what comes in from outside is as in the scaled image's features."""
        rows, columns = (self._around(axis) for axis in (0, 1))
        centers = [(size - 1) / 2 for size in self.size]
        before = [
            center + (line - center) / scaling.factor
            for center, line in zip(centers, (rows, columns), strict=True)
        ]
        if conditions.fine == 1:
            return self._as_measured(features, scaling, before)
        moved = self._read(features.plain, *before)
        if moved.ndim == 5 and scaling.shift:
            incoming = self._read(features.scaled, rows, columns)
            return shift_scales(moved, incoming, scaling)
        return moved

    def _as_measured(self, features: Features, scaling: Scaling, before: list[Tensor]) -> Tensor:
        """By bicubic interpolation of the features."""
        matrices = [cubic_matrix(size, line) for size, line in zip(self.size, before, strict=True)]
        moved = read(features.plain, *matrices)
        inside = [
            (line >= -_PIXEL) & (line <= size - 1 + _PIXEL)
            for size, line in zip(self.size, before, strict=True)
        ]
        both = (inside[0][:, None] & inside[1]).to(moved.device)
        scaled = features.scaled
        if moved.ndim == 5 and scaling.shift:
            moved = shift_scales(moved, scaled, scaling)
        return torch.where(both, moved, scaled)

    def phases(self, x: Tensor, fine: int) -> Tensor:
        """Copies of u, each moved by a part of the output's pixel; (fine², B, ...) flattened."""
        if fine == 1:
            return x
        parts = [self.lattice.stride * phase / fine for phase in range(fine)]
        rows, columns = (self._around(axis) for axis in (0, 1))
        return torch.cat([self._read(x, rows + y, columns + z) for y in parts for z in parts])

    def places(self, axis: int, count: int, factor: float, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """The pixels of the output that are compared, and their preimages."""
        margin = self.extra / self.lattice.stride  # whole
        bounds = (margin, count - 1 - margin)
        center = (count - 1) / 2
        if conditions.aligned:
            middle = (self.size[axis] - 1) / 2 + self.extra
            center = (middle - self.lattice.offset) / self.lattice.stride
        return _inside(torch.arange(count), center, factor, bounds=bounds)

    def _around(self, axis: int) -> Tensor:
        return torch.arange(-self.extra, self.size[axis] + self.extra, dtype=torch.float64)

    def _read(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return read(x, cosine_matrix(self.size[0], rows), cosine_matrix(self.size[1], columns))


def shift_scales(moved: Tensor, incoming: Tensor, scaling: Scaling) -> Tensor:
    """Scale s to s + k; the scales that come in are those of another scale map."""
    shifted = incoming.clone()
    first, last = scaling.common(moved.shape[2])
    shifted[:, :, first:last] = moved[:, :, first - scaling.shift : last - scaling.shift]
    return shifted
