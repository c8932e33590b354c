"""Hermite functions as a differentiable function of their scales."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from equiscale._typing import BasisTensor
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_filled, check_odd, is_list, is_number, is_whole

# Of the norm in the continuum: what a function is divided by is at least this part of it, so that one too
# narrow for the pixels is not blown up. The networks of the registry start above.
_FLOOR: Final = 0.1

# Farther out, in standard deviations, the Gaussian is zero even in float64.
_FURTHEST: Final = 40.0


def sample_hermite(
    scales: Tensor, functions: Sequence[tuple[float, int, int]], kernel_size: int
) -> BasisTensor:
    r"""Hermite functions under a Gaussian, differentiable in the scales.

    .. math:: \psi_f(y, x; s) = \tfrac{1}{Z_f \sigma^2}
        He_n(\tfrac{y}{\sigma})\, He_m(\tfrac{x}{\sigma})\, e^{-(x^2 + y^2) / 2 \sigma^2},
        \qquad \sigma = q_f s

    with :math:`Z_f` the L2 norm of the sampled function on the first scale, but at least a tenth of its norm
    in the continuum, :math:`\sqrt{\Gamma(n + \tfrac12)\, \Gamma(m + \tfrac12)} / \sigma`.

    Shapes:
        scales ``(S,)``; result ``(F, S, K, K)``.

    Args:
        scales: s, positive and increasing, in pixels.
        functions: For each function the factor q and the orders m (along columns' positions, axis x) and n
            in the order of `equiscale.HermiteBasis`: (q, order_y, order_x), where the rows of the result
            carry order_x.
        kernel_size: K, odd.

    Returns:
        ψ in the dtype and on the device of the scales.

    Raises:
        ShapeError: If the scales are not a vector.
        SettingError: If the kernel is even.

    Exactness:
        Every scale is sampled on all K×K pixels. `equiscale.HermiteBasis` cuts smaller scales at a window of
        whole pixels, which jumps as the scale moves and has no derivative; where that window would cut,
        the two differ by what it cuts off (``tests/nn/test_learnable_scale.py``).
        `equiscale.HermiteBasis` has norm one on its smallest scale however narrow a function is there. Here
        that of a function too narrow for the pixels (σ below about 0.4, at high orders 0.7) falls to zero
        with the first scale, and no value exceeds 5. Far below one pixel all gradients in the scales are
        zero.

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, section 5;
        as a function of the scales: Basting et al., *Scale Learning in Scale-Equivariant
        Convolutional Networks*, VISAPP 2024.

    Example:
        >>> scales = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> sample_hermite(scales, [(1.0, 0, 0), (1.0, 0, 1)], 9).shape
        torch.Size([2, 2, 9, 9])
    """
    check_filled("sample_hermite", scales)
    if scales.ndim != 1 or len(scales) == 0:
        raise ShapeError(f"expected scales (S,), got {tuple(scales.shape)}")
    check_odd("kernel_size", kernel_size)
    _check_functions(functions)
    factors = sorted({factor for factor, _, _ in functions}, reverse=True)
    highest = max(max(orders) for _, *orders in functions)
    profiles = _profiles(torch.outer(scales.new_tensor(factors), scales), highest, kernel_size)
    level, order_y, order_x = zip(*((factors.index(q), y, x) for q, y, x in functions), strict=True)
    rows, columns = profiles[list(level), list(order_x)], profiles[list(level), list(order_y)]  # (F, S, K)
    basis = rows[..., :, None] * columns[..., None, :]
    smallest = _FLOOR**2 * scales[0].square() * scales.new_tensor([_continuum(*each) for each in functions])
    # Before the root, which has no slope at zero.
    squares = torch.maximum(basis[:, 0].square().sum((1, 2)), smallest)
    return basis / squares.sqrt()[:, None, None, None]


def _check_functions(functions: Sequence[tuple[float, int, int]]) -> None:
    if not is_list(functions) or not functions or not all(map(_is_function, functions)):
        raise SettingError(
            "expected functions (factor, order_y, order_x), at least one, of positive factors and whole "
            f"orders, got {functions!r}"
        )


def _is_function(given: object) -> bool:
    if not is_list(given) or len(given) != 3:
        return False
    factor, *orders = given
    return is_number(factor) and 0 < factor < math.inf and all(is_whole(order, 0) for order in orders)


def _continuum(factor: float, order_y: int, order_x: int) -> float:
    r"""The squared norm in the continuum at s = 1, :math:`\int |k^n \hat g(k)|^2 dk` along each axis."""
    return factor**2 * math.gamma(order_y + 0.5) * math.gamma(order_x + 0.5)


def _profiles(sigma: Tensor, highest: int, kernel_size: int) -> Tensor:
    """The functions of one axis: sigma (L, S) to (L, order, S, K), by the recurrence of He.

    They are multiplied by the first sigma, which keeps narrow ones finite.
    """
    position = torch.arange(kernel_size, dtype=sigma.dtype, device=sigma.device) - kernel_size // 2
    u = (position / sigma[..., None]).clamp(-_FURTHEST, _FURTHEST)  # (L, S, K)
    gaussian = torch.exp(-u.square() / 2) * (sigma[:, :1] / sigma)[..., None]
    polynomials = [torch.ones_like(u), u]
    for order in range(1, highest):
        polynomials.append(u * polynomials[order] - order * polynomials[order - 1])
    return torch.stack([gaussian * polynomial for polynomial in polynomials[: highest + 1]], dim=1)
