"""Why is a network not equivariant, layer by layer?"""

from equiscale.testing.diagnosis.network import equivariance_report
from equiscale.testing.diagnosis.report import LayerDiagnosis, NetworkEquivarianceReport

__all__ = ["LayerDiagnosis", "NetworkEquivarianceReport", "equivariance_report"]
