"""What is settled before a sweep starts: where its runs go, and which are finished."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from equiscale._machine import available_cores
from equiscale.data import check_available, load
from equiscale.data.image_folder import PREFIX as FOLDER_PREFIX
from equiscale.errors import RecordError, SettingError
from equiscale.experiments.execute import RunOptions, check_networks, numerics_of
from equiscale.experiments.records import RunRecord, RunSettings, read_record, record_path


@dataclass(frozen=True)
class Jobs:
    """How many runs go side by side.

    Args:
        total: At most so many; 0: as many as there are places.
        on_each: Places on each device, which a CPU is too; 0: one a core, on a GPU one.

    Raises:
        SettingError: For a negative number.
    """

    total: int = 0
    on_each: int = 0

    def __post_init__(self) -> None:
        for what, number in (("jobs", self.total), ("jobs on each device", self.on_each)):
            if number < 0:
                raise SettingError(f"expected 0 {what} (automatic) or more, got {number}")


def prepare_options(
    runs: Sequence[RunSettings],
    *,
    folder: Path,
    data_root: Path | None,
    device: str,
    jobs: Jobs,
    resume: bool,
) -> tuple[RunOptions, int]:
    """Check device, networks and data before any work starts; decide how many runs go side by side.

    Returns:
        The options, and the number of jobs.

    Raises:
        SettingError: For an unknown or missing device, numerics that it does not have, or a network that
            is not for the images of its data set.
        ModelError: For an unknown model or override.
        DataError: If the data of a run are missing or damaged.
        OSError: If the results folder cannot be written.
    """
    chosen = check_device(device)
    side_by_side = choose_jobs(jobs, device=chosen, runs=len(runs))
    for protocol in dict.fromkeys(run.protocol for run in runs):
        numerics_of(protocol).check(torch.device(chosen))
    check_runs(runs, data_root=data_root)
    _check_writable(folder)
    options = RunOptions(folder, data_root, chosen, threads=available_cores(), resume=resume)
    return options, side_by_side


def check_runs(runs: Sequence[RunSettings], *, data_root: Path | None) -> None:
    """Check each network with its data once, and that the data are there.

    Raises:
        SettingError: If a network is not for the images of its data set.
        ModelError: For an unknown model or override.
        DataError: If the data of a run are missing or damaged.
    """
    check_networks({run.treatment: run for run in runs}.values(), data_root=data_root)
    for dataset, realisation in dict.fromkeys((run.dataset, run.realisation) for run in runs):
        check_available(dataset, realisation=realisation, root=data_root)


def choose_jobs(jobs: Jobs, *, device: str, runs: int) -> int:
    """How many runs go side by side: as many as there are places, as were asked for, and as there are."""
    on_each = jobs.on_each or (1 if device.startswith("cuda") else available_cores())
    places = on_each * len(devices_of(device))
    return max(1, min(jobs.total or places, places if jobs.on_each else runs, runs))


def devices_of(device: str) -> tuple[str, ...]:
    """The devices among which runs are shared out: all GPUs for "cuda", else the one that is named."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    return tuple(f"{device}:{index}" for index in range(count)) if count > 1 else (device,)


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_device(device: str) -> str:
    """The device itself: of "auto" the one that is found.

    Raises:
        SettingError: For an unknown or missing device.
    """
    check_device_name(device)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = found if device == "auto" else device
    if chosen.startswith("cuda") and found == "cpu":
        raise SettingError(
            f"expected a CUDA device for {device!r}, got none on this machine; use --device cpu"
        )
    if chosen.startswith("cuda:") and int(chosen[5:]) >= torch.cuda.device_count():
        raise SettingError(
            f"expected a device of cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {device!r}"
        )
    return chosen


def check_device_name(device: str) -> None:
    """Refuse what is no device anywhere.

    Raises:
        SettingError: For another name than auto, cpu, cuda or cuda:N.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]*))?", device):
        raise SettingError(f"expected a device of auto, cpu, cuda or cuda:N, got {device!r}")


def is_finished(settings: RunSettings, options: RunOptions) -> bool:
    """Whether a valid record of the finished run exists; a failed run is not finished.

    Raises:
        RecordError: If the record is damaged, or of other images than its folder holds now.
        DataError: If a folder of images cannot be read.
    """
    path = record_path(options.folder, settings)
    if not path.exists():
        return False
    record = read_record(path)
    if record.status != "finished":
        return False
    _check_same_images(record, path, options.data_root)
    return True


def _check_same_images(record: RunRecord, path: Path, root: Path | None) -> None:
    """People change the images in their folders; all other data sets have fixed checksums."""
    settings = record.settings
    if not settings.dataset.startswith(FOLDER_PREFIX):
        return
    images = load(settings.dataset, split="train", realisation=settings.realisation, root=root)
    if images.checksum != record.data.checksum:
        raise RecordError(
            f"expected a record of the images that are in {settings.dataset} now, got one of other data in "
            f"{path}; delete it, or give another folder with --results"
        )
