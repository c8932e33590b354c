"""The real command in processes of its own, for tests of what becomes of it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def reproduce(suite: Path, results: Path, *arguments: str) -> subprocess.Popen[str]:
    """`equiscale reproduce` in a process group of its own, on one thread."""
    command = [sys.executable, "-m", "equiscale", "reproduce", str(suite), "--results", str(results)]
    return subprocess.Popen(
        [*command, "--jobs", "1", *arguments],
        start_new_session=True,
        preexec_fn=_on_one_core,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200"},
    )


def _on_one_core() -> None:
    """Tests go side by side, each on a core."""
    cores = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def workers_of(sweep: int) -> list[int]:
    """The processes that do the runs of a sweep's process."""
    children = Path(f"/proc/{sweep}/task/{sweep}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until(condition: Callable[[], object], *, by: subprocess.Popen[str] | None = None) -> None:
    """Wait until something holds; a process that is to bring it about must not end before."""
    deadline = time.monotonic() + 150
    while not condition():
        if by is not None and by.poll() is not None:
            pytest.fail(by.communicate()[0])
        assert time.monotonic() < deadline
        time.sleep(0.02)
