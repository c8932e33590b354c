"""Before a training: which scales, kernel and basis suit the data, and what a network will cost."""

from equiscale.choose.candidates import Candidate, SearchSpace
from equiscale.choose.estimate import CostEstimate, EstimateOptions, StepCost, estimate
from equiscale.choose.objects import factor_range, read_object_sizes
from equiscale.choose.spread import strongest_scales
from equiscale.choose.suggest import Suggestion, suggest

__all__ = [
    "Candidate",
    "CostEstimate",
    "EstimateOptions",
    "SearchSpace",
    "StepCost",
    "Suggestion",
    "estimate",
    "factor_range",
    "read_object_sizes",
    "strongest_scales",
    "suggest",
]
