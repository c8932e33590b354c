"""Batch norm over several processes: the statistics, and their gradients, are those of the joined batch.

While `shared_statistics` lasts, every batch norm of a module computes with the images of all processes,
of which each has its own share, even of different sizes. Parameters, buffers and their names stay as they
are, and outside of the context nothing is different.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from equiscale.errors import SettingError, ShapeError

_OF_TORCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SharesStatistics:
    """A layer whose statistics of the batch can be those of all processes.

    ``process_group`` is None but in `shared_statistics`; a subclass looks at it in its forward pass.
    """

    process_group: ProcessGroup | None = None


@contextmanager
def shared_statistics(model: nn.Module, group: ProcessGroup) -> Iterator[None]:
    """Until the context ends, the batch norms of a module see the batches of all processes as one.

    Every process of the group must run the same forward and backward passes within the context, each on
    its own share of at least one image.

    Args:
        model: The module; its tensors and their names stay as they are.
        group: The processes.

    Raises:
        SettingError: If the module has a layer with statistics of the batch that cannot be shared.
    """
    layers = [module for module in model.modules() if _has_statistics(module)]
    try:
        for layer in layers:
            _share(layer, group)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("process_group" if isinstance(layer, SharesStatistics) else "forward", None)


def normalized(layer: _BatchNorm, x: Tensor) -> Tensor:
    """torch's batch norm of ``(B, C, ...)``, in training by the statistics of all processes that share them.

    Args:
        layer: The layer, with its parameters, buffers and mode.
        x: What is normalised.
    """
    group = layer.process_group if isinstance(layer, SharesStatistics) else None
    if group is None:
        return _BatchNorm.forward(layer, x)
    return _normalized_over(group, layer, x)


def shared_variance(x: Tensor, group: ProcessGroup) -> tuple[Tensor, int]:
    r"""The biased variance of every channel over the x of all processes, and how many values a channel has.

    .. math:: \sigma_c^2 = \frac1N \sum_r \left(M_{r c} + n_r (\mu_{r c} - \mu_c)^2\right), \qquad
        \mu_c = \frac1N \sum_r n_r \mu_{r c}

    with the count n, mean μ and sum of squared deviations M of each process r.

    Shapes:
        ``(B, C, ...)`` to ``(C,)``.

    Args:
        x: The share of this process.
        group: The processes.

    Returns:
        The variance, whose gradient reaches the x of all processes, and N.

    Source:
        Chan, Golub, LeVeque 1979, for sums of squares of parts.
    """
    return _SharedVariance.apply(x, group)  # type: ignore[no-any-return,no-untyped-call]


def _has_statistics(module: nn.Module) -> bool:
    """Whether what a layer gives for one image, or keeps, depends on the others."""
    if isinstance(module, _InstanceNorm):
        return module.track_running_stats
    return isinstance(module, (_BatchNorm, SharesStatistics)) and not isinstance(module, nn.SyncBatchNorm)


def _share(layer: nn.Module, group: ProcessGroup) -> None:
    if isinstance(layer, SharesStatistics):
        layer.process_group = group
    elif isinstance(layer, _BatchNorm) and type(layer) in _OF_TORCH:
        # A plain attribute hides the class's method for this one layer, and is gone afterwards.
        layer.__dict__["forward"] = partial(_normalized_over, group, layer)
    else:
        raise SettingError(
            "expected batch norms of torch or equiscale, whose statistics several processes can share, "
            f"got {type(layer).__name__}; train it in one process"
        )


def _normalized_over(group: ProcessGroup, layer: _BatchNorm, x: Tensor) -> Tensor:
    if not layer.training:
        return _BatchNorm.forward(layer, x)
    layer._check_input_dim(x)  # type: ignore[no-untyped-call]
    y, mean, variance, count = _SharedBatchNorm.apply(x, layer.weight, layer.bias, layer.eps, group)  # type: ignore[no-untyped-call]
    _track(layer, mean, variance * (count / (count - 1)))
    return y  # type: ignore[no-any-return]


@torch.no_grad()
def _track(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics, as torch's batch norm does."""
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    weight = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), weight)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), weight)


class _SharedBatchNorm(torch.autograd.Function):
    r"""y = γ x̂ + β with x̂ = (x − μ) / √(σ² + ε); the gradient needs the sums of dy and dy x̂ of all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        mean, variance, count = _joined_moments(x, group)
        work = _working(x)
        across = _across(work)
        inverse = (variance + eps).rsqrt().to(work.dtype)
        scale = inverse if weight is None else inverse * weight
        ctx.save_for_backward(x, weight, mean.to(work.dtype), inverse)
        ctx.count, ctx.group, ctx.has_bias = count, group, bias is not None
        y = (work - across(mean.to(work.dtype))).mul_(across(scale))
        if bias is not None:
            y.add_(across(bias))
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        work, dy = _working(x), _working(grad)
        across, axes = _across(work), _axes(x)
        unit = (work - across(mean)).mul_(across(inverse))
        own = torch.stack([dy.sum(axes), (dy * unit).sum(axes)])  # (2, C)
        joined = (_sum(own, ctx.group) / ctx.count).to(own.dtype)
        scale = inverse if weight is None else inverse * weight
        dx = unit.mul_(across(-joined[1])).add_(dy).sub_(across(joined[0])).mul_(across(scale))
        return (
            dx.to(x.dtype),
            None if weight is None else own[1].to(weight.dtype),
            own[0] if ctx.has_bias else None,
            *(None, None),
        )


class _SharedVariance(torch.autograd.Function):
    """dx = 2 (x − μ) / N, times the sum of the gradients that the variance has in all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> tuple[Tensor, int]:
        mean, variance, count = _joined_moments(x, group)
        ctx.save_for_backward(x, mean.to(x.dtype))
        ctx.count, ctx.group = count, group
        return variance.to(x.dtype), count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        across = _across(x)
        factor = (_sum(grad, ctx.group) * (2 / ctx.count)).to(x.dtype)
        return (x - across(mean)) * across(factor), None


def _joined_moments(x: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of every channel over all processes, in float64, and the count of values."""
    variance, mean = torch.var_mean(_working(x), _axes(x), correction=0)
    count = torch.full_like(mean[:1], x.numel() // max(1, x.shape[1]), dtype=torch.float64)
    own = torch.cat([count, mean.double(), variance.double() * count])
    # Gathered, not summed: every process adds in the same order, and has the same bits.
    gathered = [torch.empty_like(own) for _ in range(group.size())]
    torch.distributed.all_gather(gathered, own, group=group)
    parts = torch.stack(gathered)  # (processes, 1 + 2 C)
    counts, (means, squares) = parts[:, :1], parts[:, 1:].chunk(2, 1)
    total = counts.sum()
    if (values := int(total)) < 2:
        raise ShapeError(
            f"expected more than one value a channel in training, got {tuple(x.shape)} in all processes "
            "together; a variance needs two, use larger batches or eval()"
        )
    joined = (counts * means).sum(0) / total
    return joined, (squares + counts * (means - joined).square()).sum(0) / total, values


def _sum(values: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over all processes, in float64."""
    joined = values.double()
    joined = joined.clone() if joined is values else joined
    torch.distributed.all_reduce(joined, group=group)
    return joined


def _working(x: Tensor) -> Tensor:
    """In single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _axes(x: Tensor) -> list[int]:
    """All but the channels."""
    return [axis for axis in range(x.ndim) if axis != 1]


def _across(x: Tensor) -> Callable[[Tensor], Tensor]:
    """What lays a vector of channels along the channels of x."""
    return lambda vector: vector.view(-1, *[1] * (x.ndim - 2))
