"""In and out: converted, folded and exported networks, published checkpoints."""

from equiscale.deploy.conversion import ConversionPolicy, ConversionReport, convert, project_filters
from equiscale.deploy.exporting import Export, export
from equiscale.deploy.folding import fold
from equiscale.deploy.published import load_published_state_dict

__all__ = [
    "ConversionPolicy",
    "ConversionReport",
    "Export",
    "convert",
    "export",
    "fold",
    "load_published_state_dict",
    "project_filters",
]
