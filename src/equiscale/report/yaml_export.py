"""The runs as the ``results.yml`` of the published reproduction, so that its scripts read ours."""

from collections.abc import Iterable, Sequence

from equiscale.errors import RecordError
from equiscale.experiments.plan import format_overrides
from equiscale.experiments.records import RunRecord, RunSettings
from equiscale.experiments.spec import Protocol

_MNIST_SCALE = "mnist-scale"
_PUBLISHED_NAME = "scale_mnist"
_PUBLISHED_DIRECTORY = "MNIST_scale/seed_{realisation}/scale_0.3_1.0"
_ACCURACY_DIGITS = 8

Scalar = bool | int | float | str
Value = Scalar | Sequence[int] | Sequence[str]

# Options of the published script that do not act with its Adam; it writes them all the same.
_WITHOUT_EFFECT: dict[str, Scalar] = {"decay": 1e-4, "momentum": 0.9, "nesterov": False}


def results_yaml(records: Iterable[RunRecord]) -> str:
    """A YAML list with one flow mapping a line for every finished run; empty text without any.

    Example:
        >>> results_yaml([])
        ''
    """
    return "".join(
        f"- {_mapping(_fields(record, record.test.error))}\n"
        for record in records
        if record.status == "finished" and record.test is not None
    )


def _fields(record: RunRecord, error: float) -> dict[str, Value]:
    settings, protocol, seconds = record.settings, record.settings.protocol, record.provenance.train_seconds
    return {
        **_optimizer_options(protocol),
        **_data_fields(settings),
        "model": settings.model,
        "acc": round(1 - error / 100, _ACCURACY_DIGITS),
        "batch_size": protocol.batch_size,
        "cuda": record.provenance.machine.get("device", "cpu").startswith("cuda"),
        "elapsed_time": round(seconds),
        "epochs": protocol.epochs,
        # The published script takes one number e and draws the factors from e … 1/e.
        "extra_scaling": protocol.augment_range[0] if settings.augment == "scale" else 1.0,
        "lr": protocol.learning_rate,
        "lr_gamma": protocol.lr_gamma,
        "lr_steps": protocol.lr_steps,
        "num_parameters": record.parameters,
        "optim": protocol.optimizer,
        "save_model_path": "",
        "tag": "sesn_experiments",
        "time_per_epoch": round(seconds / protocol.epochs),
    }


def _optimizer_options(protocol: Protocol) -> dict[str, Scalar]:
    decay: dict[str, Scalar] = {"decay": protocol.weight_decay}
    if protocol.optimizer == "sgd":
        return decay | {"momentum": protocol.momentum, "nesterov": protocol.nesterov}
    return _WITHOUT_EFFECT | (decay if protocol.weight_decay else {})


def _data_fields(settings: RunSettings) -> dict[str, Value]:
    """The data as the published script names them, and the network's own settings where there are any."""
    published = settings.dataset == _MNIST_SCALE
    directory = _PUBLISHED_DIRECTORY.format(realisation=settings.realisation)
    overrides = format_overrides(settings.overrides)
    return {
        "data_dir": directory if published else settings.dataset,
        "dataset": _PUBLISHED_NAME if published else settings.dataset,
        **({"overrides": overrides} if overrides else {}),
    }


def _mapping(fields: dict[str, Value]) -> str:
    names = sorted(fields, key=lambda name: (name != "model", name))
    return "{" + ", ".join(f"{name}: {_value(fields[name])}" for name in names) + "}"


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        return _number(value)
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, Sequence) else str(value)


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise RecordError(f"expected printable text for YAML, got {text!r}; rename it")
    return "'" + text.replace("'", "''") + "'"


def _number(value: float) -> str:
    """YAML 1.1 takes 1e-05 for a string: it wants the point."""
    mantissa, exponent, power = repr(value).partition("e")
    return mantissa + (".0" if exponent and "." not in mantissa else "") + exponent + power
