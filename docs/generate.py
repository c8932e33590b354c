"""Pages that are written from the registries and the records whenever the documentation is built."""

import inspect
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from equiscale.experiments.records import read_records
from equiscale.experiments.spec import list_suites, load_suite
from equiscale.nn.methods import METHODS, Method
from equiscale.report.aggregate import aggregate
from equiscale.report.tables import render

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
REPOSITORY = "https://github.com/equiscale/equiscale/blob/main"


def write_pages(folder: Path) -> None:
    """Write all pages; what has not changed keeps its time, so that it is not built again."""
    folder.mkdir(exist_ok=True)
    for name, text in {"methods.md": methods(), "results.md": results()}.items():
        target = folder / name
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def methods() -> str:
    """Every published method with its paper, its file and its layers."""
    parts = [
        "# Methods",
        "Each method that equiscale implements: what it does, where it was published, in which file its "
        "layers stand. The [catalogue](../catalogue.md) also names bases, models, data sets and suites.",
    ]
    for method in METHODS:
        parts += [f"## {method.name}", *_method(method)]
    return "\n\n".join(parts) + "\n"


def _method(method: Method) -> Iterator[str]:
    citation = method.citation
    yield f"{method.summary[0].upper()}{method.summary[1:]}."
    yield f"{citation}"
    rows = [f"| {_name(layer)} | {_first_line(layer)} | {_file(layer)} |" for layer in method.layers]
    yield "\n".join(["| layer | | file |", "|---|---|---|", *rows])


def _name(layer: type) -> str:
    return f"{{py:obj}}`~equiscale.nn.{layer.__name__}`"


def _first_line(layer: type) -> str:
    return (inspect.getdoc(layer) or "").split("\n")[0].replace("|", r"\|")


def _file(layer: type) -> str:
    source = Path(inspect.getfile(layer)).relative_to(Path(str(files("equiscale"))))
    return f"[{source}]({REPOSITORY}/src/equiscale/{source})"


def results() -> str:
    """The table of every suite that has records."""
    parts = [
        "# Results",
        "Written from the records in [`results/`](https://github.com/equiscale/equiscale/tree/main/results): "
        "one file a run, with its settings, data, versions and predictions.",
    ]
    for name in list_suites():
        suite = load_suite(name)
        records = list(read_records(RESULTS, suite.name))
        for epochs in sorted({record.settings.protocol.epochs for record in records}, reverse=True):
            chosen = [record for record in records if record.settings.protocol.epochs == epochs]
            heading = f"## {suite.title.split(':')[0]}, {epochs} epoch{'s' if epochs > 1 else ''}"
            parts += [heading, render(aggregate(suite, chosen), "markdown")]
    return "\n\n".join(parts) + "\n"
