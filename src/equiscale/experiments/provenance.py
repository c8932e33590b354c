"""What made a record: versions, machine, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from equiscale._machine import processor_name

_PACKAGES = ("equiscale", "torch", "numpy", "safetensors", "pillow", "scikit-learn")


def versions() -> dict[str, str]:
    """Python's and the packages' versions, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, str]:
    """Processor, cores, threads in use, system and device; nothing that names the machine itself."""
    found = {
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": platform.system(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def commit() -> tuple[str | None, bool | None]:
    """The commit of the source tree and whether it is clean; None for an installed package."""
    folder = Path(__file__).parent
    found = revision(folder)
    if found is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "../..")
    return found, changes == ""


def revision(folder: Path) -> str | None:
    """The commit of the checkout that holds a folder; None where there is none."""
    return _git(folder, "rev-parse", "HEAD")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
