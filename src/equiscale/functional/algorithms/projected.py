"""The basis first, the weights after: for few functions and many output channels.

Every input channel is correlated with all F functions, and the result is a product of matrices with C·F in
place of C·k·k columns. A function that is a product of a column and a row is applied along one axis after
the other. Everything lies in memory as ``(W, H, B, C)``, so that all of it is products of matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale._typing import Image
from equiscale.functional.algorithms.convolution import Convolution, framed, result_dtype, working_dtype
from equiscale.functional.blockwise import applied, derived, is_batched, is_eager
from equiscale.functional.filters import synthesize_filters

# Results of a strip: with a banded matrix each costs as many products as the strip sees pixels.
_STRIP: Final = 16

# Singular values and differences, in units of the precision, that are rounding.
_ROUNDING: Final = 32


def projected(convolution: Convolution) -> Iterator[Image]:
    """Features of the basis functions, then a product with the weights."""
    if not _by_matrices(convolution):
        yield from (_by_convolutions(convolution, scale) for scale in range(convolution.num_scales))
        return
    images: dict[int, Tensor] = {}
    for scale in range(convolution.num_scales):
        with torch.autocast(convolution.x.device.type, enabled=False):
            y = _scale(convolution, scale, images)
        images = images if convolution.lifts else {k: v for k, v in images.items() if k > scale}
        yield y.to(result_dtype(convolution.x))


def projected_operations(convolution: Convolution) -> float:
    """Operations of the forward pass of all scales."""
    batch, (fan_out, fan_in) = convolution.x.shape[0], convolution.weight.shape[:2]
    total = 0.0
    for scale, window in enumerate(convolution.sides):
        rows, columns = _axes(convolution, window)
        factors = _factors(convolution, scale)
        pairs = sum(len(profiles) for profiles in factors.pairs)
        along_width = len(factors.rows) * columns.products * rows.size
        along_height = pairs * columns.count * rows.products
        features = fan_in * convolution.geometry.groups * (along_width + along_height)
        mixed = fan_out * fan_in * len(factors.pairs) * rows.count * columns.count
        total += 2.0 * batch * len(convolution.slots(scale)) * (features + mixed)
    return total


def _by_matrices(convolution: Convolution) -> bool:
    """Whether nothing but values and gradients of x and of the weights are asked for.

    A trace must not depend on the values of the basis, and their gradient is that of the definition.
    """
    x, basis = convolution.x, convolution.basis
    plain = is_eager(x) and not convolution.transformed and type(x) in (Tensor, torch.nn.Parameter)
    return plain and not (torch.is_grad_enabled() and basis.requires_grad)


def _by_convolutions(convolution: Convolution, scale: int) -> Image:
    """The definition: F filters on every channel, and a 1×1 convolution."""
    geometry, count = convolution.geometry, len(convolution.slots(scale))
    x, margin = framed(convolution.seen(scale), convolution.margin(convolution.sides[scale]), geometry)
    functions = convolution.window_basis(scale)[:, None]
    features = conv2d(x.flatten(0, 1)[:, None], functions, None, geometry.stride, margin)
    features = features.view(*x.shape[:2], *features.shape[1:]).flatten(1, 2)  # (B, C·n·F, H', W')
    weight = convolution.weight[:, :, :count].flatten(1)[..., None, None]
    return conv2d(features, weight, convolution.bias, groups=geometry.groups)


# --- the functions as columns and rows ---


@dataclass(frozen=True)
class _Factors:
    """Functions as sums of products of a column and a row.

    Args:
        rows: Profiles along W, ``(P, k)``, float64 on the CPU.
        columns: Of every function the profile along H beside every row, ``(F, P, k)``.
        pairs: Of every function the rows beside which its column is not zero.
    """

    rows: Tensor
    columns: Tensor
    pairs: tuple[tuple[int, ...], ...]


def _factors(convolution: Convolution, scale: int) -> _Factors:
    def build() -> Tensor:
        functions = convolution.window_basis(scale).detach().double().cpu()
        side = functions.shape[-1]
        if _of_pixels(convolution, scale):
            functions = torch.eye(side**2, dtype=torch.float64).view(-1, side, side)
        eps = torch.finfo(working_dtype(convolution.x)).eps
        rows, columns = _factorise(functions, _ROUNDING * eps)
        return torch.cat([rows[None], columns])

    kept = convolution.kept_of_basis(("factors", scale, convolution.sides[scale]), build)
    used = (kept[1:] != 0).any(-1).tolist()
    pairs = tuple(tuple(row for row, is_used in enumerate(line) if is_used) for line in used)
    return _Factors(kept[0], kept[1:], pairs)


def _of_pixels(convolution: Convolution, scale: int) -> bool:
    """Whether the window has fewer pixels than there are functions: then the pixels are the functions."""
    return convolution.sides[scale] ** 2 < convolution.basis.shape[0]


def _factorise(functions: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Rows (P, k) and columns (F, P, k) whose products add up to the functions (F, k, k)."""
    _, singular, right = torch.linalg.svd(functions)
    single = (singular[:, 1:] <= tolerance * singular[:, :1]).all()
    if single:
        rows, owners = _distinct(right[:, 0], tolerance)
        columns = torch.zeros(len(functions), *rows.shape, dtype=functions.dtype)
        every = torch.arange(len(functions))
        columns[every, owners] = (functions @ rows[owners][..., None]).squeeze(-1)
        return rows, columns
    _, singular, right = torch.linalg.svd(functions.flatten(0, 1), full_matrices=False)
    rows = right[singular > tolerance * singular[0]]
    return rows, (functions @ rows.T).mT


def _distinct(profiles: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Those of unit vectors that differ by more than their sign, and for each vector its number."""
    apart = torch.minimum(*((profiles[:, None] + sign * profiles).norm(dim=-1) for sign in (1, -1)))
    first = (apart <= tolerance).int().argmax(1)
    kept, owners = torch.unique(first, return_inverse=True)
    return profiles[kept], owners


# --- the axes in strips ---


@dataclass(frozen=True)
class _Strip:
    """Neighbouring results along an axis, the pixels that they see, and where their windows begin there."""

    results: slice
    pixels: slice
    starts: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Results and pixels."""
        return len(self.starts), self.pixels.stop - self.pixels.start


@dataclass(frozen=True)
class _Axis:
    """One axis of the image in strips."""

    size: int
    strips: tuple[_Strip, ...]

    @property
    def count(self) -> int:
        """Results."""
        return sum(strip.shape[0] for strip in self.strips)

    @property
    def products(self) -> int:
        """Of every line along the axis with one profile."""
        return sum(results * pixels for results, pixels in (strip.shape for strip in self.strips))


def _axes(convolution: Convolution, window: int) -> tuple[_Axis, _Axis]:
    """Along H and along W."""
    geometry, margin = convolution.geometry, convolution.margin(window)
    framed_margin = 0 if geometry.padding_mode == "zeros" else geometry.margin(convolution.kernel_size)
    rows, columns = (
        _axis(side + 2 * framed_margin, window, margin - framed_margin, geometry.stride, count)
        for side, count in zip(convolution.x.shape[-2:], convolution.output_size, strict=True)
    )
    return rows, columns


def _axis(size: int, window: int, margin: int, stride: int, count: int) -> _Axis:
    strips = []
    number = -(-count // _STRIP)
    for index in range(number):
        results = range(count * index // number, count * (index + 1) // number)
        first = min(max(results[0] * stride - margin, 0), size - 1)
        last = min(max(results[-1] * stride - margin + window, first + 1), size)
        starts = tuple(result * stride - margin - first for result in results)
        strips.append(_Strip(slice(results.start, results.stop), slice(first, last), starts))
    return _Axis(size, tuple(strips))


def _matrices(profiles: Tensor, strip: _Strip) -> Tensor:
    """The profiles (…, k) as matrices (…, results, pixels)."""
    side = profiles.shape[-1]
    taps = torch.arange(strip.shape[1]) - torch.tensor(strip.starts)[:, None]
    inside = (taps >= 0) & (taps < side)
    return profiles[..., taps.clamp(0, side - 1)] * inside


# --- the product ---


@dataclass(frozen=True)
class _Banded:
    """Profiles as matrices, (…, results, pixels) of one strip."""

    strip: _Strip
    matrices: Tensor

    @property
    def flat(self) -> Tensor:
        """All matrices one below the other."""
        return self.matrices.flatten(0, -2)


_Term: TypeAlias = tuple[int, Tensor, slice]  # a profile along W, a matrix along H, and the rows it sees


@dataclass(frozen=True)
class _Plan:
    """The functions as banded matrices.

    Args:
        rows: Along H, with matrices (F, P, H', H).
        columns: Along W, with matrices (P, W', W).
        pairs: As in the factors.
        size: H' and W'.
    """

    rows: tuple[_Banded, ...]
    columns: tuple[_Banded, ...]
    pairs: tuple[tuple[int, ...], ...]
    size: tuple[int, int]

    def terms(self, function: int, rows: _Banded) -> list[_Term]:
        """Whose sum is the function, at the results of a strip."""
        used = self.pairs[function]
        return [(profile, rows.matrices[function, profile], rows.strip.pixels) for profile in used]


def _scale(convolution: Convolution, scale: int, images: dict[int, Tensor]) -> Image:
    plan = _plan(convolution, scale)
    parts = []
    for number, slot in enumerate(convolution.slots(scale)):
        place = 0 if convolution.lifts else slot
        if place not in images:
            images[place] = _in_order(convolution, slot)
        parts.append(applied(_Projection, images[place], _mixture(convolution, scale, number), plan))
    y = reduce(torch.add, parts)
    if convolution.bias is not None:
        y = y + convolution.bias.to(y.dtype)
    return y.permute(2, 3, 1, 0)


def _in_order(convolution: Convolution, slot: int) -> Tensor:
    """The padded image as (W, H, B, C)."""
    geometry, x = convolution.geometry, convolution.images[slot].to(working_dtype(convolution.x))
    if geometry.padding_mode != "zeros":
        x, _ = framed(x, geometry.margin(convolution.kernel_size), geometry)
    return x.permute(3, 2, 0, 1).contiguous()


def _mixture(convolution: Convolution, scale: int, number: int) -> Tensor:
    """The weights of one slot: (F, G, C / G, C' / G)."""
    dtype, groups = working_dtype(convolution.x), convolution.geometry.groups
    of_pixels = _of_pixels(convolution, scale)

    def build() -> Tensor:
        weight = convolution.weight[:, :, number]
        if of_pixels:
            filters = synthesize_filters(weight, convolution.window_basis(scale)[:, None])
            weight = filters.flatten(2)  # (C', C / G, k·k)
        by_group = weight.to(dtype).reshape(groups, -1, *weight.shape[1:])
        return by_group.permute(3, 0, 2, 1).contiguous()

    return convolution.kept(("mixture", scale if of_pixels else None, number, dtype), build)


def _plan(convolution: Convolution, scale: int) -> _Plan:
    factors, window = _factors(convolution, scale), convolution.sides[scale]
    rows, columns = _axes(convolution, window)

    def banded(axis: _Axis, profiles: Tensor, name: str) -> tuple[_Banded, ...]:
        return tuple(_Banded(strip, kept(strip, profiles, name)) for strip in axis.strips)

    def kept(strip: _Strip, profiles: Tensor, name: str) -> Tensor:
        dtype, device = working_dtype(convolution.x), convolution.x.device
        key = (name, scale, window, strip.shape, strip.starts[0], convolution.geometry.stride, dtype)
        return convolution.kept_of_basis(key, lambda: _matrices(profiles, strip).to(device, dtype))

    return _Plan(
        banded(rows, factors.columns, "along height"),
        banded(columns, factors.rows, "along width"),
        factors.pairs,
        (rows.count, columns.count),
    )


class _Projection(torch.autograd.Function):
    """From (W, H, B, C) and the weights (F, G, C / G, C' / G) to (W', H', B, C').

    The features are never held for more than one function and tile: the backward pass makes them anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        y = x.new_empty(plan.size[1], plan.size[0], x.shape[2], weight.shape[1] * weight.shape[3])
        for columns in plan.columns:
            partial = _along_width(x, columns)
            for rows in plan.rows:
                features, results = _tile(x, columns, rows), _tile(y, columns, rows)
                for function in range(len(weight)):
                    _along_height(partial, plan.terms(function, rows), features)
                    _mix(results, features, weight[function], first=function == 0)
                y[columns.strip.results, rows.strip.results] = results
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        with torch.autocast(grad.device.type, enabled=False):  # where the caller's reaches around backward
            return _Projection._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or is_batched(grad):  # the gradient's own gradient is wanted, or many
            of_x, of_weight = derived((x, weight), partial(_composed, plan=ctx.plan), grad, wanted)
            return of_x, of_weight, None
        of_x = torch.zeros_like(x) if wanted[0] else None
        of_weight = torch.zeros_like(weight) if wanted[1] else None
        _gradients((x, weight), grad, ctx.plan, (of_x, of_weight))
        return of_x, of_weight, None


def _gradients(
    operands: tuple[Tensor, Tensor], grad: Tensor, plan: _Plan, outs: tuple[Tensor | None, Tensor | None]
) -> None:
    (x, weight), (of_x, of_weight) = operands, outs
    for columns in plan.columns:
        partial = _along_width(x, columns)
        of_partial = torch.zeros_like(partial)
        for rows in plan.rows:
            features, of_results = _tile(x, columns, rows), _tile(grad, columns, rows)
            of_results.copy_(grad[columns.strip.results, rows.strip.results])
            of_seen = torch.zeros_like(of_partial[:, :, rows.strip.pixels])
            for function in range(len(weight)):
                terms = plan.terms(function, rows)
                if of_weight is not None:
                    _along_height(partial, terms, features)
                    _mix_backward(of_weight[function], features, of_results)
                if of_x is not None:
                    _unmix(features, of_results, weight[function])
                    _along_height_backward(of_seen, terms, features)
            of_partial[:, :, rows.strip.pixels] += of_seen
        if of_x is not None:
            seen = of_x[columns.strip.pixels]
            seen.view(len(seen), -1).addmm_(columns.flat.T, of_partial.view(len(columns.flat), -1))


def _tile(whole: Tensor, columns: _Banded, rows: _Banded) -> Tensor:
    """Memory for one tile of results, with the images and channels of a tensor: (W', H', B, C)."""
    return whole.new_empty(columns.strip.shape[0], rows.strip.shape[0], *whole.shape[2:])


def _along_width(x: Tensor, columns: _Banded) -> Tensor:
    """The profiles along W at the results of a strip: (P, W', H, B·C)."""
    partial = columns.flat @ x[columns.strip.pixels].view(columns.strip.shape[1], -1)
    return partial.view(*columns.matrices.shape[:-1], x.shape[1], -1)


def _along_height(partial: Tensor, terms: list[_Term], out: Tensor) -> None:
    """The features of one function in a tile."""
    features = out.view(*out.shape[:2], -1)
    for number, (profile, matrix, pixels) in enumerate(terms):
        features.baddbmm_(matrix.expand(len(out), -1, -1), partial[profile, :, pixels], beta=int(number > 0))
    if not terms:
        features.zero_()


def _along_height_backward(of_seen: Tensor, terms: list[_Term], of_features: Tensor) -> None:
    flat = of_features.view(*of_features.shape[:2], -1)
    for profile, matrix, _ in terms:
        of_seen[profile].baddbmm_(matrix.mT.expand(len(flat), -1, -1), flat)


def _mix(results: Tensor, features: Tensor, weight: Tensor, *, first: bool) -> None:
    """Add the products with the weights (G, C / G, C' / G), group by group."""
    for y, x, matrix in _by_group(results, features, weight):
        y.addmm_(x, matrix, beta=int(not first))


def _unmix(features: Tensor, results: Tensor, weight: Tensor) -> None:
    for y, x, matrix in _by_group(results, features, weight):
        x.addmm_(y, matrix.T, beta=0)


def _mix_backward(of_weight: Tensor, features: Tensor, of_results: Tensor) -> None:
    for y, x, matrix in _by_group(of_results, features, of_weight):
        matrix.addmm_(x.T, y)


def _by_group(results: Tensor, features: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The matrices (N, C' / G), (N, C / G) and (C / G, C' / G) of every group."""
    groups = len(weight)
    parts = (part.flatten(0, 2).chunk(groups, 1) for part in (results, features))
    return zip(*parts, weight.unbind(), strict=True)


def _composed(x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
    """The same of operations that can be differentiated any number of times."""
    strips = []
    for columns in plan.columns:
        partial = torch.einsum("pvw,whbc->pvhbc", columns.matrices, x[columns.strip.pixels])
        features = [
            torch.einsum("fpuh,pvhbc->fvubc", rows.matrices, partial[:, :, rows.strip.pixels])
            for rows in plan.rows
        ]
        whole = torch.cat(features, 2)
        by_group = whole.view(*whole.shape[:-1], weight.shape[1], -1)
        strips.append(torch.einsum("fvubgc,fgcd->vubgd", by_group, weight).flatten(3))
    return torch.cat(strips)
