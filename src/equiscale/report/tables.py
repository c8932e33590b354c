"""A table as text: for the terminal, Markdown, LaTeX and CSV, always with the claims beside our numbers."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from equiscale._files import atomic_path
from equiscale.errors import SettingError
from equiscale.report.aggregate import Table, TableCell

Format = Literal["terminal", "markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = get_args(Format)

UNCHECKED = "†"
NOTHING = "–"
_TERMINAL_WIDTH = 80
_VERDICT_STYLES = {"lower": "green", "higher": "red", "equal": "default"}


def render(table: Table, fmt: Format) -> str:
    """The table in a format, ending in a newline.

    Raises:
        SettingError: For an unknown format.
    """
    renderers = {
        "terminal": render_terminal,
        "markdown": render_markdown,
        "csv": render_csv,
        "latex": render_latex,
    }
    if fmt not in renderers:
        raise SettingError(f"expected a format of {', '.join(FORMATS)}, got {fmt!r}")
    return renderers[fmt](table)


def value_text(cell: TableCell) -> str:
    """Mean ± standard deviation (n) and the mark of the protocol."""
    if cell.mean is None:
        return "failed" if cell.failed else NOTHING
    return f"{_plus_minus(cell.mean, cell.std)} ({cell.n}){cell.mark}"


def claim_text(cell: TableCell) -> str:
    """The claim, marked when it was not checked; empty without one."""
    if cell.claim is None:
        return ""
    return _plus_minus(cell.claim.mean, cell.claim.std) + ("" if cell.claim.checked else UNCHECKED)


def difference_text(cell: TableCell) -> str:
    """Ours minus the claim with its sign; empty when there is nothing to compare."""
    if cell.difference is None:
        return ""
    text = f"{cell.difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def verdict(cell: TableCell) -> Literal["lower", "higher", "equal", ""]:
    """Our error against the claim, as printed; lower is better."""
    if cell.difference is None:
        return ""
    difference = round(cell.difference, 2)
    return "equal" if difference == 0 else "lower" if difference < 0 else "higher"


def scoreboard(table: Table) -> str:
    """Wins and losses against the claims in one sentence; empty when nothing can be compared."""
    compared = [cell for cell in table.cells if verdict(cell)]
    if not compared:
        return ""
    counts = [sum(verdict(cell) == word for cell in compared) for word in ("lower", "higher", "equal")]
    text = "Against the claims: {} lower (better), {} higher (worse), {} equal".format(*counts)
    near = sum(_within_std(cell) for cell in compared)
    text += f"; {near} within the claim's standard deviation" * bool(near)
    others = sum(bool(cell.mark) for cell in compared)
    text += f"; {others} of the {len(compared)} by another protocol" * bool(others)
    return text + "."


def _within_std(cell: TableCell) -> bool:
    std = None if cell.claim is None else cell.claim.std
    return std is not None and cell.difference is not None and abs(cell.difference) <= std


def footnotes(table: Table) -> list[str]:
    """What the numbers, marks and gaps of the table mean."""
    lines = [
        "mean ± sample standard deviation of the test error over realisations (their number); "
        "lower is better",
        *_claim_sources(table),
    ]
    marks = {cell.mark: cell.deviation for cell in table.cells if cell.mark}
    lines += [f"{mark} {deviation}" for mark, deviation in marks.items()]
    board = scoreboard(table)
    return [*lines, *([board] if board else []), *table.notes]


def terminal(table: Table, width: int = _TERMINAL_WIDTH) -> RenderableType:
    """The table for a rich console of a given width."""
    narrow, tight = _natural_width(table, gap=2) > width, _natural_width(table, gap=1) > width
    padding = (0, 0) if narrow else (0, 1, 0, 0)
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=padding, header_style="bold")
    for column in ("", *table.suite.columns):
        grid.add_column(Text(column), overflow="fold")
    for index, method in enumerate(table.methods):
        if index:
            grid.add_row()
        for row in _terminal_rows(table, method, tight):
            grid.add_row(*row)
    notes = RichTable.grid(padding=(0, 1, 0, 0))
    for note in footnotes(table):
        notes.add_row(Text("·", style="dim"), Text(note, style="dim"))
    return Group(Text(table.suite.title, style="bold"), Text(), grid, Text(), notes)


def render_terminal(table: Table, width: int = _TERMINAL_WIDTH) -> str:
    """The table as plain text of at most ``width`` columns."""
    console = Console(
        file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False
    )
    with console.capture() as capture:
        console.print(terminal(table, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def render_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown, with its footnotes as a list below."""
    head = [["", *map(_escape_markdown, table.suite.columns)]]
    body = [
        [
            _escape_markdown(method),
            *(_markdown_cell(table.cell(method, column)) for column in table.suite.columns),
        ]
        for method in table.methods
    ]
    lines = [f"| {' | '.join(row)} |" for row in head + body]
    lines.insert(1, "|" + "---|" * len(head[0]))
    notes = (f"- {_escape_markdown(note)}" for note in footnotes(table))
    return "\n".join([f"**{_escape_markdown(table.suite.title)}**", "", *lines, "", *notes]) + "\n"


def render_latex(table: Table) -> str:
    """The table for LaTeX with booktabs; three lines a cell, its footnotes below."""
    columns = table.suite.columns
    lines = [f"% {' '.join(table.suite.title.split())}", rf"\begin{{tabular}}{{l{'l' * len(columns)}}}"]
    lines += [r"\toprule", " & ".join(["", *map(_escape_latex, columns)]) + r" \\", r"\midrule"]
    for index, method in enumerate(table.methods):
        lines += [r"\addlinespace"] * bool(index)
        lines += [" & ".join(map(_escape_latex, row)) + r" \\" for row in _rows(table, method)]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines += [rf"\par\footnotesize {_escape_latex(note)}" for note in footnotes(table)]
    return "\n".join(lines) + "\n"


def render_csv(table: Table) -> str:
    """One row a cell, with every field in full precision."""
    buffer = io.StringIO()
    rows = [_csv_row(table, cell) for cell in table.cells]
    writer = csv.DictWriter(buffer, fieldnames=_CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def insert_into(document: Path, suite_name: str, markdown: str) -> bool:
    """Replace the text between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->`` in a document.

    Args:
        document: A UTF-8 file with the two markers, each exactly once.
        suite_name: NAME.
        markdown: The new text.

    Returns:
        Whether the document changed.

    Raises:
        SettingError: If the markers are absent, repeated or in the wrong order.
    """
    start, end = f"<!-- table:{suite_name} -->", f"<!-- /table:{suite_name} -->"
    old = document.read_text(encoding="utf-8")
    if (old.count(start), old.count(end)) != (1, 1) or old.index(start) > old.index(end):
        raise SettingError(
            f"expected {start} and then {end} once each in {document}, "
            f"got {old.count(start)} and {old.count(end)}; add the two lines where the table should stand"
        )
    before, rest = old.split(start)
    after = rest.split(end)[1]
    new = f"{before}{start}\n{markdown.strip()}\n{end}{after}"
    if new != old:
        with atomic_path(document) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def _plus_minus(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _claim_sources(table: Table) -> Iterator[str]:
    claims = [cell.claim for cell in table.cells if cell.claim is not None]
    for checked in (True, False):
        names = dict.fromkeys(claim.source for claim in claims if claim.checked is checked)
        for name in names:
            mark = "claim:" if checked else f"{UNCHECKED} claim, unchecked:"
            yield f"{mark} {table.suite.sources[name]}"


def _rows(table: Table, method: str) -> Iterator[list[str]]:
    """A method in three lines: ours, the claims and the differences; lines without content are left out."""
    cells = [table.cell(method, column) for column in table.suite.columns]
    yield [method, *("" if cell is None else value_text(cell) for cell in cells)]
    for name, text in (("claim", claim_text), ("difference", difference_text)):
        row = ["" if cell is None else text(cell) for cell in cells]
        if any(row):
            yield [f"  {name}", *row]


def _terminal_rows(table: Table, method: str, tight: bool) -> Iterator[list[Text]]:
    cells = [table.cell(method, column) for column in table.suite.columns]
    for row, (name, *values) in enumerate(_rows(table, method)):
        texts = [Text(value.replace(" ± ", "±") if tight else value) for value in values]
        for text, cell in zip(texts, cells, strict=True):
            text.stylize(_terminal_style(name.strip(), row, cell))
        yield [Text(name, style="bold" if row == 0 else "dim"), *texts]


def _terminal_style(name: str, row: int, cell: TableCell | None) -> str:
    if row == 0 or cell is None:
        return "default"
    return "dim" if name == "claim" else _VERDICT_STYLES.get(verdict(cell), "default")


def _natural_width(table: Table, *, gap: int) -> int:
    rows = [["", *table.suite.columns], *(row for method in table.methods for row in _rows(table, method))]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return sum(widths) + gap * (len(widths) - 1)


def _markdown_cell(cell: TableCell | None) -> str:
    if cell is None:
        return ""
    parts = [f"**{_escape_markdown(value_text(cell))}**" if cell.runs else value_text(cell)]
    for name, text in (("claim", claim_text(cell)), ("difference", difference_text(cell))):
        parts += [f"{name} {text}"] * bool(text)
    return "<br>".join(parts)


_MARKDOWN_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "})


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text.translate(_MARKDOWN_ENTITIES))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\n": " ",
        "\r": " ",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": "$-$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "§": r"\S{}",
        "¶": r"\P{}",
        "‖": r"$\|$",
        "–": "--",
        "…": r"\dots{}",
    }
)


def _escape_latex(text: str) -> str:
    escaped = text.translate(_LATEX)
    return rf"\quad {escaped.lstrip()}" if text.startswith("  ") else escaped


_CSV_FIELDS = (
    *("suite", "method", "column", "model", "augment"),
    *("mean", "std", "n", "epochs", "published_epochs", "deviation"),
    *("missing", "failed", "left_out"),
    *("claim_mean", "claim_std", "claim_source", "claim_checked", "difference"),
)


def _csv_row(table: Table, cell: TableCell) -> dict[str, object]:
    row: dict[str, object] = {"suite": table.suite.name, "published_epochs": cell.published.epochs}
    same = ("method", "column", "model", "augment", "mean", "std", "n", "deviation", "left_out", "difference")
    row |= {name: getattr(cell, name) for name in same}
    row["epochs"] = cell.protocol.epochs if cell.protocol else None
    row["missing"] = " ".join(map(str, cell.missing))
    row["failed"] = " ".join(str(run.settings.realisation) for run in cell.failed)
    for name in ("mean", "std", "source", "checked"):
        row[f"claim_{name}"] = getattr(cell.claim, name) if cell.claim else None
    return row
