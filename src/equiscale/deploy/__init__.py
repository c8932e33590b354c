"""In and out: converted networks, published checkpoints."""

from equiscale.deploy.conversion import ConversionPolicy, ConversionReport, convert, project_filters
from equiscale.deploy.published import load_published_state_dict

__all__ = [
    "ConversionPolicy",
    "ConversionReport",
    "convert",
    "load_published_state_dict",
    "project_filters",
]
