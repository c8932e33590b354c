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
from equiscale.deploy.folding import example_input, fold
from equiscale.errors import EquiscaleError, ExportError, SettingError

Format = Literal["onnx", "torch-export", "aoti"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
_AXES = {0: "batch", 2: "height", 3: "width"}
_TOLERANCE = 1e-4
_ROUNDS = 5


@dataclass(frozen=True)
class Export:
    """A file that computes what the network does.

    Args:
        path: The file.
        format: What it is.
        free: The axes of the input that may have any size: "batch", and "height" and "width" where the
            network takes images of any size.
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
        path: The file to write; an older one is replaced when the new one has passed its check.
        format: "onnx", checked in onnxruntime; "torch-export" for `torch.export.load`; "aoti" for
            a library compiled for this machine, for `torch._inductor.aoti_load_package`.
        example: An input with a batch of at least 2; None: the ``example_shape`` of the registered models.
        batch_norm: Fold batch norms into the convolutions in front of them.

    Returns:
        What was written, how far it is from the network, and how fast.

    Raises:
        ExportError: If the file does not compute the same to 1e-4 of the largest output, or cannot be made.
        ModelError: If the network cannot be folded.
        MissingExtraError: Without the packages of the extra ``export``, for ONNX.
        SettingError: For an unknown format.

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
    if format not in get_args(Format):
        raise SettingError(f"expected a format of {', '.join(get_args(Format))}, got {format!r}")
    path, write = Path(path), _WRITERS[format]
    example = example_input(model) if example is None else example
    folded = fold(model, example, batch_norm=batch_norm)
    with _evaluation(model), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program, free = _exported(folded, example, _free_sizes(model, example))
        made = Path(folder) / f"network{SUFFIXES[format]}"  # the engines judge a file by its suffix
        run = write(program, made, free)
        checked = _check(model, run, example, free)
        speed = _speed(model, run, example)
        with atomic_path(path) as temporary:
            shutil.copyfile(made, temporary)
    return replace(checked, path=path, format=format, speed=speed)


def _free_sizes(model: nn.Module, example: Tensor) -> tuple[int, ...]:
    """The axes of height and width, where the network takes images of other sizes."""
    try:
        for x in _inputs(example, tuple(_AXES.values())):
            model(x)
    except (EquiscaleError, RuntimeError, ValueError):
        return ()
    return tuple(axis for axis in _AXES if 0 < axis < example.ndim)


def _exported(
    folded: nn.Module, example: Tensor, sizes: tuple[int, ...]
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """With a free batch, and free height and width where torch can do that."""
    failure: Exception | None = None
    for free in (sizes, ()):
        shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
        shapes |= dict.fromkeys(free, torch.export.Dim.AUTO)
        try:
            with _quiet():
                program = torch.export.export(folded, (example,), dynamic_shapes=(shapes,), strict=False)
            return program, _free_axes(program)
        except Exception as error:  # noqa: BLE001 (torch's exporter raises many kinds)
            failure = error
    raise ExportError(f"expected a network that torch can export, got: {failure}")


def _free_axes(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    sizes = node.meta["val"].shape
    return tuple(
        label for axis, label in _AXES.items() if axis < len(sizes) and not isinstance(sizes[axis], int)
    )


# --- the formats ---

Run = Callable[[Tensor], Tensor]


def _write_onnx(program: torch.export.ExportedProgram, path: Path, free: tuple[str, ...]) -> Run:
    with needs_extra("export"):
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 (torch needs it)
    axes = {axis: label for axis, label in _AXES.items() if label in free}
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, input_names=["input"], output_names=["output"], verbose=False
        )
        if made is None:
            raise ExportError("expected torch to make an ONNX program, got none")
        _name_axes(made.model, axes)
        made.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def _name_axes(model: Any, axes: dict[int, str]) -> None:
    """Call the free axes of the input by their names."""
    (given,) = model.graph.inputs
    shape = list(given.shape)
    for axis, label in axes.items():
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
    errors, inputs = [], list(_inputs(example, free))
    for x in inputs:
        expected, got = model(x), run(x)
        if got.shape != expected.shape:
            raise ExportError(
                f"expected outputs {tuple(expected.shape)} of the file for {tuple(x.shape)}, "
                f"got {tuple(got.shape)}"
            )
        errors.append(float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)))
    if not max(errors) <= _TOLERANCE:
        raise ExportError(
            f"expected a file whose outputs agree to {_TOLERANCE:g} of the largest, got {max(errors):.1e}; "
            "nothing was written"
        )
    return Export(Path(), "onnx", free, max(errors), 0.0, tuple(tuple(x.shape) for x in inputs))


def _inputs(example: Tensor, free: tuple[str, ...]) -> Iterator[Tensor]:
    """Random inputs of every kind of shape that is promised."""
    generator = torch.Generator().manual_seed(0)
    batch, *rest = example.shape
    shapes = [(1, *rest), (batch, *rest), (batch + 3, *rest)]
    if "height" in free:
        shapes.append((batch, rest[0], rest[1] + 8, *rest[2:]))
    if "width" in free:
        shapes.append((batch, *rest[:2], rest[2] + 16))
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
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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
