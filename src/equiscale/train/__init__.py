"""Training a module on batches, with exact resumption; knows neither models nor data sets."""

from equiscale.train.average import WeightAverage, weights_of
from equiscale.train.checkpoint import load_checkpoint, save_checkpoint
from equiscale.train.config import Numerics, OptimizerSettings, TrainConfig
from equiscale.train.group import Batches
from equiscale.train.loop import Checkpoint, Splits, evaluate, fit
from equiscale.train.seeding import derive_seed
from equiscale.train.state import EpochResult, TrainState

__all__ = [
    "Batches",
    "Checkpoint",
    "EpochResult",
    "Numerics",
    "OptimizerSettings",
    "Splits",
    "TrainConfig",
    "TrainState",
    "WeightAverage",
    "derive_seed",
    "evaluate",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
    "weights_of",
]
