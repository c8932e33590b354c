"""What all commands share: the program, options that several take, and errors as messages."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from equiscale.errors import EquiscaleError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ROOT_HELP = "Folder of prepared data (default: EQUISCALE_DATA_DIR, else the user's cache)."
Root = Annotated[Path | None, typer.Option(help=ROOT_HELP)]
Results = Annotated[Path, typer.Option(help="Folder of the run records.")]
SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite's name, or the path of a .toml file.")
]
DEFAULT_RESULTS = Path("runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        from equiscale import __version__

        typer.echo(f"equiscale {__version__}")
        raise typer.Exit


@app.callback()
def equiscale(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Scale-equivariant convolutional networks: data, published experiments, tables and reports."""


_NO_READER = 141  # as a shell says it: 128 and the number of SIGPIPE
_INTERRUPTED = "interrupted; the same command goes on from the last checkpoints"


@contextmanager
def errors_as_messages(interrupted: str = _INTERRUPTED) -> Iterator[None]:
    """Errors that equiscale raises on purpose end the program with one line instead of a traceback."""
    try:
        yield
    except EquiscaleError as error:
        if os.environ.get("EQUISCALE_TRACEBACK"):
            raise
        typer.echo(f"equiscale: {_shown(error)}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # who reads what we print has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_NO_READER)
    except OSError as error:
        typer.echo(f"equiscale: {_shown(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(f"\nequiscale: {interrupted}", err=True)
        sys.exit(130)


def _shown(error: Exception) -> str:
    """The message without what a terminal would obey: it may hold what stood in a file."""
    from equiscale.experiments.spec import printable

    return printable(str(error), keep="\n")
