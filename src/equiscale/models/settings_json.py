"""Settings of networks as JSON: known types and fields alone are written and read, within bounds."""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final, Literal, Never, Union, get_args, get_origin, get_type_hints

from equiscale.basis import (
    BSplineBasis,
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    HermiteBasis,
    LogRadialBasis,
    SteerableBasis,
)
from equiscale.nn import ScaleSteering
from equiscale.scales import ScaleGrid

BASES: Final = (
    BSplineBasis,
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    HermiteBasis,
    LogRadialBasis,
)
_PARTS: Final = (ScaleGrid, ScaleSteering, *BASES)
_TYPE: Final = "type"

# What decides the size of the bases, which are sampled before anything is compared with the file. Other
# whole numbers count channels, which are compared with the tensors of the file.
_LARGEST_INTS: Final = {
    **dict.fromkeys(("effective_size",), 33),
    **dict.fromkeys(("kernel_size", "kernel_sizes", "stem_sizes", "block_sizes", "base_size"), 65),
    **dict.fromkeys(("num_scales", "scale_size", "scale_sizes", "rotations", "degree", "upsample"), 32),
    **dict.fromkeys(("max_order", "depth"), 256),
    "base": 8,
}
_LARGEST_INT: Final = 2**20
_LARGEST_FLOAT: Final = 1024.0
_LONGEST: Final = 64
_SHOWN: Final = 60

# Sampled numbers of all layers together, hundreds of times what published networks have; pixels of a blur.
_MOST_SAMPLES: Final = 2**25
_WIDEST_BLUR: Final = 2**12
_SIDES: Final = ("kernel_size", "kernel_sizes", "stem_sizes", "block_sizes", "base_size", "effective_size")
_MOST_TEXT: Final = 2**16
_DEEPEST: Final = 32


class SettingsJsonError(ValueError):
    """Settings that have no JSON form, or JSON that is no settings; the caller says what to do."""


def encode(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a JSON object, with the names of its type and of all types inside.

    Args:
        settings: A frozen dataclass of numbers, choices, tuples, scale grids, steerings and bases.

    Returns:
        What `decode` reads; it is read once here, so that everything encoded can be decoded.

    Raises:
        SettingsJsonError: If it holds anything else, numbers that are not finite, or sizes out of bounds.

    Example:
        >>> encode(ScaleGrid([1.0, 2.0]))
        {'type': 'ScaleGrid', 'values': [1.0, 2.0]}
    """
    document: dict[str, Any] = _plain(settings, "settings")
    decode(document, type(settings))
    return document


def decode(document: object, kind: type) -> Any:
    """The settings that `encode` wrote.

    A field that the document lacks keeps its default: it is newer than the document.

    Args:
        document: What ``json.loads`` returned.
        kind: The expected settings dataclass. The document decides no type but that of bases, of `BASES`.

    Raises:
        SettingsJsonError: For unknown fields or types, wrong types, numbers that are not finite, sizes out of
            bounds, and what the settings themselves refuse.

    Example:
        >>> decode({"type": "ScaleGrid", "values": [1, 2]}, ScaleGrid)
        ScaleGrid([1.0, 2.0])
    """
    settings = _object(document, kind, "settings")
    _check_work(list(_leaves(settings)))
    return settings


def read_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object without NaN, infinity, repeated names and deep nesting.

    Raises:
        SettingsJsonError: If the text is none.

    Example:
        >>> read_object('{"a": 1}', "notes")
        {'a': 1}
    """
    if len(text) > _MOST_TEXT:
        raise SettingsJsonError(f"expected at most {_MOST_TEXT} characters of {what}, got {len(text)}")
    try:
        found = json.loads(text, parse_constant=_not_finite, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise SettingsJsonError(f"expected JSON as {what}, got {shown(text)}: {shown(error)}") from error
    _check_depth(found, what)
    if not isinstance(found, dict):
        raise SettingsJsonError(f"expected a JSON object as {what}, got {shown(found)}")
    return found


def _check_depth(document: object, what: str) -> None:
    """Level by level: a walk of its own depth, as in a repr, would be too deep for Python itself."""
    level = [document]
    for _ in range(_DEEPEST):
        inside = (value for value in level if isinstance(value, (dict, list)))
        level = [item for value in inside for item in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise SettingsJsonError(f"expected JSON of at most {_DEEPEST} levels as {what}, got a deeper one")


def shown(value: object) -> str:
    """A value from a file for a message, cut to a readable length and without control characters.

    Example:
        >>> len(shown("x" * 1000))
        60
    """
    return _cut(str(value) if isinstance(value, Exception) else repr(value))


def _cut(text: str) -> str:
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item, where) for item in value]
    if is_dataclass(value) and not isinstance(value, type) and (where == "settings" or type(value) in _PARTS):
        inside = {field.name: _plain(getattr(value, field.name), field.name) for field in fields(value)}
        return {_TYPE: type(value).__name__, **inside}
    raise SettingsJsonError(
        f"expected numbers, choices, scales and equiscale's own bases, got {type(value).__name__} as {where}"
    )


def _value(value: object, hint: Any, where: str) -> Any:
    """One field's value, by the field's annotation."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _optional(value, hint, where)
    if origin is Literal:
        known = " or ".join(map(repr, get_args(hint)))
        return value if isinstance(value, str) and value in get_args(hint) else _refuse(known, where, value)
    if origin is tuple:
        return _tuple(value, get_args(hint), where)
    if hint is SteerableBasis:
        return _basis(value, where)
    if hint in _PARTS:
        return _object(value, hint, where)
    if hint in (bool, int, float):
        return _number(value, hint, where)
    return _refuse("a field of a known type", where, hint)


def _optional(value: object, hint: Any, where: str) -> Any:
    inner = [argument for argument in get_args(hint) if argument is not types.NoneType]
    if len(inner) != 1 or len(get_args(hint)) != 2:
        return _refuse("a field of a known type", where, hint)
    return None if value is None else _value(value, inner[0], where)


def _number(value: object, kind: type, where: str) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else _refuse("true or false", where, value)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return _refuse("a whole number" if kind is int else "a number", where, value)
    largest = _LARGEST_INTS.get(where, _LARGEST_INT) if kind is int else _LARGEST_FLOAT
    if not -largest <= value <= largest:  # not true of NaN either
        return _refuse(f"a finite number of at most {largest:g}", where, value)
    return kind(value)


def _tuple(value: object, inner: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > _LONGEST:
        return _refuse(f"a list of at most {_LONGEST} values", where, value)
    hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(hints) != len(value):
        return _refuse(f"{len(hints)} values", where, value)
    return tuple(_value(item, hint, where) for item, hint in zip(value, hints, strict=True))


def _basis(value: object, where: str) -> SteerableBasis:
    kinds = {kind.__name__: kind for kind in BASES}
    name = value.get(_TYPE) if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in kinds:
        return _refuse(f"a basis of type {', '.join(kinds)}", where, value)
    basis: SteerableBasis = _object(value, kinds[name], where)
    return basis


def _object(document: object, kind: type, where: str) -> Any:
    if not isinstance(document, dict) or document.get(_TYPE) != kind.__name__:
        return _refuse(f"an object of type {kind.__name__}", where, document)
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(document) - {_TYPE, *known})
    if unknown:
        return _refuse(f"fields of {kind.__name__}", where, ", ".join(unknown))
    hints = get_type_hints(kind)
    given = {name: _value(document[name], hints[name], name) for name in known if name in document}
    _check_complete(known, given, where)
    try:
        return kind(**given)
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        raise SettingsJsonError(f"expected legal {where}, got: {error}") from error


def _check_complete(known: Mapping[str, "Field[Any]"], given: Mapping[str, Any], where: str) -> None:
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            _refuse(f"the field {name}", where, None)


def _leaves(value: Any, name: str = "settings") -> Iterator[tuple[str, Any]]:
    """All numbers inside, each with the name of its field, and each tuple itself."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), field.name)
        return
    yield name, value
    if isinstance(value, tuple):
        yield from ((name, item) for item in value)


def _check_work(leaves: list[tuple[str, Any]]) -> None:
    """Raise if the bases of all layers together, or a blur, would take far more than published networks."""

    def largest(*names: str, default: float = 1) -> float:
        found = [value for name, value in leaves if name in names and isinstance(value, (int, float))]
        return max([default, *found])

    lengths = [len(value) for _, value in leaves if isinstance(value, tuple)]
    scales = max([largest("num_scales"), *lengths])
    side = max(largest(*_SIDES), largest("effective_size") * largest("scales"))
    layers = max([largest("depth"), *lengths])
    samples = largest("effective_size") ** 2 * scales * side**2 * layers
    if samples > _MOST_SAMPLES:
        _refuse(f"at most {_MOST_SAMPLES} sampled numbers", "settings", f"{samples:g}")
    blur = largest("zero_scale", default=0) * largest("base", default=2) ** largest("num_scales")
    if blur > _WIDEST_BLUR:
        _refuse(f"a blur of at most {_WIDEST_BLUR} pixels", "settings", f"{blur:g}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _not_finite(constant: str) -> Never:
    raise ValueError(f"{constant} is not finite")


def _refuse(expected: object, where: str, got: object) -> Never:
    raise SettingsJsonError(
        f"expected {expected} as {where}, got {_cut(got) if isinstance(got, str) else shown(got)}"
    )
