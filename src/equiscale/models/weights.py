"""Save a named network as one file, and load it: the network is built anew, and no code of the file runs."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equiscale.errors import CheckpointError, ModelError
from equiscale.models.registry import ModelEntry, Registered, build, model_entry, registered_of
from equiscale.models.settings_json import SettingsJsonError, decode, encode
from equiscale.models.weights_file import WeightsFile, fill, read_header, write_file

_FACTORIES: Final = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
# What layers make beside their weights: constants, small bases.
_SPARE_ELEMENTS: Final = 2**22
_PLAIN: Final = (
    "save its weights with safetensors.torch.save_file(model.state_dict(), path), and load them with "
    "load_state_dict"
)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a network of `create_model` to a safetensors file: weights, name and all settings.

    The file appears under its name only when it is complete.

    Args:
        model: The network, compiled or not, on any device.
        path: The file, by custom ``….safetensors``.
        dtype: Store weights of two and more axes in this type, for example ``torch.float16`` for half the
            size; biases, norms and counters keep theirs. None: everything keeps its type.
        notes: What else to write: texts, finite numbers and lists of them, by name.

    Raises:
        CheckpointError: If the network does not come from `create_model`, was changed since, has settings
            that cannot be written, or numbers that are not finite, also in ``dtype``. Nothing is written.
        SettingError: For another dtype, or notes that have no JSON form.

    Exactness:
        `load` gives the same weights bit by bit, and the same outputs, unless ``dtype`` rounds
        (``tests/models/test_weights.py``).

    Example:
        >>> import tempfile
        >>> from equiscale import create_model
        >>> path = Path(tempfile.mkdtemp()) / "cnn.safetensors"
        >>> save(create_model("mnist_cnn_28", num_classes=3, channels=(4, 4, 4)), path)
        >>> load(path).linear[-1]
        Linear(in_features=256, out_features=3, bias=True)
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    registered = registered_of(model)
    if registered is None:
        raise CheckpointError(f"expected a network of create_model, got a {type(model).__name__}; {_PLAIN}")
    settings = _encoded(registered)
    _check_unchanged(model, registered)
    write_file(
        Path(path),
        model.state_dict(),
        model=registered.name,
        settings=settings,
        notes=notes or {},
        dtype=dtype,
    )


def load(path: str | Path) -> nn.Module:
    """Build the network of a file of `save`, with its weights.

    The file is data: its settings are read field by field against those of the registered network, its
    sizes are compared with its tensors before anything of that size is made, and a SHA-256 covers all of it.

    Args:
        path: The file.

    Returns:
        The network in evaluation mode, on torch's default device and in its default dtype, whatever the file
        stores.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, or of a network that is not
            registered here.

    Example:
        >>> import tempfile
        >>> from equiscale import create_model
        >>> path = Path(tempfile.mkdtemp()) / "cnn.safetensors"
        >>> save(create_model("mnist_cnn_28"), path, dtype=torch.float16)
        >>> load(path).main[0].weight.dtype
        torch.float32
    """
    file = read_header(Path(path))
    entry, settings = _described(file)
    with _building(file):
        network = _built(entry, settings)
    fill(network, file)
    return network.eval()


def weights_info(path: str | Path) -> WeightsFile:
    """What the header of a file of `save` says, without building anything.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.

    Example:
        >>> import tempfile
        >>> from equiscale import create_model
        >>> path = Path(tempfile.mkdtemp()) / "cnn.safetensors"
        >>> save(create_model("mnist_cnn_28"), path, notes={"trained on": "nothing"})
        >>> weights_info(path).model, weights_info(path).notes
        ('mnist_cnn_28', {'trained on': 'nothing'})
    """
    return read_header(Path(path))


def _encoded(registered: Registered) -> dict[str, Any]:
    try:
        return encode(registered.settings)
    except SettingsJsonError as problem:
        raise CheckpointError(f"{registered.name}: {problem}; {_PLAIN}") from problem


def _check_unchanged(model: nn.Module, registered: Registered) -> None:
    """Raise unless the registry builds the same modules and tensors: what is written can be loaded."""
    built = _built(model_entry(registered.name), registered.settings)
    ours, theirs = built.state_dict(), model.state_dict()
    adopted = [name for name, _ in built.named_buffers() if name in theirs and name not in ours]
    if adopted:
        raise CheckpointError(
            f"expected the bases of {registered.name!r}, got a network that adopted others, as {adopted[0]}; "
            "save its state dict and load it with load_published_state_dict(…, adopt_bases=True)"
        )
    changed = _differences(_parts(built), _parts(model)) or _differences(_shapes(ours), _shapes(theirs))
    if changed:
        raise CheckpointError(
            f"expected the network that create_model({registered.name!r}) builds with its settings, got one "
            f"with another {', '.join(changed[:4])}; {_PLAIN}"
        )


def _parts(network: nn.Module) -> dict[str, object]:
    return {path or "network": type(module) for path, module in network.named_modules()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    return {name: (tensor.shape, tensor.is_floating_point()) for name, tensor in tensors.items()}


def _differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    return [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]


def _described(file: WeightsFile) -> tuple[ModelEntry, Any]:
    """The registry's entry and the settings that a file names."""
    try:
        entry = model_entry(file.model)
        return entry, decode(file.settings, type(entry.settings))
    except (ModelError, SettingsJsonError) as problem:
        raise CheckpointError(
            f"{file.path}: {problem}; the file is damaged or was changed, or equiscale {file.version}, "
            "which wrote it, knows more than this one"
        ) from problem


def _built(entry: ModelEntry, settings: Any) -> nn.Module:
    """A network whose weights are about to be replaced: the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        return build(entry, settings)


@contextmanager
def _building(file: WeightsFile) -> Iterator[None]:
    """While a network is built from a file: no more numbers than the file has, and one kind of error."""
    try:
        with _Allowance(2 * file.elements + _SPARE_ELEMENTS):
            yield
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    except Exception as error:  # builders are of many kinds, and the settings may be anyone's
        raise CheckpointError(
            f"expected settings in {file.path} with which {file.model!r} can be built, got: {error}; the "
            "file is damaged or was changed, get it anew"
        ) from error


class _Allowance(TorchFunctionMode):
    """Refuses to make more numbers than this, before they are made."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.left = elements

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            self._take(kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args))
        return func(*args, **kwargs)

    def _take(self, size: Any) -> None:
        wanted = math.prod(int(side) for side in size)
        if wanted > self.left:
            raise CheckpointError(
                f"expected settings whose network has the tensors of the file, got one with {tuple(size)} "
                "in it; the file is damaged or was changed, get it anew"
            )
        self.left -= wanted
