"""A published network, converted with its weights: the first stage of the MTCNN face detector.

P-Net (Zhang et al. 2016) answers to faces of 12 pixels, so that detectors run it on an image pyramid.
Converted, it holds its filters at several scales. The photograph is rescaled so that its one face has a given
height; measured is the face probability in its middle. Needs two files that are not ours:

    pip download --no-deps facenet-pytorch scikit-image
    unzip -j facenet_pytorch-*.whl facenet_pytorch/data/pnet.pt
    unzip -j scikit_image-*.whl skimage/data/astronaut.png

Writes one JSON record; with --into a table.
"""

import hashlib
from pathlib import Path

import numpy as np
import recording
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from equiscale import ScaleGrid, convert

DEFAULT_OUTPUT = Path("results/benchmarks/convert_published.json")
GRIDS = {
    "P-Net": None,
    "converted, 1 to 2": ScaleGrid.geometric(1.0, 2**0.5, 3),
    "converted, 1 to 4": ScaleGrid.geometric(1.0, 2**0.5, 5),
}
HEIGHTS = (10, 12, 17, 24, 28, 34, 40, 48, 68, 96)
FACE = (55, 160, 175, 275)  # top, bottom, left, right in the photograph of 512×512


class PNet(nn.Module):
    """The published layers under their published names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.softmax4_1 = nn.Conv2d(32, 2, 1), nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.softmax4_1(self.conv4_1(x))


def load(path: Path) -> PNet:
    state = torch.load(path, weights_only=True)
    network = PNet()
    network.load_state_dict(
        {name: tensor for name, tensor in state.items() if not name.startswith("conv4_2")}
    )
    return network.eval()


@torch.no_grad()
def probability(network: nn.Module, photograph: Tensor, height: int) -> float:
    """The face probability in the middle of the face, or one answer beside it, for a face of this height."""
    top, bottom, left, right = FACE
    factor = height / (bottom - top)
    side = round(photograph.shape[-1] * factor)
    found = network(interpolate(photograph, (side, side), mode="bicubic", antialias=True))[0, 1]
    # An answer stands for the pixels 2 i to 2 i + 11.
    row, column = (
        round((first + last) / 2 * factor / 2 - 2.75) for first, last in ((top, bottom), (left, right))
    )
    return float(found[row - 1 : row + 2, column - 1 : column + 2].max())


def measure(weights: Path, picture: Path) -> dict:
    network = load(weights)
    photograph = torch.tensor(np.asarray(Image.open(picture).convert("RGB"))).permute(2, 0, 1)[None]
    photograph = (photograph.float() - 127.5) / 128
    same, _ = convert(network, ScaleGrid([1.0]), example=photograph[..., :64, :64])
    with torch.no_grad():
        difference = float((same(photograph) - network(photograph)).abs().max())
    results = []
    for name, grid in GRIDS.items():
        converted = network
        if grid is not None:
            converted = convert(network, grid, example=photograph[..., :64, :64]).model
        found = [probability(converted, photograph, height) for height in HEIGHTS]
        results.append({"name": name, "probability": found})
    return {
        "results": results,
        "heights": HEIGHTS,
        "difference_on_one_scale": difference,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "picture_sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
    }


def markdown(record: dict) -> str:
    heights = record["heights"]
    lines = [
        "| height of the face in pixels | " + " | ".join(map(str, heights)) + " |",
        "|---|" + "--:|" * len(heights),
    ]
    for result in record["results"]:
        values = " | ".join(f"{value:.2f}" for value in result["probability"])
        lines.append(f"| {result['name']} | {values} |")
    lines += ["", f"- on one scale the converted network differs by {record['difference_on_one_scale']:.0e}"]
    return "\n".join(lines)


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument("--weights", type=Path, help="pnet.pt")
    parser.add_argument("--picture", type=Path, help="astronaut.png")
    arguments = parser.parse_args()
    if not arguments.read:
        if arguments.weights is None or arguments.picture is None:
            parser.error("give --weights and --picture, or --read")
        recording.measured(
            "convert_published", arguments.output, lambda: measure(arguments.weights, arguments.picture)
        )
    recording.show("convert_published", arguments, markdown)


if __name__ == "__main__":
    main()
