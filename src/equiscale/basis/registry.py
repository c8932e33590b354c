"""The registry: from a basis's name to its family and citation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from equiscale import citations
from equiscale.basis.bspline import BSplineBasis
from equiscale.basis.disco import DiscoBasis
from equiscale.basis.fourier_bessel import FourierBesselBasis
from equiscale.basis.gaussian_derivative import GaussianDerivativeBasis
from equiscale.basis.hermite import HermiteBasis
from equiscale.basis.log_radial import LogRadialBasis
from equiscale.basis.protocol import SteerableBasis
from equiscale.citations import Citation
from equiscale.errors import BasisError


@dataclass(frozen=True)
class BasisEntry:
    """One named family of filters.

    Args:
        name: The registry's key.
        title: The family's name in tables.
        build: From the effective size, and the family's own keywords, to a basis.
        citation: Where the family was published.
        summary: One sentence: what the functions are.

    Example:
        >>> basis_entry("bspline").build(3, degree=1).num_functions
        9
    """

    name: str
    title: str
    build: Callable[..., SteerableBasis]
    citation: Citation
    summary: str


# A family more is one entry more.
_ENTRIES = (
    BasisEntry(
        "hermite-a",
        "Hermite A",
        partial(HermiteBasis, kind="A"),
        citations.SESN,
        "Hermite polynomials under one Gaussian, all orders below the effective size.",
    ),
    BasisEntry(
        "hermite-b",
        "Hermite B",
        partial(HermiteBasis, kind="B"),
        citations.SESN,
        "Hermite polynomials of low order under Gaussians of several widths.",
    ),
    BasisEntry(
        "bspline",
        "B-spline",
        BSplineBasis,
        citations.BSPLINE,
        "B-splines centred on a grid of knots that grows with the scale.",
    ),
    BasisEntry(
        "fourier-bessel",
        "Fourier–Bessel",
        FourierBesselBasis,
        citations.FOURIER_BESSEL,
        "The slowest vibrations of a disc whose radius grows with the scale.",
    ),
    BasisEntry(
        "log-radial",
        "Log-radial harmonics",
        LogRadialBasis,
        citations.SS_CNN,
        "Waves in the logarithm of the radius, in cones of directions.",
    ),
    BasisEntry(
        "gaussian-derivative",
        "Gaussian derivatives",
        GaussianDerivativeBasis,
        citations.GAUSSIAN_DERIVATIVE,
        "Scale-normalised derivatives of a Gaussian in a window of a fixed number of its deviations.",
    ),
    BasisEntry(
        "disco-a",
        "DISCO A",
        partial(DiscoBasis, kind="A"),
        citations.DISCO,
        "Hermite functions on the pixels of the smallest filter, dilated or fitted on the other scales.",
    ),
    BasisEntry(
        "disco-b",
        "DISCO B",
        partial(DiscoBasis, kind="B"),
        citations.DISCO,
        "As DISCO A, of low order in several widths.",
    ),
)
_REGISTRY = {entry.name: entry for entry in _ENTRIES}


def list_bases() -> list[str]:
    """The names of the registered bases, sorted.

    Example:
        >>> "hermite-a" in list_bases()
        True
    """
    return sorted(_REGISTRY)


def basis_entry(name: str) -> BasisEntry:
    """The registry's entry of a basis.

    Args:
        name: One of `list_bases`.

    Returns:
        Title, builder, citation and summary.

    Raises:
        BasisError: For an unknown name; the message lists what exists.

    Example:
        >>> basis_entry("fourier-bessel").citation.year
        2022
    """
    if name not in list_bases():
        raise BasisError(f"expected a basis of {', '.join(list_bases())}, got {name!r}")
    return _REGISTRY[name]
