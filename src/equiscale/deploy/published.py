"""Move checkpoints of the public SESN and DISCO code over to the same network here."""

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equiscale._files import check_zip_index
from equiscale._typing import BasisTensor
from equiscale.errors import BasisError, CheckpointError
from equiscale.functional import support_windows
from equiscale.nn import (
    ColumnBatchNorm2d,
    ScaleSpaceConv2d,
    ScaleSpaceLift2d,
    ScaleSteeredConv2d,
    SteerableConv2d,
    VectorFieldBatchNorm2d,
)
from equiscale.scales import ScaleGrid

# The public code builds its constants in float32.
_CONSTANT_TOLERANCE = 1e-5
_SHOWN = 12
# Published checkpoints of wide networks have fifty megabytes; the oldest format tells its sizes nowhere else.
_MOST_BYTES = 2**30
_STORED_AS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)
# What published checkpoints hold although nothing learns it: bases, the two passes of a blur, harmonics.
_CONSTANTS = ("basis", "kernelx_", "kernely_", "filter_real", "filter_imag")


def read_published_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a published ``.pt`` or ``.pth`` file, without running anything that is in it.

    Args:
        path: A file of ``torch.save`` with a state dict, alone or under the name ``state_dict`` or ``model``.

    Returns:
        The tensors by name, on the CPU, for `load_published_state_dict`.

    Raises:
        CheckpointError: If the file is missing, larger than a gigabyte, packed, damaged, or holds anything
            but tensors of ordinary numbers with as many bytes as they take.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "one.pt"
        >>> torch.save({"weight": torch.ones(2)}, path)
        >>> read_published_state_dict(path)
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are read all the same
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no file of torch.save makes its reader stumble in every way
        told = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"expected a file of torch.save with tensors at {path}, got: {told[:200]!r}; get it anew"
        ) from error
    return _tensors(content, path)


def load_published_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, adopt_bases: bool = False
) -> None:
    """Load a state dict of the public SESN or DISCO code into the same network.

    Every tensor is compared before anything is loaded: names, shapes, finite values, and the constants
    that published checkpoints hold (bases, blurs) against the model's own: a checkpoint of another
    scale grid has the same shapes. The prefixes of data parallelism ("module.") and of the published
    56×56 wrapper ("1.") are taken off, and modules that the public code calls otherwise are renamed.
    What was saved here is loaded by ``load_state_dict``: a SiCNN of ours cannot be told from a published
    one, whose columns lie in another order.

    Args:
        model: The network, for example from ``create_model("mnist_ses_scalar_28")``.
        state_dict: Tensors under their published names, for example from `read_published_state_dict`.
        adopt_bases: Compute with the checkpoint's own bases, as is needed for DISCO, whose published
            bases were trained, and for families that are corrected here. They then are part of the
            model's state dict, and only a model that has adopted bases too can load that.

    Raises:
        CheckpointError: If anything does not fit; the message lists it, and nothing is loaded.

    Exactness:
        Outputs agree with the published code to 1e-4 in float32 (``tests/deploy/test_published.py``).

    Source:
        Names and layout: Sosnovik et al. 2020 and 2021, their public code.

    Example:
        >>> from equiscale import create_model
        >>> model = create_model("mnist_cnn_28")
        >>> load_published_state_dict(model, create_model("mnist_cnn_28").state_dict())
    """
    tensors = _in_our_layout(model, _without_prefixes(state_dict))
    constants = {name: tensor for name, tensor in tensors.items() if _is_constant(name)}
    weights = {name: tensor for name, tensor in tensors.items() if name not in constants}
    expected = {name: tensor for name, tensor in model.state_dict().items() if not _is_constant(name)}
    complaints = [*_misfits(expected, weights), *_foreign_constants(model, constants, adopt_bases)]
    if complaints:
        listing = "\n  ".join(complaints[:_SHOWN])
        more = f"\n  … and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
        raise CheckpointError(
            f"expected the state dict of this network, got {len(complaints)} tensors that do not fit "
            f"(nothing was loaded; check the model's name):\n  {listing}{more}"
        )
    model.load_state_dict(weights, strict=False)
    if adopt_bases:
        _adopt(model, constants)


@dataclass(frozen=True)
class AdoptedBasis:
    """The basis of a published checkpoint, as it was sampled for one kernel and grid.

    Args:
        values: The sampled functions ``(F, S, K, K)``.
        grid: The S scales.
    """

    values: BasisTensor = field(repr=False, compare=False)
    grid: ScaleGrid

    @property
    def num_functions(self) -> int:
        """F."""
        return len(self.values)

    def sample(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        """The values, for their own kernel and grid.

        Raises:
            BasisError: For any other.
        """
        if grid != self.grid or kernel_size != self.values.shape[-1]:
            raise BasisError(
                f"expected the kernel of {self.values.shape[-1]} pixels and {self.grid} of the checkpoint, "
                f"got {kernel_size} and {grid}"
            )
        return self.values


def _check_file(path: Path) -> None:
    """Nothing is announced to be larger than the file: packed members are what torch never writes."""
    size = path.stat().st_size
    if size > _MOST_BYTES or not path.is_file():
        raise ValueError(f"no file of at most {_MOST_BYTES} bytes")
    if zipfile.is_zipfile(path):
        check_zip_index(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > size:
            raise ValueError("members that are packed, or announced larger than the file")


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"expected a state dict in {path}, got {type(content).__name__}; give the file of a network"
        )
    _check_tensors(content)
    for name, tensor in content.items():
        if not _is_backed(tensor):
            raise CheckpointError(
                f"expected as many numbers as the shapes say in {path}, got fewer for {tuple(tensor.shape)} "
                f"as {name[:60]!r}; get the file anew"
            )
    return dict(content)


def _check_tensors(state_dict: Mapping[Any, Any]) -> None:
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"expected tensors in the state dict, got {type(value).__name__} as {str(name)[:60]!r}"
            )
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if not plain or value.dtype not in _STORED_AS:
            raise CheckpointError(
                f"expected ordinary dense numbers in the state dict, got {value.dtype}, {value.layout}, as "
                f"{name[:60]!r}; get the checkpoint anew"
            )


def _is_backed(tensor: Tensor) -> bool:
    """Whether there are as many numbers as the shape says: strides of 0 make a few bytes a huge tensor."""
    return math.prod(tensor.shape) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _check_tensors(state_dict)
    tensors = dict(state_dict)
    for prefix in ("module.", "1."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _in_our_layout(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes as the model has them, where the public code's differ."""
    modules, own = dict(model.named_modules()), model.state_dict()
    saved_here = set(own) <= set(tensors)
    renames = {} if saved_here else getattr(model, "published_names", {})
    moved = {}
    for name, tensor in tensors.items():
        path, leaf = _split(_renamed(name, renames))
        module = modules.get(path)
        if isinstance(module, ScaleSpaceConv2d) and leaf == "weights":
            leaf = "weight"
        if isinstance(module, VectorFieldBatchNorm2d) and leaf == "weight" and not saved_here:
            # The public code has it and does not use it.
            tensor = torch.ones_like(tensor) if tensor.shape == module.weight.shape else tensor
        moved[f"{path}.{leaf}"] = _reshaped(module, tensor, own.get(f"{path}.{leaf}"))
    return moved


def _split(name: str) -> tuple[str, str]:
    """Module and tensor; the public DISCO code keeps a basis in a module of its own, called basis too."""
    path, _, leaf = name.rpartition(".")
    return (path.removesuffix(".basis") if leaf == "basis" else path), leaf


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    """The name here; of several published names of modules or tensors that begin it the longest counts."""
    fitting = [published for published in renames if f"{name}.".startswith(f"{published}.")]
    if not fitting:
        return name
    longest = max(fitting, key=len)
    return renames[longest] + name.removeprefix(longest)


def _reshaped(module: nn.Module | None, tensor: Tensor, own: Tensor | None) -> Tensor:
    if isinstance(module, ColumnBatchNorm2d) and tensor.shape == (module.num_features,):
        return tensor.view(module.num_scales, module.num_channels).t().flatten()  # S·C to C·S
    if own is not None and tensor.shape != own.shape and tensor.squeeze().shape == own.squeeze().shape:
        return tensor.view(own.shape)  # a linear layer that was published as a 1×1 convolution
    return tensor


def _misfits(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    missing = [
        f"{name}: missing, expected {tuple(expected[name].shape)}" for name in expected if name not in got
    ]
    unknown = [f"{name}: not part of this network" for name in got if name not in expected]
    wrong = [_misfit(name, expected[name], got[name]) for name in expected if name in got]
    return [*missing, *unknown, *(complaint for complaint in wrong if complaint)]


def _misfit(name: str, expected: Tensor, got: Tensor) -> str | None:
    if expected.shape != got.shape:
        return f"{name}: expected {tuple(expected.shape)}, got {tuple(got.shape)}"
    if not bool(torch.isfinite(got).all()):
        return f"{name}: expected finite values, got {int((~torch.isfinite(got)).sum())} that are not"
    return None


def _is_constant(name: str) -> bool:
    return name.rpartition(".")[2].startswith(_CONSTANTS)


def _foreign_constants(model: nn.Module, constants: Mapping[str, Tensor], adopt: bool) -> Iterator[str]:
    """Complaints about constants that are not the model's own."""
    modules = dict(model.named_modules())
    for name, constant in constants.items():
        path, leaf = _split(name)
        own = _own_constant(modules.get(path), leaf, constant)
        if own is None:
            yield f"{name}: not part of this network"
        elif own.shape != constant.shape:
            yield f"{name}: expected a constant {tuple(own.shape)}, got {tuple(constant.shape)}"
        elif adopt and leaf == "basis":
            if broken := int((~torch.isfinite(constant)).sum()):
                yield f"{name}: expected finite values, got {broken} that are not"
        elif complaint := _difference(own, constant):
            yield f"{name}: {complaint}"


def _own_constant(module: nn.Module | None, leaf: str, published: Tensor) -> Tensor | None:
    """What the model has in the place of a published constant."""
    if isinstance(module, SteerableConv2d) and leaf == "basis":
        return module.basis
    if isinstance(module, ScaleSteeredConv2d):
        return module.published_constants().get(leaf)
    if isinstance(module, ScaleSpaceLift2d) and leaf[len("kernelx_") :].isdecimal():
        return _blur(module, leaf, published)
    return None


def _blur(module: ScaleSpaceLift2d, leaf: str, published: Tensor) -> Tensor | None:
    """The discrete Gaussian of a scale as the public code keeps it: a convolution from C to C channels."""
    index = int(leaf[len("kernelx_") :])
    kernels: tuple[Tensor, ...] = torch.split(module.kernels, module.lengths)
    fits = published.ndim == 4 and published.shape[0] == published.shape[1] and _is_backed(published)
    if index >= len(kernels) or not fits:
        return None
    kernel = kernels[index].view(1, -1) if leaf.startswith("kernelx") else kernels[index].view(-1, 1)
    return torch.eye(len(published))[:, :, None, None] * kernel.cpu()


def _difference(own: Tensor, published: Tensor) -> str | None:
    difference = float((own.double().cpu() - published.double().cpu()).abs().max())
    if difference <= _CONSTANT_TOLERANCE:
        return None
    return (
        f"another constant (largest difference {difference:.1e}); the scales or the basis differ, or it is "
        "to be adopted with adopt_bases=True"
    )


def _adopt(model: nn.Module, constants: Mapping[str, Tensor]) -> None:
    modules = dict(model.named_modules())
    for name, constant in constants.items():
        module = modules[_split(name)[0]]
        if isinstance(module, SteerableConv2d):
            adopted = constant.to(module.basis, copy=True)
            module.family = AdoptedBasis(adopted.double().cpu(), module.grid)
            module.windows = support_windows(adopted)
            module.register_buffer("basis", adopted, persistent=True)
