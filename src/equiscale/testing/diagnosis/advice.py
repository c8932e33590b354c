"""What to change, in a sentence a layer."""

from collections.abc import Callable, Sequence
from typing import Final

from equiscale.testing.diagnosis.causes import Cause, needed_kernel
from equiscale.testing.diagnosis.layers import Step
from equiscale.testing.diagnosis.report import LayerDiagnosis, percent

# Faults below this are left unmentioned.
_MENTIONED: Final = 0.02
_SENTENCES: Final = 6
_NAMES: Final = 4
_NOUNS: Final[dict[Cause, str]] = {
    "interpolation": "interpolation",
    "scale axis": "the end of the scale axis",
    "border": "the border",
    "stride": "the stride",
    "pooling": "pooling",
    "kernel": "the kernel",
    "filters": "the sampling of its filters",
    "module": "the layer itself",
}
_INSTEAD: Final = {
    "Conv2d": "its filters have one size only; use LiftConv2d for images, ScaleConv2d for scale maps",
    "Flatten": "each place gets weights of its own; project and pool over all pixels before the classifier",
    "BatchNorm2d": "it treats the scales of one channel differently; use ScaleBatchNorm2d",
    "InstanceNorm2d": "its statistics change with the size of the objects; use ScaleBatchNorm2d or none",
    "Softmax": "its sum over the pixels changes with the size of the objects; normalise over channels",
}


def advise(steps: Sequence[Step], layers: Sequence[LayerDiagnosis]) -> tuple[str, ...]:
    """The sentences, that of the largest fault first; layers with the same remedy share one."""
    found = sorted(zip(steps, layers, strict=True), key=lambda pair: -pair[1].fault)
    grouped: dict[tuple[Cause, str], list[LayerDiagnosis]] = {}
    for step, layer in found:
        if layer.fault > _MENTIONED and layer.main_cause is not None:
            remedy = _REMEDIES[layer.main_cause](step)
            grouped.setdefault((layer.main_cause, remedy), []).append(layer)
    if not grouped:
        return (f"No layer adds more than {percent(_MENTIONED)} of its own.",)
    sentences = [_sentence(cause, remedy, group) for (cause, remedy), group in grouped.items()]
    return tuple(sentences[:_SENTENCES])


def _sentence(cause: Cause, remedy: str, layers: Sequence[LayerDiagnosis]) -> str:
    names = ", ".join(layer.name for layer in layers[:_NAMES]) + (" …" if len(layers) > _NAMES else "")
    share = sum(layer.part(cause) for layer in layers) / sum(layer.fault for layer in layers)
    verb = "it adds" if len(layers) == 1 else "they add"
    return f"{names}: {percent(share)} of what {verb} is {_NOUNS[cause]}: {remedy}."


def _kernel(step: Step) -> str:
    needed, size = needed_kernel(step.layer), getattr(step.layer.module, "kernel_size", None)
    if needed is None:
        return f"kernel_size={size} cuts its filters off; take a larger one, or smaller scales"
    return (
        f"it cuts the filter at scale {needed[1]:.3g} (kernel_size {size} against {needed[0]} needed); "
        f"take kernel_size={needed[0]}"
    )


def _stride(step: Step) -> str:
    lattice, size = step.layer.lattice, step.input.shape[-1]
    stride = 1 if lattice is None else int(lattice.stride)
    even = lattice is not None and lattice.offset % 1 != 0
    rule, length = ("size", size) if even else ("size − 1", size - 1)
    fitting = size + -length % stride
    return (
        f"stride {stride} on an input of {size} pixels: {rule} must be a multiple of the stride; "
        f"choose the image's size so that {fitting} pixels arrive here"
    )


def _axis(step: Step) -> str:
    slots = getattr(step.layer.module, "scale_size", 1)
    if slots > 1:
        return f"its filters see {slots} scales, at the top fewer; use scale_size=1 or more scales"
    return (
        "features come onto the axis and leave it under the maximum; take scales around the sizes of the "
        "objects, so that the strongest answer lies inside the axis"
    )


def _border(step: Step) -> str:
    lattice = step.layer.lattice
    reach = 0 if lattice is None else lattice.reach
    return (
        f"windows reach {reach} pixels beyond the edge of the input; "
        "use a larger canvas, smaller kernels, or compare the middle only"
    )


def _pooling(_: Step) -> str:
    return (
        "windows have one size whatever the scale; pool less often, over smoother features, "
        "or by an average or a stride"
    )


def _filters(step: Step) -> str:
    grid = step.layer.grid
    smallest = "" if grid is None else f" {grid.min:.3g}"
    return (
        f"those of the smallest scale{smallest} are too small for the pixel grid, or the family is not one "
        "filter at several sizes; use larger scales or another basis"
    )


def _module(step: Step) -> str:
    known = next((text for name, text in _INSTEAD.items() if step.layer.kind == name), None)
    return f"{step.layer.kind} is not scale-equivariant: " + (known or "replace it")


def _interpolation(_: Step) -> str:
    return "features are too fine for the pixel grid; measure with a larger image"


_REMEDIES: Final[dict[Cause, Callable[[Step], str]]] = {
    "interpolation": _interpolation,
    "scale axis": _axis,
    "border": _border,
    "stride": _stride,
    "pooling": _pooling,
    "kernel": _kernel,
    "filters": _filters,
    "module": _module,
}
