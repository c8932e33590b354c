"""A sweep in the terminal: progress bars with the time left, and what was written where."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from equiscale.experiments.execute import RunOptions
from equiscale.experiments.records import RunSettings
from equiscale.experiments.runner import RunEvent, run_sweep
from equiscale.train import EpochResult


def reproduce_with_progress(runs: Sequence[RunSettings], options: RunOptions, *, jobs: int) -> list[RunEvent]:
    """`run_sweep` with a bar for the sweep and one for each active run; lines where there is no terminal.

    Returns:
        The events of the runs that failed.
    """
    console = Console()
    epochs = sum(settings.protocol.epochs for settings in runs)
    with _progress_bars(console) as progress:
        display = _Display(progress, progress.add_task(f"{len(runs)} runs", total=epochs, note=""))
        failures = run_sweep(runs, options, jobs=jobs, on_event=display.show)
    folder = options.folder / runs[0].suite
    console.print(
        f"{len(runs) - len(failures)} of {len(runs)} runs are finished; records in {escape(str(folder))}"
    )
    for failure in failures:
        console.print(
            f"[red]failed[/red] {failure.settings.run_id}: {escape(failure.message)}", highlight=False
        )
    return failures


class _Display:
    def __init__(self, progress: Progress, overall: TaskID) -> None:
        self.progress, self.overall = progress, overall
        self.bars: dict[RunSettings, TaskID] = {}

    def show(self, event: RunEvent) -> None:
        """Update the bars, and print a line where a run ends."""
        settings = event.settings
        if event.kind == "started":
            self.bars[settings] = self.progress.add_task(
                _label(settings), total=settings.protocol.epochs, note="starting"
            )
        elif event.epoch is not None:
            self.progress.update(self.bars[settings], advance=1, note=_note(event.epoch))
            self.progress.advance(self.overall)
        else:
            self._end(event)

    def _end(self, event: RunEvent) -> None:
        done = 0.0
        if event.settings in self.bars:
            bar = self.bars.pop(event.settings)
            done = next(task.completed for task in self.progress.tasks if task.id == bar)
            self.progress.remove_task(bar)
        self.progress.advance(self.overall, event.settings.protocol.epochs - done)
        colour = {"finished": "green", "failed": "red", "skipped": "dim"}[event.kind]
        message = escape(event.message or "has a record already")
        self.progress.console.print(
            f"[{colour}]{event.kind:8}[/{colour}] {_label(event.settings)}  {message}", highlight=False
        )


def _note(epoch: EpochResult) -> str:
    """The error nearest to the one that counts."""
    measured = (epoch.validation_error, epoch.test_error, epoch.train_error)
    return f"{next(error for error in measured if error is not None):.1f} %"


def _label(settings: RunSettings) -> str:
    plus = "+" if settings.augment == "scale" else " "
    # A suite of one data set is called after it.
    where = "" if settings.dataset == settings.suite else f" {settings.dataset}"
    return f"{settings.model + plus:21}{escape(where)} r{settings.realisation}"


def _progress_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]:>8}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
