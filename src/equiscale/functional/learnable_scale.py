"""Hermite functions as a differentiable function of their scales."""

from collections.abc import Sequence

import torch
from torch import Tensor

from equiscale._typing import BasisTensor
from equiscale.errors import SettingError, ShapeError


def sample_hermite(
    scales: Tensor, functions: Sequence[tuple[float, int, int]], kernel_size: int
) -> BasisTensor:
    r"""Hermite functions under a Gaussian, differentiable in the scales.

    .. math:: \psi_f(y, x; s) = \tfrac{1}{Z_f \sigma^2}
        He_n(\tfrac{y}{\sigma})\, He_m(\tfrac{x}{\sigma})\, e^{-(x^2 + y^2) / 2 \sigma^2},
        \qquad \sigma = q_f s

    with :math:`Z_f` the L2 norm of the function on the first scale.

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

    Source:
        Sosnovik, Szmaja, Smeulders, *Scale-Equivariant Steerable Networks*, ICLR 2020, section 5;
        as a function of the scales: Basting et al., *Scale Learning in Scale-Equivariant
        Convolutional Networks*, VISAPP 2024.

    Example:
        >>> scales = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> sample_hermite(scales, [(1.0, 0, 0), (1.0, 0, 1)], 9).shape
        torch.Size([2, 2, 9, 9])
    """
    if scales.ndim != 1:
        raise ShapeError(f"expected scales (S,), got {tuple(scales.shape)}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise SettingError(
            f"expected an odd kernel_size, got {kernel_size}; a centred filter needs a central pixel"
        )
    factors = sorted({factor for factor, _, _ in functions}, reverse=True)
    highest = max(max(orders) for _, *orders in functions)
    profiles = _profiles(torch.outer(scales.new_tensor(factors), scales), highest, kernel_size)
    level, order_y, order_x = zip(*((factors.index(q), y, x) for q, y, x in functions), strict=True)
    rows, columns = profiles[list(level), list(order_x)], profiles[list(level), list(order_y)]  # (F, S, K)
    basis = rows[..., :, None] * columns[..., None, :]
    return basis / basis[:, :1].square().sum((2, 3), keepdim=True).sqrt()


def _profiles(sigma: Tensor, highest: int, kernel_size: int) -> Tensor:
    """The functions of one axis: sigma (L, S) to (L, order, S, K), by the recurrence of He."""
    position = torch.arange(kernel_size, dtype=sigma.dtype, device=sigma.device) - kernel_size // 2
    u = position / sigma[..., None]  # (L, S, K)
    gaussian = torch.exp(-u.square() / 2) / sigma[..., None]
    polynomials = [torch.ones_like(u), u]
    for order in range(1, highest):
        polynomials.append(u * polynomials[order] - order * polynomials[order - 1])
    return torch.stack([gaussian * polynomial for polynomial in polynomials[: highest + 1]], dim=1)
