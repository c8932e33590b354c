"""The lifting convolution and the scale convolution, as pure functions of tensors."""

from collections.abc import Sequence
from dataclasses import replace
from operator import index
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from equiscale._typing import BasisTensor, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.algorithms.convolution import Convolution
from equiscale.functional.algorithms.planner import compute
from equiscale.functional.blockwise import is_eager
from equiscale.functional.checks import check_operands, is_list, is_odd, is_whole, shown
from equiscale.functional.geometry import ConvGeometry, check_geometry
from equiscale.functional.memory_order import empty_in_order_of

_DEFAULT = ConvGeometry()

# Without a gradient nothing is kept, and fewer images at a time stay nearer to the processor.
_IMAGES: Final = 64


def lift_conv2d(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    windows: Sequence[int] | None = None,
) -> Tensor:
    r"""Lifting convolution: an image is correlated with every filter on every scale.

    .. math:: y_{c' s} = b_{c'} + \sum_{c, f} w_{c' c f} \, (\psi_{f s} \star x_c)

    Shapes:
        x: ``(B, C, H, W)``; weight: ``(C', C / groups, F)``; basis: ``(F, S, K, K)``; bias:
        ``(C',)``; result: ``(B, C', S, H', W')`` with H' = (H + 2·padding − K) // stride + 1.

    Args:
        x: The image.
        weight: w, the learned weights.
        basis: ψ, the basis functions on every scale.
        bias: b, added on every scale, or None.
        geometry: Stride, padding, groups, projection and pooling.
        windows: For every scale the side of the window outside which ψ is zero (see
            `support_windows`); the smaller filters then cost less. None: all K.

    Returns:
        The scale map, or its maximum over scales and over windows of pixels where the geometry says so.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or the padded image is smaller
            than K.

    Exactness:
        Circular shifts of the image with circular padding: exact. Scaling by the grid's step:
        approximate, see ``tests/nn/test_equivariance.py``.

    Source:
        Sosnovik et al. 2020, equation 8 (convTH).

    Example:
        >>> x, weight, basis = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 9), torch.randn(9, 2, 5, 5)
        >>> lift_conv2d(x, weight, basis, geometry=ConvGeometry(padding="same")).shape
        torch.Size([2, 4, 2, 8, 8])
    """
    operands = Convolution(x, weight, basis, bias, geometry, windows)
    return convolve("lift_conv2d", operands)


def scale_conv2d(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    windows: Sequence[int] | None = None,
) -> Tensor:
    r"""Scale convolution: a scale map is correlated with filters that may span N scales.

    .. math:: y_{c' s} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c' c i f} \, (\psi_{f s} \star x_{c, s + i})

    Shapes:
        x: ``(B, C, S, H, W)``; weight: ``(C', C / groups, N, F)``; basis: ``(F, S, K, K)``; bias:
        ``(C',)``; result: ``(B, C', S, H', W')`` with H' = (H + 2·padding − K) // stride + 1.

    Args:
        x: The scale map.
        weight: w, the learned weights; N is the scale size, N > 1 lets scales interact.
        basis: ψ, the basis functions on every scale.
        bias: b, added on every scale, or None.
        geometry: Stride, padding, groups, projection, pooling, and what lies beyond the largest scale.
        windows: For every scale the side of the window outside which ψ is zero (see
            `support_windows`). None: all K.

    Returns:
        The scale map on the same scales, or its maximum over them and over windows of pixels where the
        geometry says so.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or the padded map is smaller
            than K.

    Exactness:
        Circular shifts with circular padding: exact. Scaling by the grid's step: approximate; the
        scales near the open end of the axis see zeros where N > 1.

    Source:
        Sosnovik et al. 2020, equation 9 (convHH).

    Example:
        >>> x, weight, basis = torch.randn(2, 3, 2, 8, 8), torch.randn(4, 3, 1, 9), torch.randn(9, 2, 5, 5)
        >>> scale_conv2d(x, weight, basis, geometry=ConvGeometry(padding="same")).shape
        torch.Size([2, 4, 2, 8, 8])
    """
    operands = Convolution(x, weight, basis, bias, geometry, windows)
    return convolve("scale_conv2d", operands)


def pointwise_scale_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, groups: int = 1
) -> ScaleMap:
    r"""The 1×1 scale convolution: channels are mixed in the same way at every scale and pixel.

    .. math:: y_{c' s} = b_{c'} + \sum_c w_{c' c} \, x_{c s}

    Shapes:
        x: ``(B, C, S, H, W)``; weight: ``(C', C / groups, 1, 1)``; bias: ``(C',)``; result:
        ``(B, C', S, H', W')`` with H' = (H − 1) // stride + 1.

    Args:
        x: The scale map.
        weight: w.
        bias: b, or None.
        stride: Step in pixels.
        groups: Groups of channels that do not see each other.

    Returns:
        The scale map of C' channels.

    Raises:
        SettingError: If stride or groups are below 1.
        ShapeError: If the shapes do not fit one another.

    Exactness:
        At stride 1 commutes exactly with every permutation of pixels and of scales, shifts among
        them; without a bias with every linear operation on pixels, up to rounding.

    Source:
        Sosnovik et al. 2020. Deviation: the published code accepts a bias and never adds it.

    Example:
        >>> pointwise_scale_conv2d(torch.randn(2, 3, 2, 8, 8), torch.randn(5, 3, 1, 1)).shape
        torch.Size([2, 5, 2, 8, 8])
    """
    _check_pointwise(x, weight, bias, stride, groups)
    x = x[..., ::stride, ::stride]
    mixed = conv2d(x.flatten(2, 3), weight, bias, groups=groups)  # (B, C', S*H', W')
    return mixed.view(*mixed.shape[:2], *x.shape[2:])


def checked_windows(name: str, windows: Sequence[int] | None, basis: BasisTensor) -> Sequence[int]:
    """The windows of all scales, all K for None; a ShapeError unless they are sizes of filters."""
    num_scales, kernel_size = basis.shape[1:3]
    if windows is None:
        return [kernel_size] * num_scales
    legal = is_list(windows) and all(is_odd(window) and window <= kernel_size for window in windows)
    if not legal or len(windows) != num_scales:
        raise ShapeError(
            f"{name}: expected {num_scales} odd windows of at most {kernel_size} pixels, one for each scale, "
            f"got {shown(windows)}; support_windows(basis) finds them"
        )
    return windows


def convolve(name: str, operands: Convolution) -> Tensor:
    """The lifting or the scale convolution of unchecked operands."""
    return _in_parts(checked(name, operands))


def _in_parts(operands: Convolution) -> Tensor:
    """All images at once where a gradient is wanted; else so many as keep what is between them small."""
    batch = operands.x.shape[0]
    whole = torch.is_grad_enabled() or operands.transformed or not is_eager(operands.x)
    if whole or operands.x.device.type != "cpu" or batch <= _IMAGES:
        return compute(operands)
    parts = torch.split(operands.x, _IMAGES)
    first = compute(replace(operands, x=parts[0]))
    y = empty_in_order_of(first, (batch, *first.shape[1:]))
    y[:_IMAGES] = first
    del first
    for number, part in enumerate(parts[1:], 1):
        y[number * _IMAGES : (number + 1) * _IMAGES] = compute(replace(operands, x=part))
    return y


def checked(name: str, operands: Convolution) -> Convolution:
    """The operands of the function of this name in one form, or a ShapeError that begins with its name.

    The weights of a lifting convolution get their one slot, and the windows are cut to the part of the
    filters that ever meets a pixel.
    """
    x, weight, basis, geometry = operands.x, operands.weight, operands.basis, operands.geometry
    lifts = name == "lift_conv2d"
    check_operands(name, x, weight, basis, operands.bias)
    check_geometry(name, geometry)
    _check_operands(name, weight, basis, operands.bias, ndim=3 if lifts else 4)
    _check_input(name, x, weight, basis, geometry, layout="B C H W" if lifts else "B C S H W")
    windows = tuple(checked_windows(name, operands.windows, basis))
    if geometry.padding_mode == "zeros":
        radius = basis.shape[-1] // 2
        reach = max(map(index, x.shape[-2:])) - 1 + geometry.margin(basis.shape[-1]) - radius
        windows = tuple(min(window, 2 * reach + 1) for window in windows)
    return replace(operands, weight=weight[:, :, None] if lifts else weight, windows=windows)


def _check_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> None:
    name = "pointwise_scale_conv2d"
    check_operands(name, x, weight, bias)
    if not (is_whole(stride) and is_whole(groups)):
        raise SettingError(f"{name}: expected stride and groups of at least 1, got {stride} and {groups}")
    if weight.ndim != 4 or weight.shape[2:] != (1, 1) or weight.shape[0] % groups:
        raise ShapeError(
            f"{name}: expected weights (C', C / groups, 1, 1) with C' divisible by {groups} groups, "
            f"got {tuple(weight.shape)}"
        )
    _check_bias(name, weight, bias)
    channels = weight.shape[1] * groups
    if x.ndim != 5 or x.shape[1] != channels:
        raise ShapeError(f"{name}: expected a scale map (B, {channels}, S, H, W), got {tuple(x.shape)}")


def _check_operands(name: str, weight: Tensor, basis: Tensor, bias: Tensor | None, ndim: int) -> None:
    if basis.ndim != 4 or basis.shape[2] != basis.shape[3] or basis.shape[2] % 2 == 0:
        raise ShapeError(f"{name}: expected a basis (F, S, K, K) with odd K, got {tuple(basis.shape)}")
    if weight.ndim != ndim or weight.shape[-1] != basis.shape[0]:
        layout = "(C', C, F)" if ndim == 3 else "(C', C, N, F)"
        raise ShapeError(
            f"{name}: expected weights {layout} with F={basis.shape[0]} as in the basis, "
            f"got {tuple(weight.shape)}"
        )
    _check_bias(name, weight, bias)


def _check_bias(name: str, weight: Tensor, bias: Tensor | None) -> None:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"{name}: expected a bias ({weight.shape[0]},), one number an output channel, "
            f"got {tuple(bias.shape)}"
        )


def _check_input(
    name: str, x: Tensor, weight: Tensor, basis: Tensor, geometry: ConvGeometry, *, layout: str
) -> None:
    channels, num_scales = weight.shape[1] * geometry.groups, basis.shape[1]
    expected = layout.replace("C", str(channels)).replace("S", str(num_scales)).replace(" ", ", ")
    wrong_scales = x.ndim == 5 and x.shape[2] != num_scales
    if x.ndim != len(layout.split()) or x.shape[1] != channels or wrong_scales:
        raise ShapeError(f"{name}: expected an input ({expected}), got {tuple(x.shape)}")
    check_groups(name, weight, geometry)
    check_size(name, x, basis.shape[-1], geometry)


def check_groups(name: str, weight: Tensor, geometry: ConvGeometry) -> None:
    """Raise a ShapeError unless the groups divide the output channels."""
    if weight.shape[0] % geometry.groups:
        raise ShapeError(
            f"{name}: expected output channels divisible by {geometry.groups} groups, got {weight.shape[0]}"
        )


def check_size(name: str, x: Tensor, kernel_size: int, geometry: ConvGeometry) -> None:
    """Raise a ShapeError for pixels too few for the kernel, or for what is put around them."""
    margin, side = geometry.margin(kernel_size), min(x.shape[-2:])
    if side + 2 * margin < kernel_size:
        raise ShapeError(
            f"{name}: expected a padded input of at least the kernel's {kernel_size} pixels, got "
            f"{tuple(x.shape[-2:])} with padding {margin}; use padding='same' or a smaller kernel"
        )
    pixels = (side + 2 * margin - kernel_size) // geometry.stride + 1
    if pixels < geometry.pooling:
        raise ShapeError(
            f"{name}: expected at least {geometry.pooling} results in a row to pool, got {pixels} from "
            f"{tuple(x.shape[-2:])} pixels; use less pooling or more padding"
        )
    limit = {"circular": side, "reflect": side - 1}.get(geometry.padding_mode, margin)
    if margin > limit:
        raise ShapeError(
            f"{name}: expected a {geometry.padding_mode} padding of at most {limit} pixels for an input of "
            f"{tuple(x.shape[-2:])}, got {margin}; use a smaller kernel or padding_mode='zeros'"
        )
