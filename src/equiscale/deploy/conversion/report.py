"""What became of every module of a converted network."""

from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

_NAME, _BEFORE, _AFTER = 26, 18, 22
_PAGE, _INDENT = 80, "    "


@dataclass(frozen=True)
class ModuleFate:
    """What became of one module or function.

    Args:
        name: Where it is in the network.
        before: What it was.
        after: What it is, or "" where it is as it was.
        note: What is not as one would wish.
        residual: Of the projection of its filters onto the basis, where they were projected.
        equivariant: Whether it commutes with scaling, up to sampling.
    """

    name: str
    before: str
    after: str = ""
    note: str = ""
    residual: float | None = None
    equivariant: bool = True


@dataclass(frozen=True)
class ConversionReport:
    """What became of every module, and what it costs.

    Args:
        fates: In the order in which they are used; what was put in between among them.
        parameters: Learned numbers, before and after.
        multiply_adds: Of one image of the example, before and after; each scale with its own window.
        traced: Whether the network could be traced; if not, its modules were replaced one by one.

    Example:
        >>> report = ConversionReport((ModuleFate("conv1", "Conv2d", "LiftConv2d"),), (36, 36), (81, 531))
        >>> report.not_equivariant
        ()
    """

    fates: tuple[ModuleFate, ...]
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    traced: bool = True

    @property
    def not_equivariant(self) -> tuple[ModuleFate, ...]:
        """What could not be converted, with the reason as its note."""
        return tuple(fate for fate in self.fates if not fate.equivariant)

    @property
    def worst_residual(self) -> float:
        """The largest residual of a projection onto the basis; 0 without any."""
        return max((fate.residual for fate in self.fates if fate.residual is not None), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return asdict(self)

    def __str__(self) -> str:
        changed = [fate for fate in self.fates if fate.after or fate.note]
        kept = len(self.fates) - len(changed)
        lines = [f"{'module':<{_NAME}}{'was':<{_BEFORE}}{'is':<{_AFTER}}{'residual':>12}"]
        for fate in changed:
            lines += _lines(fate)
        before, after = self.multiply_adds
        lines += [
            f"{kept} more as they were",
            f"parameters     {self.parameters[0]:>15,} -> {self.parameters[1]:,}",
            f"multiply-adds  {before:>15,} -> {after:,} an image ({after / max(before, 1):.1f}×)",
        ]
        return "\n".join(lines)


def _lines(fate: ModuleFate) -> list[str]:
    residual = "" if fate.residual is None else f"{fate.residual:.1e}"
    name = fate.name if len(fate.name) < _NAME else f"…{fate.name[-_NAME + 2 :]}"
    before, after = _cut(fate.before, _BEFORE), _cut(fate.after or "as it was", _AFTER)
    line = f"{name:<{_NAME}}{before:<{_BEFORE}}{after:<{_AFTER}}{residual:>12}".rstrip()
    return [line, *wrap(fate.note, _PAGE, initial_indent=_INDENT, subsequent_indent=_INDENT)]


def _cut(word: str, width: int) -> str:
    return word if len(word) < width else f"{word[: width - 2]}…"
