"""What is illegal, made from the table of legal uses.

The rule: a setting or an input that is illegal gives an `EquiscaleError` that says what was expected and
what came, before any work. Three things are left to Python and torch: a missing or an unknown argument is
Python's own TypeError; flags count by their truth; and a whole number up to 2³¹ − 1 that only the memory
refuses is refused by the memory. Values are never looked at, so that NaN and infinity pass through.
"""

import inspect
import math
from collections.abc import Iterator
from typing import Any, Final, get_type_hints

import torch
from torch import Tensor

from tests.properties.cases import Case, Use

HUGE: Final = 2**40 + 1

NOT_WHOLE: Final = (1.0, 1.5, True, "3", math.nan, [3], HUGE)
AT_LEAST_ONE: Final = (*NOT_WHOLE, 0, -1, None)
AT_LEAST_ONE_OR_NONE: Final = (*NOT_WHOLE, 0, -1)
AT_LEAST_ZERO: Final = (*NOT_WHOLE, -1, None)
ODD: Final = (*AT_LEAST_ONE, 2, 4)
NO_NUMBER: Final = ("1", [1.0], math.nan, math.inf, -math.inf)
POSITIVE: Final = (*NO_NUMBER, 0, -1.0, None)
POSITIVE_OR_NONE: Final = (*NO_NUMBER, 0, -1.0)
CHOICE: Final = ("wrong", 3, [], {}, None)
CHOICE_OR_NONE: Final = ("wrong", 3, [], {})
NO_SCALES: Final = ("12", b"12", [True], ["1"], [1j], [10**400])
SCALES: Final = (
    *NO_SCALES,
    [],
    None,
    3,
    ["a"],
    [math.nan],
    [1.0, math.inf],
    [0.0, 1.0],
    [-1.0],
    [2.0, 1.0],
    [1.0, 1.0],
)
SIZES: Final = ([], None, 3, ["a", "b"], [2], [3, 3], [5, 3], [1.5], [True, 3], [-1], [math.nan], [HUGE])
A_GRID: Final = (None, [1.0, 2.0], 3, "grid")
A_BASIS: Final = (None, "hermite", 3)
A_GEOMETRY: Final = (None, {"stride": 1}, "same", 3)
WINDOWS: Final = ([], 3, "a", ["a"], [2] * 9, [0], [1.5], [HUGE])

# Parameter -> illegal values; "owner.parameter" before "parameter".
ILLEGAL: Final[dict[str, tuple[Any, ...]]] = {
    "in_channels": AT_LEAST_ONE,
    "out_channels": AT_LEAST_ONE,
    "num_channels": AT_LEAST_ONE,
    "num_features": AT_LEAST_ONE,
    "num_scales": AT_LEAST_ONE,
    "skip_channels": AT_LEAST_ONE,
    "kernel_size": ODD,
    "stride": AT_LEAST_ONE,
    "groups": AT_LEAST_ONE,
    "pooling": AT_LEAST_ONE,
    "padding": (*AT_LEAST_ZERO, "valid"),
    "padding_mode": CHOICE,
    "scale_padding": CHOICE,
    "projection": CHOICE_OR_NONE,
    "output_padding": (*AT_LEAST_ZERO, 3),
    "scale_size": (*AT_LEAST_ONE, 9),
    "factor": AT_LEAST_ONE,
    "method": CHOICE,
    "alignment": CHOICE,
    "mode": CHOICE,
    "kind": CHOICE,
    "pool": CHOICE,
    "canvas": CHOICE,
    "border": CHOICE,
    "interpolation": CHOICE,
    "resampling": CHOICE,
    "turn": CHOICE,
    "degenerate": CHOICE,
    "p": (*NO_NUMBER, 1.0, -0.1, None),
    "eps": ("1", [1.0], math.nan, math.inf, -1.0, None),
    "momentum": ("1", [1.0], math.nan, math.inf, -0.1, 1.5),
    "VectorFieldBatchNorm2d.momentum": ("1", [1.0], math.nan, math.inf, -0.1, 1.5, None),
    "base": (*NO_NUMBER, 1, 0.5, -2, None),
    "ScaleSpaceConv2d.base": (*AT_LEAST_ONE, 1),
    "scale_space_conv2d.base": (*AT_LEAST_ONE, 1),
    "zero_scale": POSITIVE,
    "min_scale": POSITIVE,
    "scale_range": (*POSITIVE, 1.0),
    "LearnableScales.num_scales": (*AT_LEAST_ONE, 1),
    "grid": A_GRID,
    "basis": A_BASIS,
    "scales": SCALES,
    "factors": SCALES,
    "kernel_sizes": SIZES,
    "geometry": A_GEOMETRY,
    "windows": WINDOWS,
    "steering": (None, (3, 5), 3),
    "module": (None, 3, "relu"),
    "function": (None, 3, "relu"),
    "LearnableLiftConv2d.scales": (None, [1.0, 2.0], 3),
    "LearnableScaleConv2d.scales": (None, [1.0, 2.0], 3),
    "effective_size": AT_LEAST_ONE,
    "DiscoBasis.effective_size": ODD,
    "max_order": AT_LEAST_ZERO,
    "GaussianDerivativeBasis.max_order": (*NOT_WHOLE, -1),
    "mult": (*NO_NUMBER, 1.0, 0.5, None),
    "sigma": POSITIVE_OR_NONE,
    "spread": POSITIVE,
    "radius": POSITIVE_OR_NONE,
    "discrete_gaussian.radius": (*NOT_WHOLE, -1),
    "angular_width": POSITIVE_OR_NONE,
    "ScaleSteering.angular_width": POSITIVE,
    "rotations": AT_LEAST_ONE_OR_NONE,
    "degree": (*AT_LEAST_ZERO, 10),
    "correlation": (*NO_NUMBER, 1.0, -0.1, None),
    "ndim": AT_LEAST_ONE,
    "variance": (*NO_NUMBER, -1.0, None),
    "num_small": AT_LEAST_ONE,
    "num_big": AT_LEAST_ZERO,
    "angle_range": (*POSITIVE, 2 * math.pi),
    "base_size": POSITIVE,
    "orders": ((), None, 3, (0.0,), (math.nan,), (math.inf,), ("a",)),
    "angles": ((), None, 3, (math.nan,), (math.inf,), ("a",)),
    "phase": (*NO_NUMBER, None),
    "functions": ([], None, 3, [(1.0, 0)], [(0.0, 0, 0)], [(1.0, -1, 0)], [(1.0, 0, 0.5)], ["abc"]),
    "frequencies": ([], None, 3, "a", [math.nan], [1.0] * 9),
    "ratios": ([], None, 3, "a", [math.nan], [0.0], [-1.0], [1.0] * 9),
    "kernels": (None, 3, [3], [torch.ones(2)], [torch.ones(1, 1)], "ab"),
    "cubic": (*NO_NUMBER, None),
    "center_offset": (*NO_NUMBER, None),
    "rescale.factor": (*NO_NUMBER, 0, -1.0, None, torch.ones(7, 7), torch.tensor(math.nan)),
    "name": ("wrong", 3, None, []),
}
for _owner in ("Max", "Avg"):
    for _ndim in ("1d", "2d", "3d"):
        ILLEGAL[f"Scale{_owner}Pool{_ndim}.kernel_size"] = AT_LEAST_ONE
for _owner in ("ImageMaxPool2d", "VectorFieldMaxPool2d", "image_max_pool2d", "vector_field_max_pool2d"):
    ILLEGAL[f"{_owner}.kernel_size"] = AT_LEAST_ONE
for _owner in ("scale_max_pool2d", "scale_avg_pool2d", "scale_max_pool_nd", "scale_avg_pool_nd"):
    ILLEGAL[f"{_owner}.kernel_size"] = AT_LEAST_ONE
for _owner in [name.split(".")[0] for name in ILLEGAL if name.endswith(".kernel_size")]:
    ILLEGAL[f"{_owner}.stride"] = AT_LEAST_ONE_OR_NONE
    ILLEGAL[f"{_owner}.padding"] = (*AT_LEAST_ZERO, 2)

# Nothing is illegal here, or torch and Python say it.
FREE: Final = {
    "bias": "a flag, or a tensor",
    "lifts": "a flag",
    "constant": "a flag",
    "training": "a flag",
    "whole_channels": "a flag",
    "generator": "torch's own",
    "affine": "torch's own",
    "track_running_stats": "torch's own",
    "device": "torch's own",
    "dtype": "torch's own",
    "args": "the module's own",
}


def parameters(case: Case) -> list[str]:
    """All parameters, the keywords of the geometry among them."""
    found = []
    for name, parameter in inspect.signature(case.thing).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            typed = get_type_hints(case.thing.__init__)[name] if inspect.isclass(case.thing) else None
            found += list(_keywords(typed)) if typed else []
        else:
            found.append(name)
    if case.thing.__name__.endswith("Basis"):
        found += ["kernel_size", "grid"]
    return found


def _keywords(unpacked: Any) -> dict[str, Any]:
    inner = getattr(unpacked, "__args__", ())
    return get_type_hints(inner[0]) if inner else {}


def kind(case: Case, name: str) -> tuple[Any, ...] | None:
    return ILLEGAL.get(f"{case.thing.__name__}.{name}", ILLEGAL.get(name))


def wrong_settings(case: Case, use: Use) -> Iterator[tuple[str, Any]]:
    """Every parameter with each of its illegal values."""
    for name in parameters(case):
        if name not in use.tensors and name not in FREE:
            yield from ((name, value) for value in kind(case, name) or ())


# --- inputs ---


def wrong_types(tensor: Tensor) -> dict[str, Any]:
    """What looks like the tensor, and is none of floating-point numbers."""
    return {
        "a list": tensor.tolist(),
        "an array": tensor.numpy(),
        "a number": 1.0,
        "a text": "x",
        "integers": tensor.long(),
        "bytes": tensor.byte(),
        "booleans": tensor > 0,
        "complex numbers": tensor.to(torch.complex64),
    }


def resized(tensor: Tensor) -> dict[str, Tensor]:
    """The tensor with one axis longer, shorter or empty, and with one axis more and fewer."""
    found = {"an axis more": tensor[None], "no axes": tensor.sum()}
    if tensor.ndim:
        found["an axis fewer"] = tensor[0]
    for axis, size in enumerate(tensor.shape):
        found[f"axis {axis} longer"] = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
        found[f"axis {axis} shorter"] = tensor.narrow(axis, 0, size - 1)
        found[f"axis {axis} empty"] = tensor.narrow(axis, 0, 0)
    return found
