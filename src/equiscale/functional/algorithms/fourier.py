"""Products in the Fourier domain: the input is transformed once, the filters are made there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed, result_dtype, working_dtype
from equiscale.functional.algorithms.cropped import cropped
from equiscale.functional.algorithms.dft import Parts, Periods, Pixels, filter_spectrum, spectrum, synthesis
from equiscale.functional.blockwise import applied

# Images whose products take as long as the filters take to come from memory.
_STREAMED: Final = 16

# Results along one side of a tile that are tried; beyond some tens the transforms cost too much.
_TILES: Final = (8, 12, 16, 20, 24, 28, 32, 40, 48)


@dataclass(frozen=True)
class Cut:
    """One axis cut into overlapping tiles.

    Args:
        tiles: Their number.
        side: Pixels of the input in a tile.
        step: From one tile to the next.
        period: Of the transform; no window of the filters meets a pixel twice.
        starts: Where the windows of a tile's results begin, modulo the period.
        before: Zeros before the first tile.
    """

    tiles: int
    side: int
    step: int
    period: int
    starts: tuple[int, ...]
    before: int = 0

    def overlap(self, tile: int, size: int) -> tuple[slice, slice]:
        """The pixels of a tile that lie in an image of this size, counted in the tile and in the image."""
        first = tile * self.step - self.before
        start, stop = max(first, 0), max(min(first + self.side, size), 0)
        return slice(start - first, stop - first), slice(start, stop)


Tiling: TypeAlias = tuple[Cut, Cut]  # along H and along W


def fourier(convolution: Convolution) -> Iterator[Image]:
    """A product a frequency in place of a sum over the window; the definition under torch.func."""
    if convolution.transformed:
        yield from cropped(convolution)
        return
    spectra: dict[int, Parts] = {}
    for scale, (window, cuts) in enumerate(tilings(convolution)):
        with torch.autocast(convolution.x.device.type, enabled=False):
            y = _scale(convolution, scale, window, spectra, cuts)
        spectra = spectra if convolution.lifts else {k: v for k, v in spectra.items() if k > scale}
        yield y.to(result_dtype(convolution.x))


def _scale(
    convolution: Convolution, scale: int, window: int, spectra: dict[int, Parts], cuts: Tiling
) -> Image:
    rows, columns = cuts
    wanted = Pixels(Periods(rows.period, columns.period), rows.starts, columns.starts)
    # The transforms in passing, so that it can let go of them.
    pixels = synthesis(_transform(convolution, scale, window, spectra, cuts), wanted)
    pixels = _joined(pixels, rows, columns, convolution.output_size)  # (W', H', B, C')
    if convolution.bias is not None:
        pixels = pixels + convolution.bias.to(pixels.dtype)
    return pixels.permute(2, 3, 1, 0)


def _transform(
    convolution: Convolution, scale: int, window: int, spectra: dict[int, Parts], cuts: Tiling
) -> Parts:
    """The transform of one scale of the result: the sum over the slots of its filters."""
    sums: list[Tensor] = []
    for number, slot in enumerate(convolution.slots(scale)):
        place = 0 if convolution.lifts else slot
        if place not in spectra:
            spectra[place] = _seen(convolution, slot, window, cuts)
        kernels = filters(convolution, scale, number, window, Periods(cuts[0].period, cuts[1].period))
        parts = _product(spectra[place], kernels, convolution)
        sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else list(parts)
    return sums[0], sums[1]


def _seen(convolution: Convolution, slot: int, window: int, cuts: Tiling) -> Parts:
    """The transform of what one scale holds."""
    rows, columns = cuts
    x = convolution.images[slot].to(working_dtype(convolution.x))
    x, _ = framed(x, convolution.margin(window), convolution.geometry)
    pixels = x.permute(3, 2, 0, 1)
    if rows.tiles > 1 or columns.tiles > 1:
        pixels = applied(_Tiles, pixels, rows, columns)
    return spectrum(pixels.contiguous(), Periods(rows.period, columns.period))


class _Tiles(torch.autograd.Function):
    """From (W, H, B, C) to overlapping tiles (side, side, tiles·B, C), zeros beyond the border."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Cut, columns: Cut) -> Tensor:
        ctx.cuts, ctx.size = (rows, columns), x.shape
        shape = (columns.side, rows.side, columns.tiles, rows.tiles, *x.shape[2:])
        tiles = x.new_zeros(shape)
        for column, row, (there, here) in _overlaps(rows, columns, x.shape[:2]):
            tiles[(*there, column, row)] = x[here]
        return tiles.flatten(2, 4)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return applied(_Untiled, grad, *ctx.cuts, ctx.size), None, None


class _Untiled(torch.autograd.Function):
    """The sum of overlapping tiles in their places: the adjoint of `_Tiles`."""

    @staticmethod
    def forward(ctx: Any, tiles: Tensor, rows: Cut, columns: Cut, size: torch.Size) -> Tensor:
        ctx.cuts = rows, columns
        tiles = tiles.reshape(*tiles.shape[:2], columns.tiles, rows.tiles, *size[2:])
        x = tiles.new_zeros(size)
        for column, row, (there, here) in _overlaps(rows, columns, size[:2]):
            x[here] += tiles[(*there, column, row)]
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return applied(_Tiles, grad, *ctx.cuts), None, None, None


_Slices: TypeAlias = tuple[slice, slice]


def _overlaps(
    rows: Cut, columns: Cut, size: Sequence[int]
) -> Iterator[tuple[int, int, tuple[_Slices, _Slices]]]:
    """Every tile's column and row, with the slices of the tile and of the image that are the same pixels."""
    for column in range(columns.tiles):
        for row in range(rows.tiles):
            (across, wide), (down, high) = columns.overlap(column, size[0]), rows.overlap(row, size[1])
            yield column, row, ((across, down), (wide, high))


def _joined(pixels: Tensor, rows: Cut, columns: Cut, size: tuple[int, int]) -> Tensor:
    """From (results, results, tiles·B, C) to (W', H', B, C)."""
    if rows.tiles == columns.tiles == 1:
        return pixels
    apart = pixels.reshape(*pixels.shape[:2], columns.tiles, rows.tiles, -1, pixels.shape[3])
    return apart.permute(2, 0, 3, 1, 4, 5).flatten(2, 3).flatten(0, 1)[: size[1], : size[0]]


def tilings(convolution: Convolution) -> list[tuple[int, Tiling]]:
    """For every scale the window of its filters, and the cut; the same for all where they see one image."""
    if convolution.lifts or convolution.weight.shape[2] > 1:
        common = max(convolution.sides)
        return [(common, tiling(convolution, common)[0])] * convolution.num_scales
    return [(own, tiling(convolution, own)[0]) for own in convolution.sides]


def tiling(convolution: Convolution, window: int) -> tuple[Tiling, int]:
    """The cut of least arithmetic, and that arithmetic: operations of the forward pass of all scales."""
    geometry, margin = convolution.geometry, convolution.margin(window)
    framed_side = 0 if margin > 0 and geometry.padding_mode == "zeros" else 2 * margin
    sides = [side + framed_side for side in convolution.x.shape[-2:]]
    margin = 0 if framed_side else margin
    candidates = []
    for results in (None, *_TILES):
        cuts = [
            _cut(side, window, margin, count, geometry.stride, results)
            for side, count in zip(sides, convolution.output_size, strict=True)
        ]
        candidates.append(((cuts[0], cuts[1]), _operations(convolution, cuts[0], cuts[1])))
    best = candidates[0]
    for candidate in candidates:  # not min(key=…), which no compiler follows with free sizes
        best = candidate if candidate[1] < best[1] else best
    return best


def _cut(side: int, window: int, margin: int, count: int, stride: int, results: int | None) -> Cut:
    if results is None or results >= count:  # one tile: the zeros around it cost nothing
        starts = tuple(index * stride - margin for index in range(count))
        return Cut(1, side, 1, max(window + max(starts[-1], 0), side + margin), starts)
    starts = tuple(index * stride for index in range(results))
    side = starts[-1] + window
    return Cut(-(-count // results), side, results * stride, side, starts, margin)


def _operations(convolution: Convolution, rows: Cut, columns: Cut) -> int:
    """Of the transforms, the products and the filters, of all scales."""
    weight, scales = convolution.weight, convolution.num_scales
    fan_out, fan_in, slots, functions = weight.shape
    channels = fan_in * convolution.geometry.groups
    images = convolution.x.shape[0] * rows.tiles * columns.tiles
    half, period = columns.period // 2 + 1, rows.period
    forward = 4 * half * rows.side * (columns.side + 2 * period) * channels
    forward *= 1 if convolution.lifts else scales
    products = 8 * half * period * fan_out * fan_in * slots * scales
    inverse = 4 * half * len(rows.starts) * (2 * period + len(columns.starts)) * fan_out * scales
    filters = 4 * half * period * functions * fan_out * fan_in * slots * scales
    return images * (forward + products + inverse) + products * _STREAMED + filters


def filters(convolution: Convolution, scale: int, number: int, window: int, periods: Periods) -> Parts:
    """The transforms of one slot's filters, real and imaginary: (n·groups, C / groups, C' / groups)."""

    def build() -> Parts:
        return filters_of(
            slot_matrix(convolution, number), basis_spectrum(convolution, scale, window, periods), convolution
        )

    key = ("spectra", scale, number, window, periods, working_dtype(convolution.x))
    return convolution.kept(key, build)


def basis_spectrum(convolution: Convolution, scale: int, window: int, periods: Periods) -> Tensor:
    """The transforms of the functions, real and imaginary: (2, n, F)."""
    dtype = working_dtype(convolution.x)

    def build() -> Tensor:
        return filter_spectrum(convolution.window_basis(scale, window).to(dtype), periods)

    return convolution.kept_of_basis(("spectra", scale, window, periods, dtype), build)


def slot_matrix(convolution: Convolution, number: int) -> Tensor:
    """The weights of one slot: (F, groups·C/groups·C'/groups)."""
    groups = convolution.geometry.groups
    weight = convolution.weight[:, :, number].to(working_dtype(convolution.x))
    by_group = weight.view(groups, -1, *weight.shape[1:]).permute(3, 0, 2, 1)
    return by_group.reshape(len(by_group), -1)


def filters_of(matrix: Tensor, basis: Tensor, convolution: Convolution) -> Parts:
    """The transforms of a slot's filters, each (n·groups, C / groups, C' / groups), of the functions'."""
    fan_out, fan_in, groups = *convolution.weight.shape[:2], convolution.geometry.groups
    real, imaginary = ((part @ matrix).view(-1, fan_in, fan_out // groups) for part in basis)
    return real, imaginary


def _product(seen: Parts, kernels: Parts, convolution: Convolution) -> Parts:
    """Multiply every frequency's channels by its matrix: (n, B, C) to (n, B, C')."""
    groups = convolution.geometry.groups
    multiply: Any = _ComplexProduct.apply
    return together(multiply(*by_group(seen, groups), *kernels), groups)


def by_group(parts: Parts, groups: int) -> Parts:
    """From (n, B, C) to (n·groups, B, C / groups)."""
    if groups == 1:
        return parts
    real, imaginary = (part.view(*part.shape[:2], groups, -1).transpose(1, 2).flatten(0, 1) for part in parts)
    return real, imaginary


def together(parts: Parts, groups: int) -> Parts:
    """The way back."""
    if groups == 1:
        return parts
    real, imaginary = (part.view(-1, groups, *part.shape[1:]).transpose(1, 2).flatten(2) for part in parts)
    return real, imaginary


class _ComplexProduct(torch.autograd.Function):
    """Matrix products of complex numbers in parts: (n, B, C) times (n, C, C') gives (n, B, C')."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Parts:
        ctx.save_for_backward(*parts)
        return multiply(parts[:2], parts[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_real, x_imaginary, w_real, w_imaginary = ctx.saved_tensors
        of_x: tuple[Tensor | None, ...] = (None, None)
        of_w: tuple[Tensor | None, ...] = (None, None)
        with torch.autocast(x_real.device.type, enabled=False):  # where the caller's reaches around backward
            grads = tuple(grad.to(x_real.dtype) for grad in grads)
            if ctx.needs_input_grad[0]:
                of_x = multiply(grads, (w_real.mT, w_imaginary.mT), signs=(1, -1))
            if ctx.needs_input_grad[2]:
                of_w = multiply((x_real.mT, x_imaginary.mT), grads, signs=(-1, 1))
        return *of_x, *of_w


def multiply(left: Sequence[Tensor], right: Sequence[Tensor], signs: tuple[int, int] = (1, 1)) -> Parts:
    """Complex products of matrices; a sign of −1 takes the conjugate of its factor."""
    (a, b), (c, d), (of_b, of_d) = left, right, signs
    real = torch.bmm(a, c).baddbmm_(b, d, alpha=-of_b * of_d)
    imaginary = torch.bmm(b, c).baddbmm_(a, d, beta=of_b, alpha=of_d)
    return real, imaginary
