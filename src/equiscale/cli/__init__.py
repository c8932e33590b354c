"""The command line: parses, delegates, and shows. Everything heavy is imported inside the commands.

A file a group of commands; each adds its own to the program, in the order of the help.
"""

# isort: off
from equiscale.cli.app import app
from equiscale.cli import catalogue, data, training, results, bench, check, choose, export, jobs, records

__all__ = [
    "app",
    "bench",
    "catalogue",
    "check",
    "choose",
    "data",
    "export",
    "jobs",
    "main",
    "records",
    "results",
    "training",
]


def main() -> None:
    """The entry point of ``python -m equiscale``."""
    app()
