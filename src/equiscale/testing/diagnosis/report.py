"""What was measured, as plain numbers and as a table."""

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from equiscale.testing.diagnosis.causes import CAUSES, Cause

# One letter a cause in the bars of the table.
LETTERS: Final[dict[Cause, str]] = {
    "interpolation": "·",
    "scale axis": "A",
    "border": "B",
    "stride": "S",
    "pooling": "P",
    "kernel": "K",
    "filters": "F",
    "module": "M",
}
_MEANINGS: Final[dict[Cause, str]] = {
    "interpolation": "reading features between pixels: no fault of the network",
    "scale axis": "scales beyond the ends of the axis",
    "border": "padding at the border of the image",
    "stride": "a stride that does not fit the size",
    "pooling": "windows of a fixed size in pixels",
    "kernel": "filters cut off by the kernel",
    "filters": "filters that differ between scales by more than their size",
    "module": "the layer itself is not equivariant",
}
_WIDTH: Final = 80
_NAME: Final = 20
_KIND: Final = 17
_BAR: Final = 24


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer, in the order in which the layers run; None where nothing could be compared.

    Args:
        name: Its name in the network.
        kind: What it is.
        total: For each factor the relative error of its output, from the image on.
        own: For each factor the relative error that it adds.
        causes: For each cause and factor a part of ``own``; the parts of all causes add up to it.

    Example:
        >>> causes = {"border": (0.06,), "kernel": (0.02,)}
        >>> layer = LayerDiagnosis("lift", "LiftConv2d", (0.1,), (0.08,), causes)
        >>> layer.main_cause, round(layer.share("border"), 2)
        ('border', 0.75)
    """

    name: str
    kind: str
    total: tuple[float | None, ...]
    own: tuple[float | None, ...]
    causes: dict[Cause, tuple[float | None, ...]]

    @property
    def mean_total(self) -> float | None:
        """The mean of the total error over the factors at which there is one."""
        return _mean(self.total)

    @property
    def mean_own(self) -> float | None:
        """The mean of the own error over the factors at which there is one."""
        return _mean(self.own)

    def part(self, cause: Cause) -> float:
        """The mean of one cause's part over the factors."""
        return _mean(self.causes.get(cause, ())) or 0.0

    def share(self, cause: Cause) -> float:
        """A cause's part of the own error, from 0 to 1."""
        own = self.mean_own
        return self.part(cause) / own if own else 0.0

    @property
    def fault(self) -> float:
        """The own error without that of interpolation, which is the measurement's."""
        return sum(self.part(cause) for cause in CAUSES if cause != "interpolation")

    @property
    def main_cause(self) -> Cause | None:
        """The largest cause other than interpolation; None without any."""
        causes = [cause for cause in CAUSES if cause != "interpolation"]
        largest = max(causes, key=self.part)
        return largest if self.part(largest) > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "name": self.name,
            "kind": self.kind,
            "total": list(self.total),
            "own": list(self.own),
            "causes": {cause: list(values) for cause, values in self.causes.items()},
        }


@dataclass(frozen=True)
class NetworkEquivarianceReport:
    """Every layer's equivariance error, what it adds to it, and why.

    Args:
        factors: The scale factors.
        size: The canvas (H, W) of the images.
        output: For each factor the relative error of the network's output.
        layers: In the order in which they run.
        advice: What to change, a sentence each, the largest error first.

    Example:
        >>> causes = {"border": (0.06,), "kernel": (0.02,)}
        >>> layer = LayerDiagnosis("lift", "LiftConv2d", (0.1,), (0.08,), causes)
        >>> report = NetworkEquivarianceReport((0.5,), (64, 64), (0.1,), (layer,), ("Nothing.",))
        >>> report.main_cause, report.worst
        ('border', 0.1)
    """

    factors: tuple[float, ...]
    size: tuple[int, int]
    output: tuple[float | None, ...]
    layers: tuple[LayerDiagnosis, ...]
    advice: tuple[str, ...] = ()

    @property
    def worst(self) -> float | None:
        """The largest error of the output; None where none could be measured."""
        measured = [error for error in self.output if error is not None]
        return max(measured, default=None)

    def layer(self, name: str) -> LayerDiagnosis:
        """The layer of this name.

        Raises:
            KeyError: If there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"expected one of {', '.join(layer.name for layer in self.layers)}, got {name!r}")

    @property
    def causes(self) -> dict[Cause, float]:
        """For each cause the root of the sum of squares of its parts in all layers."""
        return {cause: math.hypot(*(layer.part(cause) for layer in self.layers)) for cause in CAUSES}

    @property
    def main_cause(self) -> Cause | None:
        """The largest cause other than interpolation in all layers together; None without any."""
        causes = {cause: value for cause, value in self.causes.items() if cause != "interpolation"}
        largest = max(causes, key=lambda cause: causes[cause])
        return largest if causes[largest] > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and names, for a record; `equiscale.report.equivariance` draws them."""
        return {
            "factors": list(self.factors),
            "size": list(self.size),
            "output": list(self.output),
            "worst": self.worst,
            "layers": [layer.as_dict() for layer in self.layers],
            "causes": dict(self.causes),
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        parts = ["\n".join(_table(self)), _legend(self)]
        folded = textwrap.TextWrapper(
            _WIDTH, initial_indent="• ", subsequent_indent="  ", break_on_hyphens=False
        )
        parts += [folded.fill(sentence) for sentence in self.advice]
        return "\n".join(part for part in parts if part)


def _table(report: NetworkEquivarianceReport) -> Iterable[str]:
    largest = max((layer.mean_own or 0.0 for layer in report.layers), default=0.0)
    yield f"{'layer':<{_NAME}} {'kind':<{_KIND}} {'total':>7} {'adds':>7}  why"
    yield "─" * _WIDTH
    for layer in report.layers:
        name, kind = shortened(layer.name, _NAME), shortened(layer.kind, _KIND)
        numbers = f"{percent(layer.mean_total):>7} {percent(layer.mean_own):>7}"
        yield f"{name:<{_NAME}} {kind:<{_KIND}} {numbers}  {bar(layer, largest)}".rstrip()
    yield "─" * _WIDTH
    by_factor = ", ".join(
        f"{percent(error)} at ×{factor:.3g}"
        for factor, error in zip(report.factors, report.output, strict=True)
    )
    yield textwrap.fill(f"output {by_factor}", _WIDTH)


def bar(layer: LayerDiagnosis, largest: float) -> str:
    """The causes of a layer as letters, so many as its error is long beside the largest one."""
    own = layer.mean_own or 0.0
    cells = round(_BAR * own / largest) if largest else 0
    order = sorted(CAUSES, key=lambda cause: (cause == "interpolation", -layer.part(cause)))
    ends, text = 0.0, ""
    for cause in order:
        ends += layer.share(cause) * cells
        text += LETTERS[cause] * (round(ends) - len(text))
    return text


def _legend(report: NetworkEquivarianceReport) -> str:
    shown = [cause for cause in CAUSES if any(layer.part(cause) > 0 for layer in report.layers)]
    drawn = [cause for cause in shown if any(LETTERS[cause] in bar(layer, _largest(report))
                                             for layer in report.layers)]  # fmt: skip
    return "\n".join(f"{LETTERS[cause]} {cause}: {_MEANINGS[cause]}" for cause in drawn)


def _largest(report: NetworkEquivarianceReport) -> float:
    return max((layer.mean_own or 0.0 for layer in report.layers), default=0.0)


def shortened(text: str, width: int) -> str:
    """The text, or its end behind an ellipsis: the end of a layer's name says more."""
    return text if len(text) <= width else "…" + text[1 - width :]


def percent(value: float | None) -> str:
    """Two digits, or a dash."""
    if value is None:
        return "–"
    value *= 100
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.095 else f"{value:.2f} %"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
