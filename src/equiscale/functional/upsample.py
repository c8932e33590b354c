"""From a scale map to one with more pixels: interpolation, and the transposed scale convolution."""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, interpolate, pad

from equiscale._typing import ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.algorithms.convolution import Convolution
from equiscale.functional.checks import check_operands, is_whole
from equiscale.functional.conv import checked_windows
from equiscale.functional.geometry import ConvGeometry, check_geometry
from equiscale.functional.project import check_scale_map

UpsampleMethod: TypeAlias = Literal["bilinear", "nearest"]
Alignment: TypeAlias = Literal["areas", "points"]

_DEFAULT: Final = ConvGeometry()


def scale_upsample2d(
    x: Tensor, factor: int, *, method: UpsampleMethod = "bilinear", alignment: Alignment = "areas"
) -> ScaleMap:
    r"""More pixels about the true centre, separately on every scale.

    .. math:: y_{c s}(i) = x_{c s}\!\left(\tfrac{i + 1/2}{r} - \tfrac{1}{2}\right) \;\text{(areas)}, \qquad
        x_{c s}\!\left(\tfrac{i}{r}\right) \;\text{(points)}

    along rows and columns, with x interpolated between its pixels and constant beyond the outermost ones.
    "areas" undoes pooling, where a pixel stands for r × r pixels; "points" undoes a stride, where pixel i
    stands at pixel r i.

    Shapes:
        x: ``(B, C, S, H, W)``; result: ``(B, C, S, r H, r W)``, of points
        ``(B, C, S, r (H − 1) + 1, r (W − 1) + 1)``.

    Args:
        x: The scale map.
        factor: r.
        method: "bilinear", or "nearest", which repeats every pixel and is for areas only.
        alignment: "areas" or "points".

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: If the factor is not a whole number of at least 1, or a choice is illegal.

    Exactness:
        Commutes exactly with whatever acts on batch, channels and scales alike at every pixel, shifts of
        the scale axis among them, with transposition and with reflections; away from the border also with
        shifts, by d pixels before and r d after it. Means over r × r pixels undo "nearest", every r-th pixel
        undoes "points", up to rounding. With scaling it commutes up to the error of
        interpolation, about the same centre: ``tests/functional/test_upsample.py``.

    Source:
        Interpolation as in torch (``align_corners`` is "points"); for the need of it between scale
        convolutions Sangalli, Blusseau, Velasco-Forero, Angulo, *Scale Equivariant U-Net*, BMVC 2022.

    Example:
        >>> scale_upsample2d(torch.zeros(1, 2, 3, 4, 5), 2).shape
        torch.Size([1, 2, 3, 8, 10])
    """
    check_upsampling(factor, method, alignment, "scale_upsample2d: ")
    check_scale_map("scale_upsample2d", x)
    if alignment == "areas":
        size = [factor * side for side in x.shape[3:]]
    else:
        size = [factor * (side - 1) + 1 for side in x.shape[3:]]
    corners = None if method == "nearest" else alignment == "points"
    y = interpolate(x.flatten(1, 2), size, mode=method, align_corners=corners)  # (B, C·S, H', W')
    return y.view(*x.shape[:3], *size)


def check_upsampling(factor: int, method: str, alignment: str, prefix: str = "") -> None:
    """Raise a SettingError for an illegal factor, method or alignment; the message begins with ``prefix``."""
    if not is_whole(factor):
        raise SettingError(f"{prefix}expected a whole factor of at least 1, got {factor!r}")
    for name, value, legal in (("method", method, UpsampleMethod), ("alignment", alignment, Alignment)):
        if value not in get_args(legal):
            raise SettingError(f"{prefix}expected a {name} of {', '.join(get_args(legal))}, got {value!r}")
    if (method, alignment) == ("nearest", "points"):
        raise SettingError(
            f"{prefix}expected method='bilinear' with alignment='points', got 'nearest', which repeats areas"
        )


def scale_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    output_padding: int = 0,
    windows: Sequence[int] | None = None,
) -> Tensor:
    r"""The transpose of `scale_conv2d`: more pixels where that has a stride.

    .. math:: y_{c' t} = b_{c'} + \sum_{i < N} \sum_{c, f} w_{c c' i f} \,
        \psi_{f, t - i}^{\,T} \, x_{c, t - i}

    where :math:`\psi^T` spreads every pixel of x over the window of ψ, ``stride`` pixels apart.

    Shapes:
        x: ``(B, C, S, H, W)``; weight: ``(C, C' / groups, N, F)``, that of the convolution from C' to C
        channels; basis: ``(F, S, K, K)``; bias: ``(C',)``; result: ``(B, C', S, H', W')`` with
        H' = (H − 1)·stride − 2·padding + K + output_padding.

    Args:
        x: The scale map.
        weight: w, the learned weights.
        basis: ψ, the basis functions on every scale.
        bias: b, added on every scale, or None.
        geometry: Stride, padding with zeros, groups, and what the convolution saw beyond the largest scale.
        output_padding: Rows and columns more at the end, 0 to stride − 1: of several sizes that the
            convolution maps to H × W it chooses one.
        windows: For every scale the side of the window outside which ψ is zero. None: all K.

    Returns:
        The scale map on the same scales.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or no pixel is left.
        SettingError: If the geometry pads with other than zeros, projects or pools, or output_padding is
            illegal.

    Exactness:
        ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ with A = `scale_conv2d` without bias, of the same weights and geometry, up to
        rounding: ``tests/functional/test_upsample.py``. Shifts by d pixels before and stride · d after it
        are exact away from the border. About the true centre where output_padding is 0 and padding "same".
        Scaling: at stride 1 that of the convolution; at larger strides see
        `equiscale.nn.ScaleConvTranspose2d`.

    Source:
        Transpose of Sosnovik et al. 2020, equation 9; the layer is ours.

    Example:
        >>> x, weight, basis = torch.randn(2, 3, 2, 4, 4), torch.randn(3, 5, 1, 9), torch.randn(9, 2, 5, 5)
        >>> scale_conv_transpose2d(x, weight, basis, geometry=ConvGeometry(stride=2, padding="same")).shape
        torch.Size([2, 5, 2, 7, 7])
    """
    return transpose_convolve(Convolution(x, weight, basis, bias, geometry, windows), output_padding)


def check_transposable(geometry: ConvGeometry, output_padding: int) -> None:
    """Raise a SettingError for options that a transposed convolution does not have."""
    geometry.refuse(
        padding_mode="the transpose of other than zeros folds the border back",
        projection="a transposed convolution makes scale maps",
        pooling="a transposed convolution makes more pixels",
    )
    if not (is_whole(output_padding, 0) and output_padding < geometry.stride):
        raise SettingError(
            f"expected an output_padding of 0 to {geometry.stride - 1}, below the stride, "
            f"got {output_padding}"
        )


def transpose_convolve(operands: Convolution, output_padding: int) -> Tensor:
    """The transposed scale convolution of unchecked operands."""
    name = "scale_conv_transpose2d"
    check_operands(name, operands.x, operands.weight, operands.basis, operands.bias)
    check_geometry(name, operands.geometry)
    check_transposable(operands.geometry, output_padding)
    _check(name, operands)
    windows = tuple(checked_windows(name, operands.windows, operands.basis))
    whole = Convolution(
        operands.x, operands.weight, operands.basis, None, operands.geometry, windows, operands.cache
    )
    size = [_spread(side, whole, output_padding) for side in operands.x.shape[3:]]
    if min(size) < 1:
        raise ShapeError(
            f"{name}: expected at least one pixel, got a result of {tuple(size)} from "
            f"{tuple(operands.x.shape[3:])} pixels; use less padding"
        )
    sums: list[Tensor | None] = [None] * whole.num_scales
    for scale, image in enumerate(operands.x.unbind(2)):
        parts = _spread_scale(whole, scale, image, output_padding)
        for slot, part in zip(whole.slots(scale), parts, strict=True):
            known = sums[slot]
            sums[slot] = part if known is None else known + part
    y = torch.stack([part for part in sums if part is not None], 2)
    return y if operands.bias is None else y + operands.bias.view(-1, 1, 1, 1).to(y.dtype)


def _spread(side: int, operands: Convolution, output_padding: int) -> int:
    kernel_size, geometry = operands.kernel_size, operands.geometry
    return (side - 1) * geometry.stride - 2 * geometry.margin(kernel_size) + kernel_size + output_padding


def _spread_scale(operands: Convolution, scale: int, image: Tensor, output_padding: int) -> Sequence[Tensor]:
    """What one scale of the input gives to the scales of its slots, each (B, C', H', W')."""
    geometry, margin = operands.geometry, operands.margin(operands.sides[scale])
    y = conv_transpose2d(image, operands.filters(scale), None, geometry.stride, groups=geometry.groups)
    last = output_padding - margin
    y = pad(y, [-margin, last, -margin, last])  # what is negative is cut
    channels = operands.weight.shape[1] * geometry.groups
    return y.view(y.shape[0], channels, len(operands.slots(scale)), *y.shape[2:]).unbind(2)


def _check(name: str, operands: Convolution) -> None:
    x, weight, basis = operands.x, operands.weight, operands.basis
    if basis.ndim != 4 or basis.shape[2] != basis.shape[3] or basis.shape[2] % 2 == 0:
        raise ShapeError(f"{name}: expected a basis (F, S, K, K) with odd K, got {tuple(basis.shape)}")
    groups = operands.geometry.groups
    if weight.ndim != 4 or weight.shape[-1] != basis.shape[0] or weight.shape[0] % groups:
        raise ShapeError(
            f"{name}: expected weights (C, C' / groups, N, F) with F={basis.shape[0]} as in the basis and C "
            f"divisible by {groups} groups, got {tuple(weight.shape)}"
        )
    if x.ndim != 5 or x.shape[1:3] != (weight.shape[0], basis.shape[1]):
        raise ShapeError(
            f"{name}: expected an input (B, {weight.shape[0]}, {basis.shape[1]}, H, W), got {tuple(x.shape)}"
        )
    channels = weight.shape[1] * groups
    if operands.bias is not None and operands.bias.shape != (channels,):
        raise ShapeError(
            f"{name}: expected a bias ({channels},), one number an output channel, "
            f"got {tuple(operands.bias.shape)}"
        )
