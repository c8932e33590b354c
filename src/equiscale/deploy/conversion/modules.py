"""Convert a network that cannot be traced, module by module in the order of their use."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from equiscale.deploy.conversion.layers import Counterpart, is_spatial, lift, on_scale_map, unfit
from equiscale.deploy.conversion.policy import ConversionPolicy, Filters
from equiscale.deploy.conversion.report import ModuleFate
from equiscale.errors import ModelError
from equiscale.nn import ScaleProjection, ScaleWise

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
