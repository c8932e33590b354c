"""Measure the scale equivariance of any module, and assert it in your own tests."""

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
    "assert_equivariant",
    "equivariance_error",
]
