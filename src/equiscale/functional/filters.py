"""From weights and basis functions to filters."""

import torch

from equiscale.errors import ShapeError
from equiscale.functional.checks import check_filled, check_operands


def synthesize_filters(weight: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    r"""Steerable filters: linear combinations of the basis functions on every scale.

    .. math:: \kappa_{\dots s}(y, x) = \sum_f w_{\dots f} \, \psi_{f s}(y, x)

    Shapes:
        weight: ``(..., F)``; basis: ``(F, S, K, K)``; result: ``(..., S, K, K)``.

    Args:
        weight: w, the learned weights.
        basis: ψ, the sampled functions.

    Returns:
        κ, one filter for each scale.

    Raises:
        ShapeError: If the weights and the basis disagree about F.

    Source:
        Sosnovik et al. 2020, equation 10.

    Example:
        >>> synthesize_filters(torch.ones(4, 3, 2), torch.ones(2, 5, 7, 7)).shape
        torch.Size([4, 3, 5, 7, 7])
    """
    check_operands("synthesize_filters", weight, basis)
    if basis.ndim < 2:
        raise ShapeError(f"expected a basis (F, S, K, K), got {tuple(basis.shape)}")
    if weight.ndim < 1 or weight.shape[-1] != basis.shape[0]:
        raise ShapeError(
            f"expected weights (..., F) for a basis of F={basis.shape[0]} functions, "
            f"got {tuple(weight.shape)}"
        )
    return (weight @ basis.flatten(1)).view(*weight.shape[:-1], *basis.shape[1:])  # (..., S, K, K)


def support_windows(basis: torch.Tensor) -> tuple[int, ...]:
    """The side of the smallest centred window that holds all functions, for every scale.

    Shapes:
        basis: ``(F, S, K, K)`` with odd K; result: S odd numbers.

    Args:
        basis: ψ, the sampled functions.

    Returns:
        The sides in pixels; 1 where all functions vanish.

    Raises:
        SettingError: If the basis is no tensor of floating-point numbers.
        ShapeError: If it has other axes, or an even side.

    Example:
        >>> basis = torch.zeros(1, 2, 5, 5)
        >>> basis[:, 0, 2, 2] = 1.0
        >>> basis[:, 1, 0, 2] = 1.0
        >>> support_windows(basis)
        (1, 5)
    """
    check_filled("support_windows", basis)
    if basis.ndim != 4 or basis.shape[-1] % 2 == 0:
        raise ShapeError(f"expected a basis (F, S, K, K) with odd K, got {tuple(basis.shape)}")
    center = basis.shape[-1] // 2
    return tuple(2 * _reach(occupied, center) + 1 for occupied in (basis != 0).any(0))


def _reach(occupied: torch.Tensor, center: int) -> int:
    positions = occupied.nonzero()
    return int((positions - center).abs().max()) if len(positions) else 0
