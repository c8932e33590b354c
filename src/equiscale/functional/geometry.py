"""Stride, padding, groups and projection of a convolution, checked once."""

from dataclasses import dataclass, fields
from typing import Literal, TypedDict, get_args

from equiscale._typing import FusedProjection, PaddingMode, ScalePadding
from equiscale.errors import SettingError
from equiscale.functional.checks import is_whole


class GeometryOptions(TypedDict, total=False):
    """The fields of `ConvGeometry` as keywords of a layer's constructor."""

    stride: int
    padding: int | Literal["same"]
    padding_mode: PaddingMode
    scale_padding: ScalePadding
    groups: int
    projection: FusedProjection | None
    pooling: int


@dataclass(frozen=True)
class ConvGeometry:
    """How a filter moves over the image.

    Args:
        stride: Step in pixels, in both directions.
        padding: Pixels added on each side, or "same" for half the kernel.
        padding_mode: What is added: "zeros", "circular", "reflect" or "replicate".
        scale_padding: What inter-scale filters see beyond the largest scale: "zeros", or
            "replicate" for the largest scale itself.
        groups: Channels are split into this many groups that do not see each other.
        projection: "max" for the maximum over scales in place of the scale map, which then is never held
            as a whole; None: the scale map.
        pooling: The side in pixels of windows, side by side, of whose pixels the maximum is taken; the
            result before that is never held as a whole either. 1: none. Sizes are rounded down.

    Raises:
        SettingError: For a value outside its legal range.

    Example:
        >>> ConvGeometry(padding="same").margin(kernel_size=7)
        3
    """

    stride: int = 1
    padding: int | Literal["same"] = 0
    padding_mode: PaddingMode = "zeros"
    scale_padding: ScalePadding = "zeros"
    groups: int = 1
    projection: FusedProjection | None = None
    pooling: int = 1

    def __post_init__(self) -> None:
        if not is_whole(self.stride):
            raise SettingError(
                f"expected a stride of at least 1, one number for both axes, got {self.stride!r}"
            )
        if not is_whole(self.pooling):
            raise SettingError(f"expected pooling windows of at least 1 pixel, got {self.pooling!r}")
        if not is_whole(self.groups):
            raise SettingError(f"expected at least 1 group, got {self.groups!r}")
        if self.padding != "same" and not is_whole(self.padding, 0):
            raise SettingError(f"expected a padding of at least 0 or 'same', got {self.padding!r}")
        _check_choice("padding_mode", self.padding_mode, get_args(PaddingMode))
        _check_choice("scale_padding", self.scale_padding, get_args(ScalePadding))
        if self.projection is not None:
            _check_choice("projection", self.projection, get_args(FusedProjection))

    def margin(self, kernel_size: int) -> int:
        """The padding in pixels for a kernel of this size."""
        return kernel_size // 2 if self.padding == "same" else self.padding

    def refuse(self, **reasons: str) -> None:
        """Raise a SettingError for an option that is set although, for the given reason, it cannot be."""
        for name, reason in reasons.items():
            if getattr(self, name) != getattr(ConvGeometry(), name):
                raise SettingError(f"expected no {name}, since {reason}, got {getattr(self, name)!r}")

    def __str__(self) -> str:
        changed = [field for field in fields(self) if getattr(self, field.name) != field.default]
        return ", ".join(f"{field.name}={getattr(self, field.name)}" for field in changed)


def check_geometry(name: str, geometry: object) -> None:
    """Raise a SettingError for what is no geometry."""
    if not isinstance(geometry, ConvGeometry):
        raise SettingError(
            f"{name}: expected a ConvGeometry, got {geometry!r}; write geometry=ConvGeometry(...)"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"expected {name} to be one of {', '.join(choices)}, got {value!r}")
