"""SS-CNN: filters that are turned in phase from one scale to the next, and the maximum over scales."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from equiscale._typing import BasisTensor, Image
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_operands, is_list, is_number, is_odd
from equiscale.functional.conv import lift_conv2d
from equiscale.functional.geometry import ConvGeometry, check_geometry

_DEFAULT = ConvGeometry()


def steer_in_scale(
    real: Tensor,
    imag: Tensor,
    *,
    frequencies: Sequence[float],
    ratios: Sequence[float],
    windows: Sequence[int],
) -> BasisTensor:
    r"""The basis functions of complex weights on harmonics that are steered in phase for every scale.

    With :math:`\alpha_{k s} = -\omega_k \ln t_s`, the filter :math:`\mathrm{Re} \sum_{k j} (a_{k j} +
    i b_{k j}) \, e^{i \alpha_{k s}} (R_{k j} + i I_{k j})` is linear in a and b:

    .. math:: \psi^a_{k j s} = \cos \alpha_{k s} R_{k j} - \sin \alpha_{k s} I_{k j}, \qquad
        \psi^b_{k j s} = -\sin \alpha_{k s} R_{k j} - \cos \alpha_{k s} I_{k j}

    Shapes:
        real, imag: ``(N, J, K, K)`` for N orders and J directions; result: ``(2NJ, S, K, K)``, all
        :math:`\psi^a` before all :math:`\psi^b`, J fastest.

    Args:
        real: R.
        imag: I.
        frequencies: ω of each order, in radians per unit of the logarithm of the radius.
        ratios: t of each scale, the size relative to that of the weights.
        windows: For every scale the odd side in pixels outside which the functions are zero.

    Returns:
        The steered functions.

    Raises:
        ShapeError: If the shapes and lists do not fit one another.

    Exactness:
        Harmonics with :math:`R + i I \propto r^{-1} e^{i \omega \ln r}` are scaled by t exactly, but for a
        factor t in amplitude: ``tests/functional/test_scale_steerable.py``.

    Source:
        Ghosh, Gupta, *Scale Steerable Filters for Locally Scale-Invariant Convolutional Neural Networks*,
        2019.

    Example:
        >>> harmonics = torch.randn(3, 9, 7, 7)
        >>> steer_in_scale(harmonics, harmonics, frequencies=[1, 2, 4], ratios=[0.7, 1], windows=[5, 7]).shape
        torch.Size([54, 2, 7, 7])
    """
    _check_steering(real, imag, frequencies, ratios, windows)
    omega, scale = (torch.tensor(v, dtype=real.dtype, device=real.device) for v in (frequencies, ratios))
    alpha = (-omega[:, None] * scale.log()).view(len(omega), 1, len(scale), 1, 1)
    real, imag = real.unsqueeze(2), imag.unsqueeze(2)  # (N, J, 1, K, K)
    of_real = alpha.cos() * real - alpha.sin() * imag
    of_imag = -alpha.sin() * real - alpha.cos() * imag
    return torch.cat([of_real, of_imag]).flatten(0, 1) * _window_masks(windows, real.shape[-1]).to(real)


def scale_steered_conv2d(
    x: Tensor,
    mult_real: Tensor,
    mult_imag: Tensor,
    basis: Tensor,
    *,
    geometry: ConvGeometry = _DEFAULT,
    windows: Sequence[int] | None = None,
) -> Image:
    r"""The convolution of SS-CNN: the strongest answer of one filter in all its sizes.

    .. math:: y_{c'} = \max_s \sum_c \kappa_{c' c s} \star x_c, \qquad
        \kappa_{c' c s} = \sum_{k j} a_{k c' c j} \, \psi^a_{k j s} + b_{k c' c j} \, \psi^b_{k j s}

    Shapes:
        x: ``(B, C, H, W)``; mult_real, mult_imag: ``(N, C', C / groups, J)``; basis: ``(2NJ, S, K, K)``;
        result: ``(B, C', H', W')`` with H' = (H + 2·padding − K) // stride + 1.

    Args:
        x: The image.
        mult_real: a, the real part of the learned weights.
        mult_imag: b, the imaginary part.
        basis: ψ, as from `steer_in_scale`.
        geometry: Stride, padding and groups.
        windows: For every scale the side of the window outside which ψ is zero (see
            `support_windows`). None: all K.

    Returns:
        The strongest answers.

    Raises:
        ShapeError: If the shapes or windows do not fit one another, or the padded image is smaller
            than K.

    Exactness:
        Circular shifts of the image with circular padding: exact. Scaling: see
        `equiscale.nn.ScaleSteeredConv2d`.

    Source:
        Ghosh, Gupta 2019.

    Example:
        >>> x, weight, basis = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 3, 5), torch.randn(20, 3, 5, 5)
        >>> scale_steered_conv2d(x, weight, weight, basis, geometry=ConvGeometry(padding="same")).shape
        torch.Size([2, 4, 8, 8])
    """
    check_operands("scale_steered_conv2d", x, mult_real, mult_imag, basis)
    check_geometry("scale_steered_conv2d", geometry)
    if mult_real.ndim != 4 or mult_real.shape != mult_imag.shape:
        raise ShapeError(
            "scale_steered_conv2d: expected two weights (N, C', C / groups, J) of one shape, "
            f"got {tuple(mult_real.shape)} and {tuple(mult_imag.shape)}"
        )
    weight = torch.cat([mult_real, mult_imag])  # (2N, C', C, J)
    weight = weight.permute(1, 2, 0, 3).flatten(2)  # (C', C, 2NJ)
    return lift_conv2d(x, weight, basis, geometry=replace(geometry, projection="max"), windows=windows)


def _window_masks(windows: Sequence[int], size: int) -> Tensor:
    """(S, K, K), one inside each window."""
    distance = (torch.arange(size) - size // 2).abs()
    inside = distance <= torch.tensor(windows)[:, None] // 2  # (S, K)
    return inside[:, :, None] & inside[:, None, :]


def _check_steering(
    real: Tensor, imag: Tensor, frequencies: Sequence[float], ratios: Sequence[float], windows: Sequence[int]
) -> None:
    name = "steer_in_scale"
    check_operands(name, real, imag)
    for role, values in (("frequencies", frequencies), ("ratios", ratios), ("windows", windows)):
        if not is_list(values):
            raise SettingError(f"{name}: expected a list of {role}, got {values!r}")
    if real.ndim != 4 or real.shape != imag.shape or real.shape[2] != real.shape[3] or real.shape[2] % 2 == 0:
        raise ShapeError(
            f"{name}: expected two parts (N, J, K, K) of one shape with odd K, "
            f"got {tuple(real.shape)} and {tuple(imag.shape)}"
        )
    if len(frequencies) != len(real):
        raise ShapeError(f"{name}: expected {len(real)} frequencies, one an order, got {len(frequencies)}")
    if not all(is_number(frequency) and math.isfinite(frequency) for frequency in frequencies):
        raise SettingError(f"{name}: expected finite frequencies, got {frequencies}")
    legal = all(is_odd(window) and window <= real.shape[2] for window in windows)
    positive = all(is_number(ratio) and 0 < ratio < math.inf for ratio in ratios)
    if not ratios or len(ratios) != len(windows) or not legal or not positive:
        raise ShapeError(
            f"{name}: expected as many positive ratios as odd windows of at most {real.shape[2]} pixels, "
            f"got {list(ratios)} and {list(windows)}"
        )
