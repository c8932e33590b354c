"""The ways to compute a scale convolution, and the planner that picks one."""

from equiscale.functional.algorithms.convolution import Convolution, FilterCache
from equiscale.functional.algorithms.planner import AlgorithmName, algorithm, unmeasured

__all__ = ["AlgorithmName", "Convolution", "FilterCache", "algorithm", "unmeasured"]
