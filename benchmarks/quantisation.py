"""Does a trained network say the same in 8 bits? Folded, exported, quantised by onnxruntime, and tested.

Takes trained networks of `create_model(…, pretrained=True)`, calibrates on training images, and compares the
largest output on test images of the same realisation of MNIST-scale. Writes one JSON record, and with --into
a table.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import recording
import torch
from onnxruntime.quantization import QuantType, quantize_static
from torch import Tensor

from equiscale import create_model
from equiscale.data import load
from equiscale.deploy import export
from equiscale.experiments import provenance
from equiscale.models.pretrained import pretrained_weights

DEFAULT_OUTPUT = Path("results/benchmarks/quantisation.json")
NETWORKS = ("mnist_cnn_28", "mnist_ses_vector_28")
CALIBRATION, TESTED, BATCH = 256, 2000, 50


class Readings:
    """Calibration data as onnxruntime asks for it."""

    def __init__(self, images: Tensor) -> None:
        self.left: Iterator[Tensor] = iter(images.split(BATCH))

    def get_next(self) -> dict[str, object] | None:
        x = next(self.left, None)
        return None if x is None else {"input": x.numpy()}


def outputs(path: Path, images: Tensor) -> tuple[Tensor, float]:
    """The outputs of a file, and the seconds they took."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    begun = time.perf_counter()
    parts = [torch.from_numpy(session.run(None, {"input": x.numpy()})[0]) for x in images.split(BATCH)]
    return torch.cat(parts), time.perf_counter() - begun


def images_of(name: str, split: str, count: int, root: Path) -> tuple[Tensor, Tensor]:
    weights = pretrained_weights(name)
    data = load(weights.dataset, split=split, realisation=weights.realisation, root=root)
    x = data.images[:count].float() / 255
    return (x - weights.mean) / weights.std, data.labels[:count]


def measure(name: str, root: Path) -> dict[str, object]:
    model = create_model(name, pretrained=True)
    calibration, _ = images_of(name, "train", CALIBRATION, root)
    images, labels = images_of(name, "test", TESTED, root)
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "whole.onnx"), Path(folder, "int8.onnx")
        export(model, whole)
        quantize_static(whole, small, Readings(calibration), per_channel=True, weight_type=QuantType.QInt8)
        (exact, seconds), (narrow, seconds_narrow) = outputs(whole, images), outputs(small, images)
        sizes = whole.stat().st_size, small.stat().st_size
    errors = [float((y.argmax(1) != labels).double().mean()) * 100 for y in (exact, narrow)]
    return {
        "network": name,
        "agreement": float((exact.argmax(1) == narrow.argmax(1)).double().mean()) * 100,
        "errors": errors,
        "bytes": sizes,
        "seconds": [seconds, seconds_narrow],
        "images": len(images),
    }


def markdown(record: dict) -> str:
    lines = [
        "| network | same answer | error in float32 | in int8 | MB in float32 | in int8 | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        (error, error8), (size, size8), (taken, taken8) = (result[k] for k in ("errors", "bytes", "seconds"))
        lines.append(
            f"| `{result['network']}` | {result['agreement']:.2f} % | {error:.2f} % | {error8:.2f} % "
            f"| {size / 1e6:.1f} | {size8 / 1e6:.1f} | {taken / taken8:.1f} |"
        )
    count = record["results"][0]["images"]
    lines += ["", f"{count} test images of MNIST-scale; {record['machine']['processor']}, one thread each."]
    return "\n".join(lines)


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument("--root", type=Path, help="folder of prepared data")
    arguments = parser.parse_args()
    if not arguments.read:
        recording.measured(
            "quantisation",
            arguments.output,
            lambda: {
                "results": [measure(name, arguments.root) for name in NETWORKS],
                "versions": provenance.versions() | {"onnxruntime": onnxruntime.__version__},
            },
        )
    recording.show("quantisation", arguments, markdown)


if __name__ == "__main__":
    main()
