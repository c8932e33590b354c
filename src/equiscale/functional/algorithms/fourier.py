"""Products in the Fourier domain: the input is transformed once, the filters are made there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed
from equiscale.functional.algorithms.dft import Periods, filter_spectrum, spectrum, synthesis

_Parts: TypeAlias = tuple[Tensor, Tensor]  # real and imaginary


def fourier(convolution: Convolution) -> Iterator[Image]:
    """A product a frequency in place of a sum over the window."""
    shared = convolution.lifts or convolution.weight.shape[2] > 1
    common = max(convolution.sides)
    spectra: dict[tuple[int, int], tuple[_Parts, _Frame]] = {}
    for scale, own in enumerate(convolution.sides):
        with torch.autocast(convolution.x.device.type, enabled=False):
            y = _scale(convolution, scale, common if shared else own, spectra)
        yield y.to(_result_dtype(convolution.x))


@dataclass(frozen=True)
class _Frame:
    """Where the pixels of the result lie in a period."""

    periods: Periods
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def _scale(convolution: Convolution, scale: int, window: int, spectra: dict[Any, Any]) -> Image:
    sums: list[Tensor] = []
    for number, slot in enumerate(convolution.slots(scale)):
        place = (0 if convolution.lifts else slot, window)
        if place not in spectra:
            spectra[place] = _transformed(convolution, slot, window)
        seen, frame = spectra[place]
        parts = _product(seen, _filters(convolution, scale, number, window, frame.periods), convolution)
        sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else list(parts)
    pixels = synthesis((sums[0], sums[1]), frame.periods, frame.rows, frame.columns)  # (W', H', B, C')
    if convolution.bias is not None:
        pixels = pixels + convolution.bias.to(pixels.dtype)
    return pixels.permute(2, 3, 1, 0)


def _transformed(convolution: Convolution, slot: int, window: int) -> tuple[_Parts, _Frame]:
    x = convolution.image(slot).to(_working_dtype(convolution.x))
    x, margin = framed(x, convolution.margin(window), convolution.geometry)
    rows, columns = (
        tuple(index * convolution.geometry.stride - margin for index in range(count))
        for count in convolution.output_size
    )
    periods = Periods(_period(x.shape[-2], window, rows), _period(x.shape[-1], window, columns))
    return spectrum(x.permute(3, 2, 0, 1).contiguous(), periods), _Frame(periods, rows, columns)


def _period(side: int, window: int, starts: tuple[int, ...]) -> int:
    """The least period in which no window that begins at these places meets a pixel twice."""
    return max(window + max(starts[-1], 0), side - min(starts[0], 0))


def _filters(convolution: Convolution, scale: int, number: int, window: int, periods: Periods) -> _Parts:
    """The transforms of one slot's filters, real and imaginary: (n·groups, C / groups, C' / groups)."""
    dtype, groups = _working_dtype(convolution.x), convolution.geometry.groups

    def transform_basis() -> Tensor:
        return filter_spectrum(convolution.window_basis(scale, window).to(dtype), periods)

    def build() -> _Parts:
        weight = convolution.weight[:, :, number].to(dtype)
        basis = convolution.kept_of_basis(("spectra", scale, window, periods, dtype), transform_basis)
        fan_out, fan_in, functions = weight.shape
        by_group = weight.view(groups, fan_out // groups, fan_in, functions).permute(3, 0, 2, 1)
        made = (basis.flatten(0, 1) @ by_group.reshape(functions, -1)).view(
            2, periods.frequencies * groups, fan_in, fan_out // groups
        )
        return made[0], made[1]

    return convolution.kept(("spectra", scale, number, window, periods, dtype), build)


def _product(seen: _Parts, filters: _Parts, convolution: Convolution) -> _Parts:
    """Multiply every frequency's channels by its matrix: (n, B, C) to (n, B, C')."""
    groups = convolution.geometry.groups
    frequencies, batch, channels = seen[0].shape
    if groups == 1:
        return _ComplexProduct.apply(*seen, *filters)
    by_group = (
        part.view(frequencies, batch, groups, channels // groups).transpose(1, 2).flatten(0, 1)
        for part in seen
    )
    parts = _ComplexProduct.apply(*by_group, *filters)
    real, imaginary = (part.view(frequencies, groups, batch, -1).transpose(1, 2).flatten(2) for part in parts)
    return real, imaginary


class _ComplexProduct(torch.autograd.Function):
    """Matrix products of complex numbers in parts: (n, B, C) times (n, C, C') gives (n, B, C')."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> _Parts:
        ctx.save_for_backward(*parts)
        return _multiply(parts[:2], parts[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_real, x_imaginary, w_real, w_imaginary = ctx.saved_tensors
        of_x: tuple[Tensor | None, ...] = (None, None)
        of_w: tuple[Tensor | None, ...] = (None, None)
        if ctx.needs_input_grad[0]:
            of_x = _multiply(grads, (w_real.mT, w_imaginary.mT), signs=(1, -1))
        if ctx.needs_input_grad[2]:
            of_w = _multiply((x_real.mT, x_imaginary.mT), grads, signs=(-1, 1))
        return *of_x, *of_w


def _multiply(left: Sequence[Tensor], right: Sequence[Tensor], signs: tuple[int, int] = (1, 1)) -> _Parts:
    """Complex products of matrices; a sign of −1 takes the conjugate of its factor."""
    (a, b), (c, d), (of_b, of_d) = left, right, signs
    real = torch.bmm(a, c).baddbmm_(b, d, alpha=-of_b * of_d)
    imaginary = torch.bmm(b, c).baddbmm_(a, d, beta=of_b, alpha=of_d)
    return real, imaginary


def _working_dtype(x: Tensor) -> torch.dtype:
    """Half precision would lose in a sum over frequencies what it keeps in one over a window."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def _result_dtype(x: Tensor) -> torch.dtype:
    """As an ordinary convolution: autocast's type under autocast, but for double precision."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype
