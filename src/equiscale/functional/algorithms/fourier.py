"""Products in the Fourier domain: the input is transformed once, the filters are made there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed
from equiscale.functional.algorithms.dft import Periods, filter_spectrum, spectrum, synthesis


def fourier(convolution: Convolution) -> Iterator[Image]:
    """A product a frequency in place of a sum over the window."""
    dtype = _working_dtype(convolution.x)
    shared = convolution.lifts or convolution.weight.shape[2] > 1
    common = max(convolution.sides)
    spectra: dict[tuple[int, int], tuple[Tensor, _Frame]] = {}
    for scale, own in enumerate(convolution.sides):
        window = common if shared else own
        with torch.autocast(convolution.x.device.type, enabled=False):
            y = _scale(convolution, scale, window, dtype, spectra)
        yield y.to(_result_dtype(convolution.x))


@dataclass(frozen=True)
class _Frame:
    """Where the pixels of the result lie in a period."""

    periods: Periods
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def _scale(
    convolution: Convolution, scale: int, window: int, dtype: torch.dtype, spectra: dict[Any, Any]
) -> Image:
    planes, frame = None, None
    for number, slot in enumerate(convolution.slots(scale)):
        place = (0 if convolution.lifts else slot, window)
        if place not in spectra:
            spectra[place] = _transformed(convolution, slot, window, dtype)
        seen, frame = spectra[place]
        part = _product(seen, _filters(convolution, scale, number, window, frame.periods, dtype), convolution)
        planes = part if planes is None else planes + part
    pixels = synthesis(planes, frame.periods, frame.rows, frame.columns)  # (W', H', B, C')
    if convolution.bias is not None:
        pixels = pixels + convolution.bias.to(dtype)
    return pixels.permute(2, 3, 1, 0)


def _transformed(
    convolution: Convolution, slot: int, window: int, dtype: torch.dtype
) -> tuple[Tensor, _Frame]:
    x, margin = framed(convolution.image(slot).to(dtype), convolution.margin(window), convolution.geometry)
    starts = [
        tuple(index * convolution.geometry.stride - margin for index in range(count))
        for count in convolution.output_size
    ]
    periods = Periods(*(_period(side, window, places) for side, places in zip(x.shape[-2:], starts, strict=True)))
    return spectrum(x.permute(3, 2, 0, 1).contiguous(), periods), _Frame(periods, starts[0], starts[1])


def _period(side: int, window: int, starts: tuple[int, ...]) -> int:
    """The least period in which no window that begins at these places meets a pixel twice."""
    return max(window + max(starts[-1], 0), side - min(starts[0], 0))


def _filters(
    convolution: Convolution, scale: int, number: int, window: int, periods: Periods, dtype: torch.dtype
) -> Tensor:
    """The transforms of one slot's filters: (n·groups, 2, C / groups, C' / groups)."""

    def build() -> Tensor:
        groups, weight = convolution.geometry.groups, convolution.weight[:, :, number].to(dtype)
        basis = filter_spectrum(convolution.window_basis(scale, window).to(dtype), periods)  # (n, 2, F)
        fan_out, fan_in, functions = weight.shape
        by_group = weight.view(groups, fan_out // groups, fan_in, functions).permute(3, 0, 2, 1)
        made = basis.flatten(0, 1) @ by_group.reshape(functions, -1)
        planes = made.view(periods.frequencies, 2, groups, fan_in, fan_out // groups)
        return planes.transpose(1, 2).flatten(0, 1)

    return convolution.kept(("spectra", scale, number, window, periods, dtype), build)


def _product(seen: Tensor, filters: Tensor, convolution: Convolution) -> Tensor:
    """Multiply every frequency's channels by its matrix: (n, 3, B, C) to (n, 2, B, C')."""
    groups = convolution.geometry.groups
    frequencies, _, batch, channels = seen.shape
    if groups > 1:
        seen = seen.view(frequencies, 3, batch, groups, channels // groups).permute(0, 3, 1, 2, 4).flatten(0, 1)
    planes = _ComplexProduct.apply(seen, filters)
    if groups > 1:
        planes = planes.view(frequencies, groups, 2, batch, -1).permute(0, 2, 3, 1, 4).flatten(3)
    return planes


class _ComplexProduct(torch.autograd.Function):
    """Complex matrix products from planes (−imaginary, real, imaginary) and (real, imaginary)."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(seen, filters)
        count, _, batch, channels = seen.shape
        product = torch.bmm(seen[:, 1:].reshape(count, 2 * batch, channels), filters[:, 0])
        product.baddbmm_(seen[:, :2].reshape(count, 2 * batch, channels), filters[:, 1])
        return product.view(count, 2, batch, filters.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        seen, filters = ctx.saved_tensors
        count, _, batch, channels = seen.shape
        grad = grad.reshape(count, 2 * batch, -1)
        grad_seen = grad_filters = None
        if ctx.needs_input_grad[0]:
            straight, turned = (
                torch.bmm(grad, filters[:, plane].transpose(1, 2)).view(count, 2, batch, channels)
                for plane in (0, 1)
            )
            grad_seen = torch.cat(
                [turned[:, :1], straight[:, :1] + turned[:, 1:], straight[:, 1:]], 1
            )
        if ctx.needs_input_grad[1]:
            grad_filters = torch.stack(
                [
                    torch.bmm(planes.reshape(count, 2 * batch, channels).transpose(1, 2), grad)
                    for planes in (seen[:, 1:], seen[:, :2])
                ],
                1,
            )
        return grad_seen, grad_filters


def _working_dtype(x: Tensor) -> torch.dtype:
    """Half precision would lose in a sum over frequencies what it keeps in one over a window."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def _result_dtype(x: Tensor) -> torch.dtype:
    """As an ordinary convolution: autocast's type under autocast, but for double precision."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype
