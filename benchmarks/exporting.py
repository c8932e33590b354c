"""What becomes of the named networks as ONNX files? Their error, size and speed beside eager PyTorch.

Every network is exported by `equiscale.export` with random weights and running statistics and read back in
onnxruntime; PyTorch in evaluation and onnxruntime take turns, on as many threads. Writes one JSON record
after every network, and goes on where it stopped; with --into a table.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxruntime
import recording
import torch
from torch import Tensor, nn

from equiscale import create_model, list_models
from equiscale._files import atomic_path
from equiscale.deploy import export
from equiscale.deploy.folding import example_input
from equiscale.experiments import provenance

DEFAULT_OUTPUT = Path("results/benchmarks/exporting.json")
PATTERNS = ("mnist_*", "scale_*", "wrn_10_1", "wrn_10_1_*")
BATCHES = (1, 32)
ROUNDS = 7
_ENOUGH = 20.0  # seconds for one batch size of one network


def wanted() -> list[str]:
    return [name for pattern in PATTERNS for name in list_models(pattern)]


def network(name: str) -> nn.Module:
    """With random weights, and running statistics of which none is zero or one."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_(std=0.1)
    return model


def session(path: Path, threads: int) -> Callable[[Tensor], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: made.run(None, {"input": x.numpy()})


def medians(runs: dict[str, Callable[[Tensor], object]], x: Tensor) -> dict[str, float]:
    """Seconds of a call, the runs by turns; fewer rounds for slow networks."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    ends = time.perf_counter() + _ENOUGH
    for round_ in range(ROUNDS + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(x)
            if round_:  # the first one warms up
                times[name].append(time.perf_counter() - begun)
        if round_ >= 3 and time.perf_counter() > ends:
            break
    return {name: statistics.median(taken) for name, taken in times.items()}


@torch.no_grad()
def measure(name: str, folder: Path) -> dict[str, object]:
    model, path = network(name), folder / f"{name}.onnx"
    begun = time.perf_counter()
    made = export(model, path)
    seconds = time.perf_counter() - begun
    runs = {"pytorch": model, "onnx": session(path, torch.get_num_threads())}
    return {
        "network": name,
        "error": made.error,
        "free": made.free,
        "opset": onnx.load(path).opset_import[0].version,
        "bytes": path.stat().st_size,
        "state_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "export_seconds": seconds,
        "input": list(example_input(model).shape[1:]),
        "seconds": {str(batch): medians(runs, example_input(model, batch)) for batch in BATCHES},
    }


def markdown(record: dict) -> str:
    lines = [
        "| network | error | any | MB | PyTorch, 1 image | ONNX | | PyTorch, 32 images | ONNX | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(result) for result in sorted(record["results"], key=lambda result: result["network"])]
    machine, threads = record["machine"], record["threads"]
    plural = "" if threads == 1 else "s"
    lines += [
        "",
        f"Milliseconds a batch, {machine['processor']}, {threads} thread{plural}, {_versions(record)}.",
    ]
    return "\n".join(lines)


def _versions(record: dict) -> str:
    return f"PyTorch {record['versions']['torch']}, onnxruntime {record['onnxruntime']}"


def _line(result: dict) -> str:
    cells = [f"`{result['network']}`", f"{result['error']:.0e}", ", ".join(result["free"])]
    cells.append(f"{result['bytes'] / 1e6:.1f}")
    for batch in BATCHES:
        taken = result["seconds"][str(batch)]
        ratio = taken["pytorch"] / taken["onnx"]
        cells += [f"{1000 * taken['pytorch']:.1f}", f"{1000 * taken['onnx']:.1f}", f"{ratio:.1f}×"]
    return f"| {' | '.join(cells)} |"


def run(output: Path, names: Sequence[str], *, fresh: bool) -> None:
    done = json.loads(output.read_text())["results"] if output.exists() else []
    done = [result for result in done if not (fresh and result["network"] in names)]
    known = {result["network"] for result in done}
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in names if name not in known):
            done.append(measure(name, Path(folder)))
            print(_line(done[-1]), flush=True)
            write(output, done)


def write(output: Path, results: list[dict[str, object]]) -> None:
    commit, clean = provenance.commit()
    record = {
        "benchmark": "exporting",
        "results": results,
        "machine": provenance.machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "onnxruntime": onnxruntime.__version__,
        "commit": commit,
        "clean": clean,
        "finished": provenance.now(),
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = recording.parser(__doc__, DEFAULT_OUTPUT)
    parser.add_argument(
        "names", nargs="*", help="networks (default: the published ones of MNIST, small WRNs)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure those in the record again")
    arguments = parser.parse_args()
    if not arguments.read:
        torch.set_num_threads(arguments.threads)
        run(arguments.output, arguments.names or wanted(), fresh=arguments.fresh)
        print(f"Wrote {arguments.output}")
    recording.show("exporting", arguments, markdown)


if __name__ == "__main__":
    main()
