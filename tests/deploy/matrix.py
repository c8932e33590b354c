"""What layers are put through: one function a column of the matrix in docs/deployment.md.

Each raises where a layer does not do what the column says. ``python -m tests.deploy.matrix COLUMN FILE`` runs
one column for all layers in a process of its own, without the run-time shape checks of the suite.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equiscale.deploy import export
from equiscale.deploy.exporting import _quiet
from equiscale.deploy.folding import _RULES
from tests.nn.test_contracts import ROWS, Row, some_input, stirred

NO_WEIGHTS = "no weights"
RULED = tuple(kind for kinds, _ in _RULES for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
# Of two nearly equal angles the other one may win, and vectors turn.
LOOSE = {"VectorFieldLift2d": 0.1, "VectorFieldConv2d": 0.1}
INDUCTOR = ("LiftConv2d", "ScaleConv2d")
PROCESSES = 2


def layer_and_input(name: str) -> tuple[nn.Module, Tensor]:
    """In evaluation, with weights of which none is zero."""
    row: Row = ROWS[name]
    torch.manual_seed(0)
    return stirred(row.build()).eval(), some_input(row)


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the norm of what is expected."""
    assert got.shape == expected.shape, f"{tuple(got.shape)}, not {tuple(expected.shape)}"
    got, expected = got.detach().double(), expected.detach().double()
    error = float((got - expected).norm() / expected.norm())
    assert error <= tolerance, f"differs by {error:.1e}"


# --- columns that run here ---


def on_the_cpu(name: str) -> None:
    """Forward and backward."""
    layer, x = layer_and_input(name)
    y = layer(x.requires_grad_())
    y.square().mean().backward()
    assert bool(y.isfinite().all())
    assert x.grad is not None
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())  # type: ignore[union-attr]


@cache
def program(name: str) -> torch.export.ExportedProgram:
    layer, x = layer_and_input(name)
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=False)


def torch_export(name: str) -> None:
    """With a batch of any size."""
    layer, x = layer_and_input(name)
    larger = torch.cat([x, 2 * x, 3 - x])
    assert_close(program(name).module()(larger), layer(larger), 1e-5)


@cache
def onnx_file(name: str) -> bytes:
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        made = torch.onnx.export(program(name), dynamo=True, input_names=["input"], verbose=False)
        assert made is not None
        made.save(f"{folder}/layer.onnx")
        return Path(folder, "layer.onnx").read_bytes()


def run_onnx(model: bytes, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def onnx(name: str) -> None:
    """In onnxruntime, with a batch of any size."""
    layer, x = layer_and_input(name)
    larger = torch.cat([x, 2 * x, 3 - x])
    assert_close(run_onnx(onnx_file(name), larger), layer(larger), 1e-5)


class _Readings:
    """Calibration data as onnxruntime asks for it."""

    def __init__(self, x: Tensor) -> None:
        self.left: Iterator[Tensor] = iter([x, -x, x.flip(0)])

    def get_next(self) -> dict[str, Any] | None:
        x = next(self.left, None)
        return None if x is None else {"input": x.numpy()}


def int8(name: str) -> None:
    """Filters and features quantised by onnxruntime with calibration data."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    layer, x = layer_and_input(name)
    assert list(layer.parameters()), NO_WEIGHTS
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "layer.onnx"), Path(folder, "int8.onnx")
        if isinstance(layer, RULED):
            export(layer, whole, example=x)
        else:
            whole.write_bytes(onnx_file(name))
        quantize_static(
            whole,
            small,
            _Readings(x),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        quantised = small.read_bytes()
    assert b"QuantizeLinear" in quantised, "nothing in it is quantised"
    assert_close(run_onnx(quantised, x), layer(x), LOOSE.get(name, 0.05))


def autocast(dtype: torch.dtype, tolerance: float) -> Callable[[str], None]:
    """Forward and backward in a narrower type."""

    def column(name: str) -> None:
        layer, x = layer_and_input(name)
        exact = layer(x)
        x = x.requires_grad_()
        with torch.autocast("cpu", dtype):
            y = layer(x)
        assert_close(y, exact, LOOSE.get(name, tolerance))
        y.float().mean().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())

    return column


HERE: dict[str, Callable[[str], None]] = {
    "CPU": on_the_cpu,
    "torch.export": torch_export,
    "ONNX": onnx,
    "autocast bf16": autocast(torch.bfloat16, 0.02),
    "autocast fp16": autocast(torch.float16, 0.003),
    "int8": int8,
}

# --- columns that run in processes of their own ---


def compiled(name: str) -> None:
    """As one graph."""
    layer, x = layer_and_input(name)
    expected = layer(x)
    backends = ("aot_eager", "inductor") if name in INDUCTOR else ("aot_eager",)
    for backend in backends:
        torch.compiler.reset()
        with torch.no_grad():
            assert_close(torch.compile(layer, fullgraph=True, backend=backend)(x), expected.detach(), 1e-5)


def distributed(name: str) -> None:
    """Gradients of the shares of a batch, averaged, are those of the whole batch."""
    rank = torch.distributed.get_rank()
    layer, x = layer_and_input(name)
    single = copy.deepcopy(layer)
    wrapped = nn.parallel.DistributedDataParallel(layer)
    single(x).square().mean().backward()
    wrapped(x.chunk(PROCESSES)[rank]).square().mean().backward()
    for ours, theirs in zip(layer.parameters(), single.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_close(ours.grad, theirs.grad, 1e-4)


def _distribute(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=PROCESSES
    )
    outcomes = _all(distributed, tuple(ROWS))
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
    torch.distributed.destroy_process_group()


def _all(column: Callable[[str], None], names: Sequence[str]) -> dict[str, str]:
    """What went wrong with each layer; "" if nothing did."""
    return {name: _outcome(column, name) for name in names}


def _outcome(column: Callable[[str], None], name: str) -> str:
    try:
        column(name)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the outcome)
        return f"{type(error).__name__}: {error}".splitlines()[0] or type(error).__name__
    return ""


def all_distributed(names: Sequence[str]) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_distribute, (folder,), nprocs=PROCESSES)
        outcomes = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    return {name: next((o[name] for o in outcomes if o[name]), "") for name in names}


APART: dict[str, Callable[[Sequence[str]], dict[str, str]]] = {
    "torch.compile": lambda names: _all(compiled, names),
    "DDP": all_distributed,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    _, wanted, target, *layers = sys.argv
    Path(target).write_text(json.dumps(APART[wanted](layers)))
