"""Convert an ordinary network into a scale-equivariant one."""

from equiscale.deploy.conversion.convert import convert
from equiscale.deploy.conversion.policy import ConversionPolicy
from equiscale.deploy.conversion.pretrained import project_filters
from equiscale.deploy.conversion.report import ConversionReport, ModuleFate

__all__ = ["ConversionPolicy", "ConversionReport", "ModuleFate", "convert", "project_filters"]
