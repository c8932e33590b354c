"""From run records to the numbers of a table; runs of different protocols are never averaged together."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from equiscale.errors import RecordError
from equiscale.experiments.records import FactorErrors, RunRecord
from equiscale.experiments.spec import Augmentation, Cell, Claim, Protocol, Suite, Treatment

# The usual order of footnote marks; † is taken by claims that were not checked.
_MARKS = "‡§¶‖#"
_LISTED = 4  # kinds of runs outside the table that are named

Groups = Mapping[Protocol, Sequence[RunRecord]]


@dataclass(frozen=True)
class TableCell:
    """One cell: the runs of one network that were trained alike, and what was claimed.

    Args:
        method: The row.
        column: The column.
        treatment: The network, its overrides, the augmentation and the data set.
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
    treatment: Treatment
    published: Protocol
    claim: Claim | None
    protocol: Protocol | None
    runs: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]
    missing: tuple[int, ...]
    left_out: int
    mark: str = ""

    @property
    def model(self) -> str:
        """The network."""
        return self.treatment.model

    @property
    def augment(self) -> Augmentation:
        """The augmentation."""
        return self.treatment.augment

    @property
    def dataset(self) -> str:
        """The data set."""
        return self.treatment.dataset

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
    def by_size(self) -> "tuple[SizeGroup, ...]":
        """The errors on smaller, trained and larger sizes; empty where only trained sizes were tested."""
        return _size_groups(self.runs)

    @property
    def place(self) -> str:
        """Row and column in words."""
        return f"{self.method}, {self.column}"


@dataclass(frozen=True)
class SizeGroup:
    """The test images that are smaller than every trained one, as large, or larger.

    Args:
        name: "smaller", "trained" or "larger".
        errors: Their test error in percent, in the order of the realisations.
    """

    name: str
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean error in percent."""
        return statistics.fmean(self.errors)

    @property
    def std(self) -> float | None:
        """The sample standard deviation; None for fewer than two runs."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None


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


def alike(runs: Sequence[RunRecord]) -> list[tuple[RunRecord, FactorErrors]]:
    """The runs that counted their mistakes by size in the same bins as the first one that did."""
    counted = [
        (run, run.test.by_factor)
        for run in runs
        if run.test is not None and run.test.by_factor is not None and any(run.test.by_factor.images)
    ]
    return [(run, bins) for run, bins in counted if bins.edges == counted[0][1].edges]


def _size_groups(runs: Sequence[RunRecord]) -> tuple[SizeGroup, ...]:
    counted = [(side, bins) for run, bins in alike(runs) if (side := _sides(run, bins)) is not None]
    found: dict[str, list[float]] = {"smaller": [], "trained": [], "larger": []}
    for sides, bins in counted:
        for name, errors in found.items():
            chosen = [index for index, side in enumerate(sides) if side == name]
            images = sum(bins.images[index] for index in chosen)
            if images:
                errors.append(100 * sum(bins.mistakes[index] for index in chosen) / images)
    groups = tuple(SizeGroup(name, tuple(errors)) for name, errors in found.items() if errors)
    return groups if {group.name for group in groups} - {"trained"} else ()


def _sides(run: RunRecord, bins: FactorErrors) -> list[str] | None:
    """Where each bin lies beside the trained sizes, which a bin need only touch."""
    if run.data.train_factors is None:
        return None
    low, high = run.data.train_factors
    pairs = zip(bins.edges[:-1], bins.edges[1:], strict=True)
    return ["smaller" if end <= low else "larger" if start >= high else "trained" for start, end in pairs]


Inside = dict[Treatment, list[RunRecord]]


def _split(suite: Suite, records: Iterable[RunRecord]) -> tuple[Inside, list[RunRecord]]:
    """The records of the table's cells under what they trained, and all others."""
    inside: Inside = {treatment: [] for treatment in sorted(suite.treatments, key=repr)}
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
        counts = settings.realisation in suite.realisations and settings.treatment in inside
        (inside[settings.treatment] if counts else outside).append(record)
    return inside, outside


def _check(record: RunRecord) -> None:
    if record.test is None or record.test.by_factor is None:
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
    treatment = suite.treatment(cell)
    for record in inside[treatment]:
        groups[record.settings.protocol].append(record)
    protocol = _nearest(groups, suite.protocol)
    shown = groups[protocol] if protocol else []
    run = {record.settings.realisation for record in shown}
    return TableCell(
        method=method,
        column=column,
        treatment=treatment,
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
    run = [cell for cell in cells if cell.protocol is not None]
    gaps: dict[str, list[TableCell]] = defaultdict(list)
    for cell in run:
        if cell.failed or cell.missing:
            gaps[_gap(cell)].append(cell)
        if cell.left_out:
            gaps[f"{_count(cell.left_out, 'more run')} by another protocol not averaged in"].append(cell)
    for gap, where in gaps.items():
        yield f"{_places(where, run)}: {gap}."


def _places(where: Sequence[TableCell], run: Sequence[TableCell]) -> str:
    """The cells in few words: all that were run, else whole rows by their method, else one by one."""
    if len(where) == len(run) > 1:
        return "All cells with runs"
    whole = Counter(cell.method for cell in run)
    rows = Counter(cell.method for cell in where)
    return "; ".join(
        dict.fromkeys(
            cell.method if rows[cell.method] == whole[cell.method] > 1 else cell.place for cell in where
        )
    )


def _gap(cell: TableCell) -> str:
    total = cell.n + len(cell.failed) + len(cell.missing)
    gaps = {"missing": cell.missing, "failed": [run.settings.realisation for run in cell.failed]}
    listed = "; ".join(f"{word}: no. {_list(numbers)}" for word, numbers in gaps.items() if numbers)
    return f"{cell.n} of {total} realisations ({listed})"


def _ignored(outside: Iterable[RunRecord]) -> Iterator[str]:
    """One sentence on the records that do not belong to the table."""
    counts = Counter(
        f"{_network(record.settings.treatment)} ({record.settings.dataset}, "
        f"augmentation {record.settings.augment})"
        for record in outside
    )
    if counts:
        shown = sorted(counts.items())[:_LISTED]
        listed = "; ".join(f"{_count(number, 'run')} of {name}" for name, number in shown)
        others = counts.total() - sum(number for _, number in shown)
        more = f"; {_count(others, 'run')} of {len(counts) - len(shown)} more" * bool(others)
        yield f"Not in the table: {listed}{more}."


def _network(treatment: Treatment) -> str:
    changed = ", ".join(f"{name} {value}" for name, value in treatment.overrides)
    return treatment.model + (f" with {changed}" if changed else "")


def _changed_data(inside: Inside) -> Iterator[str]:
    """A warning for every realisation that was not the same data in all runs."""
    checksums: dict[tuple[str, int], set[str]] = defaultdict(set)
    for record in (record for runs in inside.values() for record in runs if _is_finished(record)):
        checksums[record.settings.dataset, record.settings.realisation].add(record.data.checksum)
    several = len({dataset for dataset, _ in checksums}) > 1
    for (dataset, realisation), found in sorted(checksums.items()):
        if len(found) > 1:
            of = f" of {dataset}" * several
            yield f"Not all runs of realisation {realisation}{of} saw the same data: {len(found)} checksums."


def _list(numbers: Sequence[int]) -> str:
    """Numbers, with a dash for three or more that follow each other.

    Example:
        >>> _list([0, 2, 3, 4, 7, 8])
        '0, 2–4, 7, 8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
