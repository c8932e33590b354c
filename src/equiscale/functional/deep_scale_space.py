"""Scale-spaces by the discrete Gaussian, and dilated correlation on them (Worrall & Welling 2019)."""

import math
from collections.abc import Sequence
from itertools import accumulate, repeat

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, pad

from equiscale._typing import PaddingMode, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import (
    check_filled,
    check_operands,
    check_tensor,
    is_list,
    is_number,
    is_whole,
)
from equiscale.functional.conv import pointwise_scale_conv2d
from equiscale.functional.geometry import ConvGeometry, check_geometry

# Standard deviations after which the published kernels are cut.
_CUT = 4

# The recurrence starts this far beyond the kernel, in pixels and in standard deviations: what it starts
# from is forgotten on the way, by e^-64 at least.
_RUN_UP, _RUN_UP_DEVIATIONS = 40, 8

_SAME = ConvGeometry(padding="same")


def discrete_gaussian(variance: float, radius: int | None = None) -> Float[Tensor, "taps"]:
    r"""Lindeberg's discrete Gaussian, the kernel of diffusion on a grid of pixels.

    .. math:: T(n; t) = \frac{e^{-t} I_n(t)}{\sum_{|m| \le r} e^{-t} I_m(t)}, \qquad |n| \le r

    with I the modified Bessel functions. They are computed from the ratios of their neighbours,
    :math:`I_n / I_{n-1} = 1 / (2 n / t + I_{n+1} / I_n)`, from large orders down: nothing overflows.

    Shapes:
        result: ``(2 r + 1,)``.

    Args:
        variance: t, in pixels²; 0 gives the unit impulse.
        radius: r, in pixels; None: four standard deviations, each rounded up to a whole pixel.

    Returns:
        The kernel in float64, which sums to 1.

    Raises:
        SettingError: If the variance is negative or not finite, or the radius negative.

    Exactness:
        Uncut, :math:`T(t) * T(u) = T(t + u)` exactly; cut, up to the tails beyond r:
        ``tests/functional/test_deep_scale_space.py``.

    Source:
        Lindeberg, *Scale-space for discrete signals*, PAMI 1990; Worrall, Welling 2019. The radius is
        that of the published code.

    Example:
        >>> discrete_gaussian(0.5, 1).tolist()
        [0.16..., 0.67..., 0.16...]
    """
    if not (is_number(variance) and 0 <= variance < math.inf):
        raise SettingError(f"expected a finite variance of at least 0, got {variance!r}")
    if radius is None:
        radius = _CUT * math.ceil(math.sqrt(variance))
    if not is_whole(radius, 0):
        raise SettingError(f"expected a radius of at least 0 pixels, got {radius!r}")
    relative = list(accumulate(_bessel_ratios(variance, radius), float.__mul__, initial=1.0))  # I_n / I_0
    half = torch.tensor(relative, dtype=torch.float64)
    kernel = torch.cat([half[1:].flip(0), half])
    return kernel / kernel.sum()


def scale_space_lift2d(
    x: Tensor, kernels: Sequence[Tensor], *, padding_mode: PaddingMode = "zeros"
) -> ScaleMap:
    r"""Blur an image with each of several kernels, along rows and columns, and keep the image itself.

    .. math:: y_{c 0} = x_c, \qquad y_{c s} = T_s^\top \star T_s \star x_c \quad (s > 0)

    Shapes:
        x: ``(B, C, H, W)``; kernels: S − 1 of ``(2 r + 1,)``; result: ``(B, C, S, H, W)``.

    Args:
        x: The image.
        kernels: T, for example of `discrete_gaussian`.
        padding_mode: What lies beyond the border.

    Returns:
        The scale map.

    Raises:
        ShapeError: If x is not an image or a kernel is not of odd length, or if the border is too wide
            for the padding mode.
        SettingError: For an unknown padding mode.

    Exactness:
        See `equiscale.nn.ScaleSpaceLift2d`.

    Source:
        Worrall, Welling 2019.

    Example:
        >>> scale_space_lift2d(torch.ones(1, 2, 8, 9), [discrete_gaussian(1.0).float()]).shape
        torch.Size([1, 2, 2, 8, 9])
    """
    name = "scale_space_lift2d"
    ConvGeometry(padding_mode=padding_mode)
    if not is_list(kernels):
        raise ShapeError(f"{name}: expected a list of kernels (2r + 1,), got {kernels!r}")
    check_filled(name, x)
    if x.ndim != 4:
        raise ShapeError(f"{name}: expected an image (B, C, H, W), got {tuple(x.shape)}")
    for kernel in kernels:
        check_tensor(name, kernel)
        if kernel.ndim != 1 or len(kernel) % 2 == 0:
            raise ShapeError(f"{name}: expected kernels (2r + 1,), got {tuple(kernel.shape)}")
        _check_border(name, x, len(kernel) // 2, padding_mode)
    check_operands(name, x, *kernels)
    return torch.stack([x, *(_blur(x, kernel, padding_mode) for kernel in kernels)], dim=2)


def scale_space_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, base: int = 2, geometry: ConvGeometry = _SAME
) -> ScaleMap:
    r"""Scale correlation: the same filter at every scale, dilated with it.

    .. math:: y_{c' s}(p) = b_{c'} + \sum_{i < N} \sum_{c, q} w_{c' c i}(q) \,
        x_{c, s + i}(p + \beta^s q)

    Shapes:
        x: ``(B, C, S, H, W)``; weight: ``(C', C / groups, N, K, K)``; bias: ``(C',)``; result:
        ``(B, C', S, H', W')`` with H' = (H − 1) // stride + 1.

    Args:
        x: The scale map.
        weight: w; N is the scale size, N > 1 lets scales interact.
        bias: b, added on every scale, or None.
        base: β, the ratio of neighbouring scales, a whole number.
        geometry: Stride, padding mode, groups, and what lies beyond the largest scale. The padding is
            half the dilated filter on each side, so that all scales have the same size.

    Returns:
        The scale map on the same scales.

    Raises:
        ShapeError: If the shapes do not fit one another, or the border is too wide for the padding mode.
        SettingError: If the base is no whole number above 1, or the padding is another.

    Exactness:
        Exact under the semigroup of subsampling, :math:`(A x)_s(p) = x_{s + 1}(\beta p)`, on the scales
        that remain: the result of A x is A of the result, at every stride, the open end of the scale
        axis included. Zeros beyond the border: for every size; a circular border: where β divides the
        size; others: where β divides the size − 1 (``tests/functional/test_deep_scale_space.py``).

    Source:
        Worrall, Welling, *Deep Scale-spaces: Equivariance Over Scale*, NeurIPS 2019.
        Deviation: ``scale_padding="replicate"`` is ours.

    Example:
        >>> scale_space_conv2d(torch.randn(2, 3, 4, 8, 9), torch.randn(5, 3, 2, 3, 3)).shape
        torch.Size([2, 5, 4, 8, 9])
    """
    name = "scale_space_conv2d"
    check_base(base)
    _check_operands(name, x, weight, bias, geometry)
    scale_size, kernel_size = weight.shape[2], weight.shape[-1]
    if scale_size == kernel_size == 1:  # dilation does not matter
        return pointwise_scale_conv2d(
            x, weight[:, :, 0], bias, stride=geometry.stride, groups=geometry.groups
        )
    num_scales = x.shape[2]
    _check_border(name, x, base ** (num_scales - 1) * (kernel_size // 2), geometry.padding_mode)
    if geometry.scale_padding == "replicate":
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, scale_size - 1, -1, -1)], dim=2)
    maps = []
    for scale in range(num_scales):
        seen = x[:, :, scale : scale + scale_size]  # fewer than N at the open end: the rest is zero
        filters = weight[:, :, : seen.shape[2]]
        maps.append(_dilated(seen.flatten(1, 2), filters.flatten(1, 2), bias, base**scale, geometry))
    return torch.stack(maps, dim=2)  # (B, C', S, H', W')


def check_base(base: int) -> None:
    """Raise a SettingError unless dilations by powers of the base are whole numbers."""
    if not is_whole(base, 2):
        raise SettingError(f"expected a whole number of at least 2 as base, got {base!r}; pixels are whole")


def _bessel_ratios(variance: float, radius: int) -> list[float]:
    """I_n(t) / I_{n-1}(t) for n = 1 … r."""
    if variance == 0:
        return list(repeat(0.0, radius))
    ratio, ratios = 0.0, []
    start = radius + _RUN_UP + _RUN_UP_DEVIATIONS * math.ceil(math.sqrt(variance))
    for order in range(start, 0, -1):
        ratio = 1 / (2 * order / variance + ratio)
        ratios.append(ratio)
    return ratios[::-1][:radius]


def _blur(x: Tensor, kernel: Tensor, padding_mode: PaddingMode) -> Tensor:
    """Both directions as products with matrices: a hundred pixels are few, and channels many."""
    rows, columns = (_blur_matrix(kernel, size, padding_mode) for size in x.shape[-2:])
    return rows @ (x @ columns.T)


def _blur_matrix(kernel: Tensor, size: int, padding_mode: PaddingMode) -> Float[Tensor, "size size"]:
    """Row i holds the weights with which the pixels make up the blurred pixel i."""
    identity = torch.eye(size, dtype=kernel.dtype, device=kernel.device)[:, None]
    padded = _padded(identity, [len(kernel) // 2] * 2, padding_mode)
    return conv1d(padded, kernel.view(1, 1, -1)).squeeze(1).T  # (pixel, blurred pixel) -> its transpose


def _dilated(
    x: Tensor, filters: Tensor, bias: Tensor | None, dilation: int, geometry: ConvGeometry
) -> Tensor:
    margin = dilation * (filters.shape[-1] // 2)
    if geometry.padding_mode != "zeros":
        x, margin = _padded(x, [margin] * 4, geometry.padding_mode), 0
    return conv2d(x, filters, bias, geometry.stride, margin, dilation, geometry.groups)


def _padded(x: Tensor, border: list[int], padding_mode: PaddingMode) -> Tensor:
    return pad(x, border, mode="constant" if padding_mode == "zeros" else padding_mode)


def _check_operands(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> None:
    check_operands(name, x, weight, bias)
    check_geometry(name, geometry)
    if weight.ndim != 5 or weight.shape[3] != weight.shape[4] or weight.shape[3] % 2 == 0:
        raise ShapeError(f"{name}: expected weights (C', C, N, K, K) with odd K, got {tuple(weight.shape)}")
    check_padding(geometry, weight.shape[-1])
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"{name}: expected a bias ({weight.shape[0]},), one number an output channel, "
            f"got {tuple(bias.shape)}"
        )
    channels = weight.shape[1] * geometry.groups
    if x.ndim != 5 or x.shape[1] != channels:
        raise ShapeError(f"{name}: expected a scale map (B, {channels}, S, H, W), got {tuple(x.shape)}")
    if weight.shape[0] % geometry.groups:
        raise ShapeError(
            f"{name}: expected output channels divisible by {geometry.groups} groups, got {weight.shape[0]}"
        )


def check_padding(geometry: ConvGeometry, kernel_size: int) -> None:
    """Raise a SettingError unless the padding is half the filter."""
    if geometry.margin(kernel_size) != kernel_size // 2:
        raise SettingError(
            f"expected padding='same' or {kernel_size // 2}, half the filter before its dilation, "
            f"got {geometry.padding!r}; with any other the scales would differ in size"
        )


def _check_border(name: str, x: Tensor, margin: int, padding_mode: PaddingMode) -> None:
    side = min(x.shape[-2:])
    limit = {"circular": side, "reflect": side - 1}.get(padding_mode, margin)
    if margin > limit:
        raise ShapeError(
            f"{name}: expected a {padding_mode} border of at most {limit} pixels for an input of "
            f"{tuple(x.shape[-2:])}, got {margin} at the largest scale; use fewer scales or "
            "padding_mode='zeros'"
        )
