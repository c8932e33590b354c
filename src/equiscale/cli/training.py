"""``equiscale reproduce`` and ``equiscale train``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equiscale.cli.app import DEFAULT_RESULTS, Results, Root, SuiteName, app, errors_as_messages
from equiscale.cli.engine import Engine, submit_sweep, submit_training, with_engine
from equiscale.errors import SettingError

if TYPE_CHECKING:
    from equiscale.experiments.records import RunSettings
    from equiscale.experiments.spec import Augmentation, Suite


@app.command()
@with_engine
def reproduce(
    context: typer.Context,
    suite: SuiteName,
    engine: Engine,
    models: Annotated[str, typer.Option(help="Shell pattern of the networks' names.")] = "*",
    augment: Annotated[str | None, typer.Option(help="Augmentations, such as none,scale.")] = None,
    data: Annotated[str, typer.Option(help="Shell pattern of the data sets' names.")] = "*",
    realisations: Annotated[str | None, typer.Option(help="Numbers and ranges, such as 0-2,5.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Cut the published schedule to so many epochs.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Another precision than the suite's.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the steps or not.")
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="Replay steps as a CUDA graph or not."),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic/--no-deterministic", help="The same bits again, on a GPU too."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all GPUs) or cuda:N.")] = "auto",
    jobs: Annotated[int, typer.Option(help="Runs at a time, in all; 0: one a core, on each GPU one.")] = 0,
    jobs_per_device: Annotated[
        int, typer.Option(help="Runs at a time on each GPU, or on the CPU, which share its threads.")
    ] = 0,
    root: Root = None,
    results: Results = DEFAULT_RESULTS,
    resume: Annotated[bool, typer.Option(help="Go on from checkpoints of unfinished runs.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait at the end for runs that other workers do.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, and what they cost.")
    ] = False,
    estimate: Annotated[bool, typer.Option(help="With --dry-run: time a few steps of every network.")] = True,
) -> None:
    """Train and test every run of a suite that has no record yet."""
    from equiscale.experiments.plan import Selection, parse_numbers, plan_runs
    from equiscale.experiments.spec import load_suite

    with errors_as_messages():
        _check_alone()
        plan = load_suite(suite)
        selection = Selection(
            models=models,
            augment=_augmentations(augment),
            realisations=None if realisations is None else parse_numbers(realisations),
            epochs=epochs,
            datasets=data,
            precision=precision,
            compile=compile,
            cuda_graphs=cuda_graphs,
            deterministic=deterministic,
        )
        runs = plan_runs(plan, selection)
        if dry_run:
            if estimate:
                device, side_by_side = _place(runs, device, jobs, jobs_per_device)
            _show_plan(plan, runs)
            if estimate:
                _show_estimates(runs, root=root, device=device, jobs=side_by_side)
            return
        if engine.submits:
            submit_sweep(context, engine, runs, folder=results, root=root)
            return
        from equiscale.experiments.progress import reproduce_with_progress
        from equiscale.experiments.runner import Jobs, prepare_options

        options, side_by_side = prepare_options(
            runs,
            folder=results,
            data_root=root,
            device=device,
            jobs=Jobs(jobs, jobs_per_device),
            resume=resume,
        )
        status = reproduce_with_progress(runs, options, jobs=side_by_side, wait_for_others=wait)
    raise typer.Exit(status)


@app.command()
@with_engine
def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network's name; see 'equiscale list'.")],
    data: Annotated[str, typer.Option(help="A data set's name, or image-folder:PATH for your own images.")],
    engine: Engine,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate (default: 0.01 for adam, 0.1 for sgd).")
    ] = None,
    lr_steps: Annotated[
        str | None, typer.Option(help="Epochs after which the rate falls, such as 5,8 (default: none).")
    ] = None,
    lr_gamma: Annotated[float, typer.Option(help="The factor by which it falls.")] = 0.1,
    optimizer: Annotated[
        Literal["adam", "sgd"], typer.Option(help="sgd has Nesterov momentum 0.9.")
    ] = "adam",
    weight_decay: Annotated[float, typer.Option(help="Of the optimiser.")] = 0.0,
    accumulate: Annotated[int, typer.Option(help="Parts of a batch, to save memory.")] = 1,
    augment: Annotated[
        Literal["none", "scale", "crop-flip-cutout"], typer.Option(help="Augmentation of training images.")
    ] = "none",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16: autocast.")
    ] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory layout of images.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the steps.")] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Replay the steps as a CUDA graph.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits again, on a GPU too.")
    ] = False,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the weights.")] = None,
    select: Annotated[
        Literal["best-validation", "last"] | None,
        typer.Option(help="The epoch to test (default: the best, or without validation images the last)."),
    ] = None,
    test_every: Annotated[int | None, typer.Option(help="Test after each so many epochs too.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the network.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.")] = 0,
    realisation: Annotated[int, typer.Option(help="Number of the data set's realisation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: Root = None,
    results: Results = DEFAULT_RESULTS,
    resume: Annotated[bool, typer.Option(help="Go on from a checkpoint of an unfinished run.")] = True,
) -> None:
    """Train and test one network on one data set, with a record, a checkpoint an epoch, and weights.

    Processes that torchrun starts together share one training: torchrun --nproc-per-node 2 -m equiscale
    train …
    """
    with errors_as_messages():
        from equiscale.data import dataset_info
        from equiscale.experiments.execute import evaluation_splits
        from equiscale.experiments.plan import ad_hoc_run, parse_numbers, parse_overrides
        from equiscale.experiments.progress import print_result, reproduce_with_progress
        from equiscale.experiments.runner import Jobs, prepare_options
        from equiscale.experiments.spec import Treatment, make_protocol
        from equiscale.train.group import is_launched

        info = dataset_info(data, root=root)
        validation, _ = evaluation_splits(info)
        protocol = make_protocol(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate={"adam": 0.01, "sgd": 0.1}[optimizer] if lr is None else lr,
            lr_steps=() if lr_steps is None else tuple(parse_numbers(lr_steps)),
            lr_gamma=lr_gamma,
            seed=seed,
            optimizer=optimizer,
            weight_decay=weight_decay,
            accumulate=accumulate,
            precision=precision,
            channels_last=channels_last,
            compile=compile,
            cuda_graphs=cuda_graphs,
            deterministic=deterministic,
            ema_decay=ema,
            select=select or ("last" if validation is None else "best-validation"),
            test_every=test_every,
        )
        treatment = Treatment(model, parse_overrides(settings or ()), augment, info.name)
        run = ad_hoc_run(treatment, protocol=protocol, realisation=realisation)
        if engine.submits:
            submit_training(context, engine, run, folder=results, root=root)
            return
        if is_launched():
            from equiscale.experiments.together import train_together

            raise typer.Exit(
                train_together(run, folder=results, data_root=root, device=device, resume=resume)
            )
        options, jobs = prepare_options(
            [run], folder=results, data_root=root, device=device, jobs=Jobs(1), resume=resume
        )
        status = reproduce_with_progress([run], options, jobs=jobs)
        if status == 0:
            print_result(run, results)
    raise typer.Exit(status)


def _check_alone() -> None:
    """Refuse to be one of several processes that torchrun has started."""
    from equiscale.train.group import is_launched

    if is_launched() and os.environ["WORLD_SIZE"] != "1":
        raise SettingError(
            "expected 'equiscale reproduce' to be started once, got one of several processes of torchrun "
            f"(WORLD_SIZE={os.environ['WORLD_SIZE']}); start it without torchrun, which is for 'equiscale "
            "train': it starts its own processes, and several of it share a results folder"
        )


def _show_plan(plan: "Suite", runs: "list[RunSettings]") -> None:
    """The runs by name, and how many there are."""
    for run in runs:
        typer.echo(run.run_id)
    extra = sum(run.model in plan.extra_models for run in runs)
    more = f", and {extra} of methods that the published table does not have" if extra else ""
    typer.echo(f"\n{len(runs) - extra} runs{more}")


def _place(runs: "list[RunSettings]", device: str, jobs: int, jobs_per_device: int) -> tuple[str, int]:
    """The device to which the runs would go, and how many of them at a time."""
    from equiscale.experiments.runner import Jobs, check_device, choose_jobs

    chosen = check_device(device)
    return chosen, choose_jobs(Jobs(jobs, jobs_per_device), device=chosen, runs=len(runs))


def _show_estimates(runs: "list[RunSettings]", *, root: Path | None, device: str, jobs: int) -> None:
    """What each network costs."""
    from equiscale._machine import keep_memory
    from equiscale.experiments.estimate import estimate_runs, runs_abreast
    from equiscale.experiments.progress import print_estimates

    keep_memory()  # as the runs
    estimates = estimate_runs(
        runs,
        device=device,
        data_root=root,
        on_model=lambda name: typer.echo(f"timing {name}", err=True),
    )
    print_estimates(estimates, jobs=runs_abreast(jobs, device))


def _augmentations(text: str | None) -> "list[Augmentation] | None":
    from equiscale.experiments.spec import AUGMENTATIONS

    if text is None:
        return None
    chosen = [augment for augment in AUGMENTATIONS if augment in text.split(",")]
    if len(chosen) != len(text.split(",")):
        raise SettingError(f"expected augmentations of {', '.join(AUGMENTATIONS)}, got {text!r}")
    return chosen
