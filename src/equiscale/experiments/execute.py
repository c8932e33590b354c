"""One run: data, network, training, test, record."""

import errno
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from equiscale._files import atomic_path
from equiscale.data import Dataset, DatasetInfo, TensorBatches, dataset_info, load, normalize
from equiscale.data.augment import apply_crop_flip_cutout, draw_crop_flip_cutout, recipe_for
from equiscale.data.transforms import BatchTransform, ChannelValues, draw_factors, rescale_as_pillow
from equiscale.errors import (
    CheckpointError,
    EquiscaleError,
    SettingError,
    TrainingError,
    TrainingStoppedError,
)
from equiscale.experiments import provenance
from equiscale.experiments.claims import Lease
from equiscale.experiments.inspection import inspect_network, layer_equivariance
from equiscale.experiments.plan import format_overrides
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
from equiscale.experiments.spec import Protocol
from equiscale.functional.algorithms import unmeasured
from equiscale.models import create_model
from equiscale.models.weights import save
from equiscale.train import (
    Checkpoint,
    EpochResult,
    Numerics,
    OptimizerSettings,
    Splits,
    TrainConfig,
    TrainState,
    derive_seed,
    evaluate,
    fit,
)
from equiscale.train.checkpoint import storable
from equiscale.train.group import ALONE, Group
from equiscale.train.loop import error_percent

# The largest batch of an evaluation, and what the largest layer's input and output may take then. On the
# CPU more images bring nothing (benchmarks/throughput.py); a GPU is busy with thousands only.
_EVALUATION_BATCH = {"cpu": 128, "cuda": 4096}
_EVALUATION_BYTES = {"cpu": 2**29, "cuda": 2**33}
# A split that is larger stays in main memory, from where each batch moves to the device.
_RESIDENT_BYTES = 8 * 2**30
# MNIST-scale's, for data that give no edges of their own.
_FACTOR_EDGES = np.linspace(0.3, 1.0, 15)
# Arguments of create_model that are no settings of a network, or are the data's.
_GIVEN_BY_THE_DATA = {"name", "num_classes", "in_channels", "pretrained"}
# How long a result waits for room on a full disk, and how often it looks.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PATIENCE_SECONDS = 600.0
_PAUSE_SECONDS = 1.0

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run; nothing here decides the outcome but the number of threads' rounding.

    Args:
        folder: The results folder.
        data_root: The folder of prepared data; None: the default.
        device: "cpu" or "cuda", with an index where there are several.
        threads: Threads of a run on the CPU.
        resume: Go on from a checkpoint where there is one.
        group: The processes that do each run together; the first one alone writes files.
        lease: How the claim of a run shows that its worker lives.
    """

    folder: Path
    data_root: Path | None = None
    device: str = "cpu"
    threads: int = 1
    resume: bool = True
    group: Group = ALONE
    lease: Lease = field(default_factory=Lease)


@unmeasured()
def execute_run(
    settings: RunSettings,
    options: RunOptions,
    *,
    on_epoch: Callable[[EpochResult], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RunRecord:
    """Do one run; write its weights, the arrays of its pictures, and last its record.

    What `equiscale.autotune` has measured is left out, so that a run has the same bits with any cache.

    Args:
        settings: What to run.
        options: Where and how.
        on_epoch: Called after every epoch.
        should_stop: Asked at every safe point.

    Returns:
        The record, which is on disk. Its status is "failed" where the training could not go on.

    Raises:
        DataError: If the data are missing or damaged.
        CheckpointError: If the checkpoint is damaged.
        TrainingStoppedError: If it was to stop; the checkpoint has been written.
        OSError: If weights or record cannot be written, for example for want of room.
    """
    torch.set_num_threads(options.threads)
    run = _Run(settings, options, should_stop)
    checkpoint = checkpoint_path(options.folder, settings)
    if not options.resume:
        if options.group.rank == 0:
            checkpoint.unlink(missing_ok=True)
        options.group.any(False)  # gone before anyone looks for it
    try:
        record = run.finish(run.train(on_epoch))
    except TrainingError as error:
        record = run.record(failure=str(error))
    if options.group.rank == 0:
        with_room(lambda: write_record(options.folder, record), run.should_stop)
        with suppress(OSError):  # the record is what counts
            checkpoint.unlink(missing_ok=True)
    return record


def with_room(write: Callable[[], _Made], should_stop: Callable[[], bool]) -> _Made:
    """Write; a full disk is waited for, ten minutes at most: somebody may make room.

    Raises:
        OSError: If it cannot be written, or if there is no room and the run is to stop.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in _NO_ROOM or time.monotonic() > end or should_stop():
                raise
            time.sleep(_PAUSE_SECONDS)


def checkpoint_path(folder: Path, settings: RunSettings) -> Path:
    """Where the checkpoint of an unfinished run lies."""
    return folder / settings.suite / "checkpoints" / f"{settings.run_id}.safetensors"


def weights_path(folder: Path, settings: RunSettings) -> Path:
    """Where the weights of a finished run lie."""
    return folder / settings.suite / "weights" / f"{settings.run_id}.safetensors"


def evaluation_splits(info: DatasetInfo) -> tuple[str | None, str]:
    """The names of the split that selects an epoch, None without one, and of the split that is tested.

    Data with images to learn from and one more split are tested on that, whatever its name.

    Raises:
        SettingError: If there is nothing to test on.
    """
    if "test" in info.split_sizes:
        return ("val" if "val" in info.split_sizes else None), "test"
    if "val" in info.split_sizes:
        return None, "val"
    raise SettingError(
        f"expected data with a test or val split, got {info.name} with {', '.join(info.split_sizes)} alone; "
        "set some of its images aside"
    )


def check_networks(runs: Iterable[RunSettings], *, data_root: Path | None = None) -> None:
    """Build every network of the runs, and let it see one image of its data set's shape.

    Args:
        runs: What to run.
        data_root: The folder of prepared data; None: the default.

    Raises:
        ModelError: For an unknown network or override.
        SettingError: If a network is not for such images, or a run's data do not fit its settings.
    """
    built = set()
    for run in runs:
        info = dataset_info(run.dataset, root=data_root)
        _check_data(run, info)
        network = (run.model, run.overrides, run.dataset)
        if network not in built:
            built.add(network)
            build_network(run, info)


class _Run:
    """The parts of a run: data on the device, the network, and what was seen so far."""

    def __init__(
        self, settings: RunSettings, options: RunOptions, should_stop: Callable[[], bool] | None = None
    ) -> None:
        self.settings, self.options, self.started = settings, options, provenance.now()
        self.should_stop, self.group = should_stop or (lambda: False), options.group
        self.commit = provenance.commit()
        self.device = torch.device(options.device)
        info = dataset_info(settings.dataset, root=options.data_root)
        _check_data(settings, info)
        self.network = build_network(settings, info).to(self.device)
        validation, test = evaluation_splits(info)
        self.train_split, self.test = self._load("train"), self._load(test)
        self.validation = None if validation is None else self._load(validation)
        _check_batches(len(self.train_split), settings.protocol.batch_size)
        self.config = _train_config(settings)
        self.history: list[EpochResult] = []
        self.notes = list(info.notes)

    @cached_property
    def evaluation_batch(self) -> int:
        """Images at a time in an evaluation."""
        return evaluation_batch(self.network, self.test.info.image_shape, self.device)

    def train(self, on_epoch: Callable[[EpochResult], None] | None) -> TrainState:
        """Train to the last epoch."""

        def remember(result: EpochResult) -> None:
            self.history.append(result)
            if on_epoch is not None:
                on_epoch(result)

        batch_size = self.settings.protocol.batch_size
        return fit(
            self.network,
            Splits(
                train=self._batches(self.train_split, self._transform(), batch_size, shuffle=True),
                validation=None if self.validation is None else self._batches(self.validation),
                test=self._batches(self.test) if self.config.test_every else None,
                group=self.group,
            ),
            config=self.config,
            checkpoint=Checkpoint(
                checkpoint_path(self.options.folder, self.settings),
                belongs_to=f"{self.settings.run_id} on data {self.train_split.checksum}",
            ),
            on_epoch=remember,
            should_stop=self.should_stop,
        )

    def _between_batches(self) -> None:
        if self.group.any(self.should_stop()):
            raise TrainingStoppedError("stopped in the test after the last epoch")

    def finish(self, state: TrainState) -> RunRecord:
        """Test the epoch that was kept and write the weights and the pictures' arrays."""
        self.notes.extend(state.notes)
        self.network.load_state_dict(state.best)
        begun = time.monotonic()
        predictions, labels = evaluate(
            self.network,
            self._batches(self.test),
            numerics=self.config.numerics,
            on_batch=self._between_batches,
            group=self.group,
        )
        seconds = time.monotonic() - begun
        test = TestRecord(
            epoch=state.best_epoch,
            error=error_percent(predictions, labels),
            predictions=encode_predictions(predictions.tolist()),
            by_factor=_by_factor(self.test, predictions != labels),
        )
        self._between_batches()  # nothing is written over what a worker wrote that took the run over
        if self.group.rank > 0:
            return self.record(test=test, test_seconds=seconds)
        with_room(self._save_weights, self.should_stop)
        equivariance = self._unless_it_fails(
            "equivariance", lambda: layer_equivariance(self.network, self.test)
        )
        pictures = self._unless_it_fails("pictures", lambda: self._save_pictures(predictions))
        return self.record(
            test=test, test_seconds=seconds, equivariance=tuple(equivariance or ()), inspection=pictures
        )

    def _unless_it_fails(self, what: str, make: Callable[[], _Made]) -> _Made | None:
        """What is only looked at must not cost a finished training."""
        try:
            return make()
        except Exception as error:  # noqa: BLE001 (a network of any kind; the record says what happened)
            self.notes.append(f"no {what}: {type(error).__name__}: {error}")
            return None

    def record(self, *, failure: str | None = None, test_seconds: float = 0.0, **results: Any) -> RunRecord:
        """The record of a finished run, or of a failed one."""
        return RunRecord(
            status="finished" if failure is None else "failed",
            failure=failure,
            settings=self.settings,
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            data=self._data_record(),
            epochs=tuple(EpochRecord(**asdict(result)) for result in self.history),
            notes=tuple(self.notes),
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
        transform: BatchTransform | None = None,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
    ) -> TensorBatches:
        device = self.device if split.images.nbytes <= _RESIDENT_BYTES else split.images.device
        return TensorBatches(
            split.images.to(device),
            split.labels.to(device),
            batch_size=batch_size or self.evaluation_batch,
            transform=transform or BatchTransform(self._normalized),
            shuffle=shuffle,
            device=self.device,
        )

    def _transform(self) -> BatchTransform:
        low, high = self.settings.protocol.augment_range
        side = self.train_split.info.image_shape[-1]
        pad, cutout = recipe_for(side)
        return {
            "none": BatchTransform(self._normalized),
            "scale": BatchTransform(
                lambda images, factors: self._normalized(rescale_as_pillow(images, factors)),
                lambda shape, generator: draw_factors(shape[0], low=low, high=high, generator=generator),
            ),
            "crop-flip-cutout": BatchTransform(
                lambda images, drawn: apply_crop_flip_cutout(
                    images, drawn, pad=pad, crop=side, cutout=cutout, **self._normalisation()
                ),
                lambda shape, generator: draw_crop_flip_cutout(
                    shape, pad=pad, crop=side, generator=generator
                ),
            ),
        }[self.settings.augment]

    def _normalized(self, images: Tensor, drawn: Tensor | None = None) -> Tensor:
        return normalize(images, **self._normalisation())

    def _normalisation(self) -> dict[str, ChannelValues]:
        return {"mean": self.train_split.mean, "std": self.train_split.std}

    def _data_record(self) -> DataRecord:
        return DataRecord(
            checksum=self.train_split.checksum,
            train=len(self.train_split),
            validation=0 if self.validation is None else len(self.validation),
            test=len(self.test),
            train_factors=self._train_factors(),
        )

    def _train_factors(self) -> tuple[float, float]:
        """The smallest and the largest factor of the training images, as the augmentation leaves them."""
        factors, scaled = self.train_split.factors, self.settings.augment == "scale"
        low, high = self.settings.protocol.augment_range if scaled else (1.0, 1.0)
        return factors.min().item() * low, factors.max().item() * high

    def _provenance(self, test_seconds: float) -> Provenance:
        commit, clean = self.commit
        return Provenance(
            versions=provenance.versions(),
            machine={**provenance.machine(self.device), **self.group.description()},
            commit=commit,
            clean=clean,
            started=self.started,
            finished=provenance.now(),
            train_seconds=sum(result.seconds for result in self.history),
            test_seconds=test_seconds,
        )

    def _save_weights(self) -> None:
        """As a file of `equiscale.models.save`; tensors alone where the network cannot be one."""
        path, run = weights_path(self.options.folder, self.settings), self.settings.model_dump_json()
        normalisation = self._normalisation()
        try:
            save(
                self.network,
                path,
                notes={"run": self.settings.run_id, "settings": json.loads(run), **normalisation},
            )
        except CheckpointError as error:
            self.notes.append(f"weights as plain tensors: {error}")
            tensors = {name: storable(tensor) for name, tensor in self.network.state_dict().items()}
            with atomic_path(path) as temporary:
                temporary.write_bytes(to_bytes(tensors, {"run": run}))

    def _save_pictures(self, predictions: Tensor) -> str:
        target = record_path(self.options.folder, self.settings).with_suffix(".npz")
        arrays = inspect_network(self.network, self.test, predictions)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return target.name


def build_network(settings: RunSettings, info: DatasetInfo) -> nn.Module:
    """The network with the run's first weights, after it has seen one image.

    Raises:
        ModelError: For an unknown network or override.
        SettingError: If an override has no legal value, or the network is not for such images.
    """
    given = _GIVEN_BY_THE_DATA & set(dict(settings.overrides))
    if given:
        raise SettingError(
            f"expected overrides of the network's own settings, got {', '.join(sorted(given))}, which the "
            f"data of {settings.dataset} decide; leave them out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.protocol.seed, "weights"))
        network = _create_network(settings, info)
    expected = (1, info.num_classes)
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(torch.zeros(1, *info.image_shape)).shape)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SettingError(_misfit(settings, info, str(error))) from error
    if shape != expected:
        raise SettingError(_misfit(settings, info, f"it gives {shape} instead of {expected}"))
    return network.train()


def _create_network(settings: RunSettings, info: DatasetInfo) -> nn.Module:
    overrides: dict[str, Any] = dict(settings.overrides)
    try:
        return create_model(
            settings.model,
            num_classes=info.num_classes,
            in_channels=info.image_shape[0],
            **overrides,
        )
    except EquiscaleError:
        raise
    except Exception as error:
        if not overrides:
            raise
        raise SettingError(
            f"expected overrides of legal values for {settings.model!r}, got "
            f"{' '.join(format_overrides(settings.overrides))}: {type(error).__name__}: {error}"
        ) from error


def _misfit(settings: RunSettings, info: DatasetInfo, reason: str) -> str:
    return (
        f"expected a network for {info.image_shape} images of {settings.dataset}, got {settings.model!r}: "
        f"{reason}; choose another network or other data"
    )


def numerics_of(protocol: Protocol) -> Numerics:
    """How the protocol's forward passes compute."""
    return Numerics(
        protocol.precision,
        protocol.channels_last,
        protocol.compile,
        protocol.cuda_graphs,
        protocol.deterministic,
    )


def _train_config(settings: RunSettings) -> TrainConfig:
    protocol = settings.protocol
    return TrainConfig(
        epochs=protocol.epochs,
        learning_rate=protocol.learning_rate,
        lr_steps=protocol.lr_steps,
        lr_gamma=protocol.lr_gamma,
        seed=protocol.seed,
        optimizer=OptimizerSettings(
            protocol.optimizer, protocol.momentum, protocol.nesterov, protocol.weight_decay
        ),
        numerics=numerics_of(protocol),
        accumulate=protocol.accumulate,
        ema_decay=protocol.ema_decay,
        select=protocol.select,
        test_every=protocol.test_every,
    )


def _check_data(settings: RunSettings, info: DatasetInfo) -> None:
    validation, _ = evaluation_splits(info)
    if settings.protocol.select == "best-validation" and validation is None:
        raise SettingError(
            "expected data with a validation split beside the test split to select the best epoch, got "
            f'{settings.dataset} without; test the last epoch with select = "last"'
        )
    height, width = info.image_shape[1:]
    if settings.augment == "crop-flip-cutout" and height != width:
        raise SettingError(
            f"expected square images for the augmentation crop-flip-cutout, got {height}×{width} in "
            f'{settings.dataset}; use augment = "none"'
        )


def _check_batches(images: int, batch_size: int) -> None:
    if 1 in (batch_size, images % batch_size):
        raise SettingError(
            "expected a batch size that leaves no batch of a single image, on which batch norm cannot "
            f"train, got {batch_size} for {images} images"
        )


def evaluation_batch(network: nn.Module, image_shape: tuple[int, ...], device: torch.device) -> int:
    """Images at a time in an evaluation: a power of two, as memory allows."""
    largest, budget = _EVALUATION_BATCH.get(device.type, 128), _EVALUATION_BYTES.get(device.type, 2**29)
    fitting = min(largest, budget // _bytes_an_image(network, image_shape, device))
    return 1 << max(0, fitting.bit_length() - 1)


def _bytes_an_image(network: nn.Module, image_shape: tuple[int, ...], device: torch.device) -> int:
    """What the largest layer's input and output take."""
    sizes = [1]

    def look(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        sizes.append(sum(tensor.nbytes for tensor in (*inputs, output) if isinstance(tensor, Tensor)))

    training = network.training
    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image_shape, device=device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return max(sizes)


def _by_factor(test: Dataset, wrong: Tensor) -> FactorErrors | None:
    """Mistakes in bins of the scaling factor; the outermost bins take what rounding puts outside."""
    factors, own = test.factors.numpy(), test.info.factor_edges
    if own is None and bool((factors == factors[:1]).all()):
        return None
    edges: NDArray[np.float64] = _FACTOR_EDGES if own is None else np.array(own)
    inside = factors.clip(edges[0], edges[-1])
    images, _ = np.histogram(inside, edges)
    mistakes, _ = np.histogram(inside[wrong.numpy()], edges)
    return FactorErrors(
        edges=tuple(edges.round(3).tolist()),
        images=tuple(images.tolist()),
        mistakes=tuple(mistakes.tolist()),
    )
