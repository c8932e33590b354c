"""Measure the scale equivariance of any module, assert it in your own tests, and find out what breaks it.

Names are loaded when they are first used: the pytest plugin starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equiscale.testing.diagnosis import LayerDiagnosis, NetworkEquivarianceReport, equivariance_report
    from equiscale.testing.equivariance import (
        EquivarianceOptions,
        EquivarianceReport,
        assert_equivariant,
        equivariance_error,
    )
    from equiscale.testing.signals import BandLimitedImage

_HOMES = {
    "BandLimitedImage": "signals",
    "EquivarianceOptions": "equivariance",
    "EquivarianceReport": "equivariance",
    "LayerDiagnosis": "diagnosis",
    "NetworkEquivarianceReport": "diagnosis",
    "assert_equivariant": "equivariance",
    "equivariance_error": "equivariance",
    "equivariance_report": "diagnosis",
}

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


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"equiscale.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'equiscale.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
