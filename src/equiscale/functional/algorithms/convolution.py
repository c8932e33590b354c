"""One convolution to be computed, whatever the algorithm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from equiscale._typing import Image
from equiscale.functional import blockwise
from equiscale.functional.filters import synthesize_filters
from equiscale.functional.geometry import ConvGeometry
from equiscale.functional.memory_order import memory_order

_T = TypeVar("_T")

# Bytes that a layer may keep of its weights, and of its basis: transformed filters of wide layers are many
# times their weights, and every size of image has its own.
_ROOM: Final = 1 << 27


@dataclass(frozen=True, eq=False)
class _Kept:
    """What was built, and of what.

    Args:
        source: The basis, or a copy of the weights.
        version: Of the basis.
        below: Of weights, what was built of the basis that they were built with.
        values: What was built, by key.
    """

    source: Tensor
    version: int
    below: "_Kept | None" = None
    values: dict[Any, Any] = field(default_factory=dict)


class FilterCache:
    """What a layer keeps between forward passes: filters while its weights stay, and how it was computed.

    Weights are compared by value, the basis by its count of edits: one through ``.data`` needs a `clear`.
    Nothing of it is copied, pickled or part of a state dict, and its memory is bounded.

    Example:
        >>> cache = FilterCache()
        >>> weight = torch.ones(2)
        >>> with torch.no_grad():
        ...     first = cache.get("doubled", weight, weight, lambda: weight * 2)
        ...     first is cache.get("doubled", weight, weight, lambda: weight * 2)
        True
    """

    def __init__(self) -> None:
        self.algorithm: str | None = None
        self.estimates: dict[Any, str] = {}
        # Each replaced as a whole and read once: another thread may be here with other weights.
        self._of_weight: _Kept | None = None
        self._of_basis: _Kept | None = None

    def get(self, key: Any, weight: Tensor, basis: Tensor, build: Callable[[], _T]) -> _T:
        """What was built for these weights and this basis, or what is built now."""
        if not _may_keep(weight):
            self._of_weight = None
            return build()
        of_basis, kept = self._look_at(basis), self._of_weight
        # Compared by value: weights are also changed behind autograd's back, through .data.
        if kept is None or kept.below is not of_basis or not torch.equal(kept.source, weight):
            kept = self._of_weight = _Kept(weight.detach().clone(), 0, below=of_basis)
        return _take(kept.values, key, build)

    def get_of_basis(self, key: Any, basis: Tensor, build: Callable[[], Tensor]) -> Tensor:
        """What was built for this basis, or what is built now."""
        if type(basis) is not Tensor or basis.requires_grad or torch.compiler.is_compiling():
            return build()
        kept = self._look_at(basis)
        with torch.inference_mode(False), torch.no_grad():
            return _take(kept.values, key, build)

    def _look_at(self, basis: Tensor) -> "_Kept":
        """What was built for the basis as it is: nothing if it is another one, or was edited."""
        kept = self._of_basis
        if kept is not None and kept.source is basis and kept.version == _version(basis):
            return kept
        kept = self._of_basis = _Kept(basis, _version(basis))
        return kept

    def clear(self) -> None:
        """Forget what was built."""
        self._of_weight = self._of_basis = None

    @property
    def kept(self) -> dict[Any, Any]:
        """What was built of the weights."""
        return {} if self._of_weight is None else self._of_weight.values

    @property
    def kept_of_basis(self) -> dict[Any, Any]:
        """What was built of the basis."""
        return {} if self._of_basis is None else self._of_basis.values

    def __reduce__(self) -> tuple[type["FilterCache"], tuple[()]]:
        return FilterCache, ()  # of copies and pickles alike


def _version(tensor: Tensor) -> int:
    """Counts the edits of a tensor, but for one of inference mode, which torch does not follow."""
    return 0 if tensor.is_inference() else tensor._version


def _take(kept: dict[Any, Any], key: Any, build: Callable[[], _T]) -> _T:
    """What is kept under a key, or what is built now and kept if there is room."""
    # One look-up: another thread may be clearing.
    found: _T | None = kept.get(key)
    if found is not None:
        return found
    built = build()
    if _size(built) + sum(_size(value) for value in tuple(kept.values())) > _ROOM:
        kept.clear()
    if _size(built) <= _ROOM:
        kept[key] = built
    return built


def _size(value: Any) -> int:
    """Bytes of tensors."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_size(part) for part in value)


def _may_keep(weight: Tensor) -> bool:
    """Whether filters may be kept: on the CPU, where comparing the weights costs next to nothing.

    On a GPU the comparison would have to be waited for, and the filters are made in microseconds.
    """
    plain = type(weight) in (
        Tensor,
        torch.nn.Parameter,
    ) and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
    return (
        plain
        and weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and weight.requires_grad)
        and not torch.compiler.is_compiling()
    )


@dataclass(frozen=True)
class Convolution:
    """The operands of a lifting or scale convolution.

    Args:
        x: The image ``(B, C, H, W)``, or the scale map ``(B, C, S, H, W)``.
        weight: w, ``(C', C / groups, N, F)``; N = 1 for an image.
        basis: ψ, ``(F, S, K, K)``.
        bias: b, ``(C',)`` or None.
        geometry: Stride, padding and groups.
        windows: For every scale the side of the filters' window; None: all K.
        cache: Where filters are kept, or None.
    """

    x: Tensor
    weight: Tensor
    basis: Tensor
    bias: Tensor | None
    geometry: ConvGeometry
    windows: Sequence[int] | None = None
    cache: FilterCache | None = None
    _images: list[Image] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def transformed(self) -> bool:
        """Whether torch.func or forward-mode differentiation is at work."""
        return transformed(self.x, self.weight, self.basis, self.bias)

    @property
    def lifts(self) -> bool:
        """Whether the input is an image, seen by every scale."""
        return self.x.ndim == 4

    @property
    def num_scales(self) -> int:
        """S."""
        return self.basis.shape[1]

    @property
    def sides(self) -> tuple[int, ...]:
        """The windows of all scales."""
        return (self.kernel_size,) * self.num_scales if self.windows is None else tuple(self.windows)

    @property
    def kernel_size(self) -> int:
        """K."""
        return self.basis.shape[-1]

    @property
    def output_size(self) -> tuple[int, int]:
        """H' and W'."""
        room = 2 * self.geometry.margin(self.kernel_size) - self.kernel_size
        height, width = ((side + room) // self.geometry.stride + 1 for side in self.x.shape[-2:])
        return height, width

    def slots(self, scale: int) -> list[int]:
        """The scales that the filters of one scale see, fewer than N at the open end of the axis."""
        seen = range(scale, scale + self.weight.shape[2])
        if self.geometry.scale_padding == "replicate":
            return [min(other, self.num_scales - 1) for other in seen]
        return [other for other in seen if other < self.num_scales]

    @property
    def images(self) -> Sequence[Image]:
        """What each scale holds, (B, C, H, W); of an image, itself on every scale."""
        if not self._images:  # not a cached_property: no compiler follows its lock
            self._images.extend((self.x,) * self.num_scales if self.lifts else unstacked(self.x))
        return self._images

    def seen(self, scale: int) -> Image:
        """The images of all slots, behind the channels as in the filters: (B, C·n, H, W)."""
        images = [self.images[slot] for slot in self.slots(scale)]
        return images[0] if len(images) == 1 else torch.stack(images, 2).flatten(1, 2)

    def window_basis(self, scale: int, window: int | None = None) -> Tensor:
        """The functions of one scale in their window: (F, k, k)."""
        window = self.sides[scale] if window is None else window
        margin = (self.kernel_size - window) // 2
        return self.basis[:, scale, margin : margin + window, margin : margin + window]

    def filters(self, scale: int) -> Tensor:
        """The filters of one scale in their window, the slots behind the channels: (C', C·n, k, k)."""
        count = len(self.slots(scale))

        def build() -> Tensor:
            kernels = synthesize_filters(self.weight[:, :, :count], self.window_basis(scale)[:, None])
            return kernels.squeeze(-3).flatten(1, 2)

        return self.kept(("filters", scale, self.sides[scale]), build)

    def kept(self, key: Any, build: Callable[[], _T]) -> _T:
        """Build something from the weights alone, or take what the layer has kept of it."""
        if self.cache is None or self.basis.requires_grad or torch.compiler.is_compiling():
            return build()
        kind = self.weight.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        place = key, self.weight.dtype, autocast, torch.is_inference_mode_enabled()
        return self.cache.get(place, self.weight, self.basis, build)

    def keeps(self, size: int) -> bool:
        """Whether so many bytes that are built from the weights are kept."""
        possible = self.cache is not None and not self.basis.requires_grad and _may_keep(self.weight)
        return possible and size <= _ROOM

    def kept_of_basis(self, key: Any, build: Callable[[], Tensor]) -> Tensor:
        """Build something from the basis alone, or take what the layer has kept of it."""
        return build() if self.cache is None else self.cache.get_of_basis(key, self.basis, build)

    def margin(self, window: int) -> int:
        """Pixels around the image that a window of the kernel sees; negative where it sees fewer."""
        return self.geometry.margin(self.kernel_size) - (self.kernel_size - window) // 2


def stacked(images: Sequence[Image]) -> Tensor:
    """The scale map of its scales' images, in memory one scale behind the other, each as it is."""
    order = memory_order(images[0])
    whole = torch.stack([image.permute(order) for image in images])
    back = [1 + order.index(axis) for axis in range(4)]
    return whole.permute(back[0], back[1], 0, back[2], back[3])


def unstacked(x: Tensor) -> tuple[Image, ...]:
    """The images of a scale map's scales; their gradients come together as in `stacked`."""
    if transformed(x):
        return x.unbind(2)
    unbind: Any = _Unstacked.apply
    images: tuple[Image, ...] = unbind(x)
    return images


class _Unstacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return x.unbind(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        known = next((grad for grad in grads if grad is not None), None)
        if known is None:
            return None
        return stacked([torch.zeros_like(known) if grad is None else grad for grad in grads])


def framed(x: Tensor, margin: int, geometry: ConvGeometry) -> tuple[Tensor, int]:
    """The image cropped or padded as the geometry says, and the zeros that are still to be added."""
    if margin < 0:
        return x[..., -margin:margin, -margin:margin], 0
    if margin > 0 and geometry.padding_mode != "zeros":
        return pad(x, [margin] * 4, mode=geometry.padding_mode), 0
    return x, margin


def transformed(*operands: Tensor | None) -> bool:
    """Whether torch.func or forward-mode differentiation is at work; they follow torch's own operations."""
    if torch.compiler.is_compiling():
        return False  # a compiler traces functions of ours too
    return any(blockwise.transformed(operand) for operand in operands if operand is not None)


def working_dtype(x: Tensor) -> torch.dtype:
    """Half precision would lose in a sum over frequencies what it keeps in one over a window."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def result_dtype(x: Tensor) -> torch.dtype:
    """As an ordinary convolution: autocast's type under autocast, but for double precision."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype
