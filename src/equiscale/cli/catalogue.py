"""``equiscale list``."""

from pathlib import Path
from typing import Annotated

import typer

from equiscale.cli.app import app, errors_as_messages


@app.command("list")
def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="method, basis, model, data or suite (default: all)."),
    ] = None,
    into: Annotated[Path | None, typer.Option(help="Write all of it into a Markdown file instead.")] = None,
) -> None:
    """List methods, bases, models, data sets and suites, with their sources."""
    from rich.console import Console

    with errors_as_messages():
        from equiscale._files import atomic_path
        from equiscale.catalogue import markdown, terminal

        if into is not None:
            page = markdown()
            with atomic_path(into) as temporary:
                temporary.write_text(page)
            typer.echo(f"Wrote the catalogue to {into}")
        else:
            console = Console(highlight=False)
            for table in terminal(kind):
                console.print(table)
