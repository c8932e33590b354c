"""A benchmark in the terminal: one line that says what is being measured, and the time so far."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from equiscale.experiments.benchmark.peer import PublicCode
from equiscale.experiments.benchmark.record import BenchmarkRecord, BenchmarkSettings, ModelResult
from equiscale.experiments.benchmark.session import Listeners, run_benchmark


def bench_with_progress(
    settings: BenchmarkSettings, output: Path, *, peer: PublicCode | None = None
) -> BenchmarkRecord:
    """`run_benchmark` with a line that changes, and one that stays for every network that is done.

    Returns:
        The record.
    """
    console = Console(highlight=False, stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("starting", total=None)
        listeners = Listeners(
            on_stage=lambda stage: progress.update(line, description=escape(stage)),
            on_model=lambda record: progress.console.print(_done(record.models[-1])),
        )
        return run_benchmark(settings, output, peer=peer, tell=listeners)


def _done(result: ModelResult) -> str:
    ours = result.kind("ours")
    seconds = 0.0 if ours is None else ours.train.seconds.median
    return f"[green]measured[/green] {escape(result.model):28} {seconds:8.3f} s a training step"
