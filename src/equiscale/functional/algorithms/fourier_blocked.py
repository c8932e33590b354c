"""Products in the Fourier domain, one band of frequencies after the other."""

from collections.abc import Iterator
from functools import cached_property, reduce
from typing import Final

import torch
from torch import Tensor

from equiscale.functional.algorithms.blocked import Blocked, Gradients, Result
from equiscale.functional.algorithms.convolution import Convolution, working_dtype
from equiscale.functional.algorithms.dft import (
    Parts,
    Periods,
    Pixels,
    add_spectrum_adjoint,
    add_synthesis,
    spectrum,
    synthesis_adjoint,
)
from equiscale.functional.algorithms.fourier import (
    basis_spectrum,
    by_group,
    filters,
    filters_of,
    multiply,
    slot_matrix,
    tilings,
    together,
)

# Bytes of the transforms of one image, or of one scale of the result, in a band.
_BAND: Final = 1 << 23


class BlockedFourier(Blocked):
    """The algorithm of `fourier` for images in one tile.

    Of filters and products only a band is held, and the gradient of the filters goes on to the weights band
    by band.
    """

    @classmethod
    def fits(cls, convolution: Convolution) -> bool:
        """Whether no image is cut into tiles."""
        return super().fits(convolution) and all(
            rows.tiles == columns.tiles == 1 for _, (rows, columns) in tilings(convolution)
        )

    @cached_property
    def matrices(self) -> list[Tensor]:
        """The weights of every slot, as `slot_matrix` has them."""
        slots = range(self.convolution.weight.shape[2])
        return [slot_matrix(self.convolution, slot).detach() for slot in slots]

    def forward(self, result: Result) -> None:
        """Scale by scale, the bands of each added up."""
        for group in self._groups():
            for scale in group.scales:
                pixels = result.room(scale)
                for band in group.bands:
                    add_synthesis(group.transform(scale, band), group.pixels, band, pixels)
                result.put(scale, pixels)
                group.forget(scale)

    def backward(self, grad: Result, wanted: tuple[bool, bool]) -> Gradients:
        """The same of the gradients."""
        of_x = torch.zeros_like(self.images) if wanted[0] else None
        of_slots = [torch.zeros_like(matrix) for matrix in self.matrices if wanted[1]]
        for group in self._groups():
            for scale in group.scales:
                pixels = grad.of(scale)
                for band in group.bands:
                    given = group.transform_adjoint(pixels, band)
                    if wanted[1]:
                        group.add_weights(scale, band, given, of_slots)
                    if of_x is not None:
                        group.add_images(scale, band, given, of_x)
                    del given  # not held while the next one is made
                del pixels
                group.forget(scale)
        return of_x, self._of_weight(of_slots) if wanted[1] else None

    def _groups(self) -> Iterator["_Group"]:
        """Scales that see the same images through the same window, together."""
        cut, scales = tilings(self.convolution), range(self.convolution.num_scales)
        shared = self.convolution.lifts or self.convolution.weight.shape[2] > 1
        for group in [scales] if shared else [range(scale, scale + 1) for scale in scales]:
            window, (rows, columns) = cut[group.start]
            pixels = Pixels(Periods(rows.period, columns.period), rows.starts, columns.starts)
            yield _Group(self, group, window, pixels)

    def _of_weight(self, of_slots: list[Tensor]) -> Tensor:
        """The gradients of all `slot_matrix` as that of the weights."""
        fan_out, fan_in, slots, functions = self.convolution.weight.shape
        shape = slots, functions, self.convolution.geometry.groups, fan_in, -1
        by_slot = torch.stack(of_slots).view(shape)  # (N, F, G, C / G, C' / G)
        return by_slot.permute(2, 4, 3, 0, 1).reshape(fan_out, fan_in, slots, functions)


class _Group:
    """Scales that are computed together."""

    def __init__(self, blocked: BlockedFourier, scales: range, window: int, pixels: Pixels) -> None:
        self._blocked, self.convolution, self.images = blocked, blocked.convolution, blocked.images
        self.scales, self.window, self.pixels, self.periods = scales, window, pixels, pixels.periods
        self._groups = blocked.convolution.geometry.groups
        self.bands = list(_bands(self.convolution, self.periods))
        weight = blocked.convolution.weight
        size = 2 * self.periods.frequencies * weight[..., 0].numel() * self.images.element_size()
        self.keeps = blocked.keeps and blocked.convolution.keeps(size * blocked.convolution.num_scales)
        self._functions: tuple[int, Tensor] | None = None
        self._spectra: dict[tuple[int, int], Parts] = {}

    def transform(self, scale: int, band: slice) -> Parts:
        """A band of one scale of the result: the sum over the slots of its filters."""
        products = (
            multiply(self._seen(place, band), self._filters(scale, number, band))
            for number, place in self._slots(scale)
        )
        return together(reduce(_add, products), self._groups)

    def transform_adjoint(self, pixels: Tensor, band: slice) -> Parts:
        """The gradient of `transform` from that of the pixels."""
        return by_group(synthesis_adjoint(pixels, self.pixels, band), self._groups)

    def add_weights(self, scale: int, band: slice, given: Parts, out: list[Tensor]) -> None:
        """Add what a band contributes to the gradients of the `slot_matrix` of all slots."""
        basis = self._basis(scale, band)
        for number, place in self._slots(scale):
            of_filters = multiply(_transposed(self._seen(place, band)), given, signs=(-1, 1))
            for of_real_or_imaginary, functions in zip(of_filters, basis, strict=True):
                out[number].addmm_(functions.T, of_real_or_imaginary.view(len(functions), -1))

    def add_images(self, scale: int, band: slice, given: Parts, out: Tensor) -> None:
        """Add what a band contributes to the gradients of the images."""
        for number, place in self._slots(scale):
            kernels = _transposed(self._filters(scale, number, band))
            of_seen = together(multiply(given, kernels, signs=(1, -1)), self._groups)
            add_spectrum_adjoint(of_seen, self.periods, band, out[place])

    def _slots(self, scale: int) -> Iterator[tuple[int, int]]:
        """The number of every slot, and the place of the image that it sees."""
        for number, slot in enumerate(self.convolution.slots(scale)):
            yield number, 0 if self.convolution.lifts else slot

    def _seen(self, place: int, band: slice) -> Parts:
        """Of an image; kept where several scales see it."""
        kept = self._spectra.get((place, band.start))
        if kept is not None:
            return kept
        made = by_group(spectrum(self.images[place], self.periods, band), self._groups)
        if len(self.scales) > 1:
            self._spectra[place, band.start] = made
        return made

    def _basis(self, scale: int, band: slice) -> Tensor:
        """The functions' transforms, (2, n, F)."""
        if self._functions is None or self._functions[0] != scale:
            whole = basis_spectrum(self.convolution, scale, self.window, self.periods)
            self._functions = scale, whole
        height = self.periods.height
        return self._functions[1][:, band.start * height : band.stop * height]

    def _filters(self, scale: int, number: int, band: slice) -> Parts:
        if self.keeps:
            real, imaginary = filters(self.convolution, scale, number, self.window, self.periods)
            column = self.periods.height * self._groups
            of_band = slice(band.start * column, band.stop * column)
            return real[of_band], imaginary[of_band]
        return filters_of(self._blocked.matrices[number], self._basis(scale, band), self.convolution)

    def forget(self, scale: int) -> None:
        """Let go of the transforms of an image that no later scale sees."""
        for place, start in tuple(self._spectra):
            if place == scale and not self.convolution.lifts:
                del self._spectra[place, start]


def _bands(convolution: Convolution, periods: Periods) -> Iterator[slice]:
    fan_out, fan_in = convolution.weight.shape[:2]
    channels = max(fan_out, fan_in * convolution.geometry.groups)
    size = torch.finfo(working_dtype(convolution.x)).bits // 8
    column = 2 * periods.height * convolution.x.shape[0] * channels * size
    step = max(1, _BAND // max(1, column))
    for start in range(0, periods.half, step):
        yield slice(start, min(start + step, periods.half))


def _transposed(parts: Parts) -> Parts:
    return parts[0].mT, parts[1].mT


def _add(total: Parts, parts: Parts) -> Parts:
    return total[0].add_(parts[0]), total[1].add_(parts[1])
