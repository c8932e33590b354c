"""Discrete scale convolutions: filters fitted on the pixel grid itself (Sosnovik et al. 2021)."""

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from equiscale._typing import BasisTensor
from equiscale.basis.diagnosis import MAX_CONDITION, check_sampled, diagnose
from equiscale.basis.hermite import DegeneratePolicy, HermiteBasis
from equiscale.basis.sampling import check_place, is_number, is_whole
from equiscale.basis.separable import dependent, products, report_dependent, sample_nd
from equiscale.errors import BasisError
from equiscale.scales import ScaleGrid

Array = NDArray[np.float64]

# Published grids are rounded to two decimals: a ratio this near to an integer is that integer.
_INTEGER_TOLERANCE: Final = 0.01

# 2.1 / 1.4 is 1.5 and the rounding of a quotient, which asks for no further pixel.
_ROUNDING: Final = 1e-9

# Neighbouring pixels of photographs correlate by about 0.95 (Jain 1989, section 2.9).
_NATURAL: Final = 0.95

# The images of the objective are uniform on [0, 1]: mean 1/2, variance 1/12, so mean² / variance is 3.
_BRIGHTNESS: Final = 3.0

# PyTorch's bicubic kernel, with which the published objective rescales.
_CUBIC: Final = -0.75

# Of einsum, one for each axis inside and outside.
_INDICES: Final = "abcdefghijklmnopqrstuvwxyz"

# The default width of the Hermite functions in pixels of effective size; published: 0.9 / 3 and 1.9 / 7.
_SIGMA_PER_PIXEL: Final = 0.3

# Beyond the dilated pixels a fitted filter needs this margin; wider ones gain below 1 % of the loss.
_MARGIN: Final = 1


@dataclass(frozen=True)
class DiscoBasis:
    r"""Filters that are fitted to commute with rescaling on the pixel grid.

    .. math:: \min_{\kappa} \sum_{s < t} \mathbb{E} \, \big\| \kappa_s \star L_{t/s}[f]
        - L_{t/s}[\kappa_t \star f] \big\|^2

    with :math:`L_r` bicubic rescaling of an image f by 1 / r. On the smallest scale :math:`\kappa` is each
    of the pixels of an e×e filter. Where the ratio to the smallest scale is an integer, :math:`\kappa` is its
    dilated copy; on all other scales it solves the linear system that the minimum over all pairs of
    scales amounts to, with the expectation over images and positions taken in closed form. The basis
    functions are combinations of these pixels: the Hermite functions of `HermiteBasis` on e×e pixels in
    kinds A and B, or the pixels themselves. They have norm one on the smallest scale.

    Shapes:
        `sample` gives ``(F, S, K, K)`` with F = effective_size²; `sample_nd` the filters fitted in n
        dimensions, F = effective_sizeⁿ.

    Args:
        effective_size: e, the side of the filter on the smallest scale; odd.
        kind: "A" or "B" as in `HermiteBasis`, or "pixel".
        sigma: The width in pixels of the Hermite functions on the smallest scale; None: 0.3 e.
            Only the ratios of a grid's scales matter, so that grids are usually written from 1 on.
        max_order: Largest total order of kind B.
        mult: Ratio of kind B's internal widths, larger than 1.
        correlation: Correlation of neighbouring pixels in the random images f, 0 ≤ correlation < 1;
            0 is the published white noise.
        degenerate: What to do when the functions are dependent on some scale: "error", "warn" or
            "allow". The published MNIST network needs "allow": 45 of its 49 functions are independent.

    Raises:
        BasisError: For illegal arguments; from `sample` also for an even kernel or one that does not hold
            the pixels on the largest scale, and for functions that are dependent (unless allowed).

    Exactness:
        Exact where the ratio to the smallest scale is an integer (within 1 %, as published grids are
        rounded): ``tests/basis/test_disco.py`` measures zero there and bounds the rest on both sides;
        `rescaling_error` gives the error that is left between every two scales.

    Source:
        Sosnovik, Moskalev, Smeulders, *DISCO: accurate Discrete Scale Convolutions*, BMVC 2021,
        section 3. Deviations: solved, not trained by gradient descent; squared errors are summed, not
        their roots; the images are correlated as photographs are, which lowers the error on smooth
        images several times; fitted filters end one pixel beyond the dilated ones.

    Example:
        >>> DiscoBasis(3).sample(5, ScaleGrid([1.0, 1.41, 2.0])).shape
        torch.Size([9, 3, 5, 5])
    """

    effective_size: int
    kind: Literal["A", "B", "pixel"] = "A"
    sigma: float | None = None
    max_order: int = 4
    mult: float = 1.5
    correlation: float = _NATURAL
    degenerate: DegeneratePolicy = "error"

    def __post_init__(self) -> None:
        if not is_whole(self.effective_size) or self.effective_size % 2 == 0:
            raise BasisError(
                f"expected an odd effective_size, got {self.effective_size!r}; "
                "the pixels of an even filter have no common centre"
            )
        if self.kind not in ("A", "B", "pixel"):
            raise BasisError(f"expected kind 'A', 'B' or 'pixel', got {self.kind!r}")
        if self.sigma is not None and not (is_number(self.sigma) and 0 < self.sigma < math.inf):
            raise BasisError(f"expected a positive sigma or None, got {self.sigma!r}")
        _check_correlation(self.correlation)
        self._hermite()  # checks what it shares with this basis

    @property
    def num_functions(self) -> int:
        """F = effective_size²."""
        return self.effective_size**2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        """The functions on the pixel grid, norm one on the smallest scale, float64 ``(F, S, K, K)``."""
        check_place(kernel_size, grid)
        ratios = _ratios(grid)
        self._check_kernel(kernel_size, ratios, grid)
        pixels = torch.tensor(_fit(self.effective_size, kernel_size, ratios, self.correlation))
        basis = (self._combinations() @ pixels.flatten(1)).view(pixels.shape)
        if self.degenerate != "allow":
            self._check_independent(basis, grid)
        return basis

    def sample_nd(self, kernel_size: int, grid: ScaleGrid, ndim: int) -> torch.Tensor:
        """The functions of so many dimensions, norm one on the smallest scale, ``(F, S, K, …, K)``."""
        if ndim == 2:
            return self.sample(kernel_size, grid)
        check_place(kernel_size, grid)
        ratios = _ratios(grid)
        self._check_kernel(kernel_size, ratios, grid)
        pixels = torch.tensor(_fit(self.effective_size, kernel_size, ratios, self.correlation, ndim))
        basis = (self._combinations(ndim) @ pixels.flatten(1)).view(pixels.shape)
        if self.degenerate != "allow":
            report_dependent(dependent(basis, grid), self.degenerate)
        return basis

    def _hermite(self) -> HermiteBasis:
        return HermiteBasis(
            self.effective_size,
            kind="B" if self.kind == "B" else "A",
            max_order=self.max_order,
            mult=self.mult,
            degenerate=self.degenerate,
        )

    def _combinations(self, ndim: int = 2) -> Float[torch.Tensor, "F F"]:
        """Row f holds the pixels of function f on the smallest scale."""
        if self.kind == "pixel":
            return torch.eye(self.effective_size**ndim, dtype=torch.float64)
        sigma = self.sigma or _SIGMA_PER_PIXEL * self.effective_size
        family = HermiteBasis(**{**vars(self._hermite()), "degenerate": "allow"})
        return sample_nd(family, self.effective_size, ScaleGrid([sigma]), ndim=ndim).flatten(1)

    def _check_kernel(self, kernel_size: int, ratios: Sequence[float], grid: ScaleGrid) -> None:
        needed = 2 * _reach(self.effective_size, ratios[-1]) + 1
        if kernel_size < needed:
            raise BasisError(
                f"expected a kernel_size of at least {needed}, since the {self.effective_size} pixels a side "
                f"are {ratios[-1]:.3g} apart on the largest scale of {grid}, got {kernel_size}"
            )

    def _check_independent(self, basis: BasisTensor, grid: ScaleGrid) -> None:
        worst = min(diagnose(basis, grid), key=lambda diagnosis: diagnosis.rank)
        if not worst.degenerate:
            return
        message = (
            f"expected {self.num_functions} independent functions on every scale (condition number below "
            f"{MAX_CONDITION:.0e}), got rank {worst.rank} of {self.num_functions} at scale {worst.scale:g}; "
            'use another sigma, mult or kind, or accept it with degenerate="allow"'
        )
        if self.degenerate == "error":
            raise BasisError(message)
        warnings.warn(message, stacklevel=3)


def rescaling_error(
    basis: torch.Tensor, grid: ScaleGrid, *, correlation: float = _NATURAL
) -> Float[torch.Tensor, "S S"]:
    r"""How far a sampled basis is from commuting with rescaling, between every two scales.

    .. math:: \epsilon_{s t}^2 = \frac
        {\sum_\psi \mathbb{E} \| \psi_s \star L_{t/s}[f] - L_{t/s}[\psi_t \star f] \|^2}
        {\sum_\psi \mathbb{E} \| L_{t/s}[\psi_t \star f] \|^2}, \qquad s < t

    with :math:`L_r` bicubic rescaling by 1 / r. The expectation, over random images f and all positions
    of the pixels, is computed in closed form. It is the quantity that `DiscoBasis` minimises, and a means
    to choose the scales and the basis of a network.

    Shapes:
        basis: ``(F, S, K, K)`` with odd K; result ``(S, S)``, zero on and below the diagonal.

    Args:
        basis: ψ, the sampled functions of any family.
        grid: The S scales they were sampled on.
        correlation: Correlation of neighbouring pixels in the images: 0 for white noise, about 0.95 for
            photographs.

    Returns:
        The relative errors, between the smaller scale (row) and the larger (column).

    Raises:
        BasisError: If the basis and the grid do not fit, or the correlation is not in [0, 1).

    Exactness:
        The expectation is exact to rounding; ``tests/basis/test_disco.py`` compares it with the average
        over random images. White noise has detail that rescaling destroys: no filter reaches zero there,
        except between scales with an integer ratio.

    Source:
        Sosnovik, Moskalev, Smeulders, *DISCO: accurate Discrete Scale Convolutions*, BMVC 2021,
        equation of the equivariance loss; the closed form is ours.

    Example:
        >>> grid = ScaleGrid([1.0, 2.0])
        >>> float(rescaling_error(DiscoBasis(3).sample(5, grid), grid)[0, 1]) < 1e-6
        True
    """
    check_sampled("rescaling_error", basis, grid)
    square = basis.ndim == 4 and basis.shape[2] == basis.shape[3] and 0 not in basis.shape
    if not square or basis.shape[1] != len(grid) or basis.shape[-1] % 2 == 0:
        raise BasisError(
            f"expected a basis (F, {len(grid)}, K, K) with odd K on {grid}, got {tuple(basis.shape)}"
        )
    _check_correlation(correlation)
    functions, errors = (
        basis.detach().double().cpu().numpy(),
        torch.zeros(len(grid), len(grid), dtype=torch.float64),
    )
    for s, t in itertools.combinations(range(len(grid)), 2):
        moments = _moments(basis.shape[-1], grid[t] / grid[s], correlation)
        errors[s, t] = _relative_error(moments, functions[:, s], functions[:, t])
    return errors


# --- the fit ---


def _check_correlation(correlation: float) -> None:
    if not (is_number(correlation) and 0 <= correlation < 1):
        raise BasisError(f"expected a correlation of at least 0 and below 1, got {correlation!r}")


def _ratios(grid: ScaleGrid) -> tuple[float, ...]:
    """Scales over the smallest one; those within 1 % of an integer above 1 are that integer."""
    return tuple(_snapped(scale / grid.min) for scale in grid)


def _snapped(ratio: float) -> float:
    nearest = float(round(ratio))
    near = nearest > 1 and math.isclose(ratio, nearest, rel_tol=_INTEGER_TOLERANCE)
    return nearest if near else ratio


def _reach(effective_size: int, ratio: float) -> int:
    """Pixels between the centre and the outermost pixel of the filter on this scale."""
    return math.ceil(effective_size // 2 * ratio - _ROUNDING)


@functools.lru_cache(maxsize=32)
def _fit(
    effective_size: int, kernel_size: int, ratios: tuple[float, ...], correlation: float, ndim: int = 2
) -> Array:
    """The eⁿ pixels on every scale, (eⁿ, S, K, …, K); the result is shared, and not to be written to."""
    given: dict[int, Array] = {}  # scale -> its pixels along one axis, (K, e)
    windows: dict[int, int] = {}  # scale to be fitted -> half its window
    for scale, ratio in enumerate(ratios):
        if ratio.is_integer():
            given[scale] = _dilated(effective_size, kernel_size, int(ratio))
        else:
            windows[scale] = min(_reach(effective_size, ratio) + _MARGIN, kernel_size // 2)
    pixels = np.zeros((effective_size**ndim, len(ratios), *[kernel_size] * ndim))
    for scale, axis in given.items():
        pixels[:, scale] = products(np.stack([*itertools.product(axis.T, repeat=ndim)]))
    pairs = {
        (s, t): _moments(kernel_size, ratios[t] / ratios[s], correlation)
        for s, t in itertools.combinations(range(len(ratios)), 2)
        if s in windows or t in windows
    }
    # The objective does not change under reflections: even and odd filters do not meet in it.
    for parities in itertools.product((True, False), repeat=ndim):
        axes = {scale: (axis,) * ndim for scale, axis in given.items()}
        for scale, half in windows.items():
            axes[scale] = tuple(_parity(kernel_size, half, even=even) for even in parities)
        for scale, fitted in _minimise(pairs, axes, unknown=tuple(windows)).items():
            pixels[:, scale] += fitted
    pixels.flags.writeable = False
    return pixels


def _dilated(effective_size: int, kernel_size: int, ratio: int) -> Array:
    """Column i is pixel i of the filter along one axis, (K, e)."""
    axis = np.zeros((kernel_size, effective_size))
    steps = np.arange(effective_size) - effective_size // 2
    axis[kernel_size // 2 + ratio * steps, np.arange(effective_size)] = 1
    return axis


def _parity(kernel_size: int, half: int, *, even: bool) -> Array:
    """An orthonormal basis of the even or odd vectors in the window, (K, half + 1) or (K, half)."""
    unit = np.eye(kernel_size)[:, kernel_size // 2 - half : kernel_size // 2 + half + 1]
    mirrored = unit + unit[:, ::-1] if even else unit - unit[:, ::-1]
    columns = mirrored[:, half if even else half + 1 :]
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


def _minimise(
    pairs: "dict[tuple[int, int], _Moments]",
    axes: dict[int, tuple[Array, ...]],
    *,
    unknown: tuple[int, ...],
) -> dict[int, Array]:
    """Solve the normal equations of the objective for the filters of the unknown scales."""
    sizes = {scale: math.prod(axis.shape[1] for axis in axes[scale]) for scale in unknown}
    ends = np.cumsum([0, *sizes.values()])
    place = {scale: slice(ends[i], ends[i + 1]) for i, scale in enumerate(unknown)}
    functions = next(axis[0].shape[1] ** len(axis) for scale, axis in axes.items() if scale not in sizes)
    matrix, right = np.zeros((ends[-1], ends[-1])), np.zeros((ends[-1], functions))
    for (s, t), moments in pairs.items():
        for a, b, moment in moments.quadratic_form(s, t):
            if a in place and b in place:
                matrix[place[a], place[b]] += moment.between(axes[a], axes[b])
            elif a in place:
                right[place[a]] -= moment.between(axes[a], axes[b])
    solution = np.linalg.solve(matrix, right)
    return {scale: _spanned(axes[scale], solution[place[scale]]) for scale in unknown}


def _spanned(axes: tuple[Array, ...], coefficients: Array) -> Array:
    """The filters (F, K, …, K) of coefficients (…, F) of the products of vectors along the axes."""
    ndim = len(axes)
    inside, outside = _INDICES[:ndim], _INDICES[ndim : 2 * ndim]
    spans = ",".join(map("".join, zip(outside, inside, strict=True)))
    shaped = coefficients.reshape(*[axis.shape[1] for axis in axes], -1)
    subscripts = f"{spans},{inside}F->F{outside}"
    return np.asarray(np.einsum(subscripts, *axes, shaped, optimize=ndim > 2), dtype=np.float64)


# --- expectations over images and positions ---


def _kron(matrices: Iterable[Array]) -> Array:
    return functools.reduce(lambda left, right: np.asarray(np.kron(left, right)), matrices)


@dataclass(frozen=True, eq=False)
class _Moment:
    """A bilinear form of two filters: ``sign`` times the matrix along each axis, and of their sums."""

    sign: int
    matrix: Array

    def between(self, left: tuple[Array, ...], right: tuple[Array, ...]) -> Array:
        """The form between all pairs of filters that are spanned by vectors along the axes."""
        pairs = [*zip(left, right, strict=True)]
        texture = _kron(a.T @ self.matrix @ b for a, b in pairs)
        mean = _kron(np.outer(a.sum(0), b.sum(0)) for a, b in pairs)
        return np.asarray(self.sign * (texture + _BRIGHTNESS * mean))

    def sum(self, left: Array, right: Array) -> float:
        """The form of pairs of filters (F, K, K), summed over F."""
        texture = np.sum(left * (self.matrix @ right @ self.matrix.T))
        mean = np.sum(left.sum((1, 2)) * right.sum((1, 2)))
        return float(self.sign * (texture + _BRIGHTNESS * mean))


@dataclass(frozen=True, eq=False)
class _Moments:
    """The three expectations that the error between two scales is made of."""

    small: Array
    cross: Array
    large: Array

    def quadratic_form(self, s: int, t: int) -> list[tuple[int, int, _Moment]]:
        """The terms of the squared error: smaller scale s, larger scale t."""
        return [
            (s, s, _Moment(1, self.small)),
            (s, t, _Moment(-1, self.cross)),
            (t, s, _Moment(-1, self.cross.T)),
            (t, t, _Moment(1, self.large)),
        ]


@functools.lru_cache(maxsize=64)
def _moments(kernel_size: int, ratio: float, correlation: float) -> _Moments:
    r"""Expectations for filters along one axis; those of two axes are products of them.

    The rescaled image at pixel i is :math:`\sum_k h(r i + \theta - k) f_k` with the cubic kernel h. The
    response at i = 0 to tap m of the smaller filter weighs :math:`f_k` by :math:`h(\theta + r m - k)`, that
    to tap n of the larger one by :math:`h(\theta + n - k)`. Their products are piecewise polynomials of
    degree 6 in the position θ, which four Gauss-Legendre nodes on each piece integrate exactly.
    """
    taps = np.arange(kernel_size, dtype=np.float64) - kernel_size // 2
    nodes, weights = _positions(np.multiply(ratio, taps, dtype=np.float64))
    furthest = math.ceil(kernel_size // 2 * max(ratio, 1.0)) + 3
    pixels = np.arange(-furthest, furthest + 1)
    small = _cubic(nodes[:, None, None] + ratio * taps[:, None] - pixels)  # (nodes, taps, pixels)
    large = _cubic(nodes[:, None, None] + taps[:, None] - pixels)
    covariance = correlation ** np.abs(pixels[:, None] - pixels)
    seen_small, seen_large = (weights[:, None, None] * (side @ covariance) for side in (small, large))
    return _Moments(
        small=np.einsum("tmk,tnk->mn", seen_small, small, optimize=True),
        cross=np.einsum("tmk,tnk->mn", seen_small, large, optimize=True),
        large=np.einsum("tmk,tnk->mn", seen_large, large, optimize=True),
    )


def _positions(points: Array) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1], piecewise between the positions at which a point meets a pixel."""
    breaks = np.unique(np.round(np.append(-points % 1.0, [0.0, 1.0]), 12))
    nodes, weights = np.polynomial.legendre.leggauss(4)
    middle, half = (breaks[1:] + breaks[:-1]) / 2, np.diff(breaks) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def _cubic(distance: Array) -> Array:
    d = np.abs(distance)
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
    far = _CUBIC * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _relative_error(moments: _Moments, small: Array, large: Array) -> float:
    sides = (small, large)
    squared = sum(moment.sum(sides[a], sides[b]) for a, b, moment in moments.quadratic_form(0, 1))
    size = _Moment(1, moments.large).sum(large, large)
    return math.sqrt(max(squared, 0.0) / size) if size > 0 else 0.0
