"""``equiscale records``: what a results folder holds, whether it is sound, and how two become one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equiscale.cli.app import DEFAULT_RESULTS, Results, app, errors_as_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equiscale.experiments.index import Row
    from equiscale.experiments.records import RunRecord

records = typer.Typer(no_args_is_help=True, help="Show, verify, merge and tidy run records.")
app.add_typer(records, name="records")

_SHOWN_AT_ONCE = 1


@records.command()
def show(
    pattern: Annotated[
        str, typer.Argument(help="A shell pattern of suite/run, or a part of it (default: all).")
    ] = "*",
    results: Results = DEFAULT_RESULTS,
) -> None:
    """List records, and the runs under way; of a single record show what made it."""
    with errors_as_messages():
        under_way = _under_way(pattern, results)
        rows = _matching(pattern, results, may_be_none=bool(under_way))
        if len(rows) == _SHOWN_AT_ONCE and rows[0].status != "damaged":
            from equiscale.experiments.records import read_record

            _print_record(read_record(results / f"{rows[0].name}.json"))
        elif rows:
            _print_rows(rows)
        for run, place in under_way:
            typer.echo(f"under way: {run} on {place}")


@records.command()
def verify(results: Results = DEFAULT_RESULTS) -> None:
    """Read every record with its weights and pictures, and say what is wrong."""
    from equiscale.experiments.maintenance import verify as look

    with errors_as_messages():
        count = bad = 0
        for path, problems in look(results):
            count += 1
            bad += bool(problems)
            for problem in problems:
                typer.echo(f"{path.relative_to(results)}: {problem}")
        typer.echo(f"{count - bad} of {count} records in {results} are sound")
    raise typer.Exit(1 if bad else 0)


@records.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Other results folders.")],
    into: Annotated[Path, typer.Option(help="The folder that gets their records.")] = DEFAULT_RESULTS,
) -> None:
    """Copy records of other machines into a folder; conflicts are reported, and nothing is overwritten."""
    from collections import Counter

    from equiscale.experiments.maintenance import merge as copy

    fates: Counter[str] = Counter()
    with errors_as_messages():
        for merged in copy(sources, into):
            fates[merged.fate] += 1
            if merged.message:
                typer.echo(f"{merged.fate:8} {merged.path}: {merged.message}")
        typer.echo(f"into {into}: " + ", ".join(f"{number} {fate}" for fate, number in sorted(fates.items())))
    raise typer.Exit(1 if fates["conflict"] or fates["invalid"] else 0)


@records.command()
def gc(
    results: Results = DEFAULT_RESULTS,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this only list it.")] = False,
) -> None:
    """List what killed processes and finished runs have left behind, or delete it."""
    from equiscale.experiments.maintenance import collect, garbage

    with errors_as_messages():
        found = list(garbage(results))
        for item in found:
            typer.echo(f"{item.size / 2**20:8.1f} MiB  {item.reason}: {item.path.relative_to(results)}")
        if delete:
            collect(found)
        total = sum(item.size for item in found) / 2**20
        verb = "deleted" if delete else "to delete with --delete"
        files = f"{len(found)} file{'s' * (len(found) > 1)}"
        typer.echo(f"{files}, {total:.1f} MiB, {verb}" if found else "nothing to delete")


def _under_way(pattern: str, results: Path) -> list[tuple[str, str]]:
    """The runs that living workers do, and where."""
    from fnmatch import fnmatchcase

    from equiscale.experiments.claims import Claims, claims_of

    found = []
    for suite in sorted(path.name for path in results.glob("*") if path.is_dir()):
        for run, holder in sorted(Claims(claims_of(results, suite)).held().items()):
            if fnmatchcase(f"{suite}/{run}", f"*{pattern}*"):
                place = f"{holder.host}, process {holder.pid}" if holder else "an unknown machine"
                found.append((f"{suite}/{run}", place))
    return found


def _matching(pattern: str, results: Path, *, may_be_none: bool) -> "list[Row]":
    from fnmatch import fnmatchcase

    from equiscale.errors import SettingError
    from equiscale.experiments.index import read_rows

    rows = [row for row in read_rows(results) if fnmatchcase(row.name, f"*{pattern}*")]
    if not rows and not may_be_none:
        raise SettingError(
            f"expected records in {results} whose names match {pattern!r}, got none; "
            "give another pattern, or the folder with --results"
        )
    return rows


def _print_rows(rows: "Sequence[Row]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("record", overflow="fold")
    table.add_column("test error", justify="right", no_wrap=True)
    table.add_column("minutes", justify="right", no_wrap=True)
    for row in rows:
        error = f"{row.error:.2f} %" if row.error is not None else f"[red]{row.status}[/red]"
        table.add_row(escape(row.name), error, f"{row.seconds / 60:.1f}")
    console = Console(highlight=False)
    console.print(table)
    finished = sum(row.status == "finished" for row in rows)
    console.print(f"{finished} of {len(rows)} finished")


def _print_record(record: "RunRecord") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(record):
        table.add_row(name, escape(value))
    Console(highlight=False).print(table)


def _facts(record: "RunRecord") -> "list[tuple[str, str]]":
    """What a record says, a line each."""
    from equiscale.experiments.plan import format_overrides

    settings, made = record.settings, record.provenance
    tree = {True: "", False: " with changes", None: ""}[made.clean]
    protocol = settings.protocol.model_dump(exclude_defaults=True)
    facts = [
        ("run", f"{settings.suite}/{settings.run_id}"),
        ("status", f"{record.status}{f': {record.failure}' if record.failure else ''}"),
        ("network", " ".join([settings.model, *format_overrides(settings.overrides)])),
        ("parameters", f"{record.parameters:,}"),
        ("data", f"{settings.dataset}, realisation {settings.realisation}, augmentation {settings.augment}"),
        ("checksum", record.data.checksum),
        (
            "images",
            f"{record.data.train} train, {record.data.validation} validation, {record.data.test} test",
        ),
        ("protocol", ", ".join(f"{name} {value}" for name, value in protocol.items())),
        ("commit", f"{made.commit or 'an installed package'}{tree}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("machine", ", ".join(f"{name} {value}" for name, value in made.machine.items())),
        ("time", f"{made.started} to {made.finished}; training {made.train_seconds:.0f} s"),
    ]
    if record.test is not None:
        facts.insert(2, ("test error", f"{record.test.error:.3f} % after epoch {record.test.epoch}"))
    return facts + [("note", note) for note in record.notes]
