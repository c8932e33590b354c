"""Everything that has a name: methods, bases, models, data sets and suites, with year and citation."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from equiscale.basis.registry import basis_entry, list_bases
from equiscale.citations import Citation
from equiscale.data import dataset_info, list_datasets
from equiscale.data.image_folder import PREFIX
from equiscale.errors import SettingError
from equiscale.experiments.spec import list_suites, load_suite
from equiscale.models import list_models, model_entry
from equiscale.nn.methods import METHODS

_PREAMBLE = """# Catalogue

Everything that has a name, written by `equiscale list --into docs/catalogue.md` from the registries."""

KINDS = {
    "method": "Methods",
    "basis": "Bases",
    "model": "Models",
    "data": "Data sets",
    "suite": "Suites",
}


@dataclass(frozen=True)
class Entry:
    """One row.

    Args:
        kind: "method", "basis", "model", "data" or "suite".
        name: What the command line and the library call it.
        what: What it is, in a few words.
        citation: Where it was published; None for what is our own.
        layers: The modules of a method.
    """

    kind: str
    name: str
    what: str
    citation: Citation | None
    layers: tuple[str, ...] = ()

    @property
    def year(self) -> int | None:
        """The year of publication."""
        return self.citation.year if self.citation else None

    @property
    def source(self) -> str:
        """Authors and year, short enough for a terminal."""
        return self.citation.short if self.citation else "ours"


def catalogue() -> list[Entry]:
    """Every registered name, kind by kind.

    Example:
        >>> {entry.kind for entry in catalogue()} == set(KINDS)
        True
    """
    return [*_methods(), *_bases(), *_models(), *_datasets(), *_suites()]


def terminal(kind: str | None = None) -> list[Table]:
    """The catalogue for a terminal of 80 columns, a table a kind.

    Raises:
        SettingError: For an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise SettingError(f"expected a kind of {', '.join(KINDS)}, got {kind!r}")
    entries = catalogue()
    return [_terminal_table(one, entries) for one in KINDS if kind in (None, one)]


def markdown() -> str:
    """The catalogue as a page of the documentation: a table a kind, and the full citations below."""
    entries = catalogue()
    tables = [_markdown_table(kind, entries) for kind in KINDS]
    papers = sorted({str(entry.citation) for entry in entries if entry.citation})
    sources = "## Sources\n\n" + "\n".join(f"- {paper}" for paper in papers)
    return "\n\n".join([_PREAMBLE, *tables, sources]) + "\n"


def _terminal_table(kind: str, entries: list[Entry]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left", title_style="bold")
    table.title = f"\n{KINDS[kind]}"
    table.add_column("name", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    table.add_column("source", overflow="fold", max_width=24)
    for entry in entries:
        if entry.kind == kind:
            table.add_row(entry.name, entry.what, entry.source)
    return table


def _markdown_table(kind: str, entries: list[Entry]) -> str:
    rows = [
        f"| `{entry.name}` | {_with_layers(entry)} | {entry.source} |"
        for entry in entries
        if entry.kind == kind
    ]
    return "\n".join([f"## {KINDS[kind]}", "", "| name | what it is | source |", "|---|---|---|", *rows])


def _with_layers(entry: Entry) -> str:
    layers = ", ".join(f"`{layer}`" for layer in entry.layers)
    return f"{entry.what}: {layers}" if layers else entry.what


def _methods() -> Iterator[Entry]:
    for method in METHODS:
        layers = tuple(layer.__name__ for layer in method.layers)
        yield Entry("method", method.name, method.summary, method.citation, layers)


def _bases() -> Iterator[Entry]:
    for name in list_bases():
        entry = basis_entry(name)
        yield Entry("basis", name, entry.title, entry.citation)


def _models() -> Iterator[Entry]:
    for name in list_models():
        entry = model_entry(name)
        yield Entry("model", name, entry.method, entry.citation)


def _datasets() -> Iterator[Entry]:
    for name in list_datasets():
        info = dataset_info(name)
        yield Entry("data", name, info.title, info.citation)
    yield Entry("data", f"{PREFIX}PATH", "your own images, in PATH/train/<class>/", None)


def _suites() -> Iterator[Entry]:
    for name in list_suites():
        suite = load_suite(name)
        yield Entry("suite", name, suite.title, suite.citation)
