"""``equiscale suggest`` and ``equiscale estimate``."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from equiscale.cli.app import Root, app, errors_as_messages
from equiscale.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from equiscale.choose import Suggestion

_INTERRUPTED = "interrupted; nothing was written"
_DRAWN_FROM = 256  # images for the range of sizes: more do not change its ends


@app.command()
def suggest(
    data: Annotated[str, typer.Option(help="A data set's name, or image-folder:PATH for your own images.")],
    objects: Annotated[
        Path | None, typer.Option(help="Folder of masks (.png) or of COCO's boxes (.json) of the objects.")
    ] = None,
    factor_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Scale factors of the smallest and the largest objects (default: estimated)."),
    ] = None,
    budget: Annotated[float, typer.Option(help="Largest cost, in plain convolutions.")] = 4.0,
    cost: Annotated[
        Literal["operations", "time"], typer.Option(help="Count operations, or measure the time.")
    ] = "operations",
    kernel_sizes: Annotated[
        str | None, typer.Option(help="Odd numbers, such as 5,7,9 (default: 5 to 17).")
    ] = None,
    bases: Annotated[
        str | None, typer.Option(help="Names of 'equiscale list basis', such as disco-a,bspline.")
    ] = None,
    effective_size: Annotated[int, typer.Option(help="Side of the plain filter with as many weights.")] = 3,
    images: Annotated[int, typer.Option(help="Images that errors are measured on.")] = 16,
    seed: Annotated[int, typer.Option(help="Of weights, crops and the choice of images.")] = 0,
    root: Root = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write all candidates here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw error against cost: .png, .svg or .pdf.")] = None,
) -> None:
    """Suggest scales, kernel and basis for your data: the least equivariance error within a budget."""
    with errors_as_messages(_INTERRUPTED):
        if plot is not None:  # what is missing for it is said before the search
            from equiscale.report.trade_off import FORMATS

            if plot.suffix.lower() not in FORMATS:
                raise SettingError(f"expected a plot of {', '.join(FORMATS)}, got {plot}")
        if objects is not None and factor_range is not None:
            raise SettingError("expected --objects or --factor-range, got both; leave one out")
        from equiscale.choose import SearchSpace, read_object_sizes
        from equiscale.choose import factor_range as range_of
        from equiscale.choose import suggest as search
        from equiscale.choose.candidates import DEFAULT_BASES, DEFAULT_KERNELS
        from equiscale.experiments.plan import parse_numbers

        space = SearchSpace(
            kernel_sizes=DEFAULT_KERNELS if kernel_sizes is None else tuple(parse_numbers(kernel_sizes)),
            bases=DEFAULT_BASES if bases is None else tuple(bases.split(",")),
            effective_size=effective_size,
            cost=cost,
            images=images,
        )
        if objects is not None:
            factor_range = range_of(read_object_sizes(objects))
        with _progress() as tell:
            tell(f"loading {data}")
            pixels = _images(data, max(images, _DRAWN_FROM), root=root, seed=seed)
            found = search(
                pixels, factor_range=factor_range, budget=budget, space=space, seed=seed, progress=tell
            )
        typer.echo(str(found))
        _write(found, output, plot)
    if found.chosen is None:
        raise typer.Exit(1)


@app.command()
def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network's name; see 'equiscale list'.")],
    size: Annotated[int, typer.Option(help="Side of the square images in pixels.")],
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    in_channels: Annotated[
        int | None, typer.Option(help="Channels of the images (default: as published).")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Outputs.")] = 10,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the network.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16: autocast.")
    ] = "float32",
    optimizer: Annotated[
        Literal["adam", "sgd"], typer.Option(help="sgd has Nesterov momentum 0.9.")
    ] = "adam",
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Estimate evaluation alone, no training step.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory too, some seconds more.")
    ] = True,
) -> None:
    """Estimate time, memory and arithmetic of a network's steps before it is trained."""
    with errors_as_messages(_INTERRUPTED):
        from equiscale._machine import keep_memory
        from equiscale.choose import EstimateOptions
        from equiscale.choose import estimate as estimate_costs
        from equiscale.experiments.plan import parse_overrides
        from equiscale.models import create_model, model_entry

        options = EstimateOptions(
            device=device, precision=precision, optimizer=optimizer, training=not evaluation, memory=memory
        )
        channels = model_entry(model).settings.in_channels if in_channels is None else in_channels
        overrides: dict[str, Any] = dict(parse_overrides(settings or ()))
        network = create_model(model, num_classes=num_classes, in_channels=channels, **overrides)
        with _progress() as tell:
            tell(f"measuring small steps of {model}")
            keep_memory()  # as the runs: a training does not wait for new pages either
            found = estimate_costs(network, (batch, channels, size, size), options=options)
        typer.echo(str(found))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that changes, on the terminal only."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as progress:
        line = progress.add_task("starting", total=None)
        yield lambda text: progress.update(line, description=escape(text))


def _images(data: str, count: int, *, root: Path | None, seed: int) -> "Tensor":
    """Some training images of the first realisation, drawn by the seed."""
    import torch

    from equiscale.data import load

    images = load(data, split="train", root=root).images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[order.sort().values]


def _write(found: "Suggestion", output: Path | None, plot: Path | None) -> None:
    if output is not None:
        from equiscale._files import atomic_path

        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"Wrote {output}", err=True)
    if plot is not None and found.measured:
        from equiscale.report.trade_off import Option, draw_trade_off

        options = [Option(**row) for row in found.trade_off()]
        typer.echo(f"Wrote {draw_trade_off(options, plot, budget=found.budget)}", err=True)
