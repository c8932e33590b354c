"""A sweep in the terminal: progress bars with the time left, and what was written where."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

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
from rich.table import Table

from equiscale.experiments.estimate import Estimate
from equiscale.experiments.execute import RunOptions, weights_path
from equiscale.experiments.records import RunSettings, read_record, record_path
from equiscale.experiments.stopping import stop_on_signals
from equiscale.experiments.sweep import SweepResult, run_sweep
from equiscale.experiments.worker import RunEvent
from equiscale.train import EpochResult

_WITHOUT_MESSAGE = {"skipped": "has a record already", "stopped": "before its first step"}
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def reproduce_with_progress(
    runs: Sequence[RunSettings], options: RunOptions, *, jobs: int, wait_for_others: bool = True
) -> int:
    """`run_sweep` with a bar for the sweep and one for each active run; lines where there is no terminal.

    The first Ctrl-C or SIGTERM lets the runs end at their next safe point, the second one at once.

    Returns:
        The exit status: 0; 1 if a run failed; 128 and the signal's number if it was stopped.
    """
    console = Console()
    epochs = sum(settings.protocol.epochs for settings in runs)
    with stop_on_signals() as stop, _progress_bars(console) as progress:
        display = _Display(progress, progress.add_task(f"{len(runs)} runs", total=epochs, note=""))
        result = run_sweep(
            runs,
            options,
            jobs=jobs,
            on_event=display.show,
            should_stop=_told(stop, progress.console),
            wait_for_others=wait_for_others,
        )
    _print_end(console, len(runs), options.folder / runs[0].suite, result)
    if stop() and result.left:
        console.print("stopped; the same command goes on from the last checkpoints", highlight=False)
        return 128 + stop.signal
    return 1 if result.failures else 0


def _told(stop: Callable[[], bool], console: Console) -> Callable[[], bool]:
    """The same, and it says once that it has been understood."""
    told = False

    def should_stop() -> bool:
        nonlocal told
        if stop() and not told:
            told = True
            with suppress(OSError):
                console.print("stopping at the next safe point; once more to stop at once", highlight=False)
        return stop()

    return should_stop


def _print_end(console: Console, runs: int, folder: Path, result: SweepResult) -> None:
    finished = runs - len(result.failures) - len(result.left)
    console.print(f"{finished} of {runs} runs are finished; records in {escape(str(folder))}")
    for failure in result.failures:
        console.print(
            f"[red]failed[/red] {failure.settings.run_id}: {escape(failure.message)}", highlight=False
        )


def print_result(settings: RunSettings, folder: Path) -> None:
    """What came out of one finished run, and where its files are.

    Raises:
        RecordError: If its record cannot be read.
    """
    record = read_record(record_path(folder, settings))
    console = Console(highlight=False)
    if record.test is not None:
        console.print(f"test error {record.test.error:.2f} % after epoch {record.test.epoch}")
    for what, path in (
        ("weights", weights_path(folder, settings)),
        ("record", record_path(folder, settings)),
    ):
        console.print(f"{what}: {escape(str(path))}", soft_wrap=True)
    for note in record.notes:
        console.print(escape(note), soft_wrap=True)


def print_estimates(estimates: Sequence[Estimate], *, jobs: int) -> None:
    """What every network costs, and all of them together, with so many runs side by side."""
    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("network and data", overflow="fold")
    for heading in ("runs", "one run", "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for estimate in estimates:
        settings = estimate.settings
        where = "" if settings.dataset == settings.suite else f" {settings.dataset}"
        table.add_row(
            escape(f"{settings.model}{where}"),
            str(estimate.runs),
            _duration(estimate.seconds),
            _duration(estimate.total),
        )
    console.print(table)
    total = sum(estimate.total for estimate in estimates)
    together = f"; {_duration(total / jobs)} with {jobs} at a time" if jobs > 1 else ""
    console.print(
        f"About {_duration(total)}, one run after the other{together}. "
        "From a few timed steps, without loading and augmentation; a busy machine takes longer."
    )


def _duration(seconds: float) -> str:
    """Seconds as people say it.

    Example:
        >>> [_duration(seconds) for seconds in (0.4, 95, 7_300, 400_000)]
        ['1 s', '1.6 min', '2.0 h', '4.6 days']
    """
    if seconds < _MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.1f} days"


class _Display:
    def __init__(self, progress: Progress, overall: TaskID) -> None:
        self.progress, self.overall = progress, overall
        self.bars: dict[RunSettings, TaskID] = {}

    def show(self, event: RunEvent) -> None:
        """Update the bars, and print a line where a run ends; a full disk below it costs the line alone."""
        with suppress(OSError):
            self._show(event)

    def _show(self, event: RunEvent) -> None:
        settings = event.settings
        if event.kind == "started":
            self.bars[settings] = self.progress.add_task(
                _label(settings), total=settings.protocol.epochs, note="starting"
            )
        elif event.epoch is not None:
            self.progress.update(self.bars[settings], advance=1, note=error_of(event.epoch))
            self.progress.advance(self.overall)
        elif event.kind == "waiting":
            self.progress.console.print(f"waiting {escape(event.message)}", highlight=False)
        else:
            self._end(event)

    def _end(self, event: RunEvent) -> None:
        done = 0.0
        if event.settings in self.bars:
            bar = self.bars.pop(event.settings)
            done = next(task.completed for task in self.progress.tasks if task.id == bar)
            self.progress.remove_task(bar)
        if event.kind == "busy":  # it comes again
            self.progress.advance(self.overall, -done)
            return
        self.progress.advance(self.overall, event.settings.protocol.epochs - done)
        colour = {"finished": "green", "failed": "red", "skipped": "dim", "stopped": "yellow"}[event.kind]
        message = escape(event.message or _WITHOUT_MESSAGE.get(event.kind, ""))
        self.progress.console.print(
            f"[{colour}]{event.kind:8}[/{colour}] {_label(event.settings)}  {message}", highlight=False
        )


def error_of(epoch: EpochResult) -> str:
    """Of an epoch's errors the one nearest to the one that counts."""
    measured = (epoch.validation_error, epoch.test_error, epoch.train_error)
    return f"{next(error for error in measured if error is not None):.1f} %"


def _label(settings: RunSettings) -> str:
    plus = "+" if settings.augment == "scale" else " "
    # A suite of one data set is called after it; of a folder's path the end will do.
    where = "" if settings.dataset == settings.suite else " " + settings.dataset.rpartition("/")[2]
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
