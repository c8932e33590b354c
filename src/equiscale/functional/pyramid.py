"""An ordinary function applied to an image at several sizes, its answers pooled."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_filled
from equiscale.functional.rescale import Method, rescale
from equiscale.scales import ScaleGrid

PyramidPool: TypeAlias = Literal["max", "mean"]
Canvas: TypeAlias = Literal["same", "resized"]


def input_pyramid(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    factors: Sequence[float],
    *,
    pool: PyramidPool = "max",
    canvas: Canvas = "same",
    method: Method = "bicubic",
) -> Tensor:
    r"""Apply a function to the image rescaled by every factor, and pool what it returns.

    .. math:: y = \max_i \Phi(T_{f_i} x) \quad\text{or}\quad \tfrac{1}{S} \sum_i \Phi(T_{f_i} x)

    Copies of one size go through the function in one call, stacked along the batch.

    Shapes:
        x: ``(B, C, H, W)``; function: ``(N, C, H', W')`` to ``(N, ...)``; result: ``(B, ...)``.

    Args:
        function: Φ, for example a classifier; it must return the same shape for every size it is given.
        x: The image.
        factors: f, increasing; larger than 1 enlarges the object.
        pool: "max" or "mean" over the S copies.
        canvas: "same": the canvas keeps its size, see `equiscale.functional.rescale`; "resized":
            it grows and shrinks with the object, and nothing is cut; shrinking is then filtered
            against aliasing.
        method: The interpolation.

    Raises:
        ScaleGridError: If the factors are not positive and increasing.
        SettingError: For an unknown pool, canvas or method.
        ShapeError: If x is not an image, or the outputs do not have one shape.

    Exactness:
        The copy of factor 1 is the input bit for bit. On factors of equal ratio a, an image
        scaled by a gives the same copies one place further, up to interpolating twice, and loses one
        at the end: ``tests/nn/test_pyramid.py`` measures what remains.

    Source:
        Jansson, Lindeberg, *Scale-Invariant Scale-Channel Networks*, 2022, section 4: scale channels that
        rescale the input ("FovMax", "FovAvg").

    Example:
        >>> x = torch.ones(2, 1, 8, 8)
        >>> input_pyramid(lambda x: x.mean((2, 3)), x, [0.5, 1.0]).flatten().tolist()
        [1.0, 1.0]
    """
    for name, value, legal in (
        ("pool", pool, PyramidPool),
        ("canvas", canvas, Canvas),
        ("method", method, Method),
    ):
        if value not in get_args(legal):
            raise SettingError(f"expected a {name} of {', '.join(get_args(legal))}, got {value!r}")
    check_filled("input_pyramid", x)
    if not callable(function):
        raise SettingError(f"input_pyramid: expected a module or a function of images, got {function!r}")
    if x.ndim != 4:
        raise ShapeError(f"input_pyramid: expected an image (B, C, H, W), got {tuple(x.shape)}")
    copies = [_copy(x, factor, canvas, method) for factor in ScaleGrid(factors)]
    outputs = _apply(function, copies)
    stacked = torch.stack(outputs)
    return stacked.max(0).values if pool == "max" else stacked.mean(0)


def _copy(x: Tensor, factor: float, canvas: Canvas, method: Method) -> Tensor:
    if factor == 1:
        return x
    if canvas == "same":
        return rescale(x, factor, method=method)
    size = [max(round(side * factor), 1) for side in x.shape[-2:]]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # torch does not smooth in half precision
    return interpolate(wide, size, mode=method, align_corners=False, antialias=factor < 1).to(x.dtype)


def _apply(function: Callable[[Tensor], Tensor], copies: list[Tensor]) -> list[Tensor]:
    """The outputs of all copies, those of one size computed together."""
    outputs: dict[int, Tensor] = {}
    batch, sizes = copies[0].shape[0], [tuple(copy.shape[-2:]) for copy in copies]
    for size in dict.fromkeys(sizes):
        alike = [index for index in range(len(copies)) if sizes[index] == size]
        together = function(torch.cat([copies[index] for index in alike]))
        if together.ndim < 1 or together.shape[0] != len(alike) * batch:
            raise ShapeError(
                f"input_pyramid: expected one output for each of {len(alike) * batch} images, "
                f"got {tuple(together.shape)}"
            )
        outputs |= zip(alike, together.view(len(alike), batch, *together.shape[1:]), strict=True)
    shapes = sorted({tuple(output.shape[1:]) for output in outputs.values()})
    if len(shapes) > 1:
        raise ShapeError(
            f"input_pyramid: expected outputs of one shape at all factors, got {shapes}; "
            "pool over all pixels at the module's end, or use canvas='same'"
        )
    return [outputs[index] for index in range(len(copies))]
