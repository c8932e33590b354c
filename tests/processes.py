"""Functions in several gloo processes, for tests of what processes do together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def together(work: Callable[..., Any], folder: Path, *arguments: Any, size: int = 2) -> list[Any]:
    """What ``work(rank, *arguments)`` gives in each of several processes that form the default group.

    Args:
        work: A function of a module, whose result torch can save.
        folder: An empty folder, for the rendezvous and the results.
        arguments: The same for all.
        size: How many processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_work, (work, folder, size, arguments), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _work(rank: int, work: Callable[..., Any], folder: Path, size: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    dist.barrier()  # nobody may leave while another still talks to it
    dist.destroy_process_group()
