"""Does a converted network keep its accuracy when its images are rescaled?

Trains a ResNet-18 on Imagenette at 96×96, converts it with `equiscale.convert`, fine-tunes the original and
the converted networks with the same schedule, and tests all of them on images that are rescaled as a whole,
canvas and all. Trainings go on from their checkpoints. Writes one JSON record and a plot; with --into
a table.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import recording
import torch
from resnet import resnet18
from torch import Tensor, nn
from torch.nn.functional import interpolate

from equiscale import ScaleGrid, convert
from equiscale._files import atomic_path
from equiscale.data import Dataset, TensorBatches, load, normalize
from equiscale.data.augment import crop_flip_cutout, recipe_for
from equiscale.train import Checkpoint, Numerics, OptimizerSettings, Splits, TrainConfig, fit

DEFAULT_OUTPUT = Path("results/benchmarks/convert.json")
GRID = ScaleGrid([1.0, 2**0.5, 2.0])
FACTORS = (0.5, 0.63, 0.79, 1.0, 1.26, 1.59, 2.0)
NUMERICS = Numerics(precision="bfloat16")
NAMES = {
    "before": "ResNet-18",
    "original": "ResNet-18, trained on",
    "converted": "converted, not trained on",
    "end": "converted, trained on",
}


@dataclass(frozen=True)
class Schedule:
    """Epochs at falling learning rates."""

    epochs: int
    learning_rate: float
    steps: tuple[int, ...]

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            lr_steps=self.steps,
            lr_gamma=0.2,
            optimizer=OptimizerSettings("sgd", weight_decay=5e-4),
            numerics=NUMERICS,
            select="last",
        )


def train_on(model: nn.Module, data: Dataset, schedule: Schedule, checkpoint: Path) -> nn.Module:
    """Train, or go on; a finished training is only read."""
    side = data.images.shape[-1]
    pad, cutout = recipe_for(side)

    def augmented(images: Tensor, generator: torch.Generator | None) -> Tensor:
        options = {"pad": pad, "crop": side, "cutout": cutout, "mean": data.mean, "std": data.std}
        return crop_flip_cutout(images, **options, generator=generator)

    batches = TensorBatches(
        data.images, data.labels, batch_size=64, transform=augmented, shuffle=True, device=torch.device("cpu")
    )
    begun = time.monotonic()
    state = fit(
        model,
        Splits(train=batches),
        config=schedule.config,
        checkpoint=Checkpoint(checkpoint, belongs_to=data.checksum),
        on_epoch=lambda result: print(
            f"{checkpoint.stem}: {result}, {time.monotonic() - begun:.0f} s", flush=True
        ),
    )
    model.load_state_dict(state.best)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, factor: float) -> float:
    """Percent of correct answers for images rescaled by a factor, canvas and all."""
    side = round(data.images.shape[-1] * factor)
    model.eval()
    correct = 0
    for start in range(0, len(data), 50):
        images = data.images[start : start + 50].float()
        if side != images.shape[-1]:
            images = interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 255)
        logits = NUMERICS.logits(model, normalize(images, data.mean, data.std))
        correct += int((logits.argmax(1) == data.labels[start : start + 50]).sum())
    return 100 * correct / len(data)


def evenly(data: Dataset, count: int) -> Dataset:
    """So many images, evenly chosen."""
    chosen = torch.linspace(0, len(data) - 1, min(count, len(data)), dtype=torch.float64).round().long()
    return replace(data, images=data.images[chosen], labels=data.labels[chosen], factors=data.factors[chosen])


def measure(arguments: argparse.Namespace) -> dict:
    train = load("imagenette96", split="train", root=arguments.root)
    test = evenly(load("imagenette96", split="test", root=arguments.root), arguments.images)
    torch.manual_seed(0)
    network = resnet18(width=arguments.width)
    work = arguments.work
    first = Schedule(arguments.epochs, 0.05, (arguments.epochs * 2 // 3, arguments.epochs * 5 // 6))
    more = Schedule(arguments.more, 0.005, (arguments.more,))
    train_on(network, train, first, work / "before.safetensors")
    converted, report = convert(network, GRID, example=torch.zeros(2, 3, 96, 96))
    results = [tested("before", network, test), tested("converted", converted, test)]
    results.append(tested("original", train_on(network, train, more, work / "original.safetensors"), test))
    results.append(tested("end", train_on(converted, train, more, work / "end.safetensors"), test))
    return {
        "results": results,
        "parameters": report.parameters,
        "multiply_adds": report.multiply_adds,
        "not_equivariant": [fate.name for fate in report.not_equivariant],
        "settings": {
            "width": arguments.width,
            "epochs": arguments.epochs,
            "more": arguments.more,
            "grid": list(GRID),
            "images": len(test),
        },
    }


def tested(name: str, model: nn.Module, test: Dataset) -> dict:
    found = {str(factor): accuracy(model, test, factor) for factor in FACTORS}
    print(name, found, flush=True)
    return {"name": name, "accuracy": found}


def markdown(record: dict) -> str:
    settings = record["settings"]
    lines = [
        "| accuracy in percent at factor | " + " | ".join(f"{factor:g}" for factor in FACTORS) + " |",
        "|---|" + "--:|" * len(FACTORS),
    ]
    for result in record["results"]:
        values = " | ".join(f"{result['accuracy'][str(factor)]:.1f}" for factor in FACTORS)
        lines.append(f"| {NAMES[result['name']]} | {values} |")
    before, after = record["multiply_adds"]
    lines += [
        "",
        f"- ResNet-18 of width {settings['width']}, {settings['epochs']} epochs on Imagenette at 96×96; "
        f"trained on: {settings['more']} more at a tenth of the learning rate; {settings['images']} test "
        "images, rescaled with their canvas; one training each",
        f"- scales {', '.join(f'{scale:.3g}' for scale in settings['grid'])}, projected in front of the "
        f"head; {record['parameters'][0]:,} parameters before and {record['parameters'][1]:,} after, "
        f"{after / before:.1f}× the multiply-adds",
    ]
    return "\n".join(lines)


def draw(record: dict, target: Path) -> None:
    from equiscale.report.drawing import SERIES
    from equiscale.report.drawing import draw as drawn

    def curves(figure):
        axes = figure.subplots()
        for color, result in zip(SERIES, record["results"], strict=False):
            values = [result["accuracy"][str(factor)] for factor in FACTORS]
            axes.plot(FACTORS, values, "o-", color=color, label=NAMES[result["name"]])
        axes.set_xscale("log", base=2)
        axes.set_xticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
        axes.minorticks_off()
        axes.set_xlabel("factor by which the test images are rescaled")
        axes.set_ylabel("accuracy in percent")
        axes.legend()

    with atomic_path(target) as temporary:
        temporary.write_text(drawn("convert", (7.5, 4.6), curves))


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument("--root", type=Path, help="folder of prepared data")
    parser.add_argument("--work", type=Path, default=Path("runs/convert"), help="folder of the checkpoints")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--more", type=int, default=2, help="epochs of training on")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    arguments = parser.parse_args()
    if not arguments.read:
        record = recording.measured("convert", arguments.output, lambda: measure(arguments))
        draw(record, arguments.output.with_suffix(".svg"))
    recording.show("convert", arguments, markdown)


if __name__ == "__main__":
    main()
