"""Multi-column convolution: one kernel, resized for the column of every scale."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equiscale._typing import BasisTensor, ScaleMap
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.canvas import CanvasMethod, canvas_matrix
from equiscale.functional.checks import check_operands, is_odd
from equiscale.functional.conv import checked_windows, lift_conv2d
from equiscale.functional.filters import synthesize_filters
from equiscale.functional.geometry import ConvGeometry, check_geometry
from equiscale.scales import ScaleGrid

_SAME = ConvGeometry(padding="same")
_NAME = "multi_column_conv2d"


def multi_column_basis(kernel_size: int, scales: Sequence[float]) -> BasisTensor:
    r"""What each weight of the canonical kernel becomes in the column of every scale.

    .. math:: \psi_{(i, j) s}(y, x) = R_s(y, i) \, R_s(x, j)

    with R_s the resizing of `equiscale.functional.canvas.canvas_matrix`: bilinear below scale 1, nearest
    above. A kernel of one pixel is the same in all columns.

    Shapes:
        result: ``(K², S, P, P)``, float64, with P = K rounded up with the largest scale to an odd number.

    Args:
        kernel_size: K, the side of the canonical kernel in pixels; odd.
        scales: The S scales, increasing.

    Raises:
        ScaleGridError: If the scales are not positive and increasing.
        SettingError: If the kernel is not odd, or a scale is so small that nothing of it remains.

    Source:
        Xu et al. 2014, section 3.2; resizing and its methods follow the public code of Sosnovik et al.
        2020. Deviation: where all scales are below 1 the canvas is not made smaller than the kernel.

    Example:
        >>> multi_column_basis(3, [1.0, 1.5]).shape
        torch.Size([9, 2, 5, 5])
    """
    grid = ScaleGrid(scales)
    if not is_odd(kernel_size):
        raise SettingError(f"expected an odd kernel_size of at least 1, got {kernel_size!r}")
    if kernel_size == 1:
        return torch.ones(1, len(grid), 1, 1, dtype=torch.float64)
    matrices = torch.stack([_column_matrix(kernel_size, scale, grid.max) for scale in grid])
    return separable_basis(matrices)


def separable_basis(matrices: Tensor) -> BasisTensor:
    """The basis of products of rows and columns: ``(S, P, K)`` to ``(K², S, P, P)``."""
    products = torch.einsum("syi,sxj->ijsyx", matrices, matrices)
    return products.flatten(0, 1)  # (K, K, S, P, P) -> (K², S, P, P)


def multi_column_conv2d(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _SAME,
    windows: Sequence[int] | None = None,
) -> ScaleMap:
    r"""Correlate every column with the canonical kernel resized to its scale, its L1 norm kept.

    .. math::
        y_{c' s} = b_{c'} + \sum_c \kappa_{c' c s} \star x_{c s}, \quad
        \kappa_{c' c s} = \frac{\| w_{c' c} \|_1}{\| R_s w_{c' c} \|_1} \, R_s w_{c' c}

    An image is seen by all columns, as the published first layer does.

    Shapes:
        x: ``(B, C, H, W)`` or ``(B, C, S, H, W)``; weight: ``(C', C / groups, K, K)``; basis:
        ``(K², S, P, P)``; bias: ``(C',)``; result: ``(B, C', S, H', W')``.

    Args:
        x: The image, or the scale map with one column a scale.
        weight: w, the canonical kernel.
        basis: R, from `multi_column_basis`.
        bias: b, added in every column, or None.
        geometry: Stride, padding and groups; by default "same", half of P on each side.
        windows: As in `equiscale.functional.lift_conv2d`.

    Returns:
        The scale map of C' channels.

    Raises:
        ShapeError: If the shapes or windows do not fit one another.

    Exactness:
        An image whose pixels are repeated by an odd integer that is also a scale gives, in the
        middles of the repeated pixels, the features of scale 1 bit for bit but for rounding. Elsewhere
        nearest resizing is off the centre: ``tests/nn/test_sicnn.py`` measures both.

    Source:
        Xu, Xiao, Zhang, Yang, Zhang, *Scale-Invariant Convolutional Neural Networks*, 2014, section 3;
        the norm follows the public code of Sosnovik et al. 2020. Deviations: a kernel that is zero, or of
        which a scale's resizing reads zeros alone, gives a filter of zeros there with a gradient of zero,
        where the published code divides by 0; the bias is ours.

    Example:
        >>> basis = multi_column_basis(3, [0.67, 1.0, 1.5])
        >>> multi_column_conv2d(torch.randn(2, 4, 8, 8), torch.randn(5, 4, 3, 3), basis.float()).shape
        torch.Size([2, 5, 3, 8, 8])
    """
    check_operands(_NAME, x, weight, basis, bias)
    check_geometry(_NAME, geometry)
    _check(x, weight, basis, geometry)
    geometry.refuse(projection="every column is computed alone", pooling="every column is computed alone")
    windows = checked_windows(_NAME, windows, basis)
    flat = weight.flatten(2)  # (C', C, K, K) -> (C', C, K²)
    ratios = _norm_ratios(flat, basis)
    maps = [
        lift_conv2d(
            x if x.ndim == 4 else x[:, :, scale],
            flat * ratios[:, :, scale, None],
            basis[:, scale : scale + 1],
            bias,
            geometry=geometry,
            windows=windows[scale : scale + 1],
        )
        for scale in range(basis.shape[1])
    ]
    return torch.cat(maps, dim=2)  # S of (B, C', 1, H', W')


def _column_matrix(kernel_size: int, scale: float, largest: float) -> Tensor:
    """The kernel's pixels on the canvas of the largest scale, (P, K)."""
    margin = max(math.ceil((math.floor(kernel_size * largest) - kernel_size) / 2), 0)
    side = kernel_size + 2 * margin
    method: CanvasMethod = "nearest" if scale > 1 else "bilinear"
    if side * scale >= 1:
        matrix = canvas_matrix(side, scale, method=method)[:, margin : margin + kernel_size]
        if bool(matrix.any()):
            return matrix
    raise SettingError(
        f"expected scales that leave something of a kernel of {kernel_size} pixels, got {scale:.4g}, "
        f"which falls between its pixels on a canvas of {side}; use a larger kernel or a larger scale"
    )


def _norm_ratios(weight: Tensor, basis: Tensor) -> Tensor:
    """The L1 norm of the kernels over that of the resized ones, 0 where nothing is left; (C', C, S)."""
    if basis.shape[0] == 1:
        return weight.new_ones(1, 1, basis.shape[1])
    resized = synthesize_filters(weight, basis).abs().sum((-2, -1))
    left = resized != 0
    ratios = weight.abs().sum(-1, keepdim=True) / torch.where(left, resized, 1)  # no 0 / 0 backwards
    return torch.where(left, ratios, 0)


def _check(x: Tensor, weight: Tensor, basis: Tensor, geometry: ConvGeometry) -> None:
    if basis.ndim != 4 or basis.shape[2] != basis.shape[3] or basis.shape[2] % 2 == 0:
        raise ShapeError(f"{_NAME}: expected a basis (F, S, K, K) with odd K, got {tuple(basis.shape)}")
    if weight.ndim != 4 or weight.shape[2] * weight.shape[3] != basis.shape[0]:
        raise ShapeError(
            f"{_NAME}: expected weights (C', C / groups, K, K) with K² = {basis.shape[0]} as in the basis, "
            f"got {tuple(weight.shape)}"
        )
    channels, num_scales = weight.shape[1] * geometry.groups, basis.shape[1]
    if x.ndim not in (4, 5) or x.shape[1] != channels or (x.ndim == 5 and x.shape[2] != num_scales):
        raise ShapeError(
            f"{_NAME}: expected an image (B, {channels}, H, W) or a scale map "
            f"(B, {channels}, {num_scales}, H, W), got {tuple(x.shape)}"
        )
