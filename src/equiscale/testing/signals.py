"""Random images whose rescaling is known in closed form."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equiscale._typing import Image
from equiscale.errors import SettingError

# The spectrum of a blob is a Gaussian; what lies beyond this many standard deviations is e^-8 of its peak.
_BAND_DEVIATIONS = 4.0

# A blob's Gaussian alone takes between 1 / 1.25 and 1 / 2.5 of the band; its wave has the rest.
_WIDTHS = (1.25, 2.5)

# Blobs sit in the middle 60 % of the canvas, so that most of them stay on it when it is enlarged.
_CENTRAL = 0.6


@dataclass(frozen=True, eq=False)
class BandLimitedImage:
    r"""Random images made of Gabor blobs, which can be rendered at every scale without resampling.

    .. math:: f_a(p) = \sum_n A_n \, e^{-|q - m_n|^2 / 2 \sigma_n^2}
        \cos(\omega_n \cdot (q - m_n) + \varphi_n), \qquad q = p / a

    with p the position of a pixel from the true centre of the canvas.

    Shapes:
        centers m and frequencies ω: ``(B, C, N, 2)`` as (y, x); widths σ, phases φ and amplitudes A:
        ``(B, C, N)``.

    Args:
        size: The canvas (H, W) in pixels.
        centers: m, in pixels from the true centre.
        widths: σ, in pixels.
        frequencies: ω, in radians a pixel.
        phases: φ, in radians.
        amplitudes: A.

    Exactness:
        Rendering is exact at every scale: no pixel is interpolated. Below the scale at which the
        highest frequency passes the pixel grid's limit π, `render` refuses.

    Example:
        >>> image = BandLimitedImage.random(2, 3, size=(16, 17), generator=torch.Generator().manual_seed(0))
        >>> image.render(scale=0.5).shape
        torch.Size([2, 3, 16, 17])
    """

    size: tuple[int, int]
    centers: Float[Tensor, "B C N 2"]
    widths: Float[Tensor, "B C N"]
    frequencies: Float[Tensor, "B C N 2"]
    phases: Float[Tensor, "B C N"]
    amplitudes: Float[Tensor, "B C N"]

    @classmethod
    def random(
        cls,
        batch: int,
        channels: int,
        *,
        size: tuple[int, int],
        generator: torch.Generator,
        band: float = 0.25,
        blobs: int = 8,
    ) -> "BandLimitedImage":
        """Random blobs whose frequencies stay below a fraction of the pixel grid's limit.

        Args:
            batch: B.
            channels: C.
            size: The canvas (H, W) in pixels.
            generator: The source of randomness.
            band: The highest frequency as a fraction of π; lower is smoother.
            blobs: N, the number of blobs an image and channel.

        Raises:
            SettingError: If a count is below 1 or the band is not in (0, 1].
        """
        if min(batch, channels, blobs, *size) < 1 or not 0 < band <= 1:
            raise SettingError(
                f"expected positive counts and a band in (0, 1], got batch={batch}, channels={channels}, "
                f"size={size}, blobs={blobs}, band={band}"
            )
        shape, limit = (batch, channels, blobs), band * math.pi

        def uniform(*trailing: int) -> Tensor:
            return torch.rand(*shape, *trailing, dtype=torch.float64, generator=generator)

        centers = (uniform(2) - 0.5) * _CENTRAL * torch.tensor(size, dtype=torch.float64)
        widths = _BAND_DEVIATIONS / limit * (_WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * uniform())
        rate = (limit - _BAND_DEVIATIONS / widths) * uniform()
        direction = 2 * math.pi * uniform()
        frequencies = torch.stack([rate * direction.sin(), rate * direction.cos()], dim=-1)
        return cls(size, centers, widths, frequencies, 2 * math.pi * uniform(), 2 * uniform() - 1)

    @property
    def highest_frequency(self) -> float:
        """The end of the band at scale 1, in radians a pixel."""
        rates = self.frequencies.norm(dim=-1) + _BAND_DEVIATIONS / self.widths
        return float(rates.max())

    def render(self, size: tuple[int, int] | None = None, *, scale: float = 1.0) -> Image:
        """The images in float64, enlarged by ``scale`` about the true centre.

        Args:
            size: The canvas (H, W); None: the image's own.
            scale: a; larger than 1 makes the objects larger.

        Returns:
            The images ``(B, C, H, W)``.

        Raises:
            SettingError: If the scale is not finite and positive, or so small that the pixel grid could
                not hold the image.
        """
        smallest = self.highest_frequency / math.pi
        if not (math.isfinite(scale) and scale >= smallest):
            raise SettingError(
                f"expected a finite scale of at least {smallest:.3g}, below which the pixel grid cannot hold "
                f"the image, got {scale}; use a lower band"
            )
        height, width = size or self.size
        y = self._axis(height, 0, scale)[..., :, None]  # (B, C, N, H, 1)
        x = self._axis(width, 1, scale)[..., None, :]  # (B, C, N, 1, W)
        wave = self._at(self.frequencies, 0) * y + self._at(self.frequencies, 1) * x
        envelope = torch.exp(-(y**2 + x**2) / (2 * self._at(self.widths) ** 2))
        blobs = self._at(self.amplitudes) * envelope * torch.cos(wave + self._at(self.phases))
        return blobs.sum(2)

    def _axis(self, size: int, axis: int, scale: float) -> Tensor:
        """q - m along one axis, (B, C, N, size)."""
        position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        return position / scale - self.centers[..., axis, None]

    def _at(self, values: Tensor, axis: int | None = None) -> Tensor:
        """Blob parameters (B, C, N[, 2]) as (B, C, N, 1, 1)."""
        return (values if axis is None else values[..., axis])[..., None, None]
