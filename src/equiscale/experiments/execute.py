"""One run: data, network, training, test, record."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from equiscale._files import atomic_path
from equiscale.data import Dataset, TensorBatches, load, normalize, random_rescale
from equiscale.data.loader import Transform
from equiscale.errors import SettingError, TrainingError
from equiscale.experiments import provenance
from equiscale.experiments.inspection import inspect_network, layer_equivariance
from equiscale.experiments.records import (
    DataRecord,
    EpochRecord,
    FactorErrors,
    Provenance,
    RunRecord,
    RunSettings,
    TestRecord,
    encode_predictions,
    record_path,
    write_record,
)
from equiscale.models import create_model
from equiscale.models.mnist import MnistNetwork
from equiscale.train import Checkpoint, EpochResult, TrainConfig, TrainState, derive_seed, evaluate, fit
from equiscale.train.loop import error_percent

_EVALUATION_BATCH = 256
_FACTOR_EDGES = np.linspace(0.3, 1.0, 15)


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run; nothing here decides the outcome but the number of threads' rounding.

    Args:
        folder: The results folder.
        data_root: The folder of prepared data; None: the default.
        device: "cpu" or "cuda", with an index where there are several.
        threads: Threads of a run on the CPU.
        resume: Go on from a checkpoint where there is one.
    """

    folder: Path
    data_root: Path | None = None
    device: str = "cpu"
    threads: int = 1
    resume: bool = True


def execute_run(
    settings: RunSettings, options: RunOptions, *, on_epoch: Callable[[EpochResult], None] | None = None
) -> RunRecord:
    """Do one run; write its weights, the arrays of its pictures, and last its record.

    Args:
        settings: What to run.
        options: Where and how.
        on_epoch: Called after every epoch.

    Returns:
        The record, which is on disk. Its status is "failed" where the training could not go on.

    Raises:
        DataError: If the data are missing or damaged.
        CheckpointError: If the checkpoint is damaged.
    """
    torch.set_num_threads(options.threads)
    run = _Run(settings, options)
    checkpoint = checkpoint_path(options.folder, settings)
    if not options.resume:
        checkpoint.unlink(missing_ok=True)
    try:
        record = run.finish(run.train(on_epoch))
    except TrainingError as error:
        record = run.record(failure=str(error))
    write_record(options.folder, record)
    checkpoint.unlink(missing_ok=True)
    return record


def checkpoint_path(folder: Path, settings: RunSettings) -> Path:
    """Where the checkpoint of an unfinished run lies."""
    return folder / settings.suite / "checkpoints" / f"{settings.run_id}.safetensors"


def weights_path(folder: Path, settings: RunSettings) -> Path:
    """Where the weights of a finished run lie."""
    return folder / settings.suite / "weights" / f"{settings.run_id}.safetensors"


class _Run:
    """The parts of a run: data on the device, the network, and what was seen so far."""

    def __init__(self, settings: RunSettings, options: RunOptions) -> None:
        self.settings, self.options, self.started = settings, options, provenance.now()
        self.commit = provenance.commit()
        self.device = torch.device(options.device)
        self.train_split, self.validation, self.test = (
            self._load(split) for split in ("train", "val", "test")
        )
        _check_batches(len(self.train_split), settings.protocol.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(settings.protocol.seed, "weights"))
            network = create_model(settings.model, num_classes=self.train_split.num_classes)
        if not isinstance(network, MnistNetwork):
            raise SettingError(f"expected a network for 28×28 digits, got {settings.model!r}")
        self.network = network.to(self.device)
        self.history: list[EpochResult] = []

    def train(self, on_epoch: Callable[[EpochResult], None] | None) -> TrainState:
        """Train to the last epoch."""

        def remember(result: EpochResult) -> None:
            self.history.append(result)
            if on_epoch is not None:
                on_epoch(result)

        return fit(
            self.network,
            self._batches(
                self.train_split, self._transform(), self.settings.protocol.batch_size, shuffle=True
            ),
            validation=self._batches(self.validation),
            config=_train_config(self.settings),
            checkpoint=Checkpoint(
                checkpoint_path(self.options.folder, self.settings),
                belongs_to=f"{self.settings.run_id} on data {self.train_split.checksum}",
            ),
            on_epoch=remember,
        )

    def finish(self, state: TrainState) -> RunRecord:
        """Test the best epoch and write the weights and the pictures' arrays."""
        self.network.load_state_dict(state.best)
        begun = time.monotonic()
        predictions, labels = evaluate(self.network, self._batches(self.test))
        seconds = time.monotonic() - begun
        self.network.cpu()
        test = TestRecord(
            epoch=state.best_epoch,
            error=error_percent(predictions, labels),
            predictions=encode_predictions(predictions.tolist()),
            by_factor=_by_factor(self.test.factors, predictions != labels),
        )
        equivariance = layer_equivariance(self.network, self.test)
        pictures = self._save_pictures(predictions)
        self._save_weights()
        return self.record(
            test=test, test_seconds=seconds, equivariance=tuple(equivariance), inspection=pictures
        )

    def record(self, *, failure: str | None = None, test_seconds: float = 0.0, **results: Any) -> RunRecord:
        """The record of a finished run, or of a failed one."""
        return RunRecord(
            status="finished" if failure is None else "failed",
            failure=failure,
            settings=self.settings,
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            data=self._data_record(),
            epochs=tuple(EpochRecord(**asdict(result)) for result in self.history),
            provenance=self._provenance(test_seconds),
            **results,
        )

    def _load(self, split: str) -> Dataset:
        return load(
            self.settings.dataset,
            split=split,
            realisation=self.settings.realisation,
            root=self.options.data_root,
        )

    def _batches(
        self,
        split: Dataset,
        transform: Transform | None = None,
        batch_size: int = _EVALUATION_BATCH,
        *,
        shuffle: bool = False,
    ) -> TensorBatches:
        return TensorBatches(
            split.images.to(self.device),
            split.labels.to(self.device),
            batch_size=batch_size,
            transform=transform or self._normalized,
            shuffle=shuffle,
        )

    def _transform(self) -> Transform:
        return self._augmented if self.settings.augment == "scale" else self._normalized

    def _normalized(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return normalize(images, self.train_split.mean, self.train_split.std)

    def _augmented(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            raise SettingError("expected a generator for the augmentation, got None")
        low, high = self.settings.protocol.augment_range
        return self._normalized(random_rescale(images, low=low, high=high, generator=generator))

    def _data_record(self) -> DataRecord:
        return DataRecord(
            checksum=self.train_split.checksum,
            train=len(self.train_split),
            validation=len(self.validation),
            test=len(self.test),
        )

    def _provenance(self, test_seconds: float) -> Provenance:
        commit, clean = self.commit
        return Provenance(
            versions=provenance.versions(),
            machine=provenance.machine(self.device),
            commit=commit,
            clean=clean,
            started=self.started,
            finished=provenance.now(),
            train_seconds=sum(result.seconds for result in self.history),
            test_seconds=test_seconds,
        )

    def _save_weights(self) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        with atomic_path(weights_path(self.options.folder, self.settings)) as temporary:
            save_file(tensors, temporary, {"run": self.settings.model_dump_json()})

    def _save_pictures(self, predictions: Tensor) -> str:
        target = record_path(self.options.folder, self.settings).with_suffix(".npz")
        arrays = inspect_network(self.network, self.test, predictions)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return target.name


def _train_config(settings: RunSettings) -> TrainConfig:
    protocol = settings.protocol
    return TrainConfig(
        epochs=protocol.epochs,
        learning_rate=protocol.learning_rate,
        lr_steps=protocol.lr_steps,
        lr_gamma=protocol.lr_gamma,
        seed=protocol.seed,
    )


def _check_batches(images: int, batch_size: int) -> None:
    if 1 in (batch_size, images % batch_size):
        raise SettingError(
            "expected a batch size that leaves no batch of a single image, on which batch norm cannot "
            f"train, got {batch_size} for {images} images"
        )


def _by_factor(factors: Tensor, wrong: Tensor) -> FactorErrors:
    """Mistakes in bins of the scaling factor; the outermost bins take what rounding puts outside."""
    inside = factors.numpy().clip(_FACTOR_EDGES[0], _FACTOR_EDGES[-1])
    images, _ = np.histogram(inside, _FACTOR_EDGES)
    mistakes, _ = np.histogram(inside[wrong.numpy()], _FACTOR_EDGES)
    return FactorErrors(
        edges=tuple(_FACTOR_EDGES.round(3).tolist()),
        images=tuple(images.tolist()),
        mistakes=tuple(mistakes.tolist()),
    )
