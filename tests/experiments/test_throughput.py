"""The benchmark of an epoch's parts: each process tells its own memory."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_memory_of_a_step_is_its_own_however_large_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import throughput

    ballast = torch.ones(512 * 2**20, dtype=torch.uint8)
    _, grown = throughput.in_process(throughput.step_with_allocator, "mnist_cnn_28", "given back", 1, 128)
    activations = 128 * 32 * 28 * 28 * 4 / 2**20  # of the first layer
    assert activations < grown < len(ballast) / 2**20 / 2
