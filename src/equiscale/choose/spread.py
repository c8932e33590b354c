"""How large is what images show? The scale at which a blob detector answers most strongly."""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from equiscale.errors import SettingError, ShapeError

_FINEST: Final = 1.0  # pixels: below, the pixel grid does not hold the Gaussian
_STEP: Final = 2**0.25
_LARGEST_PART: Final = 1 / 4  # of the shorter side: a blob of this deviation fills the image
SMALLEST_SIDE: Final = 16


def strongest_scales(images: Tensor) -> Tensor:
    r"""For each image the scale of its strongest blob, in pixels.

    .. math:: \arg\max_\sigma \max_p \big| \sigma^2 \, \nabla^2 (G_\sigma \star x)(p) \big|

    Channels are averaged. The maximum is searched on scales a quarter of an octave apart, from one pixel to a
    quarter of the shorter side, and between them with a parabola.

    Shapes:
        images: ``(N, C, H, W)``; result ``(N,)``.

    Args:
        images: Of any number type.

    Returns:
        The scales, float64.

    Raises:
        ShapeError: For other axes, or sides below 16 pixels.
        SettingError: If an image is constant.

    Exactness:
        A Gaussian blob of deviation t has its strongest response at σ = t: within 3 % from
        2.5 pixels on, where it is not cut, nor near an end of the scales (``tests/choose/test_spread.py``).
        Of other images it is the size of what stands out most, which may be a part of the object, a shadow
        or the background.

    Source:
        Lindeberg, *Feature detection with automatic scale selection*, International Journal of Computer
        Vision 1998. Deviation: one maximum an image, not all local ones.

    Example:
        >>> x = torch.arange(64.0) - 31.5
        >>> blob = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 5.0**2))
        >>> round(float(strongest_scales(blob[None, None])), 1)
        5.0
    """
    check_images(images)
    grey = images.double().mean(1)  # (N, H, W)
    if bool((grey.amax((1, 2)) == grey.amin((1, 2))).any()):
        raise SettingError("expected images that show something, got a constant one; leave it out")
    height, width = grey.shape[-2:]
    framed = pad(grey[:, None], [width // 2, width // 2, height // 2, height // 2], mode="reflect")[:, 0]
    spectrum, squared = torch.fft.rfft2(framed), _squared_frequencies(framed)
    sigmas = _sigmas(min(height, width))
    responses = torch.stack([_strength(spectrum, squared, sigma, (height, width)) for sigma in sigmas])
    return _peaks(responses, sigmas)


def check_images(images: Tensor) -> None:
    """Raise a ShapeError unless these are images of a usable size."""
    if images.ndim != 4 or len(images) < 1 or images.shape[1] < 1 or min(images.shape[-2:]) < SMALLEST_SIDE:
        raise ShapeError(
            f"expected images (N, C, H, W) of at least {SMALLEST_SIDE} pixels a side, "
            f"got {tuple(images.shape)}"
        )


def _sigmas(side: int) -> list[float]:
    count = math.floor(math.log(side * _LARGEST_PART / _FINEST, _STEP) + 1e-9) + 1
    return [_FINEST * _STEP**i for i in range(count)]


def _squared_frequencies(framed: Tensor) -> Tensor:
    height, width = framed.shape[-2:]
    rows = 2 * math.pi * torch.fft.fftfreq(height, dtype=torch.float64)
    columns = 2 * math.pi * torch.fft.rfftfreq(width, dtype=torch.float64)
    return torch.add(rows[:, None] ** 2, columns**2)


def _strength(spectrum: Tensor, squared: Tensor, sigma: float, size: tuple[int, int]) -> Tensor:
    """The largest response in each image, (N,)."""
    height, width = size
    gain = sigma**2 * squared * torch.exp(-(sigma**2) * squared / 2)
    framed_size = (spectrum.shape[-2], 2 * (width // 2) + width)
    response = torch.fft.irfft2(spectrum * gain, s=framed_size).abs()
    top, left = height // 2, width // 2
    largest: Tensor = response[:, top : top + height, left : left + width].amax((1, 2))
    return largest


def _peaks(responses: Tensor, sigmas: list[float]) -> Tensor:
    """The maximum over scales (S, N), between them that of the parabola through three."""
    best = responses.argmax(0)
    inner = best.clamp(1, len(sigmas) - 2)
    below, at, above = (responses.gather(0, (inner + k)[None])[0] for k in (-1, 0, 1))
    curvature = (below - 2 * at + above).clamp(max=-1e-300)
    offset = ((below - above) / (2 * curvature)).clamp(-0.5, 0.5)
    place = torch.where(best == inner, inner + offset, best.double())
    return _FINEST * torch.exp(math.log(_STEP) * place)
