"""Resizing on a canvas of one size, as the published image- and kernel-rescaling methods do it."""

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from equiscale.errors import ShapeError

CanvasMethod: TypeAlias = Literal["bilinear", "nearest"]


def canvas_matrix(
    size: int, scale: float, *, method: CanvasMethod = "bilinear", device: torch.device | None = None
) -> Float[Tensor, "size size"]:
    r"""Resize a line of pixels by a scale, then pad with zeros or cut about the middle to its old size.

    .. math::
        y(u) = x(p(u - l)), \quad h = \lfloor n s \rfloor, \quad l = \lfloor (n - h) / 2 \rfloor, \quad
        p(t) = t \, \tfrac{n - 1}{h - 1} \;\text{(bilinear)}, \quad \lfloor t / s \rfloor \;\text{(nearest)}

    and y = 0 where u − l is not one of the h pixels.

    Shapes:
        result: ``(size, size)``, float64; row u holds the weights of the source pixels.

    Args:
        size: n.
        scale: s; larger than 1 enlarges.
        method: "bilinear" with the corners aligned, or "nearest".
        device: Where the matrix is made.

    Raises:
        ShapeError: If no pixel is left.

    Exactness:
        The identity at scale 1. Elsewhere the factor is not s but (h − 1) / (n − 1), and the centre moves
        by half a pixel where n − h is odd: both are the published definition.

    Example:
        >>> canvas_matrix(4, 0.5)[1].tolist()
        [1.0, 0.0, 0.0, 0.0]
    """
    resized = math.floor(size * scale)
    if resized < 1:
        raise ShapeError(
            f"expected at least {math.ceil(1 / scale)} pixels, so that one is left at scale {scale:.4g}, "
            f"got {size}; use a larger image or a larger smallest scale"
        )
    pixels = torch.arange(size, dtype=torch.float64, device=device)
    if scale == 1:
        return torch.eye(size, dtype=torch.float64, device=device)
    target = pixels - (size - resized) // 2
    if method == "nearest":
        # As published: a whole ratio of sizes is taken instead of a scale that was rounded down to it.
        ratio = resized / size if resized in (size, 2 * size) else scale
        source = (target / ratio).floor().clamp(0, size - 1)
    else:
        source = target * ((size - 1) / max(resized - 1, 1))
    weights = (1 - (source[:, None] - pixels).abs()).clamp_min(0)
    inside = (target >= 0) & (target < resized)
    return weights * inside[:, None]
