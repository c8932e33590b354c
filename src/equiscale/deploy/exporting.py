"""Export a network to ONNX, to torch.export or to a compiled library, and check the file at once."""

import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from equiscale._extras import needs_extra
from equiscale._files import atomic_path
from equiscale.deploy.folding import checked_example, fold, takes_other_sizes
from equiscale.deploy.tracing import evaluation
from equiscale.errors import ExportError, SettingError

Format = Literal["onnx", "torch-export", "aoti"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
# The axes behind the channels, by their number.
_PIXELS = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
# By how much larger images are checked where their size is free; a network may refuse odd ones.
_LARGER = ((16, 32, 8), (3, 5, 1))
_TOLERANCE = 1e-4
_ROUNDS = 5


@dataclass(frozen=True)
class Export:
    """A file that computes what the network does.

    Args:
        path: The file.
        format: What it is.
        free: The axes of the input that may have any size: "batch", and "height" and "width" where the
            network takes images of any size ("length" of signals, "depth" of volumes).
        error: The largest difference to the network, relative to its largest output.
        speed: How many times as fast as the network in PyTorch, median of interleaved calls; for
            batches of the example's size, on the CPU.
        checked: The shapes of the inputs that were compared.
    """

    path: Path
    format: Format
    free: tuple[str, ...]
    error: float
    speed: float
    checked: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.format}, any {', '.join(self.free)}; differs by {self.error:.1e} at most, "
            f"{self.speed:.1f}× as fast as in PyTorch"
        )


def export(
    model: nn.Module,
    path: Path | str,
    *,
    format: Format = "onnx",
    example: Tensor | None = None,
    batch_norm: bool = True,
) -> Export:
    """Fold a network, write it in a format that needs no equiscale, read it back and compare.

    Shapes:
        input and output as of the model; the batch, and where the network takes images of any size their
        height and width, are free.

    Args:
        model: A network of one input.
        path: The file to write, which ends in .onnx or else in .pt2; an older one is replaced when the new
            one has passed its check.
        format: "onnx", checked in onnxruntime; "torch-export" for `torch.export.load`; "aoti" for
            a library compiled for this machine, for `torch._inductor.aoti_load_package`.
        example: An input; None: of the ``example_shape`` of the registered models.
        batch_norm: Fold batch norms into the convolutions in front of them.

    Returns:
        What was written, how far it is from the network, and how fast.

    Raises:
        ExportError: If the file does not compute the same to 1e-4 of the largest output, or cannot be made.
        ModelError: If the network cannot be folded.
        MissingExtraError: Without the packages of the extra ``export``, for ONNX.
        SettingError: For an unknown format, or a path that does not end as its format's files do.

    Exactness:
        As `equiscale.deploy.fold`, and the rounding of the engine: below 1e-5 for all registered networks
        (``tests/deploy/test_exporting.py``).

    Example:
        >>> import tempfile
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> target = Path(tempfile.mkdtemp()) / "network.pt2"
        >>> export(network, target, format="torch-export", example=torch.zeros(2, 1, 8, 8)).free
        ('batch', 'height', 'width')
    """
    path = Path(path)
    _check_target(path, format)
    example = checked_example(model, example)
    folded = fold(model, example, batch_norm=batch_norm)
    with evaluation(model), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        _check_output(model(example))
        made = Path(folder) / f"network{SUFFIXES[format]}"  # the engines judge a file by its suffix
        checked, run = _written(model, folded, example, made, format)
        speed = _speed(model, run, example)
        with atomic_path(path) as temporary:
            shutil.copyfile(made, temporary)
    return replace(checked, path=path, speed=speed)


def _check_target(path: Path, format: Format) -> None:
    if format not in get_args(Format):
        raise SettingError(f"expected a format of {', '.join(get_args(Format))}, got {format!r}")
    if path.suffix != SUFFIXES[format]:
        raise SettingError(f"expected a path that ends in {SUFFIXES[format]} for {format}, got {path}")
    if path.is_dir():
        raise SettingError(f"expected the path of a file, got the folder {path}")
    if format == "onnx":
        _onnxruntime()


def _onnxruntime() -> Any:
    with needs_extra("export"):
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 (torch needs it)
    return onnxruntime


def _check_output(output: object) -> None:
    if not isinstance(output, Tensor):
        raise ExportError(
            f"expected a network whose output is one tensor, got {type(output).__name__}; wrap it in a "
            "module that returns the tensor to export"
        )


def _written(
    model: nn.Module, folded: nn.Module, example: Tensor, path: Path, format: Format
) -> "tuple[Export, Run]":
    """A file that passed its check: with free sizes, or where that fails for the example's alone."""
    for sizes in (True, False) if takes_other_sizes(model, example) else (False,):
        try:
            program = _exported(folded, example, sizes=sizes)
            free = _free_axes(program)
            run = _WRITERS[format](program, path, free)
            return replace(_check(model, run, example, free), format=format), run
        except ExportError as error:
            failure = error
    raise failure


def _exported(folded: nn.Module, example: Tensor, *, sizes: bool) -> torch.export.ExportedProgram:
    """With a free batch, and free height and width where torch can do that."""
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if sizes:
        shapes |= dict.fromkeys(range(2, example.ndim), torch.export.Dim.AUTO)
    try:
        with _quiet():
            program = torch.export.export(folded, (example,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        raise ExportError(f"expected a network that torch can export, got: {error}") from error
    for node in program.graph.nodes:  # a file needs no paths of the machine that wrote it
        node.meta.pop("stack_trace", None)
    return program


def _axes(ndim: int) -> dict[int, str]:
    return {0: "batch"} | dict(enumerate(_PIXELS.get(ndim - 2, ()), 2))


def _free_axes(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    sizes = node.meta["val"].shape
    return tuple(label for axis, label in _axes(len(sizes)).items() if not isinstance(sizes[axis], int))


# --- the formats ---

Run = Callable[[Tensor], Tensor]


def _write_onnx(program: torch.export.ExportedProgram, path: Path, free: tuple[str, ...]) -> Run:
    onnxruntime = _onnxruntime()
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=["input"], output_names=["output"], verbose=False
            )
            _name_axes(made.model, free)
            for node in made.model.graph:
                node.metadata_props.clear()  # paths of this machine among them
            made.save(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"expected a network that ONNX can hold and onnxruntime reads, got: {error}; export it in "
            "float32, or in another format"
        ) from error
    return lambda x: torch.from_numpy(session.run(None, {"input": x.cpu().numpy()})[0]).to(x.device)


def _name_axes(model: Any, free: tuple[str, ...]) -> None:
    """Call the free axes of the input by their names."""
    (given,) = model.graph.inputs
    shape = list(given.shape)
    for axis, label in _axes(len(shape)).items():
        if label in free:
            shape[axis] = label
    given.shape = type(given.shape)(shape)


def _write_program(program: torch.export.ExportedProgram, path: Path, _: tuple[str, ...]) -> Run:
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda x: loaded(x)


def _write_library(program: torch.export.ExportedProgram, path: Path, _: tuple[str, ...]) -> Run:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    try:
        with _quiet():
            aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:
        raise ExportError(
            f"expected torch to compile the network (it needs a C++ compiler), got: {error}"
        ) from error
    return aoti_load_package(str(path))


_WRITERS: dict[Format, Callable[[torch.export.ExportedProgram, Path, tuple[str, ...]], Run]] = {
    "onnx": _write_onnx,
    "torch-export": _write_program,
    "aoti": _write_library,
}


# --- the check ---


def _check(model: nn.Module, run: Run, example: Tensor, free: tuple[str, ...]) -> Export:
    inputs = [x for x in _inputs(example, free) if _is_taken(model, x)]
    errors = [_error(model(x), run, x) for x in inputs]
    if not all(error <= _TOLERANCE for error in errors):  # one may not be a number
        worst = next((error for error in errors if error != error), max(errors))
        raise ExportError(
            f"expected a file whose outputs agree to {_TOLERANCE:g} of the largest, got {worst:.1e}; "
            "nothing was written"
        )
    return Export(Path(), "onnx", free, max(errors), 0.0, tuple(tuple(x.shape) for x in inputs))


def _is_taken(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x)
    except Exception:  # noqa: BLE001 (networks refuse in many ways)
        return False
    return True


def _error(expected: Tensor, run: Run, x: Tensor) -> float:
    """The largest difference, relative to the largest output."""
    try:
        got = run(x)
    except Exception as error:
        raise ExportError(f"expected a file that computes {tuple(x.shape)}, got: {error}") from error
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        raise ExportError(
            f"expected outputs {tuple(expected.shape)} in {expected.dtype} of the file for {tuple(x.shape)}, "
            f"got {tuple(got.shape)} in {got.dtype}"
        )
    difference = (got.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-30))


def _inputs(example: Tensor, free: tuple[str, ...]) -> Iterator[Tensor]:
    """Random inputs of every kind of shape that is promised."""
    generator = torch.Generator().manual_seed(0)
    batch, *rest = example.shape
    shapes = [(1, *rest), (batch, *rest), (batch + 3, *rest)]
    axes = [axis for axis, label in _axes(example.ndim).items() if axis and label in free]
    for larger in _LARGER:
        shapes += [
            tuple(side + larger[axis - 2] * (at == axis) for at, side in enumerate(example.shape))
            for axis in axes
        ]
    for shape in shapes:
        yield torch.randn(shape, generator=generator).to(example)


def _speed(model: nn.Module, run: Run, example: Tensor) -> float:
    ratios = []
    for index in range(_ROUNDS + 1):
        ours, theirs = _seconds(model, example), _seconds(run, example)
        if index:
            ratios.append(ours / theirs)
    return statistics.median(ratios)


def _seconds(function: Callable[[Tensor], object], x: Tensor) -> float:
    begun = time.perf_counter()
    function(x)
    return time.perf_counter() - begun


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn about what concerns only themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
