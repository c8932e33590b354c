"""Measure the scale equivariance of any module, assert it in your own tests, and find out what breaks it."""

from equiscale.testing.diagnosis import LayerDiagnosis, NetworkEquivarianceReport, equivariance_report
from equiscale.testing.equivariance import (
    EquivarianceOptions,
    EquivarianceReport,
    assert_equivariant,
    equivariance_error,
)
from equiscale.testing.signals import BandLimitedImage

__all__ = [
    "BandLimitedImage",
    "EquivarianceOptions",
    "EquivarianceReport",
    "LayerDiagnosis",
    "NetworkEquivarianceReport",
    "assert_equivariant",
    "equivariance_error",
    "equivariance_report",
]
