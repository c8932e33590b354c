"""``equiscale data``."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from equiscale.cli.app import Root, app, errors_as_messages
from equiscale.errors import SettingError

data_app = typer.Typer(help="Prepare data sets, and look at them.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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

    with errors_as_messages():
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
    with errors_as_messages():
        from equiscale.data.preview import load_preview
        from equiscale.report.preview import draw_preview

        shown = load_preview(dataset, images=images, root=root, seed=seed)
        name = Path(dataset.partition("?")[0]).name.replace(":", "-")
        typer.echo(f"Wrote {draw_preview(shown, output or Path(f'{name}-preview.png'))}")
