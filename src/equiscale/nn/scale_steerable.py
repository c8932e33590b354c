"""SS-CNN: convolutions with log-radial harmonics, steered in phase, and the maximum over scales."""

import math
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from equiscale._typing import BasisTensor, Image
from equiscale.basis.log_radial import PHASE, log_radial_harmonics
from equiscale.errors import SettingError
from equiscale.functional import (
    ConvGeometry,
    GeometryOptions,
    scale_steered_conv2d,
    steer_in_scale,
    support_windows,
)
from equiscale.functional.checks import is_list, is_number, is_whole, shown
from equiscale.nn.steerable import check_channels

# Published as linspace(0, pi, 9): the last direction is the first one again.
_ANGLES = tuple(math.pi * i / 8 for i in range(9))


@dataclass(frozen=True)
class ScaleSteering:
    r"""The harmonics of `ScaleSteeredConv2d` and the sizes they are steered to; the defaults are published.

    .. math:: R_{k \varphi} + i I_{k \varphi} \propto \tfrac 1 r \, e^{-d(\theta, \varphi)^2 / 2 w^2}
        e^{i (\omega_k \ln r + \beta)}, \qquad \omega_k = \frac{2 \pi k}{\ln (\sqrt 2 \lfloor K / 2 \rfloor)}

    inside the disc of radius :math:`\lfloor K / 2 \rfloor`, with K the largest size. Each part is divided
    by its own norm.

    Args:
        kernel_sizes: The filters' sides in pixels, odd and increasing; S of them, the last is K.
        base_size: The side for which the weights hold unsteered; t = size / base_size.
        orders: k, turns of phase from the centre to the kernel's corner.
        angles: φ, the directions in radians; they count modulo π.
        angular_width: w, the width of a cone of directions in radians.
        phase: β in radians.

    Raises:
        SettingError: For sizes that are not odd and increasing, or an illegal number elsewhere.

    Example:
        >>> ScaleSteering(kernel_sizes=(3,), base_size=3, orders=(1.0,)).num_weights
        18
    """

    kernel_sizes: tuple[int, ...] = (5, 7, 9, 11, 13)
    base_size: int = 11
    orders: tuple[float, ...] = (0.5, 1.0, 2.0)
    angles: tuple[float, ...] = _ANGLES
    angular_width: float = math.pi / 16
    phase: float = PHASE

    def __post_init__(self) -> None:
        self._check_sizes()
        if not (_finite(self.orders) and _finite(self.angles) and min(self.orders) > 0):
            raise SettingError(
                "expected at least one angle, and orders that are positive, got angles "
                f"{shown(self.angles)} and orders {shown(self.orders)}"
            )
        if not (
            _finite((self.base_size, self.angular_width)) and min(self.base_size, self.angular_width) > 0
        ):
            raise SettingError(
                f"expected a positive base_size and angular_width, got {self.base_size!r} and "
                f"{self.angular_width!r}"
            )
        if not _finite((self.phase,)):
            raise SettingError(f"expected a finite phase, got {self.phase!r}")

    def _check_sizes(self) -> None:
        sizes = self.kernel_sizes
        whole = is_list(sizes) and all(map(is_whole, sizes))
        if not whole or len(sizes) == 0 or list(sizes) != sorted(set(sizes)) or sizes[-1] < 3:
            raise SettingError(f"expected increasing kernel_sizes, the last at least 3, got {shown(sizes)}")
        if any(size % 2 == 0 for size in sizes):
            raise SettingError(
                f"expected odd kernel_sizes, got {list(sizes)}; a centred filter needs a central pixel"
            )

    @property
    def num_weights(self) -> int:
        """2NJ, the learned numbers for each pair of channels."""
        return 2 * len(self.orders) * len(self.angles)

    def harmonics(self) -> tuple[Tensor, Tensor, list[float]]:
        """R and I, float64 ``(N, J, K, K)``, and the frequencies ω."""
        real, imag, frequencies = log_radial_harmonics(
            self.kernel_sizes[-1], self.orders, self.angles, width=self.angular_width, phase=self.phase
        )
        return torch.from_numpy(real), torch.from_numpy(imag), frequencies

    def basis(self) -> BasisTensor:
        """ψ, the steered functions on all sizes, float64 ``(2NJ, S, K, K)``."""
        real, imag, frequencies = self.harmonics()
        ratios = [size / self.base_size for size in self.kernel_sizes]
        return steer_in_scale(real, imag, frequencies=frequencies, ratios=ratios, windows=self.kernel_sizes)


def _finite(values: object) -> bool:
    """Whether these are finite numbers, at least one."""
    if not is_list(values) or len(values) == 0:
        return False
    return all(is_number(value) and math.isfinite(value) for value in values)


_PUBLISHED = ScaleSteering()


class ScaleSteeredConv2d(nn.Module):
    r"""The convolution of SS-CNN: one filter of complex weights in several sizes, the strongest answer stays.

    .. math:: y_{c'} = \max_s \sum_c \kappa_{c' c s} \star x_c, \qquad
        \kappa_{c' c s} = \mathrm{Re} \sum_{k \varphi} (a_{k c' c \varphi} + i b_{k c' c \varphi}) \,
        e^{-i \omega_k \ln t_s} \, (R_{k \varphi} + i I_{k \varphi})

    The steered functions are a buffer that is made once; the filters of one scale are one matrix product.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', H', W')``; mult_real, mult_imag
        ``(N, C', C / groups, J)`` for N orders and J directions; with ``constant`` const_real
        ``(C', C / groups)``.

    Args:
        in_channels: C.
        out_channels: C'.
        steering: R, I, ω and the sizes; the default is the published one for 28 × 28 pixels.
        constant: Register the published parameter const_real ``(C', C / groups)``, which nothing reads:
            with it the published numbers of parameters and checkpoints hold. It never gets a gradient, of
            which distributed data parallel must be told (find_unused_parameters).
        **geometry: ``stride``, ``padding`` (a number or "same"), ``padding_mode``, ``groups`` as in
            `equiscale.functional.ConvGeometry`.

    Raises:
        BasisError: If a harmonic vanishes on the pixel grid.
        SettingError: For illegal channels or geometry.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        Circular shifts with circular padding: exact. Scaling the image scales the output only roughly,
        with a relative error of some 0.16 at a factor of 1.3, where one size alone has 0.17 and a plain
        convolution 0.26: functions like 1 / r hardly change with scale, and their steep centre, the cut
        edge and the amplitudes are not scaled. ``tests/nn/test_scale_steerable.py`` measures it.

    Source:
        Ghosh, Gupta, *Scale Steerable Filters for Locally Scale-Invariant Convolutional Neural Networks*,
        2019; constants, normalisation and initial weights as in the public code of Sosnovik et al. 2020.
        Kept from it, though unsound: direction π repeats direction 0, so that of J = 9 directions 8
        differ; both parts are normalised by themselves, though steering mixes them; amplitudes are not
        scaled by 1 / t; the largest size is cut to a disc, the others to squares. Not kept: the ReLU
        inside the layer.

    Example:
        >>> ScaleSteeredConv2d(3, 8, padding="same")(torch.randn(2, 3, 20, 24)).shape
        torch.Size([2, 8, 20, 24])
    """

    basis: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        steering: ScaleSteering = _PUBLISHED,
        constant: bool = False,
        **geometry: Unpack[GeometryOptions],
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.steering, self.geometry = steering, ConvGeometry(**geometry)
        self._check()
        sampled = steering.basis()
        self.windows = support_windows(sampled)
        self.register_buffer("basis", sampled.to(torch.get_default_dtype()), persistent=False)
        channels = in_channels // self.geometry.groups
        shape = (len(steering.orders), out_channels, channels, len(steering.angles))
        self.mult_real = nn.Parameter(torch.empty(shape))
        self.mult_imag = nn.Parameter(torch.empty(shape))
        unused = nn.Parameter(torch.zeros(out_channels, channels)) if constant else None
        self.register_parameter("const_real", unused)
        self.reset_parameters()

    def _check(self) -> None:
        if not isinstance(self.steering, ScaleSteering):
            raise SettingError(f"expected a ScaleSteering, got {self.steering!r}")
        check_channels(self.in_channels, self.out_channels, self.geometry.groups)
        self.geometry.refuse(
            scale_padding="an image has no scale axis to pad", projection="the layer projects anyway"
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from U(−b, b) with b = √(2 / (J C C')) as published.

        Args:
            generator: Source of randomness; None: torch's default, as in torch.nn.
        """
        _, outputs, inputs, directions = self.mult_real.shape
        bound = math.sqrt(2 / (directions * inputs * outputs))
        for weight in (self.mult_real, self.mult_imag):
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Image:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return scale_steered_conv2d(
            x, self.mult_real, self.mult_imag, self.basis, geometry=self.geometry, windows=self.windows
        )

    def published_constants(self) -> dict[str, Tensor]:
        """The constants that a published checkpoint stores beside the weights, float64 ``(N, K, K, J)``.

        Returns:
            ``filter_real`` and ``filter_imag``, to compare a checkpoint of other settings with.
        """
        real, imag, _ = self.steering.harmonics()
        return {"filter_real": real.permute(0, 2, 3, 1), "filter_imag": imag.permute(0, 2, 3, 1)}

    def extra_repr(self) -> str:
        """Channels, steering and geometry."""
        parts = [f"{self.in_channels}, {self.out_channels}", f"steering={self.steering}", str(self.geometry)]
        return ", ".join(part for part in parts if part)
