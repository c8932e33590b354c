"""The cluster that the tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import (
    NODES,
    PACKAGES,
    PARTITIONS,
    ask,
    drained,
    idle_nodes,
    missing_commands,
    running_slurm,
    wait_for,
)


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Path]:
    missing = missing_commands()
    if missing:
        message = f"expected Slurm, got no {', '.join(missing)}; apt-get install {PACKAGES}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with running_slurm() as conf:
        yield conf


@pytest.fixture
def slurm(_cluster: Path) -> Iterator[None]:
    """A cluster with both nodes free, before the test and after it."""
    yield
    for partition in PARTITIONS:
        ask("scancel", f"--partition={partition}")
    for node in drained():
        ask("scontrol", "update", f"nodename={node}", "state=resume")
    wait_for(lambda: idle_nodes() == len(NODES), "free nodes")
