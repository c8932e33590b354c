"""Where the work is done: the options of ``--engine``, and the way from a command to a submission."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from equiscale.errors import SettingError

if TYPE_CHECKING:
    from equiscale.experiments.cluster import SlurmSettings
    from equiscale.experiments.jobs import Submission
    from equiscale.experiments.records import RunSettings

_PANEL = "Slurm"


@dataclass(frozen=True)
class Engine:
    """The options of a command that say where its work is done; None: what `SlurmSettings` has.

    A field is an option; `with_engine` adds them to a command.
    """

    engine: Annotated[
        Literal["local", "slurm"],
        typer.Option(help="local: on this machine, now; slurm: submit it.", rich_help_panel=_PANEL),
    ] = "local"
    partition: Annotated[str | None, typer.Option(help="Partition.", rich_help_panel=_PANEL)] = None
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs a node.", rich_help_panel=_PANEL)] = None
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores a task.", rich_help_panel=_PANEL)] = None
    mem: Annotated[str | None, typer.Option(help="Memory a node, such as 32G.", rich_help_panel=_PANEL)] = (
        None
    )
    time: Annotated[
        str | None,
        typer.Option(
            help="Time limit, such as 30 (minutes), 4:00:00 or 1-12 (default: 4:00:00); then it is requeued.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    array: Annotated[
        int | None,
        typer.Option(
            help="Elements that share a sweep's runs (default: one a run, at most 8).",
            rich_help_panel=_PANEL,
        ),
    ] = None
    nodes: Annotated[
        int | None, typer.Option(help="Nodes of one training (default: 1).", rich_help_panel=_PANEL)
    ] = None
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm", metavar="NAME=VALUE", help="Any other setting of sbatch.", rich_help_panel=_PANEL
        ),
    ] = None

    @property
    def submits(self) -> bool:
        """Whether the work goes to Slurm.

        Raises:
            SettingError: For Slurm's options without ``--engine slurm``.
        """
        given = [name for name, value in self._chosen().items() if value is not None]
        if self.engine == "local" and given:
            option = given[0].replace("_", "-")
            raise SettingError(f"expected --engine slurm with --{option}, got --engine local")
        return self.engine == "slurm"

    def settings(self) -> "SlurmSettings":
        """What is asked of Slurm.

        Raises:
            SettingError: For a value that Slurm would not understand.
        """
        from equiscale.experiments.cluster import SlurmSettings

        chosen = {name: value for name, value in self._chosen().items() if value is not None}
        return SlurmSettings(other=tuple(chosen.pop("slurm", ())), **chosen)

    def _chosen(self) -> dict[str, Any]:
        chosen = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "engine"}
        return chosen | {"slurm": self.slurm or None}


def with_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Engine`: its parameter ``engine`` takes them all."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "engine"]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields(Engine)]

    @wraps(command)
    def run(**given: Any) -> None:
        engine = Engine(**{field.name: given.pop(field.name) for field in fields(Engine)})
        command(**given, engine=engine)

    run.__signature__ = inspect.Signature([p.replace(kind=kind) for p in own] + added)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return run


def given_arguments(context: typer.Context) -> list[str]:
    """The command with all that was given to it on the command line, but for the engine's options."""
    hidden = {field.name for field in fields(Engine)}
    words = [context.command.name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in hidden and source is not None and source.name == "COMMANDLINE":
            words += _words(parameter, context.params[name])
    return words


def _words(parameter: Any, value: Any) -> list[str]:
    """One parameter as it is typed."""
    if parameter.param_type_name == "argument":
        return [str(value)]
    option = parameter.opts[-1]
    if isinstance(value, bool):
        return [option if value else parameter.secondary_opts[-1]]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (option, str(each))]


def submit_sweep(
    context: typer.Context, engine: Engine, runs: "list[RunSettings]", *, folder: Path, root: Path | None
) -> None:
    """Submit the open runs of a sweep as one array, and say how to watch it.

    Raises:
        SettingError: With ``--no-resume``.
    """
    from equiscale.experiments import cluster

    _check_resumes(context, folder / runs[0].suite)
    command = cluster.own_command(*given_arguments(context), "--no-wait")
    submission = cluster.submit_sweep(
        runs,
        engine.settings(),
        command=command,
        folder=folder,
        data_root=root,
        device=context.params["device"],
    )
    _say(submission, runs, folder)


def submit_training(
    context: typer.Context, engine: Engine, run: "RunSettings", *, folder: Path, root: Path | None
) -> None:
    """Submit one training as one job, and say how to watch it.

    Raises:
        SettingError: With ``--no-resume``.
    """
    from equiscale.experiments import cluster

    _check_resumes(context, folder / run.suite)
    submission = cluster.submit_training(
        run,
        engine.settings(),
        command=cluster.own_command(*given_arguments(context)),
        folder=folder,
        data_root=root,
        device=context.params["device"],
    )
    _say(submission, [run], folder)


def _check_resumes(context: typer.Context, suite: Path) -> None:
    """That requeued elements go on: begun again each time, what is longer than its time limit never ends."""
    if not context.params["resume"]:
        raise SettingError(
            "expected --engine slurm without --no-resume, got both, and every requeue would begin the runs "
            f"again; to begin them again once, delete their checkpoints in {suite / 'checkpoints'}, or use "
            "--no-resume without --engine"
        )


def _say(submission: "Submission | None", runs: "list[RunSettings]", folder: Path) -> None:
    from equiscale.experiments.cluster import node_local

    if submission is None:
        typer.echo(f"all of {len(runs)} runs have records in {folder / runs[0].suite}; nothing was submitted")
        return
    local = node_local(folder)
    if local is not None:
        typer.echo(
            f"equiscale: expected a results folder that all nodes share, got {folder} under {local}, which "
            "is usually a disk of one machine; if so, cancel the job and give another with --results",
            err=True,
        )
    size = f"{submission.elements} elements" if submission.elements > 1 else "one job"
    several = f" of {submission.tasks} processes" if submission.tasks > 1 else ""
    typer.echo(f"submitted {size}{several} as {submission.job}; logs in {submission.logs}")
    typer.echo(f"watch with: equiscale jobs status {submission.job} --results {folder}")
