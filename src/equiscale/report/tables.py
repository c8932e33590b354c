"""A table as text: for the terminal, Markdown, LaTeX and CSV, always with the claims beside our numbers."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from equiscale._files import atomic_path
from equiscale.errors import SettingError
from equiscale.experiments.spec import printable
from equiscale.report.aggregate import SizeGroup, Table, TableCell

Format = Literal["terminal", "markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = get_args(Format)

UNCHECKED = "†"
NOTHING = "–"
_TERMINAL_WIDTH = 80
_NARROWEST_NAME = 12  # to which the column of the methods is folded before columns stand below each other
_SIZE_NAMES = {"smaller": "smaller sizes", "trained": "trained sizes", "larger": "larger sizes"}
_MAX_DOCUMENT_BYTES = 2**24
_LINE_ENDS = str.maketrans("\n\r\t", "   ")
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


def size_text(group: SizeGroup) -> str:
    """The error of the images of some sizes, mean ± standard deviation."""
    return _plus_minus(group.mean, group.std)


def size_name(group: SizeGroup) -> str:
    """What a line with the errors of some sizes is called."""
    return _SIZE_NAMES[group.name]


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
    if any(cell.by_size for cell in table.cells):
        lines.append(
            "smaller, trained, larger sizes: of the test images smaller than every training image, "
            "as large, larger"
        )
    ours = [method.name for method in table.suite.methods if method.extra]
    if 0 < len(ours) < len(table.methods):
        lines.append(f"not in the published comparison: {'; '.join(ours)}")
    marks = {cell.mark: cell.deviation for cell in table.cells if cell.mark}
    lines += [f"{mark} {deviation}" for mark, deviation in marks.items()]
    board = scoreboard(table)
    return [*lines, *([board] if board else []), *table.notes]


def terminal(table: Table, width: int = _TERMINAL_WIDTH) -> RenderableType:
    """The table for a rich console of a given width.

    Where the columns do not fit side by side, even with the methods' names folded, they come in groups below
    each other.
    """
    grids = [_terminal_grid(table, columns, width) for columns in _column_groups(table, width)]
    spaced = [part for grid in grids for part in (grid, Text())]
    notes = RichTable.grid(padding=(0, 1, 0, 0))
    for note in footnotes(table):
        notes.add_row(Text("·", style="dim"), Text(one_line(note), style="dim"))
    return Group(Text(one_line(table.suite.title), style="bold"), Text(), *spaced, notes)


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
    lines = [f"% {one_line(table.suite.title)}", rf"\begin{{tabular}}{{l{'l' * len(columns)}}}"]
    lines += [r"\toprule", " & ".join(["", *map(_escape_latex, columns)]) + r" \\", r"\midrule"]
    for index, method in enumerate(table.methods):
        lines += [r"\addlinespace"] * bool(index)
        lines += [" & ".join(map(_escape_latex, row)) + r" \\" for row in _rows(table, method)]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines += [rf"\par\footnotesize {_escape_latex(note)}" for note in footnotes(table)]
    return "\n".join(lines) + "\n"


def render_csv(table: Table) -> str:
    """One row a cell, with every field in full precision; text that a spreadsheet would compute is quoted."""
    buffer = io.StringIO()
    rows = [_csv_row(table, cell) for cell in table.cells]
    writer = csv.DictWriter(buffer, fieldnames=_CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
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
        SettingError: If the document is no text, or the markers are absent, repeated or in the wrong order.
    """
    start, end = f"<!-- table:{suite_name} -->", f"<!-- /table:{suite_name} -->"
    old = read_document(document)
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


def read_document(path: Path) -> str:
    """A document with markers for tables.

    Raises:
        SettingError: If it is missing, no text in UTF-8, or larger than any document.
    """
    try:
        if path.stat().st_size > _MAX_DOCUMENT_BYTES or not path.is_file():
            raise ValueError(f"no file of at most {_MAX_DOCUMENT_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingError(f"expected a document of text at {path}, got: {error}; check the path") from error


def one_line(text: str) -> str:
    """A text from a record in one line, with nothing in it that a terminal would obey.

    Example:
        >>> one_line("two\\nlines \\x1b[2J")
        'two lines \\\\x1b[2J'
    """
    return printable(text.translate(_LINE_ENDS))


def _plus_minus(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _claim_sources(table: Table) -> Iterator[str]:
    claims = [cell.claim for cell in table.cells if cell.claim is not None]
    for checked in (True, False):
        names = dict.fromkeys(claim.source for claim in claims if claim.checked is checked)
        for name in names:
            mark = "claim:" if checked else f"{UNCHECKED} claim, unchecked:"
            yield f"{mark} {table.suite.sources[name]}"


def _rows(table: Table, method: str, columns: Sequence[str] | None = None) -> Iterator[list[str]]:
    """A method in some lines: ours, by size, the claims, the differences; empty lines are left out."""
    cells = [table.cell(method, column) for column in columns or table.suite.columns]
    lines = [{} if cell is None else _lines(cell) for cell in cells]
    yield [one_line(method), *("" if cell is None else value_text(cell) for cell in cells)]
    for name in (*_SIZE_NAMES.values(), "claim", "difference"):
        row = [line.get(name, "") for line in lines]
        if any(row):
            yield [f"  {name}", *row]


def _lines(cell: TableCell) -> dict[str, str]:
    """What stands below the value, under its name."""
    sizes = {size_name(group): size_text(group) for group in cell.by_size}
    return {**sizes, "claim": claim_text(cell), "difference": difference_text(cell)}


def _column_groups(table: Table, width: int) -> Iterator[list[str]]:
    """As many columns side by side as fit beside folded names, at least one."""
    group: list[str] = []
    for column in table.suite.columns:
        wider = [*group, column]
        if group and _NARROWEST_NAME + sum(_widths(table, wider, tight=True)[1:]) + len(wider) > width:
            yield group
            wider = [column]
        group = wider
    yield group


def _terminal_grid(table: Table, columns: Sequence[str], width: int) -> RichTable:
    tight = sum(_widths(table, columns, tight=False)) + len(columns) > width
    widths = _widths(table, columns, tight=tight)
    narrow = sum(widths) + 2 * len(columns) > width
    grid = RichTable(
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0 if narrow else 1, 0, 0), header_style="bold"
    )
    grid.add_column(Text(), overflow="fold")
    for column, widest in zip(columns, widths[1:], strict=True):
        grid.add_column(Text(one_line(column)), overflow="fold", min_width=min(widest, width // 2))
    rows = [(method, _terminal_rows(table, method, columns, tight)) for method in table.methods]
    shown = [lines for method, lines in rows if any(table.cell(method, column) for column in columns)]
    for index, lines in enumerate(shown):
        if index:
            grid.add_row()
        for line in lines:
            grid.add_row(*line)
    return grid


def _terminal_rows(table: Table, method: str, columns: Sequence[str], tight: bool) -> Iterator[list[Text]]:
    cells = [table.cell(method, column) for column in columns]
    for row, (name, *values) in enumerate(_rows(table, method, columns)):
        texts = [Text(value.replace(" ± ", "±") if tight else value) for value in values]
        for text, cell in zip(texts, cells, strict=True):
            text.stylize(_terminal_style(name.strip(), row, cell))
        yield [Text(name, style="bold" if row == 0 else "dim"), *texts]


def _terminal_style(name: str, row: int, cell: TableCell | None) -> str:
    if row == 0 or cell is None:
        return "default"
    return _VERDICT_STYLES.get(verdict(cell), "default") if name == "difference" else "dim"


def _widths(table: Table, columns: Sequence[str], *, tight: bool) -> list[int]:
    """The widest text of each column, the methods' names first."""
    body = [row for method in table.methods for row in _rows(table, method, columns)]
    values = [[text.replace(" ± ", "±") if tight else text for text in row] for row in body]
    return [max(map(len, column)) for column in zip(["", *map(one_line, columns)], *values, strict=True)]


def _markdown_cell(cell: TableCell | None) -> str:
    if cell is None:
        return ""
    parts = [f"**{_escape_markdown(value_text(cell))}**" if cell.runs else value_text(cell)]
    parts += [f"{name} {text}" for name, text in _lines(cell).items() if text]
    return "<br>".join(parts)


_MARKDOWN_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", one_line(text).translate(_MARKDOWN_ENTITIES))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after a line's end it would begin a length
        "]": "{]}",
        "*": "{*}",
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
    escaped = one_line(text).translate(_LATEX)
    return rf"\quad {escaped.lstrip()}" if text.startswith("  ") else escaped


_FORMULA_STARTS = ("=", "+", "-", "@")
_CSV_FIELDS = (
    *("suite", "method", "column", "model", "overrides", "augment", "dataset"),
    *("mean", "std", "n", "epochs", "published_epochs", "deviation"),
    *("missing", "failed", "left_out"),
    *("claim_mean", "claim_std", "claim_source", "claim_checked", "difference"),
    *("smaller_sizes", "trained_sizes", "larger_sizes"),
)


def _no_formula(value: object) -> object:
    """Text that begins as a formula does gets the apostrophe that tells spreadsheets to leave it as it is."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) else text


def _csv_row(table: Table, cell: TableCell) -> dict[str, object]:
    row: dict[str, object] = {"suite": table.suite.name, "published_epochs": cell.published.epochs}
    same = ("method", "column", "model", "augment", "dataset", "mean", "std", "n", "deviation", "left_out")
    row |= {name: getattr(cell, name) for name in (*same, "difference")}
    row["overrides"] = " ".join(f"{name}={value}" for name, value in cell.treatment.overrides)
    row |= {f"{group.name}_sizes": group.mean for group in cell.by_size}
    row["epochs"] = cell.protocol.epochs if cell.protocol else None
    row["missing"] = " ".join(map(str, cell.missing))
    row["failed"] = " ".join(str(run.settings.realisation) for run in cell.failed)
    for name in ("mean", "std", "source", "checked"):
        row[f"claim_{name}"] = getattr(cell.claim, name) if cell.claim else None
    return row
