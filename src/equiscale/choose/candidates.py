"""What is tried: grids that cover the range, kernels, and bases at their best smallest scale."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from itertools import product
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import torch

from equiscale.basis import SteerableBasis, basis_entry, diagnose, rescaling_error
from equiscale.choose.cost import CHANNELS, relative_operations
from equiscale.errors import BasisError, SettingError
from equiscale.functional import support_windows
from equiscale.nn import ScaleConv2d
from equiscale.scales import ScaleGrid

# measured; left by the sieve; beyond twice the budget; dependent functions; cannot be sampled.
Status: TypeAlias = Literal["measured", "sieved", "costly", "degenerate", "unfit"]
CostMeasure: TypeAlias = Literal["operations", "time"]

DEFAULT_BASES: Final = ("bspline", "disco-a", "hermite-a", "hermite-b")
DEFAULT_KERNELS: Final = (5, 7, 9, 11, 13, 15, 17)
# An octave: between scales further apart no published network interpolates.
_LARGEST_STEP: Final = 2.0
_SMALLEST_STEP: Final = 1.15
_SMALLEST_RANGE: Final = 1.05
_SIZES_OF_GRIDS: Final = 3  # from the fewest scales on
# Kernel over largest scale: from filters that their window cuts to those that it holds with room.
_KERNEL_PER_SCALE: Final = (3.0, 4.0, 5.0, 6.5, 8.5)
_OTHER_PARAMETERS: Final[Mapping[str, tuple[dict[str, Any], ...]]] = MappingProxyType(
    {
        "bspline": ({"degree": 2}, {"degree": 3}),
        "hermite-b": ({}, {"max_order": 2, "mult": 1.5}, {"max_order": 2, "mult": 2.0}),
    }
)


@dataclass(frozen=True)
class SearchSpace:
    """What `equiscale.choose.suggest` tries, and how thoroughly.

    Args:
        kernel_sizes: K, odd.
        bases: Names of registered bases.
        effective_size: e, the side of the plain filter with as many weights; odd.
        cost: Count operations, or measure the time, which differs from run to run.
        measured: How many candidates the sieve leaves to be measured on the images.
        images: How many images are used, at most; of each at most 64×64 pixels.

    Raises:
        BasisError: For an unknown basis.
        SettingError: For other values outside the legal ones.

    Example:
        >>> SearchSpace(bases=("disco-a",)).effective_size
        3
    """

    kernel_sizes: tuple[int, ...] = DEFAULT_KERNELS
    bases: tuple[str, ...] = DEFAULT_BASES
    effective_size: int = 3
    cost: CostMeasure = "operations"
    measured: int = 12
    images: int = 16

    def __post_init__(self) -> None:
        for name in self.bases:
            basis_entry(name)
        if not (self.kernel_sizes and self.bases):
            raise SettingError("expected at least one kernel size and one basis, got none")
        for name, sizes in (("kernel_sizes", self.kernel_sizes), ("effective_size", (self.effective_size,))):
            if min(sizes) < 1 or any(size % 2 == 0 for size in sizes):
                raise SettingError(f"expected odd positive {name}, got {', '.join(map(str, sizes))}")
        if min(self.measured, self.images) < 1:
            raise SettingError(
                f"expected to measure a candidate on an image at least, got {self.measured} on {self.images}"
            )
        if self.cost not in ("operations", "time"):
            raise SettingError(f"expected a cost of operations, time, got {self.cost!r}")


@dataclass(frozen=True)
class Candidate:
    """One grid, kernel and basis, and what is known of them.

    Args:
        grid: The scales.
        kernel_size: K.
        basis_name: The basis in the registry.
        basis: Built; None where it could not be.
        status: Whether it was measured, or why not.
        rank: Of the functions on the worst scale; None where they could not be sampled.
        condition: Their condition number there.
        widest: Pixels a side that they take on the largest scale.
        cost: Of a scale convolution, as a multiple of the plain convolution with as many weights.
        sieve: The closed-form error of rescaling, root mean square over pairs of scales.
        on_grid: The measured error between scales of the grid.
        between: What an object that lies half a step beside a scale adds, at the most.
        note: Why it is unfit.
    """

    grid: ScaleGrid
    kernel_size: int
    basis_name: str
    basis: SteerableBasis | None = None
    status: Status = "sieved"
    rank: int | None = None
    condition: float | None = None
    widest: int | None = None
    cost: float | None = None
    sieve: float | None = None
    on_grid: float | None = None
    between: float | None = None
    note: str = ""

    @property
    def functions(self) -> int | None:
        """F."""
        return None if self.basis is None else self.basis.num_functions

    @property
    def error(self) -> float | None:
        r"""Expected over objects of all sizes of the range.

        .. math:: \sqrt{\epsilon_{grid}^2 + \epsilon_{between}^2 / 3}

        as the distance to the nearest scale is anywhere from nothing to half a step.
        """
        return combined(self.on_grid, self.between)

    @property
    def filters(self) -> tuple[object, ...]:
        """What decides its filters; other kernels may give the same ones."""
        return self.grid, self.basis_name, self.expression, self.widest or self.kernel_size, self.status

    @property
    def expression(self) -> str:
        """The basis as Python."""
        return "None" if self.basis is None else expression_of(self.basis)

    def layer(self, channels: int = CHANNELS) -> ScaleConv2d:
        """A scale convolution."""
        if self.basis is None:
            raise SettingError(f"expected a basis that can be built, got {self.basis_name}: {self.note}")
        return ScaleConv2d(
            channels, channels, kernel_size=self.kernel_size, grid=self.grid, basis=self.basis, padding="same"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("grid", "basis")}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in own.items()}
        shown = {"grid": list(self.grid), "basis": self.expression, "functions": self.functions}
        return {**shown, **finite, "error": self.error}


def combined(on_grid: float | None, between: float | None) -> float | None:
    """The expected error, where both parts are known."""
    return None if on_grid is None or between is None else math.sqrt(on_grid**2 + between**2 / 3)


def expression_of(basis: SteerableBasis) -> str:
    """A basis as Python, without what is as by default; a package's name in front."""
    named = []
    for field in fields(basis):  # type: ignore[arg-type]
        value = getattr(basis, field.name)
        if field.default is MISSING:
            named.append(f"{value!r}")
        elif value != field.default:
            named.append(f"{field.name}={value!r}")
    return f"basis.{type(basis).__name__}({', '.join(named)})"


# --- grids ---


def grid_shapes(ratio: float) -> list[tuple[float, int]]:
    """(step, number of scales) of the grids that cover a range, the fewest scales first.

    Example:
        >>> grid_shapes(2.0)
        [(2.0, 2), (1.414, 3), (1.26, 4)]
    """
    if not (_SMALLEST_RANGE <= ratio < math.inf):
        raise SettingError(
            f"expected sizes that differ by a factor of at least {_SMALLEST_RANGE}, got {ratio:.3g}; "
            "a plain convolution serves objects of one size"
        )
    fewest = max(2, math.ceil(math.log(ratio, _LARGEST_STEP) - 1e-9) + 1)
    shapes = [
        (round(ratio ** (1 / (count - 1)), 3), count) for count in range(fewest, fewest + _SIZES_OF_GRIDS)
    ]
    return [shape for shape in shapes if shape[0] >= _SMALLEST_STEP] or shapes[:1]


def search(
    ratio: float, space: SearchSpace, *, size: tuple[int, int], correlation: float
) -> Iterator[Candidate]:
    """Every basis on every grid and kernel, at the smallest scale of least closed-form error.

    Args:
        ratio: Of the largest to the smallest object.
        space: What is tried.
        size: (H, W) of the images that costs are for.
        correlation: Of neighbouring pixels of the images.

    Yields:
        Candidates with their rank, sieve and cost; "degenerate" or "unfit" where none else was found.
    """
    seen = set()
    for (step, count), kernel_size, name in product(
        grid_shapes(ratio), sorted(set(space.kernel_sizes)), space.bases
    ):
        tried = [
            _assessed(candidate, space.effective_size, parameters, correlation)
            for parameters in _OTHER_PARAMETERS.get(name, ({},))
            for candidate in _at_smallest_scales(step, count, kernel_size=kernel_size, name=name)
        ]
        best = _with_cost(_best(tried), size)
        if best.filters not in seen:  # a larger kernel around the same functions is only zeros more
            seen.add(best.filters)
            yield best


def _at_smallest_scales(step: float, count: int, *, kernel_size: int, name: str) -> Iterator[Candidate]:
    # DISCO sees only ratios; everything else is a shape under a window.
    ratio = step ** (count - 1)
    smallest = {1.0} if name.startswith("disco") else {kernel_size / ratio / k for k in _KERNEL_PER_SCALE}
    for scale in sorted(smallest):
        yield Candidate(ScaleGrid.geometric(round(scale, 2), step, count), kernel_size, name)


def _assessed(
    candidate: Candidate, effective_size: int, parameters: Mapping[str, Any], correlation: float
) -> Candidate:
    try:
        basis = basis_entry(candidate.basis_name).build(effective_size, **parameters)
        sampled = replace(basis, degenerate="allow").sample(candidate.kernel_size, candidate.grid)  # type: ignore[type-var]
    except BasisError as error:
        return replace(candidate, status="unfit", note=str(error))
    worst = max(diagnose(sampled, candidate.grid), key=lambda found: (-found.rank, found.condition))
    errors = rescaling_error(sampled, candidate.grid, correlation=correlation)
    upper = errors[torch.ones_like(errors).triu(1).bool()]
    return replace(
        candidate,
        basis=basis,
        status="degenerate" if worst.degenerate else "sieved",
        rank=worst.rank,
        condition=worst.condition,
        widest=max(support_windows(sampled)),
        sieve=float(upper.square().mean().sqrt()),
    )


def _best(tried: Sequence[Candidate]) -> Candidate:
    """The one of least closed-form error; without independent ones that of most, then any."""
    usable = [candidate for candidate in tried if candidate.status == "sieved"]
    if usable:
        return min(usable, key=lambda candidate: candidate.sieve or 0.0)
    return max(tried, key=lambda candidate: candidate.rank or 0)


def _with_cost(candidate: Candidate, size: tuple[int, int]) -> Candidate:
    if candidate.status != "sieved":
        return candidate
    return replace(candidate, cost=relative_operations(candidate.layer(), size))
