"""The report: one self-contained HTML file, drawn from the records of a suite."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import equiscale
from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.errors import RecordError
from equiscale.experiments.plan import format_overrides
from equiscale.experiments.records import RunRecord, read_records
from equiscale.experiments.spec import Protocol, Suite, printable
from equiscale.report import plots, tables, tiles
from equiscale.report.aggregate import Table, TableCell, aggregate
from equiscale.report.drawing import ACCENT, FAINT, INK, RULE, SERIES, Drawing
from equiscale.report.inspection import Inspection, read_inspection

with needs_extra("report"):
    import jinja2
    from markupsafe import Markup

_COMMIT_DIGITS = 10
_DATE_LENGTH = len("2020-02-02")
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Sample:
    """A test image for the page."""

    uri: str
    label: int
    prediction: int
    factor: float | None
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """What the page shows of one trained network."""

    method: str
    column: str
    realisation: int
    samples: tuple[Sample, ...]
    filters: tuple[Drawing, ...]
    features: tuple[Drawing, ...]


def write_report(suite: Suite, folder: Path, target: Path) -> Path:
    """Write the report of a suite's records.

    Args:
        suite: The suite.
        folder: The results folder; the records lie in its sub-folder of the suite's name.
        target: The HTML file.

    Returns:
        The target.

    Raises:
        RecordError: If a record is damaged, or two records are of the same run.
        MissingExtraError: On import, if matplotlib or jinja2 is not installed.
    """
    table = aggregate(suite, read_records(folder, suite.name))
    text = render_report(table, folder / suite.name)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def render_report(table: Table, folder: Path) -> str:
    """The HTML of the report; ``folder`` holds the pictures beside the records."""
    pictures, unreadable = _pictures(table, folder)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            suite=table.suite,
            table=table,
            tables=tables,
            version=equiscale.__version__,
            protocol=protocol_text(table.suite.protocol),
            learning=plots.learning_curves(table),
            testing=plots.testing_curves(table),
            sizes=plots.size_curves(table),
            factors=plots.factor_curves(table),
            equivariance=plots.equivariance_curves(table),
            pictures=pictures,
            unreadable=unreadable,
            provenance=list(_provenance(table.runs)),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("equiscale.report", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["themed"] = _themed
    return environment


def _visible(value: object) -> object:
    """What a record hides in a text, or turns around, stands on the page as an escape."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _themed(drawing: Drawing) -> Markup:
    """The figure with its colours as variables of the page, which follow the reader's colour scheme."""
    names = {INK: "ink", FAINT: "faint", RULE: "rule", ACCENT: "accent"}
    names |= {color: f"series-{index}" for index, color in enumerate(SERIES)}
    svg = re.sub(
        r"(?<=: )#[0-9a-f]{6}",
        lambda match: f"var(--{names[match[0]]})" if match[0] in names else match[0],
        drawing.svg,
    )
    label = Markup('<svg role="img" aria-label="{}" ').format(printable(drawing.alt))
    return label + Markup(svg.removeprefix("<svg "))


def _pictures(table: Table, folder: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of one run a cell, and sentences on those that cannot be read."""
    pictures, unreadable = [], []
    for cell in table.cells:
        notes = dict.fromkeys(note for run in cell.runs for note in run.notes)
        unreadable += [f"{cell.place}: {note}" for note in notes]
        run = next((run for run in cell.runs if run.inspection is not None), None)
        if run is None:
            continue
        try:
            pictures.append(_picture(cell, run, read_inspection(_beside(folder, run))))
        except RecordError as error:
            unreadable.append(f"{cell.place}: {error}")
    return pictures, unreadable


def _beside(folder: Path, run: RunRecord) -> Path:
    name = run.inspection or ""
    if Path(name).name != name or name == ".." or "\0" in name:
        raise RecordError(f"expected the plain name of a file beside the record, got {name!r}")
    return folder / name


def _picture(cell: TableCell, run: RunRecord, inspection: Inspection) -> Picture:
    return Picture(
        method=cell.method,
        column=cell.column,
        realisation=run.settings.realisation,
        samples=tuple(_samples(inspection)),
        filters=tiles.filter_drawings(inspection, run.settings.run_id),
        features=tiles.feature_drawings(inspection, run.settings.run_id),
    )


def _samples(inspection: Inspection) -> Iterator[Sample]:
    """The sample images; factors that are all the same say nothing and are left out."""
    one_size = bool((inspection.factors == inspection.factors[0]).all())
    height, width = inspection.samples.shape[-2:]
    for index, image in enumerate(inspection.samples):
        yield Sample(
            uri=tiles.picture_png(image),
            label=int(inspection.labels[index]),
            prediction=int(inspection.predictions[index]),
            factor=None if one_size else float(inspection.factors[index]),
            width=width,
            height=height,
        )


def protocol_text(protocol: Protocol) -> str:
    """The training in one phrase.

    Example:
        >>> from equiscale.experiments.spec import load_suite
        >>> protocol_text(load_suite("mnist-scale").protocol)
        '60 epochs of Adam at learning rate 0.01, times 0.1 after epochs 20 and 40, batches of 128 images'
    """
    optimizer = {"adam": "Adam", "sgd": "SGD"}[protocol.optimizer]
    epochs = "1 epoch" if protocol.epochs == 1 else f"{protocol.epochs} epochs"
    parts = [f"{epochs} of {optimizer} at learning rate {protocol.learning_rate:g}"]
    if protocol.optimizer == "sgd":
        parts.append(f"{'Nesterov ' * protocol.nesterov}momentum {protocol.momentum:g}")
    if protocol.lr_steps:
        *first, last = map(str, protocol.lr_steps)
        steps = f"epochs {', '.join(first)} and {last}" if first else f"epoch {last}"
        parts.append(f"times {protocol.lr_gamma:g} after {steps}")
    if protocol.weight_decay:
        parts.append(f"weight decay {protocol.weight_decay:g}")
    parts.append(f"batches of {protocol.batch_size} images{_in_parts(protocol)}")
    if protocol.precision != "float32":
        parts.append(f"in {protocol.precision}")
    if protocol.ema_decay is not None:
        parts.append(f"weights averaged with decay {protocol.ema_decay:g}")
    if protocol.select == "last":
        parts.append("the last epoch is tested")
    return ", ".join(parts)


def _in_parts(protocol: Protocol) -> str:
    return "" if protocol.accumulate == 1 else f" in {protocol.accumulate} parts"


def _provenance(runs: Sequence[RunRecord]) -> Iterator[tuple[str, list[str]]]:
    """What made the runs: every value that occurs, with the number of runs where they differ."""
    if not runs:
        return
    yield "runs", [str(len(runs))]
    yield "dates", [f"{min(map(_started, runs))} to {max(map(_finished, runs))}"]
    seconds = sum(run.provenance.train_seconds + run.provenance.test_seconds for run in runs)
    yield "total time", [duration(seconds)]
    yield "source", _distinct(runs, _source)
    yield "versions", _distinct(runs, lambda run: _listed(run.provenance.versions))
    yield "machine", _distinct(runs, lambda run: _listed(run.provenance.machine))
    yield "images", _distinct(runs, _images)
    yield "parameters", list(_parameters(runs))


def _parameters(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Of every network; one that is of several sizes with its settings and data."""
    sizes: dict[str, dict[str, int]] = {}
    for run in runs:
        where = " ".join([*format_overrides(run.settings.overrides), f"on {run.settings.dataset}"])
        sizes.setdefault(run.settings.model, {})[where] = run.parameters
    for model, found in sorted(sizes.items()):
        if len(set(found.values())) == 1:
            yield f"{model}: {next(iter(found.values())):,}"
        else:
            yield from (f"{model} {where}: {number:,}" for where, number in sorted(found.items()))


def _started(run: RunRecord) -> str:
    return run.provenance.started[:_DATE_LENGTH]


def _finished(run: RunRecord) -> str:
    return run.provenance.finished[:_DATE_LENGTH]


def _listed(entries: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(entries.items()))


def _images(run: RunRecord) -> str:
    counts = {"train": run.data.train, "validation": run.data.validation, "test": run.data.test}
    return ", ".join(f"{number:,} {split}" for split, number in counts.items() if number)


def _source(run: RunRecord) -> str:
    if run.provenance.commit is None:
        return "an installed package, no commit known"
    state = {True: "clean", False: "with uncommitted changes", None: "state unknown"}[run.provenance.clean]
    return f"commit {run.provenance.commit[:_COMMIT_DIGITS]}, {state}"


def _distinct(runs: Sequence[RunRecord], value: Callable[[RunRecord], str]) -> list[str]:
    counts = Counter(map(value, runs))
    if len(counts) == 1:
        return list(counts)
    return [f"{text} ({number} of {len(runs)} runs)" for text, number in counts.most_common()]


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(59.6), duration(3600 * 26 + 90)
        ('60 s', '26 h 2 min')
    """
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / _MINUTE)
    hours, rest = divmod(minutes, _HOUR // _MINUTE)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
