"""The conversion of a network: traced where that is possible, else module by module."""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from equiscale.basis import basis_entry
from equiscale.deploy.conversion.graph import GraphConverter
from equiscale.deploy.conversion.modules import check_between_modules, convert_modules
from equiscale.deploy.conversion.policy import (
    BasisChoice,
    ConversionPolicy,
    Filters,
    Init,
    Where,
    make_policy,
)
from equiscale.deploy.conversion.report import ConversionReport, ModuleFate
from equiscale.deploy.tracing import trace
from equiscale.errors import EquiscaleError, ModelError, SettingError, ShapeError
from equiscale.functional.algorithms import algorithm
from equiscale.nn import SteerableConv2d
from equiscale.scales import ScaleGrid


class Conversion(NamedTuple):
    """A converted network, and what became of its modules."""

    model: nn.Module
    report: ConversionReport


def convert(
    model: nn.Module,
    grid: ScaleGrid,
    *,
    example: Tensor,
    where: Where | ConversionPolicy = "end",
    basis: BasisChoice = "pixel",
    init: Init = "pretrained",
) -> Conversion:
    r"""A scale-equivariant copy of an ordinary network of images.

    The first convolution with more than one pixel becomes a lifting convolution, those behind it scale
    convolutions; batch norm, pooling, dropout and everything else get counterparts on scale maps; in front
    of the head the scale axis is projected. What has no counterpart is applied scale by scale, and the
    report says so. The network is traced with the example; one that cannot be traced is converted module
    by module, if what it does between them has a sense for scale maps.

    Shapes:
        input and output of the converted network as of the original.

    Args:
        model: Of one input, an image; it is not changed.
        grid: The S scales; only their ratios matter to the default basis, so that they are written from 1
            on.
        example: An image batch ``(B, C, H, W)``, for the shapes.
        where: Where the scale axis is: "end" projects it in front of the head, "stage" also wherever the
            resolution falls, "layer" in every convolution; a `ConversionPolicy` for names of modules.
        basis: A name of `equiscale.basis.list_bases`, "pixel" for the pixels of `DiscoBasis`, or a function
            from the side of an ordinary filter to a basis.
        init: "pretrained" projects every filter onto the basis, and carries everything else over; "fresh"
            draws all weights anew.

    Returns:
        The converted network, in the original's mode, and the report.

    Raises:
        SettingError: For an unknown word or name, or a reference scale that the grid does not have.
        BasisError: For an unknown name of a basis.
        ShapeError: If the example is not an image batch.
        ModelError: If nothing can be converted, or the network fails for the example.

    Exactness:
        On the reference scale every feature in front of the first projection is that of the original, up to
        the residuals of the report: none for the default basis and the smallest scale
        (``tests/deploy/test_conversion.py``).

    Source:
        Basis on pixels: Sosnovik et al. 2021 (`DiscoBasis`); the conversion is ours.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> converted, report = convert(network, ScaleGrid([1.0, 2.0]), example=torch.zeros(1, 3, 16, 16))
        >>> [fate.after for fate in report.fates if fate.after]
        ['LiftConv2d', 'ScaleBatchNorm2d', 'ScaleProjection']
    """
    policy = make_policy(where)
    if init not in ("pretrained", "fresh"):
        raise SettingError(f"expected init to be pretrained or fresh, got {init!r}")
    if not isinstance(grid, ScaleGrid):
        raise SettingError(f"expected a ScaleGrid, got {grid!r}; write ScaleGrid({grid!r})")
    if not isinstance(example, Tensor) or example.ndim != 4:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ShapeError(f"expected an example (B, C, H, W), a tensor, got {got}")
    if isinstance(basis, str) and basis != "pixel":
        basis_entry(basis)
    policy.check_names([name for name, _ in model.named_modules()])
    filters = Filters(grid, basis, policy.reference_index(grid), init == "pretrained")
    converted, fates, traced = _converted(deepcopy(model), example, policy, filters)
    if not any(isinstance(module, SteerableConv2d) for module in converted.modules()):
        reasons = "; ".join(f"{fate.name}: {fate.note}" for fate in fates if fate.note)
        raise ModelError(
            "expected a convolution that can be converted, got none"
            + (f" ({reasons})" if reasons else "; a 1×1 convolution knows no scale")
        )
    if init == "fresh":
        _draw_anew(converted)
    _follow_modes(converted, model)
    report = ConversionReport(
        tuple(fates),
        (_parameters(model), _parameters(converted)),
        (_multiply_adds(model, example), _multiply_adds(converted, example)),
        traced,
    )
    return Conversion(converted, report)


def _converted(
    model: nn.Module, example: Tensor, policy: ConversionPolicy, filters: Filters
) -> tuple[nn.Module, list[ModuleFate], bool]:
    try:
        traced = trace(model, example)
    except ModelError as error:
        return (*_module_by_module(model, example, policy, filters, why=error), False)
    converter = GraphConverter(traced.eval(), policy, filters)
    return converter.convert(), converter.fates, True


def _module_by_module(
    model: nn.Module, example: Tensor, policy: ConversionPolicy, filters: Filters, *, why: ModelError
) -> tuple[nn.Module, list[ModuleFate]]:
    try:
        converted, fates = convert_modules(model, example, policy, filters)
        with torch.no_grad():
            converted.eval()(example.clone())
        check_between_modules(model, example, policy, filters)
    except (EquiscaleError, RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(
            f"expected a network that can be traced or converted module by module, got: {why}; and: {error}"
        ) from error
    return converted, fates


def _follow_modes(converted: nn.Module, model: nn.Module) -> None:
    """The original's mode, also where parts of it are frozen."""
    converted.train(model.training)
    names = {name for name, _ in converted.named_modules()}
    for name, module in model.named_modules():
        if module.training != model.training and name in names:
            converted.get_submodule(name).train(module.training)


def _draw_anew(model: nn.Module) -> None:
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _multiply_adds(model: nn.Module, example: Tensor) -> int:
    """Of one image, in evaluation; convolutions at the window of every scale."""
    counter, copied = FlopCounterMode(display=False), deepcopy(model).eval()
    with torch.no_grad(), algorithm("cropped"):
        copied(example.clone())  # which makes the filters: they are kept
        with counter:
            copied(example.clone())
    return counter.get_total_flops() // 2 // max(len(example), 1)
