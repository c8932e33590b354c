"""Typed errors. Every message says what was expected, what came, and what to do."""


class EquiscaleError(Exception):
    """Base class of every error that equiscale raises on purpose."""


class ScaleGridError(EquiscaleError, ValueError):
    """A list of scales that is not finite, positive and strictly increasing."""


class BasisError(EquiscaleError, ValueError):
    """A basis that cannot be sampled, or whose functions are not independent on some scale."""


class ShapeError(EquiscaleError, ValueError):
    """A tensor whose shape, channel count or scale count does not fit the operation."""


class SettingError(EquiscaleError, ValueError):
    """A setting outside its legal values."""


class ModelError(EquiscaleError, ValueError):
    """An unknown model name, or an override that the model does not have."""


class CheckpointError(EquiscaleError, RuntimeError):
    """A checkpoint or state dict that does not fit, or is damaged."""


class DataError(EquiscaleError, RuntimeError):
    """A data file that is missing, truncated, swapped or corrupt."""


class ChecksumError(DataError):
    """A file or data set whose checksum is not the expected one."""


class TrainingError(EquiscaleError, RuntimeError):
    """A training that cannot go on, for example because the loss is not finite."""


class TrainingStoppedError(EquiscaleError, RuntimeError):
    """A training that was asked to stop, and did at the next safe point."""


class LostProcessError(EquiscaleError, RuntimeError):
    """A training that cannot go on because another of its processes has ended or does not answer."""


class RecordError(EquiscaleError, RuntimeError):
    """A run record that cannot be read or does not fit its schema."""


class BenchmarkError(EquiscaleError, RuntimeError):
    """A network that cannot be measured, or outputs that should be equal and are not."""


class MissingExtraError(EquiscaleError, ImportError):
    """An optional dependency that is not installed."""


class ExportError(EquiscaleError, RuntimeError):
    """A network that cannot be exported, or an exported file that does not compute the same."""
