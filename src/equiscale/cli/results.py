"""``equiscale table``, ``equiscale report`` and ``equiscale export-yaml``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equiscale.cli.app import DEFAULT_RESULTS, Results, SuiteName, app, errors_as_messages
from equiscale.errors import SettingError

if TYPE_CHECKING:
    from equiscale.experiments.records import RunRecord
    from equiscale.experiments.spec import Suite


@app.command()
def table(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    format: Annotated[
        Literal["terminal", "markdown", "csv", "latex"], typer.Option(help="How to print it.")
    ] = "terminal",
    into: Annotated[Path | None, typer.Option(help="Replace the table in a Markdown document.")] = None,
    epochs: Annotated[
        str | None, typer.Option(help="Only runs of so many epochs, such as 1 or 30-60 (default: all).")
    ] = None,
) -> None:
    """Print the error table of a suite, with the published claims beside it."""
    from equiscale.experiments.plan import parse_numbers
    from equiscale.report.aggregate import aggregate
    from equiscale.report.tables import insert_into, render, terminal

    with errors_as_messages():
        plan, records = _load(suite, results)
        if epochs is not None:
            wanted = set(parse_numbers(epochs))
            records = [record for record in records if record.settings.protocol.epochs in wanted]
        built = aggregate(plan, records)
        if into is not None:
            insert_into(into, plan.name, render(built, "markdown"))
            typer.echo(f"Wrote the table of {plan.name} into {into}")
        elif format == "terminal":
            from rich.console import Console

            Console().print(terminal(built))
        else:
            typer.echo(render(built, format))


@app.command("export-yaml")
def export_yaml(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("results.yml"),
) -> None:
    """Write the one-line-a-run results.yml of the original reproduction."""
    from equiscale._files import atomic_path
    from equiscale.report.yaml_export import results_yaml

    with errors_as_messages():
        _, records = _load(suite, results)
        with atomic_path(output) as temporary:
            temporary.write_text(results_yaml(records))
        typer.echo(f"Wrote {len(records)} runs to {output}")


@app.command()
def report(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    output: Annotated[Path | None, typer.Option(help="Default: report.html beside the records.")] = None,
) -> None:
    """Write one self-contained HTML page about a suite's results."""
    with errors_as_messages():
        from equiscale.report.html import write_report

        plan, _ = _load(suite, results)
        target = write_report(plan, results, output or results / plan.name / "report.html")
        typer.echo(f"Wrote {target}")


def _load(suite: str, results: Path) -> "tuple[Suite, list[RunRecord]]":
    from equiscale.experiments.records import read_records
    from equiscale.experiments.spec import load_suite

    plan = load_suite(suite)
    records = list(read_records(results, plan.name))
    if not records:
        raise SettingError(
            f"expected run records in {results / plan.name}, got none; make some with "
            f"'equiscale reproduce {suite} --results {results}'"
        )
    return plan, records
