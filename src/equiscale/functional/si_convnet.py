"""Locally scale-invariant convolution: the image is rescaled, the kernel is not."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from equiscale._typing import Image
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.canvas import canvas_matrix
from equiscale.functional.checks import check_operands
from equiscale.functional.conv import check_groups, check_size
from equiscale.functional.geometry import ConvGeometry, check_geometry
from equiscale.functional.project import largest
from equiscale.functional.rescale import rescale
from equiscale.scales import ScaleGrid

Resampling: TypeAlias = Literal["published", "centred"]

_DEFAULT = ConvGeometry()
_NAME = "locally_scale_invariant_conv2d"


def locally_scale_invariant_conv2d(
    x: Tensor,
    weight: Tensor,
    scales: Sequence[float],
    bias: Tensor | None = None,
    *,
    geometry: ConvGeometry = _DEFAULT,
    resampling: Resampling = "published",
) -> Image:
    r"""Correlate the image with one kernel at every scale, bring the answers back, take the largest.

    .. math:: y_{c'} = \max_s \, T_{1 / s} \Big( b_{c'} + \sum_c w_{c' c} \star T_s x_c \Big)

    T_s enlarges by s on a canvas of the same size, with zeros outside; so does the way back, whose zeros
    take part in the maximum. With a stride the way back starts from the smaller map.

    Shapes:
        x: ``(B, C, H, W)``; weight: ``(C', C / groups, K, K)``; bias: ``(C',)``; result:
        ``(B, C', H', W')`` as of an ordinary convolution.

    Args:
        x: The image.
        weight: w, the one kernel.
        scales: s, increasing, by which the image is enlarged.
        bias: b, added at every scale before the way back; or None.
        geometry: Stride, padding and groups.
        resampling: T: "published", `equiscale.functional.canvas.canvas_matrix`, or "centred", the
            bilinear `equiscale.functional.rescale` by s exactly about the true centre.

    Returns:
        The image of C' channels, differentiable in x, w and b.

    Raises:
        SettingError: For an unknown resampling.
        ScaleGridError: If the scales are not positive and increasing.
        ShapeError: If the shapes do not fit one another, or nothing is left of the image at a scale.

    Exactness:
        With the scale 1 alone it is the ordinary convolution bit for bit. Otherwise T and its way back
        are not each other's inverse: ``tests/nn/test_si_convnet.py`` measures the error.

    Source:
        Kanazawa, Sharma, Jacobs, *Locally Scale-Invariant Convolutional Neural Networks*, 2014,
        section 3. Resampling, zeros and bias follow the public code of Sosnovik et al. 2020;
        "centred" is ours.

    Example:
        >>> x, weight = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 3, 3)
        >>> locally_scale_invariant_conv2d(x, weight, [0.5, 1, 2], geometry=ConvGeometry(padding=1)).shape
        torch.Size([2, 5, 16, 16])
    """
    _check(x, weight, bias, geometry)
    if resampling not in get_args(Resampling):
        raise SettingError(f"expected a resampling of {', '.join(get_args(Resampling))}, got {resampling!r}")
    grid = ScaleGrid(scales)
    copies = torch.cat([_resized(x, scale, resampling) for scale in grid])  # (S*B, C, H, W)
    maps = _correlate(copies, weight, bias, geometry)
    by_scale = maps.view(len(grid), x.shape[0], *maps.shape[1:])  # (S, B, C', H', W')
    returned = [_resized(y, 1 / scale, resampling) for y, scale in zip(by_scale, grid, strict=True)]
    return largest(torch.stack(returned), 0)


def _resized(x: Tensor, factor: float, resampling: Resampling) -> Tensor:
    if factor == 1:
        return x
    if resampling == "centred":
        return rescale(x, factor, method="bilinear")
    rows, columns = (canvas_matrix(size, factor, device=x.device).to(x) for size in x.shape[-2:])
    return rows @ (x @ columns.mT)


def _correlate(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    margin = geometry.margin(weight.shape[-1])
    if margin and geometry.padding_mode != "zeros":
        x, margin = pad(x, [margin] * 4, mode=geometry.padding_mode), 0
    return conv2d(x, weight, bias, geometry.stride, margin, groups=geometry.groups)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> None:
    check_operands(_NAME, x, weight, bias)
    check_geometry(_NAME, geometry)
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
        raise ShapeError(
            f"{_NAME}: expected weights (C', C / groups, K, K) with odd K, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"{_NAME}: expected a bias ({len(weight)},), got {tuple(bias.shape)}")
    channels = weight.shape[1] * geometry.groups
    if x.ndim != 4 or x.shape[1] != channels:
        raise ShapeError(f"{_NAME}: expected an image (B, {channels}, H, W), got {tuple(x.shape)}")
    check_groups(_NAME, weight, geometry)
    check_size(_NAME, x, weight.shape[-1], geometry)
