"""Ordinary filters as combinations of basis functions."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from equiscale._typing import BasisTensor
from equiscale.errors import ShapeError


def project_filters(kernel: Tensor, basis: BasisTensor, *, scale: int = 0) -> tuple[Tensor, float]:
    r"""The weights of steerable filters that are nearest to ordinary ones on one scale.

    .. math:: \min_w \; \Big\| \kappa - \sum_f w_f \, \psi_{f s} \Big\|^2

    Shapes:
        kernel: ``(C', C, k, k)`` with odd k ≤ K; basis: ``(F, S, K, K)``; weights ``(C', C, F)``.

    Args:
        kernel: κ, put in the middle of K×K zeros.
        basis: ψ, the sampled functions.
        scale: s, an index.

    Returns:
        w, and the residual: the norm of what is left over that of the kernel.

    Raises:
        ShapeError: If the kernel is not square and odd, or larger than K.

    Exactness:
        The residual is zero where the functions span all k×k filters on that scale, as
        ``DiscoBasis(k, "pixel")`` does on the smallest (``tests/deploy/test_conversion.py``).

    Example:
        >>> from equiscale import ScaleGrid
        >>> from equiscale.basis import DiscoBasis
        >>> basis = DiscoBasis(3, "pixel").sample(5, ScaleGrid([1.0, 2.0]))
        >>> weights, residual = project_filters(torch.randn(4, 2, 3, 3), basis)
        >>> weights.shape, round(residual, 6)
        (torch.Size([4, 2, 9]), 0.0)
    """
    side, largest = kernel.shape[-1], basis.shape[-1]
    if kernel.ndim != 4 or kernel.shape[2] != side or side % 2 == 0 or side > largest:
        raise ShapeError(
            f"project_filters: expected kernels (C', C, k, k) with odd k of at most {largest}, "
            f"got {tuple(kernel.shape)}"
        )
    margin = (largest - side) // 2
    target = pad(kernel.detach().double().cpu(), [margin] * 4).flatten(0, 1).flatten(1)  # (C'*C, K*K)
    functions = basis[:, scale].double().cpu().flatten(1)  # (F, K*K)
    weights = torch.linalg.lstsq(functions.t(), target.t(), driver="gelsd").solution.t()  # (C'*C, F)
    rest, size = float((target - weights @ functions).norm()), float(target.norm())
    shaped = weights.view(*kernel.shape[:2], -1).to(kernel)
    return shaped, rest / size if size > 0 else 0.0
