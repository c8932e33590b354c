"""``equiscale export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equiscale.cli.app import app, errors_as_messages
from equiscale.cli.networks import build, is_file
from equiscale.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from equiscale.deploy import Export

_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
_READERS = {
    "onnx": "onnxruntime.InferenceSession({path!r})",
    "torch-export": "torch.export.load({path!r}).module()",
    "aoti": "torch._inductor.aoti_load_package({path!r})",
}


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A network's name, or the path of a .safetensors file.")
    ],
    format: Annotated[Literal["onnx", "torch-export", "aoti"], typer.Option(help="What to write.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="The file (default: the network's name, in this folder).")
    ] = None,
    batch_norm: Annotated[
        bool, typer.Option("--batch-norm/--no-batch-norm", help="Fold batch norms into convolutions.")
    ] = True,
    size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels (default: as trained on).")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="With the trained weights of the network's name.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the network.")
    ] = None,
) -> None:
    """Write a network as a file that needs no equiscale, and check that it computes the same."""
    with errors_as_messages("interrupted; nothing was written"):
        if size is not None and size < 1:
            raise SettingError(f"expected a size of at least 1 pixel, got {size}")
        network = build(model, settings or [], pretrained=pretrained).eval()
        from equiscale.deploy import export as write

        target = output or Path((Path(model).stem if is_file(model) else model) + _SUFFIXES[format])
        example = None if size is None else _images(network, size)
        made = write(network, target, format=format, example=example, batch_norm=batch_norm)
        typer.echo(_described(made))
        if not is_file(model) and not pretrained:
            typer.echo("The weights are random: give a .safetensors file, or --pretrained.")


def _images(network: "nn.Module", size: int) -> "Tensor":
    import torch

    from equiscale.models.registry import registered_of

    registered = registered_of(network)
    channels = 1 if registered is None else registered.settings.in_channels
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def _described(made: "Export") -> str:
    given = " × ".join("?" if axis in made.free else str(side) for axis, side in _input(made))
    lines = {
        "Wrote": f"{made.path} ({made.path.stat().st_size / 1e6:.1f} MB)",
        "input": f"{given}; any {', '.join(made.free)}",
        "error": f"{made.error:.1e} of the largest output, in {len(made.checked)} shapes",
        "speed": f"{made.speed:.2g}× PyTorch's, for batches of {made.checked[1][0]}",
        "read": _READERS[made.format].format(path=str(made.path)),
    }
    return "\n".join(f"{name:<6} {text}" for name, text in lines.items())


def _input(made: "Export") -> list[tuple[str, int]]:
    """The example's axes with their names."""
    shape = made.checked[1]
    names = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}.get(len(shape), ())
    return list(zip(("batch", "channels", *names), shape, strict=False))
