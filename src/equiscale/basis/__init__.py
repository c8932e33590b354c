"""Filter families: fixed basis functions sampled on every scale of a grid."""

from equiscale.basis.diagnosis import MAX_CONDITION, ScaleDiagnosis, diagnose
from equiscale.basis.disco import DiscoBasis, rescaling_error
from equiscale.basis.hermite import HermiteBasis
from equiscale.basis.protocol import SteerableBasis

__all__ = [
    "MAX_CONDITION",
    "DiscoBasis",
    "HermiteBasis",
    "ScaleDiagnosis",
    "SteerableBasis",
    "diagnose",
    "rescaling_error",
]
