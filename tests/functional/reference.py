"""The definitions, written as loops: slow, obvious, and sharing no line with the library."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NUMPY_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def slow_lift(
    x: Array,
    weight: Array,
    basis: Array,
    bias: Array | None,
    *,
    stride: int,
    padding: int,
    mode: str,
    groups: int,
) -> Array:
    """y[b,o,s,i,j] = bias[o] + sum over c, f, p, q of weight[o,c,f] basis[f,s,p,q] x[b,c,i+p,j+q]."""
    functions, num_scales, size, _ = basis.shape
    x = pad(x, padding, mode)
    rows, columns = ((side - size) // stride + 1 for side in x.shape[-2:])
    y = np.zeros((len(x), len(weight), num_scales, rows, columns))
    for b, o, s, i, j in np.ndindex(*y.shape):
        y[b, o, s, i, j] = 0 if bias is None else bias[o]
        for c in range(weight.shape[1]):
            seen = x[b, input_channel(o, c, weight, groups), i * stride :, j * stride :][:size, :size]
            for f in range(functions):
                y[b, o, s, i, j] += weight[o, c, f] * np.sum(basis[f, s] * seen)
    return y


def slow_scale_conv(
    x: Array, weight: Array, basis: Array, bias: Array | None, *, stride: int, padding: int, mode: str,
    scale_padding: str, groups: int,
) -> Array:  # fmt: skip
    """As the lift, summed over the N scales s, s + 1, …; beyond the largest: zero or the largest."""
    num_scales, scale_size = basis.shape[1], weight.shape[2]
    bare = {"stride": stride, "padding": padding, "mode": mode}
    y = None
    for slot in range(scale_size):
        parts = []
        for s in range(num_scales):
            inside = s + slot < num_scales
            seen = x[:, :, min(s + slot, num_scales - 1)] * (inside or scale_padding == "replicate")
            parts.append(
                slow_lift(seen, weight[:, :, slot], basis[:, s : s + 1], None, groups=groups, **bare)
            )
        of_slot = np.concatenate(parts, axis=2)
        y = of_slot if y is None else y + of_slot
    return y if bias is None else y + bias[:, None, None, None]


def slow_pointwise(x: Array, weight: Array, bias: Array | None, *, stride: int, groups: int) -> Array:
    """y[b,o,s,i,j] = bias[o] + sum over c of weight[o,c] x[b,c,s,i,j], at every stride-th pixel."""
    rows, columns = ((side - 1) // stride + 1 for side in x.shape[-2:])
    y = np.zeros((len(x), len(weight), x.shape[2], rows, columns))
    for b, o, s, i, j in np.ndindex(*y.shape):
        y[b, o, s, i, j] = 0 if bias is None else bias[o]
        for c in range(weight.shape[1]):
            seen = x[b, input_channel(o, c, weight, groups), s, i * stride, j * stride]
            y[b, o, s, i, j] += weight[o, c, 0, 0] * seen
    return y


def pad(x: Array, padding: int, mode: str) -> Array:
    border = [(0, 0)] * (x.ndim - 2) + [(padding, padding)] * 2
    return np.pad(x, border, mode=_NUMPY_MODES[mode])


def input_channel(output: int, index: int, weight: Array, groups: int) -> int:
    return output // (len(weight) // groups) * weight.shape[1] + index
