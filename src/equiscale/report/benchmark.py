"""The tables of a benchmark, for the terminal and for documents, and those of a comparison of two."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from equiscale.errors import SettingError
from equiscale.experiments.benchmark.compare import Change, Range, missing_kinds
from equiscale.experiments.benchmark.record import (
    MODES,
    BenchmarkRecord,
    Kind,
    KindResult,
    Measured,
    Mode,
    ModelResult,
    Peaks,
)
from equiscale.report.tables import NOTHING, insert_into, one_line, read_document

KIND_NAMES: Final[dict[Kind, str]] = {
    "ours": "ours",
    "dense": "dense",
    "peer": "public code",
    "cnn": "plain CNN",
}
MODE_NAMES: Final[dict[Mode, str]] = {"train": "training step", "evaluate": "evaluation"}
_RIVALS: Final[tuple[Kind, ...]] = ("dense", "peer")
_MEGABYTE: Final = 1e6
_GIGA: Final = 1e9
_ENTITIES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]", "`": "\\`", "*": "\\*", "|": "\\|"}
)
_VERDICTS: Final = {"worse": "red", "better": "green", "same": "default"}


def terminal(record: BenchmarkRecord) -> RenderableType:
    """Everything that was measured, for a console of 80 columns."""
    table = _grid("", "ms", "quartiles", "ours", "MB", "ours", "GFLOP/s", "limit")
    for index, result in enumerate(record.models):
        if index:
            table.add_row()
        table.add_row(Text(one_line(result.model), style="bold"))
        for mode in MODES:
            table.add_row(f"  {MODE_NAMES[mode]}")
            for row in _terminal_rows(result, mode):
                table.add_row(*row)
    notes = [*conditions(record), *_legend(record), *_model_notes(record)]
    return Group(table, Text(), *(Text(one_line(f"· {note}"), style="dim") for note in notes))


def terminal_changes(changes: Sequence[Change], notes: Sequence[str] = ()) -> RenderableType:
    """Every quantity then and now, for a console of 80 columns, and what is to be known about them."""
    table = _grid("", "then", "quartiles", "now", "quartiles", "ratio", "")
    for index, (model, of_model) in enumerate(groupby(changes, key=lambda change: change.model)):
        if index:
            table.add_row()
        table.add_row(Text(one_line(model), style="bold"))
        for change in of_model:
            table.add_row(f"  {_what(change)}", *_change_cells(change))
    every = (_change_note(changes), *(f"· {note}" for note in notes))
    return Group(table, Text(), *(Text(one_line(note), style="dim") for note in every))


def change_notes(old: BenchmarkRecord, new: BenchmarkRecord) -> list[str]:
    """What cannot be compared, and what the new record says about its networks."""
    missing = (
        f"{model}: {KIND_NAMES[kind]} is in the older record only" for model, kind in missing_kinds(old, new)
    )
    return [*missing, *_model_notes(new)]


def regression_summary(changes: Sequence[Change]) -> str:
    """How many quantities became worse, in one line."""
    worse = sum(change.is_regression for change in changes)
    better = sum(change.verdict == "better" for change in changes)
    return f"{worse} of {len(changes)} worse, {better} better, beyond 5 % and the noise"


def markdown(record: BenchmarkRecord) -> str:
    """One line a network: ours, and how much faster and smaller than the rivals."""
    rivals = [kind for kind in _RIVALS if any(result.kind(kind) for result in record.models)]
    names = " / ".join(KIND_NAMES[kind] for kind in rivals)
    against = (
        [f"{word} {names}" for word in ("faster than", "faster than", "of the memory of")] if rivals else []
    )
    head = ["network", *_paired(["training step", "evaluation", "peak memory of a step"], against)]
    rows = [_summary_row(result, rivals) for result in record.models]
    lines = _markdown_table([*head, "step against a plain CNN's"], rows)
    notes = [*conditions(record), *_model_notes(record)]
    return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in notes)]) + "\n"


def markdown_details(record: BenchmarkRecord) -> str:
    """One line a network, mode and kind, with everything that was measured."""
    head = [
        "network",
        "",
        "",
        "ms a step",
        "quartiles",
        "MB",
        "GFLOP",
        "GB moved",
        "GFLOP/s",
        "peak",
        "limit",
    ]
    rows = [
        [
            _code(result.model),
            MODE_NAMES[mode],
            KIND_NAMES[kind.kind],
            *_detail_cells(kind.mode(mode), record.peaks),
        ]
        for result in record.models
        for mode in MODES
        for kind in _in_order(result)
    ]
    notes = [*_legend(record), *_algorithm_notes(record), *_model_notes(record)]
    return "\n".join([*_markdown_table(head, rows), "", *(f"- {_escaped(note)}" for note in notes)]) + "\n"


def insert_tables(document: Path, name: str, record: BenchmarkRecord) -> None:
    """Replace what stands between the markers ``table:NAME`` and ``table:NAME-details``, as far as there.

    Raises:
        SettingError: If the document has neither, or a broken pair of them.
    """
    text = read_document(document)
    tables = {name: markdown, f"{name}-details": markdown_details}
    present = [marker for marker in tables if f"<!-- table:{marker} -->" in text]
    if not present:
        raise SettingError(
            f"expected <!-- table:{name} --> or <!-- table:{name}-details --> in {document}, got neither; "
            "add the line, and one with /table, where the table should stand"
        )
    for marker in present:
        insert_into(document, marker, tables[marker](record))


def conditions(record: BenchmarkRecord) -> list[str]:
    """On what, and how it was measured."""
    machine, settings = record.machine, record.settings
    number = machine.get("threads", NOTHING)
    threads = f"{number} thread{'s' * (number != '1')}"
    where = machine.get("gpu") or f"{machine.get('processor', NOTHING)}, {threads}"
    source = (
        f"commit {record.commit[:10]}{'' if record.clean else ' with changes'}"
        if record.commit
        else "installed"
    )
    allocator = ", freed memory kept" if settings.keep_memory else ""
    peer = [] if record.peer is None else [f"public code: commit {record.peer[:10]}"]
    return [
        f"{where}, {settings.precision}{allocator}; medians of {settings.rounds} interleaved rounds; "
        f"torch {record.versions.get('torch', NOTHING)}, {source}, {record.finished[:10]}",
        *peer,
    ]


def _legend(record: BenchmarkRecord) -> list[str]:
    peaks = record.peaks
    return [
        "dense: the published formulation, in equiscale; ours: how many times ours",
        "limit: the time that the same operations would take at the measured peak of "
        f"{peaks.flops / _GIGA:.0f} GFLOP/s and {peaks.bandwidth / _GIGA:.0f} GB/s, as a share of the time "
        "they took",
    ]


def _model_notes(record: BenchmarkRecord) -> list[str]:
    return [f"{result.model}: {note}" for result in record.models for note in result.notes]


def _algorithm_notes(record: BenchmarkRecord) -> list[str]:
    return [f"{result.model}: {algorithms(result)}" for result in record.models if result.algorithms]


def algorithms(result: ModelResult) -> str:
    """Which algorithms computed how many layers."""
    used = sorted(result.algorithms.values())
    return ", ".join(f"{name} ×{len(list(group))}" for name, group in groupby(used))


def _in_order(result: ModelResult) -> list[KindResult]:
    found = (result.kind(kind) for kind in KIND_NAMES)
    return [kind for kind in found if kind is not None]


def _terminal_rows(result: ModelResult, mode: Mode) -> Iterator[list[str]]:
    for kind in _in_order(result):
        measured = kind.mode(mode)
        yield [
            f"    {KIND_NAMES[kind.kind]}",
            milliseconds(measured.seconds.median),
            f"{milliseconds(measured.seconds.quartile_1)}–{milliseconds(measured.seconds.quartile_3)}",
            "" if kind.kind == "ours" else times(result.ratio(kind.kind, "ours", mode)),
            megabytes(measured.peak_bytes),
            "" if kind.kind == "ours" else times(result.memory_ratio(kind.kind, "ours", mode)),
            f"{measured.work.flops / measured.seconds.median / _GIGA:.0f}",
            f"{100 * measured.work.bound_seconds / measured.seconds.median:.0f} %",
        ]


def _summary_row(result: ModelResult, rivals: Sequence[Kind]) -> list[str]:
    ours = result.kind("ours")
    if ours is None:
        return [_code(result.model)]
    amounts = [
        f"{milliseconds(ours.train.seconds.median)} ms",
        f"{milliseconds(ours.evaluate.seconds.median)} ms",
        f"{megabytes(ours.train.peak_bytes)} MB",
    ]
    faster = [" / ".join(times(result.ratio(kind, "ours", mode)) for kind in rivals) for mode in MODES]
    memory = " / ".join(times(result.memory_ratio("ours", kind, "train")) for kind in rivals)
    against = [*faster, memory] if rivals else []
    name = f"{_code(result.model)}, {result.batch_size} images"
    return [name, *_paired(amounts, against), times(result.ratio("ours", "cnn", "train"))]


def _paired(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The two lists in turn; the first alone where the second is empty."""
    return [text for pair in zip(first, second, strict=True) for text in pair] if second else list(first)


def _detail_cells(measured: Measured, peaks: Peaks) -> list[str]:
    seconds, work = measured.seconds, measured.work
    return [
        milliseconds(seconds.median),
        f"{milliseconds(seconds.quartile_1)}–{milliseconds(seconds.quartile_3)}",
        megabytes(measured.peak_bytes),
        f"{work.flops / _GIGA:.3g}",
        f"{work.bytes / _GIGA:.2g}",
        f"{work.flops / seconds.median / _GIGA:.0f}",
        f"{100 * work.flops / seconds.median / peaks.flops:.0f} %",
        f"{100 * work.bound_seconds / seconds.median:.0f} %",
    ]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    right = "|".join("--:" for _ in head[1:])
    return [f"| {' | '.join(head)} |", f"|---|{right}|", *(f"| {' | '.join(row)} |" for row in rows)]


def _code(name: str) -> str:
    """A name as code in a cell of a table, which it cannot leave."""
    return f"`{one_line(name).replace('`', chr(39)).replace('|', '¦')}`"


def _escaped(note: str) -> str:
    """A sentence as Markdown, whose own signs stay signs; names of networks have underscores inside."""
    return one_line(note).translate(_ENTITIES)


def _what(change: Change) -> str:
    mode = {"train": "step", "evaluate": "evaluation"}[change.mode]
    unit = "ms" if change.quantity == "time" else "MB"
    return f"{KIND_NAMES[change.kind]}, {mode}, {unit}"


def _change_cells(change: Change) -> list[str | Text]:
    style = _VERDICTS[change.verdict] if change.kind != "peer" else "dim"
    word = {"worse": "worse", "better": "better", "same": ""}[change.verdict]
    cells = [cell for then_or_now in (change.old, change.new) for cell in _range_cells(change, then_or_now)]
    ratio = change.ratio / change.drift
    shown = f"{ratio:.2f}×" if isfinite(ratio) else NOTHING
    return [*cells, Text(shown, style=style), Text(word, style=style)]


def _range_cells(change: Change, found: Range) -> list[str]:
    if change.quantity == "memory":
        return [megabytes(round(found.median) if isfinite(found.median) else None), ""]
    return [milliseconds(found.median), f"{milliseconds(found.low)}–{milliseconds(found.high)}"]


def _change_note(changes: Sequence[Change]) -> str:
    drifts = sorted(change.drift for change in changes if change.quantity == "time")
    between = f"{drifts[0]:.2f} to {drifts[-1]:.2f} times" if drifts else "1.00 times"
    return (
        f"ratio: now over then; of times after the machine's own drift, whose probes took {between} as long. "
        "worse: by more than 5 %, and the quartile ranges lie apart."
    )


def _grid(first: str, *others: str) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for other in others:
        table.add_column(other, justify="right" if other else "left", no_wrap=True)
    return table


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, to three digits.

    Example:
        >>> [milliseconds(seconds) for seconds in (0.00123456, 0.0773, 1.5, 12.3)]
        ['1.23', '77.3', '1500', '12300']
    """
    value = 1_000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def megabytes(size: int | None) -> str:
    """Bytes in megabytes; a dash where they were not measured."""
    return NOTHING if size is None else f"{size / _MEGABYTE:.0f}"


def times(ratio: float | None) -> str:
    """A ratio with two digits and the sign of multiplication; a dash without one.

    Example:
        >>> [times(ratio) for ratio in (12.34, 1.26, 0.514, None)]
        ['12×', '1.3×', '0.51×', '–']
    """
    if ratio is None:
        return NOTHING
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 0.995 else f"{ratio:.2f}×"
