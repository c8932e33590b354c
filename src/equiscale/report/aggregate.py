"""From run records to the numbers of a table; runs of different protocols are never averaged together."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from equiscale.errors import RecordError
from equiscale.experiments.records import RunRecord
from equiscale.experiments.spec import Augmentation, Cell, Claim, Protocol, Suite

# The usual order of footnote marks; † is taken by claims that were not checked.
_MARKS = "‡§¶‖#"

Groups = Mapping[Protocol, Sequence[RunRecord]]


@dataclass(frozen=True)
class TableCell:
    """One cell: the runs of one network that were trained alike, and what was claimed.

    Args:
        method: The row.
        column: The column.
        model: The network.
        augment: The augmentation.
        published: The protocol of the suite.
        claim: The published number to print beside ours, where there is one.
        protocol: The protocol of the runs; None when nothing was run.
        runs: The finished runs, one a realisation, in order.
        failed: The failed runs of the same protocol.
        missing: Realisations without a run of this protocol.
        left_out: Finished runs of other protocols, which do not count.
        mark: The footnote mark of a protocol that is not the published one, else empty.
    """

    method: str
    column: str
    model: str
    augment: Augmentation
    published: Protocol
    claim: Claim | None
    protocol: Protocol | None
    runs: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]
    missing: tuple[int, ...]
    left_out: int
    mark: str = ""

    @property
    def errors(self) -> tuple[float, ...]:
        """Test errors in percent, in the order of the realisations."""
        return tuple(run.test.error for run in self.runs if run.test is not None)

    @property
    def n(self) -> int:
        """The number of runs that are averaged."""
        return len(self.runs)

    @property
    def mean(self) -> float | None:
        """The mean error in percent; None without a finished run."""
        return statistics.fmean(self.errors) if self.runs else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n − 1 in the denominator); None for fewer than two runs."""
        return statistics.stdev(self.errors) if self.n > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the claimed one: below 0 is better than claimed."""
        return None if self.mean is None or self.claim is None else self.mean - self.claim.mean

    @property
    def deviation(self) -> str:
        """How the runs differ from the published protocol, empty when they do not."""
        return "" if self.protocol is None else protocol_deviation(self.protocol, self.published)

    @property
    def place(self) -> str:
        """Row and column in words."""
        return f"{self.method}, {self.column}"


@dataclass(frozen=True)
class Table:
    """A suite with the numbers of its runs.

    Args:
        suite: The suite.
        cells: The cells, row by row; a method need not have one in every column.
        failed: The failed runs of the table's networks, by any protocol.
        notes: What a reader must know beside the numbers, as sentences.
    """

    suite: Suite
    cells: tuple[TableCell, ...]
    failed: tuple[RunRecord, ...]
    notes: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The rows' names, in order."""
        return tuple(method.name for method in self.suite.methods)

    def cell(self, method: str, column: str) -> TableCell | None:
        """The cell of a row in a column, where there is one."""
        return next((cell for cell in self.cells if (cell.method, cell.column) == (method, column)), None)

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """Every run that counts in the table, once."""
        return tuple({run.settings.run_id: run for cell in self.cells for run in cell.runs}.values())


def aggregate(suite: Suite, records: Iterable[RunRecord]) -> Table:
    """The table of a suite from its run records.

    Of the runs of a cell only those of one protocol are shown: the published one, else the one with the
    nearest number of epochs, then the one with the most runs.

    Args:
        suite: The suite.
        records: Records of any runs; those outside the table are counted in its notes.

    Returns:
        The table.

    Raises:
        RecordError: If two records are of the same run, or a record contradicts itself.
    """
    inside, outside = _split(suite, records)
    cells = [
        _aggregate_cell(suite, method.name, column, method.cells[column], inside)
        for method in suite.methods
        for column in suite.columns
        if column in method.cells
    ]
    failed = tuple(record for runs in inside.values() for record in runs if not _is_finished(record))
    notes = (*_completeness(cells), *_ignored(outside), *_changed_data(inside))
    return Table(suite, _marked(cells), failed, notes)


def protocol_deviation(run: Protocol, published: Protocol) -> str:
    """How a protocol differs from the published one, in words.

    A shorter schedule whose steps moved in proportion differs only in its epochs.

    Example:
        >>> from equiscale.experiments.spec import load_suite
        >>> published = load_suite("mnist-scale").protocol
        >>> protocol_deviation(published.cut(20), published)
        '20 of 60 epochs'
    """
    expected = published.cut(run.epochs)
    parts = [
        f"{name.replace('_', ' ')} {getattr(run, name)} instead of {getattr(expected, name)}"
        for name in Protocol.model_fields
        if getattr(run, name) != getattr(expected, name)
    ]
    if run.epochs != published.epochs:
        word = "of" if run.epochs < published.epochs else "instead of"
        parts.insert(0, f"{run.epochs} {word} {published.epochs} epochs")
    return ", ".join(parts)


Inside = dict[tuple[str, Augmentation], list[RunRecord]]


def _split(suite: Suite, records: Iterable[RunRecord]) -> tuple[Inside, list[RunRecord]]:
    """The records of the table's cells under (model, augmentation), and all others."""
    wanted = {(cell.model, cell.augment) for method in suite.methods for cell in method.cells.values()}
    inside: Inside = {key: [] for key in sorted(wanted)}
    outside: list[RunRecord] = []
    seen = set()
    for record in sorted(records, key=lambda record: (record.settings.realisation, record.settings.run_id)):
        settings = record.settings
        _check(record)
        if settings in seen:
            raise RecordError(
                f"expected one record a run, got two of {settings.run_id}; delete one of the two files"
            )
        seen.add(settings)
        key = settings.model, settings.augment
        counts = settings.dataset == suite.dataset and settings.realisation in suite.realisations
        (inside[key] if counts and key in wanted else outside).append(record)
    return inside, outside


def _check(record: RunRecord) -> None:
    if record.test is None:
        return
    bins = record.test.by_factor
    if not len(bins.images) == len(bins.mistakes) == max(len(bins.edges) - 1, 0):
        raise RecordError(
            f"expected images and mistakes between the {len(bins.edges)} edges of {record.settings.run_id}, "
            f"got {len(bins.images)} and {len(bins.mistakes)} bins; delete the record to run again"
        )


def _is_finished(record: RunRecord) -> bool:
    return record.status == "finished" and record.test is not None


def _aggregate_cell(suite: Suite, method: str, column: str, cell: Cell, inside: Inside) -> TableCell:
    groups: dict[Protocol, list[RunRecord]] = defaultdict(list)
    for record in inside[cell.model, cell.augment]:
        groups[record.settings.protocol].append(record)
    protocol = _nearest(groups, suite.protocol)
    shown = groups[protocol] if protocol else []
    run = {record.settings.realisation for record in shown}
    return TableCell(
        method=method,
        column=column,
        model=cell.model,
        augment=cell.augment,
        published=suite.protocol,
        claim=cell.claim,
        protocol=protocol,
        runs=tuple(record for record in shown if _is_finished(record)),
        failed=tuple(record for record in shown if not _is_finished(record)),
        missing=tuple(number for number in suite.realisations if number not in run),
        left_out=sum(_finished(group) for other, group in groups.items() if other != protocol),
    )


def _nearest(groups: Groups, published: Protocol) -> Protocol | None:
    """The protocol to show: with results, the published one, the nearest epochs, the most runs."""

    def distance(protocol: Protocol) -> tuple[bool, bool, int, int, str]:
        finished = _finished(groups[protocol])
        away = abs(protocol.epochs - published.epochs)
        return finished == 0, protocol != published, away, -finished, protocol.model_dump_json()

    return min(groups, key=distance, default=None)


def _finished(records: Sequence[RunRecord]) -> int:
    return sum(map(_is_finished, records))


def _marked(cells: Iterable[TableCell]) -> tuple[TableCell, ...]:
    """The cells with one mark for each way to deviate from the published protocol."""
    marks: dict[str, str] = {"": ""}
    marked = []
    for cell in cells:
        count = len(marks) - 1
        new = _MARKS[count % len(_MARKS)] * (1 + count // len(_MARKS))
        mark = marks.setdefault(cell.deviation if cell.runs else "", new)
        marked.append(replace(cell, mark=mark))
    return tuple(marked)


def _completeness(cells: Iterable[TableCell]) -> Iterator[str]:
    """One sentence for each kind of gap, naming the cells; cells without any run speak for themselves."""
    places: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if cell.protocol is not None and (cell.failed or cell.missing):
            places[_gap(cell)].append(cell.place)
        if cell.left_out:
            places[f"{_count(cell.left_out, 'more run')} by another protocol not averaged in"].append(
                cell.place
            )
    for gap, where in places.items():
        yield f"{'; '.join(where)}: {gap}."


def _gap(cell: TableCell) -> str:
    total = cell.n + len(cell.failed) + len(cell.missing)
    gaps = {"missing": cell.missing, "failed": [run.settings.realisation for run in cell.failed]}
    listed = "; ".join(f"{word}: no. {_list(numbers)}" for word, numbers in gaps.items() if numbers)
    return f"{cell.n} of {total} realisations ({listed})"


def _ignored(outside: Iterable[RunRecord]) -> Iterator[str]:
    """One sentence on the records that do not belong to the table."""
    counts = Counter(
        f"{record.settings.model} ({record.settings.dataset}, augmentation {record.settings.augment})"
        for record in outside
    )
    if counts:
        listed = "; ".join(f"{_count(number, 'run')} of {name}" for name, number in sorted(counts.items()))
        yield f"Not in the table: {listed}."


def _changed_data(inside: Inside) -> Iterator[str]:
    """A warning for every realisation that was not the same data in all runs."""
    checksums: dict[int, set[str]] = defaultdict(set)
    for record in (record for runs in inside.values() for record in runs if _is_finished(record)):
        checksums[record.settings.realisation].add(record.data.checksum)
    for realisation, found in sorted(checksums.items()):
        if len(found) > 1:
            yield f"Not all runs of realisation {realisation} saw the same data: {len(found)} checksums."


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
