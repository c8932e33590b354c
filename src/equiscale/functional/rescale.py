"""Scaling of images about their centre, as two small interpolation matrices an image."""

import math
from typing import Final, Literal, TypeAlias, TypedDict, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_tensor, is_number

Method: TypeAlias = Literal["bicubic", "bilinear"]

# The parameter a of the 4-tap cubic, its slope at distance 1. Keys shows that a = -1/2 alone is
# exact on quadratics (third-order convergence); Pillow's affine transform uses a = -1.
CUBIC_KEYS: Final = -0.5
CUBIC_PILLOW: Final = -1.0

# MNIST-scale scales about size/2 + 1/2 in pixel-corner coordinates, where the true centre is size/2.
MNIST_SCALE_CENTER_OFFSET: Final = 0.5

_TAPS: Final[dict[Method, tuple[int, ...]]] = {"bicubic": (-1, 0, 1, 2), "bilinear": (0, 1)}


class _Interpolation(TypedDict):
    method: Method
    cubic: float
    center_offset: float


def rescale(
    x: Tensor,
    factor: float | Tensor,
    *,
    method: Method = "bicubic",
    cubic: float = CUBIC_KEYS,
    center_offset: float = 0.0,
) -> Tensor:
    r"""Scale the last two axes about the centre, on a canvas of the same size.

    .. math::
        y(u) = x(c + (u - c) / f), \qquad c = (\text{size} - 1) / 2 + \text{center\_offset},

    with :math:`x` interpolated between its pixels, the border pixel repeated for taps beyond the
    border, and :math:`y = 0` where the source point lies outside the image's pixels.

    Shapes:
        ``x`` and the result are ``(..., H, W)``; ``factor`` is a number or a tensor of no axes, or a
        tensor ``(B,)`` for ``x`` of ``(B, ..., H, W)``.

    Args:
        x: The images, of any floating dtype and on any device.
        factor: The scale factor :math:`f`; ``factor > 1`` makes the object larger.
        method: The interpolation.
        cubic: The parameter a of the cubic kernel, ``CUBIC_KEYS`` or ``CUBIC_PILLOW``.
        center_offset: The distance from the true centre to the centre of scaling, in pixels along both
            axes; ``MNIST_SCALE_CENTER_OFFSET`` together with ``CUBIC_PILLOW`` is the published MNIST-scale.

    Returns:
        The scaled images, differentiable in ``x`` (not in ``factor``).

    Raises:
        ShapeError: If ``x`` has fewer than two axes or ``factor`` does not fit its batch.
        SettingError: If a factor is not finite and positive, the method is unknown, or ``x`` holds integers.

    Exactness:
        Bit for bit the identity at factor 1. No filter against aliasing is applied below 1. With the true
        centre, mirror-symmetric images stay mirror-symmetric. With Pillow's parameters the result is within
        one grey level of Pillow's (``tests/functional/test_rescale.py``); only a source point that falls
        exactly on the right or lower edge is inside here, for symmetry, and outside for Pillow.

    Source:
        Keys, 1981, "Cubic convolution interpolation for digital image processing".

    Example:
        >>> x = torch.arange(16.0).reshape(4, 4)
        >>> torch.equal(rescale(x, 1.0), x)
        True
        >>> rescale(torch.ones(4, 4), 0.5)[1].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    _check_input(x, method, cubic, center_offset)
    factors = _factors(x, factor)
    height, width = x.shape[-2:]
    options: _Interpolation = {"method": method, "cubic": cubic, "center_offset": center_offset}
    rows = _interpolation_matrix(height, factors, **options).to(x)
    columns = rows if width == height else _interpolation_matrix(width, factors, **options).to(x)
    groups = len(factors)
    images = math.prod(x.shape[:-2]) // max(groups, 1)
    flat = x.reshape(groups, images, *x.shape[-2:])  # (..., H, W) -> (G, N, H, W)
    y = torch.einsum("gij,gnjw,gkw->gnik", rows, flat, columns)
    # A product with the identity matrix is not exact for infinities, signed zeros, or in reduced precision.
    unchanged = (factors == 1).to(x.device)[:, None, None, None]
    return torch.where(unchanged, flat, y).reshape(x.shape)


def _interpolation_matrix(
    size: int, factors: Tensor, *, method: Method, cubic: float, center_offset: float
) -> Float[Tensor, "G size size"]:
    """Row i holds the weights with which the source pixels make up target pixel i."""
    middle = (size - 1) / 2
    pixels = torch.arange(size, dtype=factors.dtype, device=factors.device)
    away = (
        center_offset + (pixels - middle - center_offset) / factors[:, None]
    )  # source point minus the middle
    source = middle + away
    left = source.floor()
    matrix = source.new_zeros(len(factors), size, size)
    for tap in _TAPS[method]:
        weight = _kernel(left + tap - source, method, cubic)
        pixel = (left + tap).clamp(0, size - 1)
        # One pixel a row at a time: the sum of those that the border unites has an order.
        matrix.scatter_add_(2, pixel.long()[..., None], weight[..., None])
    inside = away.abs() <= size / 2
    return matrix * inside[..., None]


def _kernel(distance: Tensor, method: Method, a: float) -> Tensor:
    d = distance.abs()
    if method == "bilinear":
        return 1 - d
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return torch.where(d <= 1, near, far)


def _factors(x: Tensor, factor: float | Tensor) -> Float[Tensor, "G"]:
    """The factors in double precision, on the device of ``x`` where it has double precision."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    if is_number(factor):  # looked at here: a look at a tensor waits for its device
        if not 0 < factor < math.inf:
            raise _bad_factor(factor)
        return torch.full((1,), factor, dtype=torch.float64, device=device)
    if not isinstance(factor, Tensor) or factor.is_complex():
        raise _bad_factor(factor)
    given = factor.detach()
    factors = (given.cpu() if given.device.type == "mps" else given).double()
    if factors.ndim and (factors.ndim != 1 or x.ndim < 3 or len(factors) != len(x)):
        raise ShapeError(
            f"expected one factor, or one for each image of a batch (B, ..., H, W), got factors of shape "
            f"{tuple(factors.shape)} for x of shape {tuple(x.shape)}; give a number or a tensor of shape (B,)"
        )
    bad = ~(torch.isfinite(factors) & (factors > 0))
    if bad.any():  # where the factors are: those drawn on the CPU make no GPU wait
        raise _bad_factor(factors[bad][0].item())
    return factors.reshape(-1).to(device, non_blocking=factors.device.type == "cpu")


def _bad_factor(factor: object) -> SettingError:
    return SettingError(f"expected finite positive scale factors, got {factor!r}")


def _check_input(x: Tensor, method: str, cubic: float, center_offset: float) -> None:
    check_tensor("rescale", x)
    for name, value in (("cubic", cubic), ("center_offset", center_offset)):
        if not (is_number(value) and math.isfinite(value)):
            raise SettingError(f"expected a finite {name}, got {value!r}")
    if method not in get_args(Method):
        raise SettingError(f"expected a method of {sorted(_TAPS)}, got {method!r}")
    if x.ndim < 2:
        raise ShapeError(f"expected an image of at least two axes (..., H, W), got shape {tuple(x.shape)}")
