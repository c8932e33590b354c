"""The command line: parses, delegates, and shows. Everything heavy is imported inside the commands.

A file a group of commands; each adds its own to the program, in the order of the help.
"""

import signal

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
    """The entry point of the program ``equiscale``, and of ``python -m equiscale``."""
    try:
        app()
    finally:
        # The work is done or given up: Ctrl-C while the interpreter leaves has nothing to tell.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
