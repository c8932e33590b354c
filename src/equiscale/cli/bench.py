"""``equiscale bench``."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equiscale.cli.app import DEFAULT_RESULTS, app, errors_as_messages
from equiscale.errors import MissingExtraError, SettingError

if TYPE_CHECKING:
    from equiscale.experiments.benchmark.record import BenchmarkRecord


@app.command()
def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODELS]...", help="Names or shell patterns (default: those of --compare, else five)."
        ),
    ] = None,
    peer: Annotated[
        Path | None, typer.Option(help="A checkout of the public SESN code, whose networks are measured too.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step (default: 128; of photographs on a CPU 4).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Timed steps of each kind (default: 9).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU (default: one a core).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N (default: auto).")] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"] | None,
        typer.Option(help="tf32: on a GPU; bfloat16: autocast (default: float32)."),
    ] = None,
    memory: Annotated[
        bool | None, typer.Option("--memory/--no-memory", help="Peak memory too, in processes of their own.")
    ] = None,
    keep_memory: Annotated[
        bool | None,
        typer.Option(
            "--keep-memory/--free-memory",
            help="Whether freed memory stays with the process, as in the runs of a suite (default: not).",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The record's file; both plots are drawn beside it.")
    ] = DEFAULT_RESULTS / "benchmark.json",
    compare: Annotated[
        Path | None, typer.Option(help="An older record: show what changed, and fail if anything is worse.")
    ] = None,
    read: Annotated[Path | None, typer.Option(help="Measure nothing, and show this record.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Replace the tables in a Markdown document; draw the plots anew.")
    ] = None,
) -> None:
    """Time a training step and an evaluation, against the published formulation and a plain CNN."""
    from rich.console import Console

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C

    console = Console(highlight=False)
    with errors_as_messages("interrupted; the networks that were done are in the record"):
        from equiscale.experiments.benchmark.compare import compare as compare_records
        from equiscale.experiments.benchmark.record import read_benchmark
        from equiscale.report.benchmark import (
            change_notes,
            insert_tables,
            regression_summary,
            terminal,
            terminal_changes,
        )

        if into is not None:  # what is missing for it is said before minutes of measuring
            from equiscale.report.benchmark_plots import write_plots

        older = None if compare is None else read_benchmark(compare)
        if read is None:
            if compare is not None and compare.resolve() == output.resolve():
                raise SettingError(
                    f"expected an output beside the older record, got {compare} for both, which would be "
                    "overwritten; give another file with --output"
                )
            wanted = {
                "models": models or None,
                "batch_size": batch_size,
                "rounds": rounds,
                "threads": threads,
                "device": device,
                "precision": precision,
                "memory": memory,
                "keep_memory": keep_memory,
            }
            record = _measure(wanted, older, peer=peer, output=output)
        else:
            record = read_benchmark(read)
        changes = [] if older is None else compare_records(older, record)
        if into is not None:
            insert_tables(into, (read or output).stem, record)
            write_plots(record, read or output)
            typer.echo(f"Wrote the tables into {into}")
        else:
            notes = [] if older is None else change_notes(older, record)
            console.print(terminal_changes(changes, notes) if changes else terminal(record))
    if changes:
        typer.echo(regression_summary(changes))
        if any(change.is_regression for change in changes):
            raise typer.Exit(1)


def _measure(
    wanted: Mapping[str, object], older: "BenchmarkRecord | None", *, peer: Path | None, output: Path
) -> "BenchmarkRecord":
    """Measure, and draw the plots; what was not asked for is as in the older record, if there is one."""
    from equiscale.experiments.benchmark.compare import check_comparable
    from equiscale.experiments.benchmark.peer import PublicCode
    from equiscale.experiments.benchmark.progress import bench_with_progress
    from equiscale.experiments.benchmark.session import prepare_settings

    settings = prepare_settings(wanted, None if older is None else older.settings)
    if older is not None:
        check_comparable(older.settings, settings)
    public = None if peer is None else PublicCode(peer)
    record = bench_with_progress(settings, output, peer=public)
    for path in (output, *_plots_beside(output, record)):
        typer.echo(f"Wrote {path}", err=True)
    return record


def _plots_beside(output: Path, record: "BenchmarkRecord") -> Sequence[Path]:
    """The plots that were drawn; none, and a line why, without the packages for them."""
    try:
        from equiscale.report.benchmark_plots import write_plots
    except MissingExtraError as error:
        typer.echo(f"no plots were drawn: {error}", err=True)
        return ()
    return write_plots(record, output)
