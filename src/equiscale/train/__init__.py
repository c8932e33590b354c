"""Training a module on batches, with exact resumption; knows neither models nor data sets."""

from equiscale.train.checkpoint import load_checkpoint, save_checkpoint
from equiscale.train.config import TrainConfig
from equiscale.train.loop import Batches, Checkpoint, EpochResult, TrainState, evaluate, fit
from equiscale.train.seeding import derive_seed

__all__ = [
    "Batches",
    "Checkpoint",
    "EpochResult",
    "TrainConfig",
    "TrainState",
    "derive_seed",
    "evaluate",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
