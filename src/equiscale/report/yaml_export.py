"""The runs as the ``results.yml`` of the published reproduction, so that its scripts read ours."""

from collections.abc import Iterable, Sequence

from equiscale.errors import RecordError
from equiscale.experiments.records import RunRecord

_DATASETS = {"mnist-scale": "scale_mnist"}
_DATA_DIRECTORY = "MNIST_scale/seed_{realisation}/scale_0.3_1.0"
_ACCURACY_DIGITS = 8

Scalar = bool | int | float | str

# Options of the published script that do not act with Adam; it writes them all the same.
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


def _fields(record: RunRecord, error: float) -> dict[str, Scalar | Sequence[int]]:
    settings, protocol, seconds = record.settings, record.settings.protocol, record.provenance.train_seconds
    sgd = {name: getattr(protocol, name) for name in ("momentum", "nesterov")}
    return {
        **({**sgd, "decay": protocol.weight_decay} if protocol.optimizer == "sgd" else _WITHOUT_EFFECT),
        "model": settings.model,
        "acc": round(1 - error / 100, _ACCURACY_DIGITS),
        "batch_size": protocol.batch_size,
        "cuda": record.provenance.machine.get("device", "cpu").startswith("cuda"),
        "data_dir": _DATA_DIRECTORY.format(realisation=settings.realisation),
        "dataset": _DATASETS.get(settings.dataset, settings.dataset),
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


def _mapping(fields: dict[str, Scalar | Sequence[int]]) -> str:
    names = sorted(fields, key=lambda name: (name != "model", name))
    return "{" + ", ".join(f"{name}: {_value(fields[name])}" for name in names) + "}"


def _value(value: Scalar | Sequence[int]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        return _number(value)
    return str(list(value)) if isinstance(value, Sequence) else str(value)


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise RecordError(f"expected printable text for YAML, got {text!r}; rename it")
    return "'" + text.replace("'", "''") + "'"


def _number(value: float) -> str:
    """YAML 1.1 takes 1e-05 for a string: it wants the point."""
    mantissa, exponent, power = repr(value).partition("e")
    return mantissa + (".0" if exponent and "." not in mantissa else "") + exponent + power
