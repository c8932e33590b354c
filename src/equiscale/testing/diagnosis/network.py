"""Why is a network not equivariant? Every layer measured, and what each adds taken apart."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from equiscale.errors import EquiscaleError, SettingError, ShapeError
from equiscale.scales import ScaleGrid
from equiscale.testing.diagnosis.advice import advise
from equiscale.testing.diagnosis.causes import CAUSES, OwnError, own_error
from equiscale.testing.diagnosis.commutator import Features, Scaling, common_scales, interior, relative
from equiscale.testing.diagnosis.layers import Step, is_scale_map, run
from equiscale.testing.diagnosis.report import LayerDiagnosis, NetworkEquivarianceReport
from equiscale.testing.diagnosis.resampling import cubic_matrix, read
from equiscale.testing.equivariance import _evaluation, _find_grid, _like
from equiscale.testing.signals import BandLimitedImage

# Sides tried in turn where none is given: networks for digits take no other than their own.
_SIZES: Final = (96, 64, 56, 48, 32, 28)
_SEED: Final = 0
# Published grids are rounded: a factor may miss a power of the step by this much.
_POWER: Final = 0.01
_PLAIN_FACTORS: Final = (0.5, 0.5**0.5, 2**0.5, 2.0)

Network = Callable[[Tensor], Tensor]


def equivariance_report(
    model: Network,
    x: BandLimitedImage | None = None,
    factors: Sequence[float] | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
    grid: ScaleGrid | None = None,
) -> NetworkEquivarianceReport:
    r"""Measure every layer's equivariance error, what the layer itself adds, and why.

    .. math:: \epsilon_l = \frac{\| u_l(T x) - T' u_l(x) \|}{\| T' u_l(x) \|}, \qquad
        \delta_l = \frac{\| L_l(T' u_{l-1}(x)) - T' L_l(u_{l-1}(x)) \|}{\| T' L_l(u_{l-1}(x)) \|}

    with :math:`u_l` the features behind layer l. ε is the error from the image on, over all pixels whose
    preimage is on the canvas; δ is what the layer adds to features that are right. The causes of δ are found
    by taking them away, one after the other: the output is read from a finer grid of pixels (interpolation),
    the scales that come and go are left out (scale axis), the features go on beyond the canvas (border), the
    centre of the output's pixels is put right (stride), pixels are picked in place of a maximum (pooling),
    the same filters get a larger window (kernel). What is left is the filters' sampling, or the module's.

    Shapes:
        the model maps ``(B, C, H, W)`` to ``(B, D)``, ``(B, C', H', W')`` or ``(B, C', S', H', W')``.

    Args:
        model: The network. It runs in evaluation mode without gradients, and its mode is restored.
        x: The images; None: random ones of the network's input shape, as far as it can be found out.
        factors: a, the scale factors; None: the step of the network's grid to the powers −2, −1, 1 and 2, as
            far as the grid has these, and without a grid √2 to them.
        size: The canvas of the random images; None: the first of 96, 64, 56, 48, 32, 28 that the model takes.
        generator: Source of the random images; None: always the same ones.
        grid: The scales of scale maps; None: those of the layer, or of the last one that had any.

    Returns:
        The report; ``str`` of it is a table.

    Raises:
        SettingError: If a factor is no power of the grid's step within 1 %, there is none, or both x and a
            size are given.
        ShapeError: If the model takes none of the sizes, or its channels cannot be found out.

    Exactness:
        A layer of one input and one output tensor is measured. A function between layers has no row; its
        error shows in the totals behind it. Parts of causes are exact where the causes are independent.
        ``tests/testing/test_diagnosis.py`` has networks with one fault each.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 5, padding=2), nn.ReLU())
        >>> equivariance_report(network, size=48).main_cause
        'module'
    """
    grid = grid or _find_grid(model)
    scalings = _scalings(factors, grid)
    with _evaluation(model):
        image = _image(model, x, size, generator)
        like = _like(model)
        steps, output = run(model, image.render().to(like), grid)
        measured = [_at_factor(model, steps, output, image.render(scale=s.factor).to(like), s, grid)
                    for s in scalings]  # fmt: skip
        layers = tuple(_layers(steps, measured))
        advice = advise(steps, layers)
    outputs = tuple(total for total, _ in measured)
    return NetworkEquivarianceReport(
        tuple(scaling.factor for scaling in scalings), image.size, outputs, layers, advice
    )


_Measured = tuple[float | None, list[tuple[float | None, OwnError | None]]]


def _at_factor(
    model: Network, steps: list[Step], output: Tensor, x: Tensor, scaling: Scaling, grid: ScaleGrid | None
) -> _Measured:
    """The output's error, and the total and own error of each step."""
    scaled, actual = run(model, x, grid)
    found = {step.layer.name: step for step in scaled}
    rows = [
        _row(step, found[step.layer.name], scaling) if step.layer.name in found else (None, None)
        for step in steps
    ]
    last = steps[-1].layer.grid if steps else grid
    return _total(actual, output, scaling, last), rows


def _row(before: Step, after: Step, scaling: Scaling) -> tuple[float | None, OwnError | None]:
    if after.input.shape != before.input.shape or after.output.shape != before.output.shape:
        return None, None
    return _total(after.output, before.output, scaling, before.layer.grid), _own(before, after, scaling)


def _total(actual: Tensor, expected: Tensor, scaling: Scaling, grid: ScaleGrid | None) -> float | None:
    if actual.ndim == 2 or min(actual.shape[-2:]) == 1:
        return relative(actual, expected)
    if actual.ndim == 5 and not is_scale_map(actual, grid):
        return None
    places = [interior(size, scaling.factor) for size in actual.shape[-2:]]
    if min(len(kept) for kept, _ in places) == 0:
        return None
    matrices = [
        cubic_matrix(size, before) for size, (_, before) in zip(actual.shape[-2:], places, strict=True)
    ]
    moved = read(expected, *matrices)
    kept = actual[..., places[0][0], :][..., places[1][0]]
    return relative(*common_scales(kept, moved, actual, scaling))


def _own(before: Step, after: Step, scaling: Scaling) -> OwnError | None:
    grid = before.layer.grid
    if any(y.ndim == 5 and not is_scale_map(y, grid) for y in (before.input, before.output)):
        return None
    try:
        return own_error(before, Features(before.input, after.input), scaling)
    except EquiscaleError:
        return None


def _layers(steps: Sequence[Step], measured: Sequence[_Measured]) -> Iterator[LayerDiagnosis]:
    for index, step in enumerate(steps):
        totals = tuple(rows[index][0] for _, rows in measured)
        owns = [rows[index][1] for _, rows in measured]
        yield LayerDiagnosis(
            step.layer.name,
            step.layer.kind,
            totals,
            tuple(None if own is None else own.error for own in owns),
            {cause: tuple(None if own is None else own.causes[cause] for own in owns) for cause in CAUSES},
        )


# --- factors ---


def _scalings(factors: Sequence[float] | None, grid: ScaleGrid | None) -> list[Scaling]:
    step = None if grid is None else grid.step
    if factors is None:
        return _default_scalings(grid, step)
    if not factors:
        raise SettingError("expected at least one scale factor, got none")
    return [_scaling(float(factor), grid, step) for factor in factors]


def _default_scalings(grid: ScaleGrid | None, step: float | None) -> list[Scaling]:
    if grid is None or step is None:
        return [Scaling(factor) for factor in _PLAIN_FACTORS]
    return [Scaling(step**power, power) for power in (-2, -1, 1, 2) if abs(power) < len(grid)]


def _scaling(factor: float, grid: ScaleGrid | None, step: float | None) -> Scaling:
    if not (math.isfinite(factor) and factor > 0):
        raise SettingError(f"expected finite positive scale factors, got {factor}")
    if grid is None or step is None:
        return Scaling(factor)
    shift = round(math.log(factor, step))
    if abs(shift) >= len(grid) or not math.isclose(factor, step**shift, rel_tol=_POWER):
        usable = ", ".join(f"{step**k:.4g}" for k in range(1 - len(grid), len(grid)) if k)
        raise SettingError(f"expected scale factors of {usable}, powers of the grid's step, got {factor:.4g}")
    return Scaling(factor, shift)


# --- images ---


def _image(
    model: Network,
    x: BandLimitedImage | None,
    size: int | tuple[int, int] | None,
    generator: torch.Generator | None,
) -> BandLimitedImage:
    if x is not None:
        if size is not None:
            raise SettingError(f"expected x or a size, got both; x has the size {x.size}")
        return x
    generator = generator or torch.Generator().manual_seed(_SEED)
    channels = _channels(model)
    if size is None:
        size = _accepted_size(model, channels)
    canvas = (size, size) if isinstance(size, int) else size
    return BandLimitedImage.random(1, channels, size=canvas, generator=generator)


def _channels(model: Network) -> int:
    settings = getattr(model, "settings", None)
    found = [getattr(settings, "in_channels", None)]
    if isinstance(model, nn.Module):
        found += [getattr(module, "in_channels", None) for module in model.modules()]
    known = next((channels for channels in found if isinstance(channels, int)), None)
    if known is None:
        raise ShapeError(
            "expected a layer with in_channels, got none; give the images as x=BandLimitedImage.random(...)"
        )
    return known


def _accepted_size(model: Network, channels: int) -> int:
    refused: Exception | None = None
    for size in _SIZES:
        try:
            model(torch.zeros(1, channels, size, size).to(_like(model)))
        except (EquiscaleError, RuntimeError, ValueError) as error:
            refused = error
        else:
            return size
    raise ShapeError(
        f"expected a network for images of {', '.join(map(str, _SIZES))} pixels, got one that takes none "
        f"({refused}); give its size as size="
    ) from refused
