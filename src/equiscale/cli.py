"""The command line: parses, delegates, and shows. Everything heavy is imported inside the commands."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equiscale.errors import EquiscaleError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from equiscale.experiments.benchmark.record import BenchmarkRecord
    from equiscale.experiments.records import RunRecord, RunSettings
    from equiscale.experiments.spec import Augmentation, Suite

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Prepare data sets, and look at them.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from equiscale import __version__

        typer.echo(f"equiscale {__version__}")
        raise typer.Exit


ROOT_HELP = "Folder of prepared data (default: EQUISCALE_DATA_DIR, else the user's cache)."
Root = Annotated[Path | None, typer.Option(help=ROOT_HELP)]
Results = Annotated[Path, typer.Option(help="Folder of the run records.")]
SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite's name, or the path of a .toml file.")
]
DEFAULT_RESULTS = Path("runs")


@app.callback()
def equiscale(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Scale-equivariant convolutional networks: data, published experiments, tables and reports."""


@app.command("list")
def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="method, basis, model, data or suite (default: all)."),
    ] = None,
    into: Annotated[Path | None, typer.Option(help="Write all of it into a Markdown file instead.")] = None,
) -> None:
    """List methods, bases, models, data sets and suites, with their sources."""
    from rich.console import Console

    with _errors_as_messages():
        from equiscale._files import atomic_path
        from equiscale.catalogue import markdown, terminal

        if into is not None:
            page = markdown()
            with atomic_path(into) as temporary:
                temporary.write_text(page)
            typer.echo(f"Wrote the catalogue to {into}")
        else:
            console = Console(highlight=False)
            for table in terminal(kind):
                console.print(table)


@data_app.command("prepare")
def data_prepare(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="For example mnist-scale.")],
    root: Root = None,
    source: Annotated[
        Path | None, typer.Option(help="Where the original files are: MNIST's folder, an archive, …")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the original files to the root.")
    ] = False,
    realisations: Annotated[
        str | None, typer.Option(help="Numbers and ranges, such as 0-2,5 (default: all).")
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Also write the published folders of PNG files (mnist-scale).")
    ] = False,
) -> None:
    """Make a data set and check it against the published checksums."""
    from equiscale.data import data_root, dataset_info
    from equiscale.data.dataset import Preparation
    from equiscale.experiments.plan import parse_numbers

    with _errors_as_messages():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # files that are left out are told below
            info = dataset_info(dataset, root=root)
        if info.prepare is None:
            if source is not None or download or realisations is not None or png:
                raise SettingError(
                    f"expected no option but --root for {dataset}, which is made when it is loaded, got one; "
                    "leave it out"
                )
            typer.echo(f"{dataset} needs no preparation: it is made when it is loaded.")
            return
        numbers = None if realisations is None else parse_numbers(realisations)
        info.prepare(
            Preparation(
                root, source=source, download=download, realisations=numbers, png=png, progress=typer.echo
            )
        )
        typer.echo(f"Prepared {dataset} in {data_root(root)}")


@data_app.command("preview")
def data_preview(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="For example stl10, or image-folder:PATH for your own images."
        ),
    ],
    root: Root = None,
    output: Annotated[
        Path | None, typer.Option(help="A .png, .svg or .pdf file (default: DATASET-preview.png).")
    ] = None,
    images: Annotated[int, typer.Option(help="How many images, a row each.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the choice of images and of the augmentation.")] = 9,
) -> None:
    """Draw the steps of the augmentation side by side: original, padded, cropped, flipped, cut out."""
    with _errors_as_messages():
        from equiscale.data.preview import load_preview
        from equiscale.report.preview import draw_preview

        shown = load_preview(dataset, images=images, root=root, seed=seed)
        name = Path(dataset.partition("?")[0]).name.replace(":", "-")
        typer.echo(f"Wrote {draw_preview(shown, output or Path(f'{name}-preview.png'))}")


@app.command()
def reproduce(
    suite: SuiteName,
    models: Annotated[str, typer.Option(help="Shell pattern of the networks' names.")] = "*",
    augment: Annotated[str | None, typer.Option(help="Augmentations, such as none,scale.")] = None,
    data: Annotated[str, typer.Option(help="Shell pattern of the data sets' names.")] = "*",
    realisations: Annotated[str | None, typer.Option(help="Numbers and ranges, such as 0-2,5.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Cut the published schedule to so many epochs.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Another precision than the suite's.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the steps or not.")
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="Replay steps as a CUDA graph or not."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all GPUs) or cuda:N.")] = "auto",
    jobs: Annotated[int, typer.Option(help="Runs at a time, in all; 0: one a core, on each GPU one.")] = 0,
    jobs_per_device: Annotated[
        int, typer.Option(help="Runs at a time on each GPU, or on the CPU, which share its threads.")
    ] = 0,
    root: Root = None,
    results: Results = DEFAULT_RESULTS,
    resume: Annotated[bool, typer.Option(help="Go on from checkpoints of unfinished runs.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, and what they cost.")
    ] = False,
    estimate: Annotated[bool, typer.Option(help="With --dry-run: time a few steps of every network.")] = True,
) -> None:
    """Train and test every run of a suite that has no record yet."""
    from equiscale.experiments.plan import Selection, parse_numbers, plan_runs
    from equiscale.experiments.spec import load_suite

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with _errors_as_messages():
        plan = load_suite(suite)
        selection = Selection(
            models=models,
            augment=_augmentations(augment),
            realisations=None if realisations is None else parse_numbers(realisations),
            epochs=epochs,
            datasets=data,
            precision=precision,
            compile=compile,
            cuda_graphs=cuda_graphs,
        )
        runs = plan_runs(plan, selection)
        if dry_run:
            if estimate:
                device, side_by_side = _place(runs, device, jobs, jobs_per_device)
            _show_plan(plan, runs)
            if estimate:
                _show_estimates(runs, root=root, device=device, jobs=side_by_side)
            return
        from equiscale.experiments.progress import reproduce_with_progress
        from equiscale.experiments.runner import Jobs, prepare_options

        options, side_by_side = prepare_options(
            runs,
            folder=results,
            data_root=root,
            device=device,
            jobs=Jobs(jobs, jobs_per_device),
            resume=resume,
        )
        failures = reproduce_with_progress(runs, options, jobs=side_by_side)
    if failures:
        raise typer.Exit(1)


@app.command()
def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network's name; see 'equiscale list'.")],
    data: Annotated[str, typer.Option(help="A data set's name, or image-folder:PATH for your own images.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate (default: 0.01 for adam, 0.1 for sgd).")
    ] = None,
    lr_steps: Annotated[
        str | None, typer.Option(help="Epochs after which the rate falls, such as 5,8 (default: none).")
    ] = None,
    lr_gamma: Annotated[float, typer.Option(help="The factor by which it falls.")] = 0.1,
    optimizer: Annotated[
        Literal["adam", "sgd"], typer.Option(help="sgd has Nesterov momentum 0.9.")
    ] = "adam",
    weight_decay: Annotated[float, typer.Option(help="Of the optimiser.")] = 0.0,
    accumulate: Annotated[int, typer.Option(help="Parts of a batch, to save memory.")] = 1,
    augment: Annotated[
        Literal["none", "scale", "crop-flip-cutout"], typer.Option(help="Augmentation of training images.")
    ] = "none",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16: autocast.")
    ] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory layout of images.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the steps.")] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Replay the steps as a CUDA graph.")
    ] = False,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the weights.")] = None,
    select: Annotated[
        Literal["best-validation", "last"] | None,
        typer.Option(help="The epoch to test (default: the best, or without validation images the last)."),
    ] = None,
    test_every: Annotated[int | None, typer.Option(help="Test after each so many epochs too.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the network.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.")] = 0,
    realisation: Annotated[int, typer.Option(help="Number of the data set's realisation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: Root = None,
    results: Results = DEFAULT_RESULTS,
    resume: Annotated[bool, typer.Option(help="Go on from a checkpoint of an unfinished run.")] = True,
) -> None:
    """Train and test one network on one data set, with a record, a checkpoint an epoch, and weights."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with _errors_as_messages():
        from equiscale.data import dataset_info
        from equiscale.experiments.execute import evaluation_splits
        from equiscale.experiments.plan import ad_hoc_run, parse_numbers, parse_overrides
        from equiscale.experiments.progress import print_result, reproduce_with_progress
        from equiscale.experiments.runner import Jobs, prepare_options
        from equiscale.experiments.spec import Treatment, make_protocol

        info = dataset_info(data, root=root)
        validation, _ = evaluation_splits(info)
        protocol = make_protocol(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate={"adam": 0.01, "sgd": 0.1}[optimizer] if lr is None else lr,
            lr_steps=() if lr_steps is None else tuple(parse_numbers(lr_steps)),
            lr_gamma=lr_gamma,
            seed=seed,
            optimizer=optimizer,
            weight_decay=weight_decay,
            accumulate=accumulate,
            precision=precision,
            channels_last=channels_last,
            compile=compile,
            cuda_graphs=cuda_graphs,
            ema_decay=ema,
            select=select or ("last" if validation is None else "best-validation"),
            test_every=test_every,
        )
        treatment = Treatment(model, parse_overrides(settings or ()), augment, info.name)
        run = ad_hoc_run(treatment, protocol=protocol, realisation=realisation)
        options, jobs = prepare_options(
            [run], folder=results, data_root=root, device=device, jobs=Jobs(1), resume=resume
        )
        failures = reproduce_with_progress([run], options, jobs=jobs)
        if not failures:
            print_result(run, results)
    if failures:
        raise typer.Exit(1)


@app.command()
def table(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    format: Annotated[
        Literal["terminal", "markdown", "csv", "latex"], typer.Option(help="How to print it.")
    ] = "terminal",
    into: Annotated[Path | None, typer.Option(help="Replace the table in a Markdown document.")] = None,
    epochs: Annotated[
        str | None, typer.Option(help="Only runs of so many epochs, such as 1 or 30-60 (default: all).")
    ] = None,
) -> None:
    """Print the error table of a suite, with the published claims beside it."""
    from equiscale.experiments.plan import parse_numbers
    from equiscale.report.aggregate import aggregate
    from equiscale.report.tables import insert_into, render, terminal

    with _errors_as_messages():
        plan, records = _load(suite, results)
        if epochs is not None:
            wanted = set(parse_numbers(epochs))
            records = [record for record in records if record.settings.protocol.epochs in wanted]
        built = aggregate(plan, records)
        if into is not None:
            insert_into(into, plan.name, render(built, "markdown"))
            typer.echo(f"Wrote the table of {plan.name} into {into}")
        elif format == "terminal":
            from rich.console import Console

            Console().print(terminal(built))
        else:
            typer.echo(render(built, format))


@app.command()
def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODELS]...", help="Names or shell patterns (default: those of --compare, else five)."
        ),
    ] = None,
    peer: Annotated[
        Path | None, typer.Option(help="A checkout of the public SESN code, whose networks are measured too.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step (default: 128; of photographs on a CPU 4).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Timed steps of each kind (default: 9).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU (default: one a core).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N (default: auto).")] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"] | None,
        typer.Option(help="tf32: on a GPU; bfloat16: autocast (default: float32)."),
    ] = None,
    memory: Annotated[
        bool | None, typer.Option("--memory/--no-memory", help="Peak memory too, in processes of their own.")
    ] = None,
    keep_memory: Annotated[
        bool | None,
        typer.Option(
            "--keep-memory/--free-memory",
            help="Whether freed memory stays with the process, as in the runs of a suite (default: not).",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The record's file; both plots are drawn beside it.")
    ] = DEFAULT_RESULTS / "benchmark.json",
    compare: Annotated[
        Path | None, typer.Option(help="An older record: show what changed, and fail if anything is worse.")
    ] = None,
    read: Annotated[Path | None, typer.Option(help="Measure nothing, and show this record.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Replace the tables in a Markdown document; draw the plots anew.")
    ] = None,
) -> None:
    """Time a training step and an evaluation, against the published formulation and a plain CNN."""
    from rich.console import Console

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C

    console = Console(highlight=False)
    with _errors_as_messages("interrupted; the networks that were done are in the record"):
        from equiscale.experiments.benchmark.compare import compare as compare_records
        from equiscale.experiments.benchmark.record import read_benchmark
        from equiscale.report.benchmark import (
            change_notes,
            insert_tables,
            regression_summary,
            terminal,
            terminal_changes,
        )

        if into is not None:  # what is missing for it is said before minutes of measuring
            from equiscale.report.benchmark_plots import write_plots

        older = None if compare is None else read_benchmark(compare)
        if read is None:
            if compare is not None and compare.resolve() == output.resolve():
                raise SettingError(
                    f"expected an output beside the older record, got {compare} for both, which would be "
                    "overwritten; give another file with --output"
                )
            wanted = {
                "models": models or None,
                "batch_size": batch_size,
                "rounds": rounds,
                "threads": threads,
                "device": device,
                "precision": precision,
                "memory": memory,
                "keep_memory": keep_memory,
            }
            record = _measure(wanted, older, peer=peer, output=output)
        else:
            record = read_benchmark(read)
        changes = [] if older is None else compare_records(older, record)
        if into is not None:
            insert_tables(into, (read or output).stem, record)
            write_plots(record, read or output)
            typer.echo(f"Wrote the tables into {into}")
        else:
            notes = [] if older is None else change_notes(older, record)
            console.print(terminal_changes(changes, notes) if changes else terminal(record))
    if changes:
        typer.echo(regression_summary(changes))
        if any(change.is_regression for change in changes):
            raise typer.Exit(1)


@app.command("export-yaml")
def export_yaml(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("results.yml"),
) -> None:
    """Write the one-line-a-run results.yml of the original reproduction."""
    from equiscale._files import atomic_path
    from equiscale.report.yaml_export import results_yaml

    with _errors_as_messages():
        _, records = _load(suite, results)
        with atomic_path(output) as temporary:
            temporary.write_text(results_yaml(records))
        typer.echo(f"Wrote {len(records)} runs to {output}")


@app.command()
def report(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    output: Annotated[Path | None, typer.Option(help="Default: report.html beside the records.")] = None,
) -> None:
    """Write one self-contained HTML page about a suite's results."""
    with _errors_as_messages():
        from equiscale.report.html import write_report

        plan, _ = _load(suite, results)
        target = write_report(plan, results, output or results / plan.name / "report.html")
        typer.echo(f"Wrote {target}")


def _show_plan(plan: "Suite", runs: "list[RunSettings]") -> None:
    """The runs by name, and how many there are."""
    for run in runs:
        typer.echo(run.run_id)
    extra = sum(run.model in plan.extra_models for run in runs)
    more = f", and {extra} of methods that the published table does not have" if extra else ""
    typer.echo(f"\n{len(runs) - extra} runs{more}")


def _place(runs: "list[RunSettings]", device: str, jobs: int, jobs_per_device: int) -> tuple[str, int]:
    """The device to which the runs would go, and how many of them at a time."""
    from equiscale.experiments.runner import Jobs, check_device, choose_jobs

    chosen = check_device(device)
    return chosen, choose_jobs(Jobs(jobs, jobs_per_device), device=chosen, runs=len(runs))


def _show_estimates(runs: "list[RunSettings]", *, root: Path | None, device: str, jobs: int) -> None:
    """What each network costs."""
    from equiscale._machine import keep_memory
    from equiscale.experiments.estimate import estimate_runs, runs_abreast
    from equiscale.experiments.progress import print_estimates

    keep_memory()  # as the runs
    estimates = estimate_runs(
        runs,
        device=device,
        data_root=root,
        on_model=lambda name: typer.echo(f"timing {name}", err=True),
    )
    print_estimates(estimates, jobs=runs_abreast(jobs, device))


def _measure(
    wanted: Mapping[str, object], older: "BenchmarkRecord | None", *, peer: Path | None, output: Path
) -> "BenchmarkRecord":
    """Measure, and draw the plots; what was not asked for is as in the older record, if there is one."""
    from equiscale.experiments.benchmark.compare import check_comparable
    from equiscale.experiments.benchmark.peer import PublicCode
    from equiscale.experiments.benchmark.progress import bench_with_progress
    from equiscale.experiments.benchmark.session import prepare_settings

    settings = prepare_settings(wanted, None if older is None else older.settings)
    if older is not None:
        check_comparable(older.settings, settings)
    public = None if peer is None else PublicCode(peer)
    record = bench_with_progress(settings, output, peer=public)
    for path in (output, *_plots_beside(output, record)):
        typer.echo(f"Wrote {path}", err=True)
    return record


def _plots_beside(output: Path, record: "BenchmarkRecord") -> Sequence[Path]:
    """The plots that were drawn; none, and a line why, without the packages for them."""
    try:
        from equiscale.report.benchmark_plots import write_plots
    except MissingExtraError as error:
        typer.echo(f"no plots were drawn: {error}", err=True)
        return ()
    return write_plots(record, output)


def main() -> None:
    """The entry point of ``python -m equiscale``."""
    app()


_INTERRUPTED = "interrupted; the same command goes on from the last checkpoints"


@contextmanager
def _errors_as_messages(interrupted: str = _INTERRUPTED) -> Iterator[None]:
    """Errors that equiscale raises on purpose end the program with one line instead of a traceback."""
    try:
        yield
    except EquiscaleError as error:
        if os.environ.get("EQUISCALE_TRACEBACK"):
            raise
        typer.echo(f"equiscale: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"equiscale: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(f"\nequiscale: {interrupted}", err=True)
        sys.exit(130)


def _augmentations(text: str | None) -> "list[Augmentation] | None":
    from equiscale.experiments.spec import AUGMENTATIONS

    if text is None:
        return None
    chosen = [augment for augment in AUGMENTATIONS if augment in text.split(",")]
    if len(chosen) != len(text.split(",")):
        raise SettingError(f"expected augmentations of {', '.join(AUGMENTATIONS)}, got {text!r}")
    return chosen


def _load(suite: str, results: Path) -> "tuple[Suite, list[RunRecord]]":
    from equiscale.experiments.records import read_records
    from equiscale.experiments.spec import load_suite

    plan = load_suite(suite)
    records = list(read_records(results, plan.name))
    if not records:
        raise SettingError(
            f"expected run records in {results / plan.name}, got none; make some with "
            f"'equiscale reproduce {suite} --results {results}'"
        )
    return plan, records
