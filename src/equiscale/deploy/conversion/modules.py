"""Convert a network that cannot be traced, module by module in the order of their use."""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from equiscale._typing import BasisTensor
from equiscale.basis import SteerableBasis
from equiscale.deploy.conversion.layers import Counterpart, is_spatial, lift, on_scale_map, unfit
from equiscale.deploy.conversion.policy import ConversionPolicy, Filters
from equiscale.deploy.conversion.report import ModuleFate
from equiscale.errors import ModelError
from equiscale.nn import ScaleProjection, ScaleWise
from equiscale.scales import ScaleGrid

_HEADS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear)
_ANY_AXES = (nn.GroupNorm, nn.InstanceNorm2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d)


def convert_modules(
    model: nn.Module, example: Tensor, policy: ConversionPolicy, filters: Filters
) -> tuple[nn.Module, list[ModuleFate]]:
    """A copy whose modules are replaced: lifting at the first convolution, projection in front of the head.

    Raises:
        ModelError: If the policy asks for more than that, or what the network does between its modules has
            no sense for scale maps.
    """
    if policy.project not in ("end", "layer") or policy.lift != ("*",):
        raise ModelError(
            "expected project='end' or 'layer' for a network that cannot be traced, "
            f"got {policy.project!r} and lift={policy.lift}"
        )
    copied = deepcopy(model)
    fates, on_map = [], False
    for name in _in_order_of_use(copied, example):
        module = copied.get_submodule(name)
        counterpart, on_map = _replaced(module, policy, filters, on_map)
        _set(copied, name, counterpart.module)
        after = type(counterpart.module).__name__
        changed = after if after != type(module).__name__ else ""
        fates.append(
            ModuleFate(
                name,
                type(module).__name__,
                changed,
                counterpart.note,
                counterpart.residual,
                counterpart.equivariant,
            )
        )
    return copied, fates


def check_between_modules(
    model: nn.Module, example: Tensor, policy: ConversionPolicy, filters: Filters
) -> None:
    """Whether what the network does between its modules does to scale maps what it does to images.

    With the same ordinary filters on all scales, all scales are the original's features, and so is what
    follows from their maximum.

    Raises:
        ModelError: If it is not.
    """
    settings = replace(policy, projection="max")
    image = 0.5 + torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    alike, _ = convert_modules(model, image, settings, _Alike(filters.grid, "pixel", 0, True))
    with torch.no_grad():
        expected, got = (network.eval()(image.clone()) for network in (deepcopy(model), alike))
    for x, y in zip(tree_flatten(expected)[0], tree_flatten(got)[0], strict=True):
        close = torch.finfo(x.dtype).eps ** 0.5 if x.is_floating_point() else 0.0
        if x.shape != y.shape or not torch.allclose(x, y, rtol=close, atol=close, equal_nan=True):
            raise ModelError(
                "expected functions between modules that do the same to scale maps as to images, got others; "
                "write them as modules"
            )


@dataclass(frozen=True)
class _Pixels:
    """The pixels of an ordinary filter, the same on every scale."""

    side: int

    @property
    def num_functions(self) -> int:
        return self.side**2

    def sample(self, kernel_size: int, grid: ScaleGrid) -> BasisTensor:
        pixels = torch.eye(self.num_functions).view(-1, 1, self.side, self.side)
        return pixels.repeat(1, len(grid), 1, 1)


class _Alike(Filters):
    """The filters of an ordinary network on all scales."""

    def family(self, side: int) -> SteerableBasis:
        return _Pixels(side)

    def kernel_size(self, side: int) -> int:
        return side


def _replaced(
    module: nn.Module, policy: ConversionPolicy, filters: Filters, on_map: bool
) -> tuple[Counterpart, bool]:
    if not on_map:
        if not (isinstance(module, nn.Conv2d) and is_spatial(module)):
            return Counterpart(module), False
        reason = unfit(module, filters)
        if reason is not None:
            return Counterpart(module, f"stays an ordinary convolution: {reason}", equivariant=False), False
        each = policy.project == "layer"
        return lift(module, filters, projected=each), not each
    if isinstance(module, _HEADS):
        return Counterpart(nn.Sequential(ScaleProjection(policy.projection), module)), False
    known = on_scale_map(module, filters)
    if known is None and isinstance(module, _ANY_AXES):
        known = Counterpart(ScaleWise(module))
    return known or Counterpart(module), True


def _in_order_of_use(model: nn.Module, example: Tensor) -> list[str]:
    """The names of the innermost modules in the order in which the example meets them first."""
    seen: dict[str, None] = {}
    leaves = {name: module for name, module in model.named_modules() if not any(module.children())}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name))
        for name, module in leaves.items()
        if name
    ]
    mode = model.training
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return list(seen)


def _set(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    root.get_submodule(parent).add_module(leaf, module)
