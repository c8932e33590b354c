"""``equiscale check``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equiscale.cli.app import app, errors_as_messages
from equiscale.cli.networks import build
from equiscale.errors import SettingError

if TYPE_CHECKING:
    from rich.text import Text
    from torch import nn

    from equiscale.testing import NetworkEquivarianceReport


@app.command()
def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A network's name, or the path of a .safetensors file.")
    ],
    size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels (default: the first one that fits).")
    ] = None,
    factors: Annotated[
        str | None, typer.Option(help="Scale factors, such as 0.5,0.7071,1.4142,2 (default: the grid's).")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the network.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the images, and of weights that are not from a file.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them here: .png, .svg or .pdf.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Fail if the output's relative error is larger.")
    ] = None,
) -> None:
    """Say why a network is not scale-equivariant: every layer's error, its causes, and what to change."""
    from rich.console import Console

    with errors_as_messages("interrupted"):
        if tolerance is not None and not tolerance >= 0:
            raise SettingError(f"expected a tolerance of at least 0, got {tolerance}")
        parsed = None if factors is None else _numbers(factors)
        if plot is not None:  # what is missing for it is said before anything is measured
            _check_plot(plot)
        report = _measure(build(model, settings or [], seed=seed), size, parsed, seed)
        Console(highlight=False, soft_wrap=True).print(_coloured(str(report)))
        _write(report, json, plot, model)
    if tolerance is not None and (report.worst is None or report.worst > tolerance):
        found = "none that can be measured" if report.worst is None else f"{report.worst:.3g}"
        typer.echo(f"equiscale: expected an error of at most {tolerance:g}, got {found}", err=True)
        raise typer.Exit(1)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"expected scale factors such as 0.5,2, got {text!r}") from error


def _measure(
    model: "nn.Module", size: int | None, factors: list[float] | None, seed: int
) -> "NetworkEquivarianceReport":
    import torch

    from equiscale.testing import equivariance_report

    generator = torch.Generator().manual_seed(seed)
    return equivariance_report(model, factors=factors, size=size, generator=generator)


def _check_plot(path: Path) -> None:
    import equiscale.report.equivariance  # noqa: F401

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise SettingError(f"expected a plot that ends in .png, .svg or .pdf, got {path}")


def _write(report: "NetworkEquivarianceReport", json: Path | None, plot: Path | None, model: str) -> None:
    from equiscale._files import atomic_path

    if json is not None:
        from json import dumps

        with atomic_path(json) as temporary:
            temporary.write_text(dumps({"model": model, **report.as_dict()}, indent=1) + "\n")
        typer.echo(f"Wrote {json}", err=True)
    if plot is not None:
        from equiscale.report.equivariance import write_plot

        write_plot(report.as_dict(), plot, title=model)
        typer.echo(f"Wrote {plot}", err=True)


def _coloured(table: str) -> "Text":
    """The bars with a colour for each cause; the text is the same."""
    from rich.text import Text

    text = Text(table)
    for match in _BAR.finditer(table):
        for place in range(*match.span(match.lastindex or 0)):
            text.stylize(_STYLES.get(table[place], "dim"), place, place + 1)
    return text


# The letters at the end of a line of the table, and those in front of what they mean.
_BAR = re.compile(r"  ([ABSPKFM·]+)$|^([ABSPKFM]) [a-z ]+:", re.MULTILINE)
_STYLES = {
    "A": "blue",
    "B": "cyan",
    "S": "bright_yellow",
    "P": "yellow",
    "K": "green",
    "F": "magenta",
    "M": "red",
}
