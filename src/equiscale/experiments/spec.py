"""A suite: one TOML file a published table, with settings, what the paper leaves open, and claims."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from equiscale.citations import Citation
from equiscale.errors import SettingError

Augmentation = Literal["none", "scale", "crop-flip-cutout"]
AUGMENTATIONS: tuple[Augmentation, ...] = ("none", "scale", "crop-flip-cutout")

Precision = Literal["float32", "bfloat16"]

_MAX_SUITE_BYTES = 2**18  # the largest of ours has ten thousand
_SHOWN, _LONGEST = 20, 300  # problems that a message lists, and letters of each
_MOST_DOTS = 200  # in a line: the time for a key a.b.c… grows with the square of its length
_ALLOWED_SPACES = " \u00a0\u202f"
_MOST_TOLD_APART = 1000  # problems; each takes about a thousand bytes
_LARGEST: Final = 2**31 - 1  # of what is counted; a number of TOML in hexadecimal has no end
_LARGEST_SEED: Final = 2**63 - 1
_LATEST_YEAR: Final = 9999
_OF_PATHS: Final = frozenset("/\\:")

_Item = TypeVar("_Item")


class _TellFirst(FailFast):
    __hash__ = object.__hash__  # alternatives of a union must have one


Many: TypeAlias = Annotated[tuple[_Item, ...], _TellFirst()]
"""Items of a file that may be large: the first bad one is told, and not one for every two bytes."""

PositiveInt = Annotated[int, Field(ge=1, le=_LARGEST)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def checked_file_name(name: str) -> str:
    """A name as it is, if it may begin the name of a file in any folder.

    Raises:
        ValueError: If it leads elsewhere, or hides what it is.

    Example:
        >>> checked_file_name("mnist_cnn_28")
        'mnist_cnn_28'
    """
    if not name.isprintable() or not name.strip(".") or _OF_PATHS.intersection(name):
        raise ValueError("a name must be printable, more than dots, and without /, \\ and :")
    return name


FileName = Annotated[str, AfterValidator(checked_file_name)]


def _sorted_pairs(overrides: object) -> object:
    return tuple(sorted(overrides.items())) if isinstance(overrides, dict) else overrides


Scalar: TypeAlias = bool | int | float | str
Overrides = Annotated[
    Many[tuple[str, Scalar | Many[Scalar]]],  # pairs, because settings are keys of dictionaries
    BeforeValidator(_sorted_pairs),
]


class Treatment(NamedTuple):
    """What is trained on what: runs that differ in the realisation or the protocol alone share it.

    Args:
        model: The network.
        overrides: Settings of the network that are replaced.
        augment: The augmentation.
        dataset: The data set.
    """

    model: str
    overrides: Overrides
    augment: Augmentation
    dataset: str


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Protocol(_Frozen):
    """How every run of a suite is trained.

    Args:
        epochs: Passes over the training split.
        batch_size: Images a step.
        learning_rate: At the start.
        lr_steps: Epochs after which the learning rate is multiplied by ``lr_gamma``.
        lr_gamma: The factor.
        augment_range: Smallest and largest factor of the "scale" augmentation.
        seed: Of the weights, the order of the batches, dropout and augmentation.
        optimizer: "adam", or "sgd" with momentum.
        momentum: Of SGD.
        nesterov: Whether SGD's momentum is Nesterov's.
        weight_decay: λ: λ·w is added to the gradient of every weight w.
        accumulate: Parts into which each batch is cut to save memory.
        precision: "bfloat16" for autocast in the forward pass; the weights are float32.
        channels_last: Whether images lie in memory with their channels last.
        compile: Whether torch.compile translates the forward pass and its gradient.
        cuda_graphs: Whether they are recorded as a CUDA graph and replayed.
        deterministic: Whether only algorithms are taken that give the same bits again.
        ema_decay: Test a moving average of the weights; None: the weights themselves.
        select: Which epoch is tested: the best one on the validation split, or the last.
        test_every: Measure the test error after each so many epochs too, for the record alone.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    lr_steps: Many[PositiveInt]
    lr_gamma: Annotated[float, Field(gt=0)]
    augment_range: tuple[float, float] = (0.5, 2.0)
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] = 0
    # The defaults are the published MNIST-scale protocol's, and part of the identity of its records.
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    accumulate: PositiveInt = 1
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    select: Literal["best-validation", "last"] = "best-validation"
    test_every: PositiveInt | None = None

    @model_validator(mode="after")
    def _ranges_increase(self) -> "Protocol":
        low, high = self.augment_range
        if not 0 < low <= high:
            raise ValueError(f"augment_range must be 0 < low <= high, got {low} and {high}")
        if list(self.lr_steps) != sorted(self.lr_steps):
            raise ValueError(f"lr_steps must increase, got {list(self.lr_steps)}")
        return self

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> "Protocol":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size, got {self.accumulate} and {self.batch_size}"
            )
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a positive momentum, got 0; set nesterov = false for plain SGD")
        return self

    def cut(self, epochs: int) -> "Protocol":
        """The same schedule compressed to another number of epochs; the steps move in proportion."""
        if epochs < 1:
            raise SettingError(f"expected at least one epoch, got {epochs}")
        steps = tuple(max(1, round(step * epochs / self.epochs)) for step in self.lr_steps)
        return self.model_copy(update={"epochs": epochs, "lr_steps": steps})


def make_protocol(**settings: Any) -> Protocol:
    """A protocol from loose settings.

    Raises:
        SettingError: For an illegal setting, with all that is wrong.

    Example:
        >>> make_protocol(epochs=2, batch_size=8, learning_rate=0.1, lr_steps=(), lr_gamma=0.1).optimizer
        'adam'
    """
    try:
        return Protocol.model_validate(settings)
    except ValidationError as error:
        raise SettingError(f"expected a valid protocol, got {problems(error, 'protocol')}") from error


def problems(error: ValidationError, whole: str) -> str:
    """What a validation found, in one line; what is wrong with no single part stands under ``whole``."""
    if error.error_count() > _MOST_TOLD_APART:
        return f"{error.error_count()} problems"
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [
        f"{printable('.'.join(map(str, problem['loc'])))[:_LONGEST] or whole}: "
        f"{printable(problem['msg'])[:_LONGEST]}"
        for problem in found[:_SHOWN]
    ]
    return "; ".join([*told, *([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])])


def printable(text: str, *, keep: str = "") -> str:
    r"""A text from a file as it may be shown: what a terminal obeys or hides stands there as an escape.

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as the end of a line.

    Example:
        >>> printable("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    if text.isprintable():
        return text
    legal = (
        letter if letter.isprintable() or letter in _ALLOWED_SPACES or letter in keep else _escaped(letter)
        for letter in text
    )
    return "".join(legal)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class Claim(_Frozen):
    """A published number, in percent of errors.

    Args:
        mean: The mean error.
        std: Its standard deviation, where one was published.
        source: Where it was published.
        checked: Whether it was compared with a copy of the source.
    """

    mean: float
    std: float | None = None
    source: str
    checked: bool


class Cell(_Frozen):
    """One cell of the table: which network with which augmentation, and what was claimed.

    Args:
        model: The network.
        augment: The augmentation.
        claims: The published numbers.
        dataset: The data set; None: the suite's.
        overrides: Settings of the network to replace, for example ``{ depth = 10 }``.
    """

    model: FileName
    augment: Augmentation
    claims: tuple[Claim, ...] = ()
    dataset: str | None = None
    overrides: Overrides = ()

    @field_validator("overrides")
    @classmethod
    def _overrides_are_moderate(cls, overrides: Overrides) -> Overrides:
        for name, value in overrides:
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, int | float) and abs(part) > _LARGEST:
                    raise ValueError(f"{name} must be at most {_LARGEST} in size, got more")
        return overrides

    @property
    def claim(self) -> Claim | None:
        """The claim to print: the first one that was checked, else the first."""
        return next((claim for claim in self.claims if claim.checked), next(iter(self.claims), None))


class Method(_Frozen):
    """A row of the table; its cells stand under the names of the columns.

    Args:
        name: The row's heading.
        extra: Whether the row is ours, and not part of the published comparison.
        cells: The cells by column.
    """

    name: str
    extra: bool = False
    cells: dict[str, Cell]


class Suite(_Frozen):
    """A whole table.

    Args:
        name: What the command line calls it.
        title: Heading of the table.
        citation: Where the experiment was published, as the fields of `Citation`; None for our own.
        dataset: The data set of the cells that name none.
        realisations: Realisations of the data sets that are averaged.
        columns: The columns' names, in order.
        sources: The documents behind the claims, under their short names.
        left_open: What the published description leaves open, and what is done here.
        protocol: How every run is trained.
        methods: The rows.
    """

    name: FolderName
    title: str
    citation: Citation | None = None
    dataset: str
    realisations: tuple[Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)], ...]
    columns: tuple[str, ...]
    sources: dict[str, str] = {}
    left_open: tuple[str, ...] = ()
    protocol: Protocol
    methods: tuple[Method, ...]

    @field_validator("citation")
    @classmethod
    def _year_is_one(cls, citation: Citation | None) -> Citation | None:
        if citation is not None and not 0 < citation.year <= _LATEST_YEAR:
            raise ValueError(f"year must be from 1 to {_LATEST_YEAR}")
        return citation

    @model_validator(mode="after")
    def _cells_have_columns(self) -> "Suite":
        for method in self.methods:
            for column, cell in method.cells.items():
                if column not in self.columns:
                    raise ValueError(f"method {method.name!r} has a cell in the unknown column {column!r}")
                for claim in cell.claims:
                    if claim.source not in self.sources:
                        raise ValueError(f"the claim {claim.mean} of {method.name!r} names no known source")
        return self

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, row by row."""
        return tuple(cell for method in self.methods for cell in method.cells.values())

    def treatment(self, cell: Cell) -> Treatment:
        """What a cell trains on what."""
        return Treatment(cell.model, cell.overrides, cell.augment, cell.dataset or self.dataset)

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """What the table shows, each once, row by row."""
        return tuple(dict.fromkeys(map(self.treatment, self.cells)))

    @property
    def models(self) -> tuple[str, ...]:
        """Every network of the table once, in the order of the rows."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def extra_models(self) -> frozenset[str]:
        """The networks that stand in extra rows alone."""
        published = {
            cell.model for method in self.methods if not method.extra for cell in method.cells.values()
        }
        return frozenset(self.models) - published

    @property
    def datasets(self) -> tuple[str, ...]:
        """Every data set of the table once, in the order of the rows."""
        return tuple(dict.fromkeys(treatment.dataset for treatment in self.treatments))

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The augmentations that the table's columns use."""
        used = {cell.augment for cell in self.cells}
        return tuple(augment for augment in AUGMENTATIONS if augment in used)


def list_suites() -> list[str]:
    """The names of the suites that ship with the package."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """A suite by its name, or from the path of a TOML file.

    Raises:
        SettingError: For an unknown name, or a file that is no valid suite.

    Example:
        >>> load_suite("mnist-scale").protocol.epochs
        60
    """
    if name.endswith(".toml"):
        return _parse(_read_text(Path(name)), name)
    if name not in list_suites():
        raise SettingError(
            f"expected a suite of {', '.join(list_suites())} or the path of a .toml file, got {name!r}"
        )
    return _parse((_folder() / f"{name}.toml").read_text(), name)


def _folder() -> "resources.abc.Traversable":
    return resources.files("equiscale.experiments") / "suites"


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_SUITE_BYTES or not path.is_file():
            raise OSError(f"no file of at most {_MAX_SUITE_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise SettingError(f"expected a readable suite in {path}, got: {error}") from error


def _parse(text: str, origin: str) -> Suite:
    try:
        if any(line.count(".") > _MOST_DOTS for line in text.split("\n")):
            raise ValueError(f"more than {_MOST_DOTS} dots in a line")
        return Suite.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise SettingError(f"expected a valid suite in {origin}, got: {problems(error, 'suite')}") from error
    except (ValueError, RecursionError) as error:  # after pydantic's, which is a ValueError too
        raise SettingError(f"expected a valid suite in {origin}, got: {printable(str(error))}") from error
