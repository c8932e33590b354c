"""How far is a module from scale equivariance?"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from equiscale.errors import SettingError, ShapeError
from equiscale.functional.rescale import rescale
from equiscale.scales import ScaleGrid
from equiscale.testing.signals import BandLimitedImage

# Published grids are rounded to two decimals: a factor may miss a power of the step by this much.
_POWER_TOLERANCE = 0.01

# Changes of the output below this fraction of its largest value are rounding, not dependence.
_ROUNDING = 1e-6

# Counting pixels from the centre in halves is exact; this only guards products with the factor.
_PIXEL_TOLERANCE = 1e-9

_PROBE_SEED = 0

Network = Callable[[Tensor], Tensor]


class EquivarianceOptions(TypedDict, total=False):
    """The keywords of `equivariance_error`."""

    grid: ScaleGrid | None
    margin: int | None
    scale_margin: int


@dataclass(frozen=True)
class EquivarianceReport:
    """The relative error at every factor.

    Args:
        factors: The scale factors.
        errors: For each factor the relative L2 error.
        compared: For each factor the number of output values that were compared.

    Example:
        >>> print(EquivarianceReport((0.5, 2.0), (0.012, 0.0034), (1024, 4096)))
            factor   relative error   values compared
               0.5         1.20e-02              1024
                 2         3.40e-03              4096
             worst         1.20e-02
    """

    factors: tuple[float, ...]
    errors: tuple[float, ...]
    compared: tuple[int, ...]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors)

    def as_dict(self) -> dict[str, Any]:
        """Factors, errors, counts and the worst error as plain numbers, for a record."""
        return {**asdict(self), "worst": self.worst}

    def __str__(self) -> str:
        rows = zip(self.factors, self.errors, self.compared, strict=True)
        return "\n".join(
            [
                f"{'factor':>10}{'relative error':>17}{'values compared':>18}",
                *(f"{factor:>10.4g}{error:>17.2e}{count:>18}" for factor, error, count in rows),
                f"{'worst':>10}{self.worst:>17.2e}",
            ]
        )


def equivariance_error(
    module: Network,
    x: Tensor | BandLimitedImage,
    factors: Sequence[float],
    *,
    grid: ScaleGrid | None = None,
    margin: int | None = None,
    scale_margin: int = 0,
) -> EquivarianceReport:
    r"""Compare scaling before the module with scaling after it.

    .. math:: \epsilon(a) = \frac{\| \Phi(T_a x) - T'_a \Phi(x) \|}{\| T'_a \Phi(x) \|}

    What T' is depends on the output: the identity for vectors (invariance), scaling about the centre
    for images, and for scale maps scaling together with a shift by k scales, where a = step\ :sup:`k`.

    The norm runs over the pixels whose own position and whose preimage are both at least ``margin``
    from the border, and over the scales that are on the axis on both sides. Where x is a scale map,
    T shifts its scale axis too, and some scales come in from outside: they are filled with zeros, and
    output scales that depend on them (found by filling in noise) are not compared.

    Shapes:
        x: ``(B, C, H, W)``, or ``(B, C, S, H, W)`` for a module that maps scale maps; the module's
        output: ``(B, D)``, ``(B, C', H', W')`` or ``(B, C', S', H', W')``.

    Args:
        module: Φ, a module or a function. A module runs in evaluation mode without gradients, and its
            mode is restored.
        x: A tensor, scaled by `equiscale.functional.rescale`, or a `BandLimitedImage`, scaled
            analytically and rendered in the module's dtype.
        factors: a, the scale factors; larger than 1 enlarges.
        grid: The scales of scale maps; None: the grid of the module's first layer that has one.
        margin: Pixels of the input left out at each border; at a lower resolution accordingly fewer.
            None: a quarter of the shorter side. Half the largest filter (all layers together) hides
            the border.
        scale_margin: Scales left out at the open, upper end of the axis, where filters that span N
            scales see beyond it; N - 1 for each such layer hides that end.

    Returns:
        The errors and what was compared.

    Raises:
        SettingError: If a factor is no power of the grid's step within 1 %, no pixel or scale is left to
            compare, or the output is zero or not finite.
        ShapeError: If the input or output has other axes than above.

    Exactness:
        The error of T' on images and scale maps is that of bicubic interpolation: it falls with the
        third power of the detail's fineness (``tests/testing/test_equivariance.py``), and is
        the smallest error that can be measured. Pixels of an output of lower resolution are taken to
        lie symmetrically about the centre. A strided convolution keeps that only where size - 1 is a
        multiple of the stride, pooling only where size is: otherwise the shift counts as error.

    Example:
        >>> image = BandLimitedImage.random(1, 1, size=(64, 64), generator=torch.Generator().manual_seed(0))
        >>> equivariance_error(torch.relu, image, [0.5, 2.0]).worst < 0.02
        True
    """
    experiment = _Experiment(module, x, grid or _find_grid(module), margin, scale_margin)
    if not factors:
        raise SettingError("expected at least one scale factor, got none")
    with _evaluation(module):
        reference = experiment.run(1.0)
        results = [experiment.compare(reference, float(factor)) for factor in factors]
    errors, compared = zip(*results, strict=True)
    return EquivarianceReport(tuple(float(factor) for factor in factors), errors, compared)


def assert_equivariant(
    module: Network,
    x: Tensor | BandLimitedImage,
    factors: Sequence[float],
    *,
    tolerance: float,
    **options: Unpack[EquivarianceOptions],
) -> EquivarianceReport:
    """Raise an AssertionError with the table of errors unless all are within the tolerance.

    Args:
        module: As in `equivariance_error`.
        x: As in `equivariance_error`.
        factors: As in `equivariance_error`.
        tolerance: The largest relative error to accept.
        **options: ``grid``, ``margin``, ``scale_margin`` as in `equivariance_error`.

    Returns:
        The report, for a record or a bound from below.

    Raises:
        AssertionError: If an error is above the tolerance.
        SettingError: As `equivariance_error`.
        ShapeError: As `equivariance_error`.

    Example:
        >>> image = BandLimitedImage.random(1, 1, size=(64, 64), generator=torch.Generator().manual_seed(0))
        >>> assert_equivariant(torch.relu, image, [2.0], tolerance=0.02).factors
        (2.0,)
    """
    report = equivariance_error(module, x, factors, **options)
    if not report.worst <= tolerance:
        raise AssertionError(f"expected relative errors of at most {tolerance:g}, got\n{report}")
    return report


@dataclass(frozen=True)
class _Experiment:
    module: Network
    x: Tensor | BandLimitedImage
    grid: ScaleGrid | None
    margin: int | None
    scale_margin: int

    def __post_init__(self) -> None:
        if isinstance(self.x, Tensor) and self.x.ndim not in (4, 5):
            raise ShapeError(
                f"expected an image (B, C, H, W) or a scale map (B, C, S, H, W), got {tuple(self.x.shape)}"
            )
        if self.scale_margin < 0 or (self.margin is not None and self.margin < 0):
            raise SettingError(
                f"expected margins of at least 0, got margin={self.margin}, scale_margin={self.scale_margin}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """The canvas (H, W) of the input."""
        if isinstance(self.x, BandLimitedImage):
            return self.x.size
        return self.x.shape[-2], self.x.shape[-1]

    def run(self, factor: float, *, fill: Tensor | None = None) -> Tensor:
        """The module's output for the scaled input."""
        y = self.module(self._scaled(factor, fill))
        if y.ndim not in (2, 4, 5) or not y.is_floating_point():
            raise ShapeError(
                "expected a floating-point output (B, D), (B, C, H, W) or (B, C, S, H, W), "
                f"got {y.dtype} {tuple(y.shape)}"
            )
        if not bool(torch.isfinite(y).all()):
            raise SettingError(
                f"expected finite outputs, got {int((~torch.isfinite(y)).sum())} that are not, "
                f"at scale factor {factor:.4g}"
            )
        return y

    def compare(self, reference: Tensor, factor: float) -> tuple[float, int]:
        """The relative error at one factor, and the number of values compared."""
        if not (math.isfinite(factor) and factor > 0):
            raise SettingError(f"expected finite positive scale factors, got {factor}")
        actual = self.run(factor)
        if actual.shape != reference.shape:
            raise ShapeError(
                f"expected outputs of one shape, got {tuple(reference.shape)} and {tuple(actual.shape)}"
            )
        expected = reference if reference.ndim == 2 else rescale(reference, factor)
        actual, expected = self._common_scales(actual, expected, factor)
        if reference.ndim > 2:
            actual, expected = self._interior(actual, factor), self._interior(expected, factor)
        norm = float(expected.double().norm())
        if norm == 0:
            raise SettingError(
                f"the module's output is zero where it is compared at scale factor {factor:.4g}; "
                "no relative error exists, use other weights or a richer input"
            )
        return float((actual.double() - expected.double()).norm()) / norm, expected.numel()

    def _scaled(self, factor: float, fill: Tensor | None) -> Tensor:
        if isinstance(self.x, BandLimitedImage):
            return self.x.render(scale=factor).to(_like(self.module))
        if self.x.ndim == 4:
            return rescale(self.x, factor)
        shift = self._shift(factor, self.x.shape[2])
        return _shift_scales(rescale(self.x, factor), shift, fill)

    def _common_scales(self, actual: Tensor, expected: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        touched = self._touched(actual, factor)
        if actual.ndim < 5:
            if touched:
                raise SettingError(
                    "expected an output scale that does not depend on the scales that come in from outside "
                    f"at factor {factor:.4g}, got one that mixes all scales; measure it from the image on"
                )
            return actual, expected
        num_scales = actual.shape[2]
        shift, end = self._shift(factor, num_scales), num_scales - self.scale_margin
        kept = [s for s in range(end) if 0 <= s - shift < end and s not in touched]
        if not kept:
            raise SettingError(
                f"expected scales to compare at factor {factor:.4g}, a shift by {shift} of {num_scales}, "
                f"got none with scale_margin={self.scale_margin}; use a factor nearer to 1"
            )
        return actual[:, :, kept], expected[:, :, [s - shift for s in kept]]

    def _touched(self, actual: Tensor, factor: float) -> set[int]:
        """Output scales (0 where the output has none) that depend on scales from outside."""
        if isinstance(self.x, BandLimitedImage) or self.x.ndim == 4:
            return set()
        noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(_PROBE_SEED))
        probed = self.run(factor, fill=noise.to(self.x) * self.x.abs().max())
        change = (probed - actual).abs()
        scales = change.transpose(0, 2) if actual.ndim == 5 else change[None]
        return {
            s for s, of_scale in enumerate(scales) if float(of_scale.max()) > _ROUNDING * actual.abs().max()
        }

    def _shift(self, factor: float, num_scales: int) -> int:
        """k with factor = step**k."""
        step = self.grid.step if self.grid else None
        if self.grid is None or step is None:
            raise SettingError(
                f"expected a geometric scale grid to compare scale maps, got {self.grid}; "
                "give the grid of the output as grid="
            )
        shift = round(math.log(factor, step))
        if abs(shift) >= num_scales or not math.isclose(factor, step**shift, rel_tol=_POWER_TOLERANCE):
            usable = ", ".join(f"{step**k:.4g}" for k in range(1 - num_scales, num_scales))
            raise SettingError(
                f"expected scale factors of {usable}, powers of the grid's step, got {factor:.4g}"
            )
        return shift

    def _interior(self, y: Tensor, factor: float) -> Tensor:
        """The pixels that are far enough from the border before and after scaling."""
        margin = min(self.size) // 4 if self.margin is None else self.margin
        rows, columns = (
            _inside(size, margin * size / whole, factor)
            for size, whole in zip(y.shape[-2:], self.size, strict=True)
        )
        if not (bool(rows.any()) and bool(columns.any())):
            raise SettingError(
                f"expected a margin that leaves pixels to compare at factor {factor:.4g}, got {margin} for "
                f"an output of {tuple(y.shape[-2:])}; use a smaller margin or a larger image"
            )
        return y[..., rows.to(y.device), :][..., columns.to(y.device)]


def _inside(size: int, margin: float, factor: float) -> Tensor:
    center = (size - 1) / 2
    away = (torch.arange(size, dtype=torch.float64) - center).abs()
    return away <= (center - margin) * min(1.0, factor) + _PIXEL_TOLERANCE


def _shift_scales(x: Tensor, shift: int, fill: Tensor | None) -> Tensor:
    """Move scale s to s + shift; scales from outside are zero, or those of the filling."""
    num_scales = x.shape[2]
    shifted = torch.zeros_like(x) if fill is None else fill.clone()
    first, last = max(shift, 0), num_scales + min(shift, 0)
    shifted[:, :, first:last] = x[:, :, first - shift : last - shift]
    return shifted


def _find_grid(module: Network) -> ScaleGrid | None:
    submodules = module.modules() if isinstance(module, nn.Module) else iter(())
    grids = (getattr(submodule, "grid", None) for submodule in submodules)
    return next((grid for grid in grids if isinstance(grid, ScaleGrid)), None)


def _like(module: Network) -> Tensor:
    """A tensor of the dtype and device the module computes in."""
    if isinstance(module, nn.Module):
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                return tensor
    return torch.empty(())


@contextmanager
def _evaluation(module: Network) -> Iterator[None]:
    submodules = list(module.modules()) if isinstance(module, nn.Module) else []
    modes = [submodule.training for submodule in submodules]
    try:
        for submodule in submodules:
            submodule.training = False
        with torch.no_grad():
            yield
    finally:
        for submodule, mode in zip(submodules, modes, strict=True):
            submodule.training = mode
