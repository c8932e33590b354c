"""Filter families: fixed basis functions sampled on every scale of a grid."""

from equiscale.basis.bspline import BSplineBasis
from equiscale.basis.diagnosis import MAX_CONDITION, ScaleDiagnosis, diagnose
from equiscale.basis.disco import DiscoBasis, rescaling_error
from equiscale.basis.fourier_bessel import FourierBesselBasis
from equiscale.basis.gaussian_derivative import GaussianDerivativeBasis
from equiscale.basis.hermite import HermiteBasis
from equiscale.basis.log_radial import LogRadialBasis
from equiscale.basis.protocol import SteerableBasis
from equiscale.basis.registry import BasisEntry, basis_entry, list_bases
from equiscale.basis.separable import sample_nd

__all__ = [
    "MAX_CONDITION",
    "BSplineBasis",
    "BasisEntry",
    "DiscoBasis",
    "FourierBesselBasis",
    "GaussianDerivativeBasis",
    "HermiteBasis",
    "LogRadialBasis",
    "ScaleDiagnosis",
    "SteerableBasis",
    "basis_entry",
    "diagnose",
    "list_bases",
    "rescaling_error",
    "sample_nd",
]
