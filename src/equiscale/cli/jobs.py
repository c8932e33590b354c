"""``equiscale jobs status``, ``logs`` and ``cancel``: what was submitted to Slurm."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equiscale.cli.app import DEFAULT_RESULTS, Results, app, errors_as_messages

if TYPE_CHECKING:
    from equiscale.experiments.jobs import Submission

jobs = typer.Typer(no_args_is_help=True)
app.add_typer(jobs, name="jobs", help="What was submitted to Slurm: its state, its logs; cancel it.")

JobNumber = Annotated[int, typer.Argument(metavar="JOB", help="The number that the submission printed.")]
_POLL_S = 1.0


@jobs.command()
def status(
    job: Annotated[
        int | None, typer.Argument(metavar="[JOB]", help="A submission's number (default: list them all).")
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """The state of every element of a submission, and the runs under way; or all submissions."""
    from equiscale.experiments.jobs import find_submission, read_submissions

    with errors_as_messages():
        if job is not None:
            _show_elements(find_submission(results, job))
        else:
            _show_submissions(read_submissions(results), results)


@jobs.command()
def logs(
    job: JobNumber,
    element: Annotated[int | None, typer.Option(help="Of this element only.")] = None,
    task: Annotated[int, typer.Option(help="The process, of a training over several.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job is over.")] = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """What the elements of a submission have said."""
    from equiscale.errors import SettingError
    from equiscale.experiments.jobs import find_submission

    with errors_as_messages(interrupted="the job goes on; cancel it with: equiscale jobs cancel"):
        submission = find_submission(results, job)
        if element is not None and not 0 <= element < submission.elements:
            raise SettingError(f"expected an element of 0 to {submission.elements - 1}, got {element}")
        if not 0 <= task < submission.tasks:
            raise SettingError(f"expected a task of 0 to {submission.tasks - 1}, got {task}")
        names = submission.names if element is None else [submission.names[element]]
        _show_logs(submission, names, task=task, follow=follow)


@jobs.command()
def cancel(job: JobNumber, results: Results = DEFAULT_RESULTS) -> None:
    """Take a submission out of the queue, and stop what runs; finished runs and checkpoints stay."""
    from equiscale.experiments.jobs import cancel as cancel_submission
    from equiscale.experiments.jobs import find_submission

    with errors_as_messages():
        submission = find_submission(results, job)
        cancel_submission(submission)
    typer.echo(f"cancelled {job}; the same command goes on from the last checkpoints")


def _show_elements(submission: "Submission") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from equiscale.experiments.jobs import as_text, job_states, runs_under_way

    console = Console(highlight=False)
    console.print(escape(f"{submission.job}: {as_text(submission.command)}"), soft_wrap=True)
    console.print(escape(f"submitted {submission.submitted}; logs in {submission.logs}"), soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("element", "state", "node", "time", "starts", "exit"):
        table.add_column(heading, overflow="fold")
    states = job_states(submission)
    for state in states:
        cells = (state.element, state.state, state.node, state.time, str(state.starts or ""), state.exit)
        table.add_row(*map(escape, cells))
    console.print(table)
    for host, runs in runs_under_way(submission, states).items():
        console.print(escape(f"under way on {host}: {', '.join(runs)}"), soft_wrap=True)


def _show_submissions(submissions: "list[Submission]", results: Path) -> None:
    from equiscale.experiments.jobs import job_states

    if not submissions:
        typer.echo(f"nothing was submitted with --results {results}")
    for submission in submissions:
        counts = Counter(state.state for state in job_states(submission))
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        typer.echo(
            f"{submission.job}  {submission.submitted}  {submission.logs.parent.parent.name}  {states}"
        )


def _show_logs(submission: "Submission", names: list[str], *, task: int, follow: bool) -> None:
    """Print what stands in the logs, and with ``follow`` what comes, until all elements are over."""
    from equiscale.experiments.jobs import LogReader, job_states

    readers = [
        LogReader(submission.log(name, task=task, errors=errors), name)
        for name in names
        for errors in (False, True)
    ]
    while True:
        over = not follow or all(state.over for state in job_states(submission) if state.element in names)
        for reader in readers:
            for line in reader.new_lines(last=over):
                typer.echo(f"{reader.name}  {line}" if len(names) > 1 else line)
        if over:
            return
        time.sleep(_POLL_S)
