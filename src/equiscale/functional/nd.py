"""Scale maps of signals and volumes: the operations of images, in any number of dimensions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from equiscale._typing import Projection
from equiscale.errors import ShapeError
from equiscale.functional.algorithms.convolution import Convolution
from equiscale.functional.checks import check_filled, check_operands, is_list, is_odd, shown
from equiscale.functional.dropout import scale_dropout2d
from equiscale.functional.geometry import ConvGeometry, check_geometry
from equiscale.functional.pool import check_window
from equiscale.functional.project import scale_projection

_DEFAULT = ConvGeometry()

# What torch has.
_CONVOLUTIONS: Final[dict[int, Callable[..., Tensor]]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOLS: Final[dict[int, Callable[..., Tensor]]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOLS: Final[dict[int, Callable[..., Tensor]]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

_HALVES: Final = (torch.float16, torch.bfloat16)

AXES: Final = {1: "L", 2: "H, W", 3: "D, H, W"}


def lift_conv_nd(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    windows: Sequence[int] | None = None,
) -> Tensor:
    r"""Lifting convolution of a signal, an image or a volume; as many dimensions as the basis has.

    .. math:: y_{c' s} = b_{c'} + \sum_{c, f} w_{c' c f} \, (\psi_{f s} \star x_c)

    Shapes:
        x: ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``; weight: ``(C', C / groups, F)``; basis:
        ``(F, S, K)``, ``(F, S, K, K)`` or ``(F, S, K, K, K)``; bias: ``(C',)``; result: ``(B, C', S, …)``
        with L' = (L + 2·padding − K) // stride + 1 along every axis.

    Args:
        x: The signal, image or volume.
        weight: w, the learned weights.
        basis: ψ, the basis functions on every scale, see `equiscale.basis.sample_nd`.
        bias: b, added on every scale, or None.
        geometry: Stride, padding and groups.
        windows: For every scale the side of the window outside which ψ is zero; the smaller filters then
            cost less. None: all K.

    Returns:
        The scale map.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or the padded input is smaller than K.
        SettingError: If the geometry projects or pools.

    Exactness:
        Circular shifts with circular padding: exact. In two dimensions equal to `lift_conv2d` up to
        rounding. Scaling by the grid's step: approximate, see ``tests/nn/test_nd.py``.

    Source:
        Sosnovik et al. 2020, equation 8, in n dimensions; the extension is ours.

    Example:
        >>> x, weight, basis = torch.randn(2, 3, 20), torch.randn(4, 3, 9), torch.randn(9, 2, 5)
        >>> lift_conv_nd(x, weight, basis, geometry=ConvGeometry(padding="same")).shape
        torch.Size([2, 4, 2, 20])
    """
    return convolve_nd("lift_conv_nd", ConvolutionNd(x, weight, basis, bias, geometry, windows))


def scale_conv_nd(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    windows: Sequence[int] | None = None,
) -> Tensor:
    r"""Scale convolution of the scale map of a signal, an image or a volume.

    .. math:: y_{c' s} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c' c i f} \, (\psi_{f s} \star x_{c, s + i})

    Shapes:
        x: ``(B, C, S, L)``, ``(B, C, S, H, W)`` or ``(B, C, S, D, H, W)``; weight:
        ``(C', C / groups, N, F)``; basis: ``(F, S, K, …)``; bias: ``(C',)``; result: ``(B, C', S, …)``
        with L' = (L + 2·padding − K) // stride + 1 along every axis.

    Args:
        x: The scale map.
        weight: w, the learned weights; N is the scale size, N > 1 lets scales interact.
        basis: ψ, the basis functions on every scale, see `equiscale.basis.sample_nd`.
        bias: b, added on every scale, or None.
        geometry: Stride, padding, groups, and what lies beyond the largest scale.
        windows: For every scale the side of the window outside which ψ is zero. None: all K.

    Returns:
        The scale map on the same scales.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or the padded map is smaller than K.
        SettingError: If the geometry projects or pools.

    Exactness:
        Circular shifts with circular padding: exact. In two dimensions equal to `scale_conv2d` up to
        rounding. Scaling by the grid's step: approximate; the scales near the open end of the axis see
        zeros where N > 1.

    Source:
        Sosnovik et al. 2020, equation 9, in n dimensions; the extension is ours.

    Example:
        >>> x, weight, basis = torch.randn(2, 3, 2, 20), torch.randn(4, 3, 1, 9), torch.randn(9, 2, 5)
        >>> scale_conv_nd(x, weight, basis, geometry=ConvGeometry(padding="same")).shape
        torch.Size([2, 4, 2, 20])
    """
    return convolve_nd("scale_conv_nd", ConvolutionNd(x, weight, basis, bias, geometry, windows))


@dataclass(frozen=True)
class ConvolutionNd(Convolution):
    """The operands of a lifting or scale convolution with a basis ``(F, S, K, …)`` of any dimension."""

    @property
    def ndim(self) -> int:
        """n, the number of dimensions."""
        return self.basis.ndim - 2

    @property
    def lifts(self) -> bool:
        """Whether the input has no scale axis yet."""
        return self.x.ndim == self.ndim + 2

    @property
    def images(self) -> Sequence[Tensor]:
        """What each scale holds, (B, C, …)."""
        return (self.x,) * self.num_scales if self.lifts else self.x.unbind(2)

    def seen(self, scale: int) -> Tensor:
        """What the slots of one scale hold, behind the channels as in the filters: (B, C·n, …)."""
        images = [self.images[slot] for slot in self.slots(scale)]
        return images[0] if len(images) == 1 else torch.stack(images, 2).flatten(1, 2)

    def window_basis(self, scale: int, window: int | None = None) -> Tensor:
        """The functions of one scale in their window: (F, k, …)."""
        window = self.sides[scale] if window is None else window
        margin = (self.kernel_size - window) // 2
        return self.basis[:, scale][(slice(None), *[slice(margin, margin + window)] * self.ndim)]

    def filters(self, scale: int) -> Tensor:
        """The filters of one scale in their window, the slots behind the channels: (C', C·n, k, …)."""
        weight = self.weight[:, :, : len(self.slots(scale))]

        def build() -> Tensor:
            functions = self.window_basis(scale)
            kernels = (weight @ functions.flatten(1)).flatten(1, 2)  # (C', C·n, k·…)
            return kernels.view(*kernels.shape[:2], *functions.shape[1:])

        return self.kept(("filters", scale, self.sides[scale]), build)


def convolve_nd(name: str, operands: ConvolutionNd) -> Tensor:
    """The lifting or the scale convolution of unchecked operands, one ordinary convolution a scale."""
    _check(name, operands)
    weight, windows = operands.weight, _windows(name, operands)
    weight = weight[:, :, None] if operands.lifts else weight
    whole = ConvolutionNd(
        operands.x, weight, operands.basis, operands.bias, operands.geometry, windows, operands.cache
    )
    return torch.stack([_one_scale(whole, scale) for scale in range(whole.num_scales)], 2)


def _one_scale(operands: ConvolutionNd, scale: int) -> Tensor:
    geometry, margin = operands.geometry, operands.margin(operands.sides[scale])
    x, padding = operands.seen(scale), max(margin, 0)
    if margin < 0 or (margin and geometry.padding_mode != "zeros"):
        mode = "constant" if margin < 0 else geometry.padding_mode
        x, padding = F.pad(x, [margin] * (2 * operands.ndim), mode=mode), 0
    convolution = _CONVOLUTIONS[operands.ndim]
    return convolution(
        x, operands.filters(scale), operands.bias, geometry.stride, padding, groups=geometry.groups
    )


def _windows(name: str, operands: ConvolutionNd) -> tuple[int, ...]:
    given, kernel_size = operands.windows, operands.kernel_size
    if given is None:
        return operands.sides
    legal = is_list(given) and all(is_odd(window) and window <= kernel_size for window in given)
    if not legal or len(given) != operands.num_scales:
        raise ShapeError(
            f"{name}: expected {operands.num_scales} odd windows of at most {kernel_size} pixels, "
            f"got {shown(given)}"
        )
    return tuple(given)


def _check(name: str, operands: ConvolutionNd) -> None:
    check_operands(name, operands.x, operands.weight, operands.basis, operands.bias)
    check_geometry(name, operands.geometry)
    operands.geometry.refuse(
        projection="only the layers for images take the maximum over scales in passing",
        pooling="only the layers for images pool in passing",
    )
    _check_operands(name, operands)
    _check_input(name, operands)


def _check_operands(name: str, operands: ConvolutionNd) -> None:
    weight, basis, bias = operands.weight, operands.basis, operands.bias
    sides = basis.shape[2:]
    if not 1 <= len(sides) <= 3 or len(set(sides)) != 1 or sides[0] % 2 == 0:
        raise ShapeError(
            f"{name}: expected a basis (F, S, K), (F, S, K, K) or (F, S, K, K, K) with odd K, "
            f"got {tuple(basis.shape)}"
        )
    layout = "(C', C, F)" if name == "lift_conv_nd" else "(C', C, N, F)"
    if weight.ndim != layout.count(",") + 1 or weight.shape[-1] != basis.shape[0]:
        raise ShapeError(
            f"{name}: expected weights {layout} with F={basis.shape[0]} as in the basis, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"{name}: expected a bias ({weight.shape[0]},), one number an output channel, "
            f"got {tuple(bias.shape)}"
        )


def _check_input(name: str, operands: ConvolutionNd) -> None:
    x, geometry = operands.x, operands.geometry
    channels, groups = operands.weight.shape[1] * geometry.groups, geometry.groups
    known = (channels,) if name == "lift_conv_nd" else (channels, operands.num_scales)
    if x.ndim != 1 + len(known) + operands.ndim or x.shape[1 : 1 + len(known)] != known:
        expected = ", ".join(["B", *map(str, known), AXES[operands.ndim]])
        raise ShapeError(f"{name}: expected an input ({expected}), got {tuple(x.shape)}")
    if operands.weight.shape[0] % groups:
        raise ShapeError(
            f"{name}: expected output channels divisible by {groups} groups, got {operands.weight.shape[0]}"
        )
    _check_size(name, x.shape[-operands.ndim :], operands.kernel_size, geometry)


def _check_size(name: str, size: Sequence[int], kernel_size: int, geometry: ConvGeometry) -> None:
    margin, side = geometry.margin(kernel_size), min(size)
    if side + 2 * margin < kernel_size:
        raise ShapeError(
            f"{name}: expected a padded input of at least the kernel's {kernel_size} pixels, got "
            f"{tuple(size)} with padding {margin}; use padding='same' or a smaller kernel"
        )
    limit = {"circular": side, "reflect": side - 1}.get(geometry.padding_mode, margin)
    if margin > limit:
        raise ShapeError(
            f"{name}: expected a {geometry.padding_mode} padding of at most {limit} pixels for an input of "
            f"{tuple(size)}, got {margin}; use a smaller kernel or padding_mode='zeros'"
        )


# --- companions ---


def scale_max_pool_nd(x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> Tensor:
    """Maximum over windows of pixels, separately on every scale, of a signal, an image or a volume.

    Shapes:
        x: ``(B, C, S, L)``, ``(B, C, S, H, W)`` or ``(B, C, S, D, H, W)``; result: the same axes, with
        L' = (L + 2·padding − k) // stride + 1 along each but the first three.

    Args:
        x: The scale map.
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels of −∞ added on each side, at most k / 2.

    Raises:
        ShapeError: If x is not a scale map, or smaller with its padding than the window.
        SettingError: If kernel_size, stride or padding are illegal.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> scale_max_pool_nd(torch.zeros(1, 2, 3, 8), 2).shape
        torch.Size([1, 2, 3, 4])
    """
    return _pool("scale_max_pool_nd", _MAX_POOLS, x, kernel_size, stride=stride, padding=padding)


def scale_avg_pool_nd(x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> Tensor:
    """Mean over windows of pixels, separately on every scale; arguments as `scale_max_pool_nd`.

    Shapes:
        x: ``(B, C, S, L)``, ``(B, C, S, H, W)`` or ``(B, C, S, D, H, W)``; result: the same axes.

    Raises:
        ShapeError: If x is not a scale map, or smaller with its padding than the window.
        SettingError: If kernel_size, stride or padding are illegal.

    Exactness:
        Commutes with shifts of the scale axis, and with shifts by multiples of the stride.

    Example:
        >>> scale_avg_pool_nd(torch.ones(1, 2, 3, 8, 8, 8), 2).shape
        torch.Size([1, 2, 3, 4, 4, 4])
    """
    return _pool("scale_avg_pool_nd", _AVG_POOLS, x, kernel_size, stride=stride, padding=padding)


def scale_projection_nd(x: Tensor, mode: Projection = "max") -> Tensor:
    """Reduce the scale axis of a signal's, an image's or a volume's scale map, as `scale_projection`.

    Shapes:
        x: ``(B, C, S, …)`` with 1 to 3 axes behind the scales; result: ``(B, C, …)``.

    Args:
        x: The scale map.
        mode: "max", "mean", "logsumexp", or "argmax-scale" for the index of the strongest scale.

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: For an unknown mode.

    Exactness:
        Invariant to permutations of the scale axis, "max" bit for bit and the sums up to rounding.

    Example:
        >>> scale_projection_nd(torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)).item()
        3.0
    """
    check_scale_map_nd("scale_projection_nd", x)
    flat = scale_projection(x.flatten(3)[..., None], mode)  # (B, C, L·…, 1)
    return flat.reshape(*x.shape[:2], *x.shape[3:])


def scale_dropout_nd(
    x: Tensor, p: float = 0.5, *, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Drop whole channels of a signal's, an image's or a volume's scale map, as `scale_dropout2d`.

    Shapes:
        x: ``(B, C, S, …)`` with 1 to 3 axes behind the scales; result: the same.

    Args:
        x: The scale map.
        p: The probability of dropping a channel.
        training: False: the identity.
        generator: Source of randomness on x's device; None: torch's default, as in torch.nn.

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: If p is not in [0, 1).

    Exactness:
        For a given mask it commutes with scaling and with shifts along the scale axis.

    Example:
        >>> scale_dropout_nd(torch.ones(1, 2, 3, 4), 0.5, training=False).sum().item()
        24.0
    """
    check_scale_map_nd("scale_dropout_nd", x)
    flat = scale_dropout2d(x.flatten(3)[..., None], p, training=training, generator=generator)
    return flat.reshape(x.shape)


def check_scale_map_nd(name: str, x: Tensor, ndim: int | None = None) -> None:
    """Raise a ShapeError unless x has the axes of a scale map, of so many dimensions where given."""
    check_filled(name, x)
    if x.ndim - 3 in (AXES if ndim is None else (ndim,)):
        return
    layouts = " or ".join(f"(B, C, S, {axes})" for n, axes in AXES.items() if ndim in (None, n))
    raise ShapeError(f"{name}: expected a scale map {layouts}, got {tuple(x.shape)}")


def _pool(
    name: str,
    pools: dict[int, Callable[..., Tensor]],
    x: Tensor,
    kernel_size: int,
    *,
    stride: int | None,
    padding: int,
) -> Tensor:
    check_scale_map_nd(name, x)
    check_window(kernel_size, stride, padding, f"{name}: ")
    if min(x.shape[3:]) + 2 * padding < kernel_size:
        raise ShapeError(
            f"{name}: expected a padded input of at least the window's {kernel_size} pixels, got "
            f"{tuple(x.shape[3:])} with padding {padding}; use a smaller window"
        )
    flat = x.flatten(1, 2)  # (B, C·S, …)
    if pools is _AVG_POOLS and min(x.shape[3:]) < kernel_size:
        flat, padding = F.pad(flat, [padding] * (2 * (x.ndim - 3))), 0  # in three dimensions torch refuses it
    if pools is _AVG_POOLS and x.dtype in _HALVES:  # torch has no mean of volumes in half precision
        pooled = pools[x.ndim - 3](flat.float(), kernel_size, stride or kernel_size, padding).to(x.dtype)
    else:
        pooled = pools[x.ndim - 3](flat, kernel_size, stride or kernel_size, padding)
    return pooled.reshape(*x.shape[:3], *pooled.shape[2:])
