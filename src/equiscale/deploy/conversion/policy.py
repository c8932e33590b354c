"""Where the scale axis is born and projected, and with which filters."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

from equiscale._typing import Projection
from equiscale.basis import DiscoBasis, SteerableBasis, basis_entry
from equiscale.errors import SettingError
from equiscale.scales import ScaleGrid

Where = Literal["end", "stage", "layer"]
Init = Literal["pretrained", "fresh"]
BasisChoice = str | Callable[[int], SteerableBasis]

# A Gaussian of width s is below 1.2 % of its peak at a distance of 3 s.
_WIDTHS_OF_A_GAUSSIAN: Final = 6


@dataclass(frozen=True)
class ConversionPolicy:
    """Where a network gets its scale axis, where it loses it, and how.

    Args:
        project: "end": in front of the head; "stage": also wherever the resolution falls; "layer": in
            every converted convolution, so that all features stay images; or the names (patterns as in
            a shell; a name stands for all inside it) of the modules in front of which the axis is projected.
        lift: Names of the convolutions that may lift an image to a scale map; "*": every one with more
            than one pixel.
        projection: How the axis is reduced, as in `equiscale.nn.ScaleProjection`.
        reference: The scale of the grid on which the pretrained filters lie; None: the smallest.

    Raises:
        SettingError: For a word or a projection that does not exist.

    Example:
        >>> ConversionPolicy(project=("layer3", "avgpool")).entered_by("layer3.0.conv1")
        ['layer3']
    """

    project: Where | tuple[str, ...] = "end"
    lift: tuple[str, ...] = ("*",)
    projection: Projection = "max"
    reference: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.project, str) and self.project not in get_args(Where):
            raise SettingError(
                f"expected project to be one of {', '.join(get_args(Where))} or a tuple of names, "
                f"got {self.project!r}"
            )
        if isinstance(self.lift, str):
            raise SettingError(f"expected lift to be a tuple of names, got {self.lift!r}; write a comma")
        if self.projection not in get_args(Projection) or self.projection == "argmax-scale":
            raise SettingError(f"expected a projection of max, mean or logsumexp, got {self.projection!r}")

    def entered_by(self, name: str) -> list[str]:
        """The names in front of which is projected that this module belongs to."""
        return [] if isinstance(self.project, str) else [p for p in self.project if _belongs(name, p)]

    def lifts_at(self, name: str) -> bool:
        """Whether this convolution may lift."""
        return any(_belongs(name, pattern) for pattern in self.lift)

    def check_names(self, names: Sequence[str]) -> None:
        """Whether the network has what is named.

        Raises:
            SettingError: For a name that stands for nothing in it.
        """
        named = () if isinstance(self.project, str) else self.project
        for pattern in (*named, *self.lift):
            if not any(_belongs(name, pattern) for name in names):
                raise SettingError(
                    f"expected names of modules, got {pattern!r}, which the network does not have"
                )

    def reference_index(self, grid: ScaleGrid) -> int:
        """The place in the grid of the scale of the pretrained filters.

        Raises:
            SettingError: If the grid does not have it.
        """
        if self.reference is None:
            return 0
        for index, scale in enumerate(grid):
            if math.isclose(scale, self.reference, rel_tol=1e-3):
                return index
        raise SettingError(f"expected a reference scale of {grid}, got {self.reference}")


@dataclass(frozen=True)
class Filters:
    """What every converted convolution is made of.

    Args:
        grid: The S scales.
        basis: A name of `equiscale.basis.list_bases`, or a function from the side k of an ordinary filter
            to a basis.
        reference: The place in the grid of the scale of the pretrained filters.
        pretrained: Whether they are taken over.
    """

    grid: ScaleGrid
    basis: BasisChoice
    reference: int
    pretrained: bool

    def family(self, side: int) -> SteerableBasis:
        """The basis that stands for ordinary filters of side k."""
        if not isinstance(self.basis, str):
            return self.basis(side)
        if self.basis == "pixel":
            return DiscoBasis(side, "pixel")
        return basis_entry(self.basis).build(side)

    def kernel_size(self, side: int) -> int:
        """K, the side of the filter on the largest scale that holds an ordinary one of side k."""
        if isinstance(self.family(side), DiscoBasis):
            reach = math.ceil(side // 2 * self.grid.max / self.grid.min - 1e-9)
            return 2 * max(reach, side // 2) + 1
        needed = math.ceil(_WIDTHS_OF_A_GAUSSIAN * self.grid.max)
        return max(needed + 1 - needed % 2, side)


def make_policy(where: Where | ConversionPolicy) -> ConversionPolicy:
    """A policy from its word."""
    return where if isinstance(where, ConversionPolicy) else ConversionPolicy(project=where)


def _belongs(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
