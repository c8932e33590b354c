"""Kernels interpolated to many sizes, and the pooling over scales published with them."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from equiscale._typing import BasisTensor, Image, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_operands, is_list, is_odd, shown
from equiscale.functional.conv import checked_windows, lift_conv2d, scale_conv2d
from equiscale.functional.geometry import ConvGeometry
from equiscale.functional.project import check_scale_map, largest
from equiscale.functional.sicnn import separable_basis

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "area"]
ScalePooling: TypeAlias = Literal["pixel", "slice", "energy"]

_DEFAULT = ConvGeometry()


def rescaled_kernel_basis(kernel_sizes: Sequence[int], interpolation: Interpolation) -> BasisTensor:
    r"""What each weight of the smallest kernel becomes in the kernels of every size.

    .. math:: \psi_{(i, j) s}(y, x) = R_s(y, i) \, R_s(x, j), \qquad R_s = \frac{K_0}{K_s} I_s

    with I_s the interpolation of K_0 pixels by K_s over the same extent, centred in the largest kernel.

    Shapes:
        result: ``(K_0², S, K, K)``, float64, K the largest size.

    Args:
        kernel_sizes: K_s, the sides of the kernels in pixels; odd and increasing.
        interpolation: I: "nearest" (to the centres of pixels), "bilinear", "bicubic", or "area" (the mean
            of the kernel, taken as constant on its pixels, over the larger kernel's pixel).

    Raises:
        SettingError: If the sizes are not odd and increasing, or the interpolation is unknown.

    Source:
        Altstidl et al. 2022, section III. Deviation: their "nearest" takes the pixel at the left, which
        moves the kernel off its centre.

    Example:
        >>> rescaled_kernel_basis([3, 5, 9], "bilinear").shape
        torch.Size([9, 3, 9, 9])
    """
    legal = is_list(kernel_sizes) and len(kernel_sizes) > 0 and all(map(is_odd, kernel_sizes))
    if not legal or sorted(set(kernel_sizes)) != list(kernel_sizes):
        raise SettingError(f"expected odd increasing kernel_sizes, got {shown(kernel_sizes)}")
    sizes = list(kernel_sizes)
    if interpolation not in get_args(Interpolation):
        raise SettingError(
            f"expected an interpolation of {', '.join(get_args(Interpolation))}, got {interpolation!r}"
        )
    matrices = [_interpolation_matrix(sizes[0], size, interpolation) * sizes[0] / size for size in sizes]
    margins = [(sizes[-1] - size) // 2 for size in sizes]
    framed = [pad(matrix, (0, 0, m, m)) for matrix, m in zip(matrices, margins, strict=True)]
    return separable_basis(torch.stack(framed))  # (S, K, K_0) -> (K_0², S, K, K)


def rescaled_kernel_conv2d(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    windows: Sequence[int] | None = None,
) -> Tensor:
    r"""Correlate with one kernel interpolated to every size.

    .. math:: y_{c' s} = b_{c'} + \sum_c \big( \tfrac{K_0^2}{K_s^2} \, I_s w_{c' c} \big) \star x_{c [s]}

    An image is seen by every size; of a scale map, each size sees its own scale.

    Shapes:
        x: ``(B, C, H, W)`` or ``(B, C, S, H, W)``; weight: ``(C', C / groups, K_0, K_0)``; basis:
        ``(K_0², S, K, K)``; bias: ``(C',)``; result: ``(B, C', S, H', W')``, sizes as in
        `equiscale.functional.lift_conv2d`.

    Args:
        x: The image or the scale map.
        weight: w, the smallest kernel.
        basis: I with its norm, from `rescaled_kernel_basis`.
        bias: b, added at every scale, or None.
        geometry: Stride, padding and groups.
        windows: The sizes K_s; None: all K.

    Returns:
        The scale map of C' channels.

    Raises:
        ShapeError: If the shapes or windows do not fit one another.

    Exactness:
        With "nearest" or "area", an image whose pixels are repeated by an odd integer that is also a
        ratio of kernel sizes gives, in the middles of the repeated pixels, the features of the smaller
        kernel up to rounding. ``tests/nn/test_rescaled_kernel.py`` measures it, and the rest.

    Source:
        Altstidl et al., *Just a Matter of Scale? Reevaluating Scale Equivariance in Convolutional Neural
        Networks*, 2022, section III. Scale maps as input, stride and groups are ours.

    Example:
        >>> basis = rescaled_kernel_basis([3, 5], "bilinear").float()
        >>> rescaled_kernel_conv2d(torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3), basis).shape
        torch.Size([2, 6, 2, 5, 5])
    """
    check_operands("rescaled_kernel_conv2d", x, weight, basis, bias)
    if weight.ndim != 4:
        raise ShapeError(
            f"rescaled_kernel_conv2d: expected weights (C', C / groups, K, K), got {tuple(weight.shape)}"
        )
    flat = weight.flatten(2)  # (C', C, K_0, K_0) -> (C', C, K_0²)
    if x.ndim == 5:
        return scale_conv2d(x, flat[:, :, None], basis, bias, geometry=geometry, windows=windows)
    return lift_conv2d(x, flat, basis, bias, geometry=geometry, windows=windows)


def rescaled_kernel_valid_conv2d(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    windows: Sequence[int],
) -> ScaleMap:
    r"""As `rescaled_kernel_conv2d` without padding; where a larger kernel leaves the image, 0 is put.

    Shapes:
        as in `rescaled_kernel_conv2d`, with H' = H − K_0 + 1.

    Args:
        x: The image or the scale map.
        weight: w, the smallest kernel.
        basis: I with its norm, from `rescaled_kernel_basis`.
        bias: b, added at every scale, or None; not to the zeros.
        windows: The sizes K_s, from K_0 to K, all of them.

    Returns:
        The scale map of C' channels.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or the largest kernel does not fit the
            image.

    Source:
        Altstidl et al. 2022, section III and their code, without padding.

    Example:
        >>> basis = rescaled_kernel_basis([3, 5], "bilinear").float()
        >>> x, weight = torch.ones(1, 1, 9, 9), torch.ones(1, 1, 3, 3)
        >>> y = rescaled_kernel_valid_conv2d(x, weight, basis, windows=[3, 5])
        >>> y[0, 0, :, 0, 3].round().tolist()
        [9.0, 0.0]
    """
    check_operands("rescaled_kernel_valid_conv2d", x, weight, basis, bias)
    _check_valid(x, weight, basis, windows)
    maps = []
    for scale, window in enumerate(windows):
        margin, lost = (basis.shape[-1] - window) // 2, (window - windows[0]) // 2
        inner = slice(margin, margin + window)
        seen = x if x.ndim == 4 else x[:, :, scale : scale + 1]
        alone = rescaled_kernel_conv2d(seen, weight, basis[:, scale : scale + 1, inner, inner], bias)
        maps.append(pad(alone, [lost] * 4))
    return torch.cat(maps, dim=2)  # S of (B, C', 1, H', W')


def _check_valid(x: Tensor, weight: Tensor, basis: Tensor, windows: Sequence[int]) -> None:
    name = "rescaled_kernel_valid_conv2d"
    if weight.ndim != 4 or basis.ndim != 4 or basis.shape[2] != basis.shape[3]:
        raise ShapeError(
            f"{name}: expected weights (C', C / groups, K, K) and a basis (F, S, K, K), "
            f"got {tuple(weight.shape)} and {tuple(basis.shape)}"
        )
    if x.ndim not in (4, 5):
        raise ShapeError(f"{name}: expected an image or a scale map, got {tuple(x.shape)}")
    sizes = list(checked_windows(name, windows, basis))
    if sorted(set(sizes)) != sizes or [sizes[0], sizes[-1]] != [weight.shape[-1], basis.shape[-1]]:
        raise ShapeError(
            f"{name}: expected windows that increase from the weight's {weight.shape[-1]} pixels to the "
            f"basis' {basis.shape[-1]}, got {sizes}; they are the sizes of the kernels"
        )
    if x.ndim == 5 and x.shape[2] != len(sizes):
        raise ShapeError(
            f"{name}: expected an input (B, {weight.shape[1]}, {len(sizes)}, H, W), got {tuple(x.shape)}"
        )


def scale_pool(x: Tensor, kind: ScalePooling = "pixel") -> Image:
    r"""Reduce the scale axis to the strongest scale: of each pixel, or of the whole channel.

    .. math::
        y_c = x_{c s^*}, \quad s^* = \arg\max_s x_{c s}(p), \quad \arg\max_s \max_p x_{c s}(p)
        \quad\text{or}\quad \arg\max_s \sum_p x_{c s}(p)

    Shapes:
        x: ``(B, C, S, H, W)``; result: ``(B, C, H, W)``.

    Args:
        x: The scale map.
        kind: "pixel", "slice" (the scale with the largest value) or "energy" (the largest sum). Of
            equal scales the first is taken.

    Raises:
        ShapeError: If x is not a scale map.
        SettingError: For an unknown kind.

    Exactness:
        Invariant to permutations of the scale axis bit for bit, where one scale is strongest. Scaling
        moves features off the end of the axis: there the result changes.

    Source:
        Altstidl et al. 2022, section III. The sum is of the values with their sign, as in their code.

    Example:
        >>> x = torch.tensor([[[[[0.0, 3.0]], [[2.0, 2.0]]]]])  # two scales of 1×2 pixels
        >>> [scale_pool(x, kind).flatten().tolist() for kind in ("pixel", "slice", "energy")]
        [[2.0, 3.0], [0.0, 3.0], [2.0, 2.0]]
    """
    check_scale_map("scale_pool", x)
    if kind not in get_args(ScalePooling):
        raise SettingError(f"expected a pooling of {', '.join(get_args(ScalePooling))}, got {kind!r}")
    if kind == "pixel":
        return largest(x, 2)
    strength = x.amax((3, 4)) if kind == "slice" else x.sum((3, 4))
    strongest = strength.argmax(2)[:, :, None, None, None]  # (B, C, 1, 1, 1)
    return x.gather(2, strongest.expand(-1, -1, 1, *x.shape[3:])).squeeze(2)


def _interpolation_matrix(source: int, target: int, interpolation: Interpolation) -> Tensor:
    """From the source pixels to the target pixels over the same extent, (target, source)."""
    if interpolation == "area":
        return _overlaps(source, target)
    mode = {"nearest": "nearest-exact", "bilinear": "linear"}.get(interpolation, interpolation)
    unit = torch.eye(source, dtype=torch.float64)[None]  # (1, C, source): one pixel a channel
    if mode == "bicubic":
        tall = interpolate(unit[..., None], size=(target, 1), mode=mode, align_corners=False)[..., 0]
        return tall[0].mT
    align = False if mode == "linear" else None
    return interpolate(unit, size=target, mode=mode, align_corners=align)[0].mT


def _overlaps(source: int, target: int) -> Tensor:
    """The fraction of every target pixel that each source pixel covers."""
    ends = torch.arange(target + 1, dtype=torch.float64) * source / target
    pixels = torch.arange(source, dtype=torch.float64)
    above = torch.maximum(ends[:-1, None], pixels)
    below = torch.minimum(ends[1:, None], pixels + 1)
    return (below - above).clamp_min(0) * target / source
