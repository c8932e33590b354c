"""Two gloo processes train as one: the same losses and weights in float64, however the batches divide."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from equiscale.data import TensorBatches
from equiscale.data.transforms import BatchTransform
from equiscale.errors import LostProcessError, SettingError, TrainingError, TrainingStoppedError
from equiscale.nn import ImageBatchNorm2d, LiftConv2d, ScaleBatchNorm2d, ScaleProjection
from equiscale.scales import ScaleGrid
from equiscale.train import Checkpoint, OptimizerSettings, Splits, TrainConfig, TrainState, evaluate, fit
from equiscale.train.config import Numerics
from equiscale.train.distributed import Processes, processes
from equiscale.train.group import ALONE, Group, is_launched
from tests.processes import together

CONFIG = TrainConfig(
    epochs=2,
    learning_rate=0.05,
    lr_steps=(1,),
    seed=3,
    optimizer=OptimizerSettings("sgd", weight_decay=1e-3),
    ema_decay=0.9,
    test_every=2,
)
CASES = {
    "plain": CONFIG,
    "parts": replace(CONFIG, accumulate=3),
    "adam, last": replace(CONFIG, optimizer=OptimizerSettings(), select="last", ema_decay=None),
}
TRAIN, TEST = 39, 11  # batches of 9, 9, 9, 9, 3: none can be halved
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
# A weight without a gradient, as an offset before a norm, gets rounding over Adam's ε = 1e-8 of a step.
CLOSE_OF_ADAM = {"rtol": 1e-10, "atol": 1e-8}


class Network(nn.Module):
    """Norms of images, scale maps and features, and a weight that no output depends on."""

    def __init__(self, *, dropout: float = 0.0, unused: bool = True) -> None:
        super().__init__()
        grid = ScaleGrid([1.0, 2.0])
        self.layers = nn.Sequential(
            *(
                LiftConv2d(2, 3, kernel_size=5, grid=grid, bias=False),
                ScaleBatchNorm2d(3),
                nn.ReLU(),
                ScaleProjection(),
            ),
            *(ImageBatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6, bias=False)),
            *(nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)),
        )
        if unused:
            self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def make_model(**options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            return Network(**options)
        finally:
            torch.set_default_dtype(torch.float32)


NOISE = BatchTransform(
    lambda images, drawn: images + 0.1 * drawn[:, None, None, None],
    lambda shape, generator: torch.randn(shape[0], generator=generator, dtype=torch.float64),
)


def batches(images: int, seed: int, **options) -> TensorBatches:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(images) % 3
    x = torch.randn(images, 2, 6, 6, dtype=torch.float64, generator=generator) + classes.view(-1, 1, 1, 1)
    return TensorBatches(x, classes, **options)


def splits(group: Group = ALONE, *, batch_size: int = 9) -> Splits:
    return Splits(
        train=batches(TRAIN, 1, batch_size=batch_size, shuffle=True, transform=NOISE),
        validation=batches(TEST, 2, batch_size=5),  # a last batch of a single image
        test=batches(TEST, 3, batch_size=4),
        group=group,
    )


def outcome(state: TrainState) -> dict[str, object]:
    kept = ("train_loss", "train_error", "validation_error", "test_error")
    return {
        "history": [[getattr(result, name) for name in kept] for result in state.history],
        "weights": {name: tensor.clone() for name, tensor in state.model.state_dict().items()},
        "best": (state.best_epoch, state.best),
    }


class Calls:
    """A question that is answered with yes at the given call, counted from 1."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self) -> bool:
        self.count += 1
        return self.count == self.at


def stopped(folder: Path, group: Group, at: int) -> str:
    """Where a training stopped that was asked to in one process alone."""
    question = Calls(at) if group.rank == 1 else None
    try:
        fit_in(folder, group, question)
    except TrainingStoppedError as error:
        return str(error)
    return ""


def fit_in(folder: Path, group: Group, should_stop=None) -> TrainState:
    return fit(
        make_model(),
        splits(group),
        config=CONFIG,
        checkpoint=Checkpoint(folder / "checkpoint.safetensors"),
        should_stop=should_stop,
    )


def work(rank: int, folder: Path) -> dict[str, object]:
    group, found = Processes(), {}
    for name, config in CASES.items():
        found[name] = outcome(fit(make_model(), splits(group), config=config))
    found["alone"] = outcome(fit(make_model(), without_sharing(), config=CONFIG))
    found["stopped"] = stopped(folder / "two", group, at=7)
    found["written"] = (folder / "two" / "checkpoint.safetensors").exists()
    found["resumed"] = outcome(fit_in(folder / "two", group))
    found["from one"] = outcome(fit_in(folder / "one", group))
    found["evaluated"] = evaluate(make_model().eval(), batches(TEST, 2, batch_size=5), group=group)
    found["masks"] = masks(group)
    found["errors"] = [message(group, case) for case in ERRORS]
    found["rank"], found["mode"] = rank, in_its_mode(group)
    return found


def without_sharing() -> Splits:
    """As a training whose batch norms see the shares alone."""

    class Unshared(Processes):
        @contextmanager
        def training(self, model: nn.Module) -> Iterator[None]:
            yield

    return splits(Unshared(), batch_size=13)  # no share is a single image


def masks(group: Processes) -> Tensor:
    """What dropout leaves of a layer of ones in the first step of an epoch."""
    seen: list[Tensor] = []
    model = make_model(dropout=0.5, unused=False)
    model.layers[10].register_forward_hook(lambda module, inputs, y: seen.append(y / (inputs[0] + 1e-30)))
    fit(model, splits(group), config=replace(CONFIG, epochs=1, test_every=None))
    return next(y for y in seen if y.shape[0] > 1)[:4].detach()


def in_its_mode(group: Group) -> list[bool]:
    """The module's mode after an evaluation, in which it was trained before."""
    model = make_model().train()
    evaluate(model, batches(TEST, 2, batch_size=5), group=group)
    return [model.training]


class PlainBatches:
    def epoch(self, generator=None):
        yield from ()


class NotANumber:
    """Batches whose images are no numbers in process 1 alone."""

    def __init__(self, rank: int) -> None:
        self.inner, self.rank = batches(TRAIN, 1, batch_size=9, shuffle=True), rank
        self.sizes = self.inner.sizes

    def epoch(self, generator=None, *, share=None):
        for images, labels in self.inner.epoch(generator, share=share):
            yield images * (float("nan") if self.rank == 1 else 1), labels


UNTRACKED = {
    "untracked": (8, lambda: nn.BatchNorm1d(6, track_running_stats=False)),
    "untracked map": (1, lambda: ScaleBatchNorm2d(3, track_running_stats=False)),
}
ERRORS = ("small", "parts", "compile", "graphs", "plain", *UNTRACKED, "data", "nan", "stray output")


def message(group: Processes, case: str) -> str:
    config, train, model = CONFIG, splits(group).train, make_model()
    if case == "small":
        train = batches(10, 1, batch_size=3)
    elif case == "parts":
        config = replace(CONFIG, accumulate=5)  # 9 images in 4 parts of 2 or 3 are enough, 3 in one too
        group = Processes()
        group.size = 3
    elif case in ("compile", "graphs"):
        name = {"compile": "compile", "graphs": "cuda_graphs"}[case]
        config = replace(CONFIG, numerics=Numerics(**{name: True}))
        group = Processes()
        group.size = 1 if case == "compile" else 2  # under torchrun one process is refused it as well
    elif case == "plain":
        train = PlainBatches()
    elif case in UNTRACKED:
        place, layer = UNTRACKED[case]
        model.layers[place] = layer().double()
    elif case == "data":
        config = replace(CONFIG, seed=group.rank)
    elif case == "nan":
        train = NotANumber(group.rank)
    elif case == "stray output":
        if group.rank == 0:
            nn.init.constant_(model.layers[-1].weight, float("nan"))
        return text_of(lambda: evaluate(model, batches(TEST, 2, batch_size=5), group=group))
    return text_of(lambda: fit(model, replace(splits(group), train=train, group=group), config=config))


def text_of(call) -> str:
    try:
        call()
    except (SettingError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the checkpoint of one process that stopped within its second epoch."""
    made = tmp_path_factory.mktemp("training")
    with pytest.raises(TrainingStoppedError):
        fit_in(made / "one", ALONE, Calls(at=12))
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict]:
    return together(work, folder, folder)


def check_equal(ours: dict, expected: dict, close: dict = CLOSE) -> None:
    for one, other in zip(ours["history"], expected["history"], strict=True):
        assert one[0] == pytest.approx(other[0], rel=3e-7)  # one process adds its losses in single precision
        assert one[1:] == other[1:]  # counts
    assert ours["best"][0] == expected["best"][0]
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(ours["weights"][name], tensor, msg=lambda m, n=name: f"{n}: {m}", **close)
        torch.testing.assert_close(ours["best"][1][name], expected["best"][1][name], **close)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, found: list[dict]) -> None:
    expected = outcome(fit(make_model(), splits(), config=CASES[name]))
    for own in found:
        check_equal(own[name], expected, CLOSE_OF_ADAM if name.startswith("adam") else CLOSE)


def test_both_have_the_same_bits(found: list[dict]) -> None:
    for name in CASES:
        one, other = (own[name] for own in found)
        assert one["history"] == other["history"]
        assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])


def test_without_shared_statistics_it_is_another_training(found: list[dict]) -> None:
    expected = outcome(fit(make_model(), splits(batch_size=13), config=CONFIG))
    for own in found:
        loss, other = own["alone"]["history"][0][0], expected["history"][0][0]
        assert abs(loss - other) > 1e-3 * other


def test_all_stop_at_the_step_at_which_one_was_asked_to(found: list[dict]) -> None:
    # Five steps, then three batches of validation and none of the test; the question is asked after each.
    assert [own["stopped"] for own in found] == ["stopped in epoch 1 after 5 steps"] * 2
    assert [own["written"] for own in found] == [True, True]


@pytest.mark.parametrize("start", ["resumed", "from one"])
def test_a_training_goes_on_with_another_number_of_processes(start: str, found: list[dict]) -> None:
    expected = outcome(fit(make_model(), splits(), config=CONFIG))
    for own in found:
        check_equal(own[start], expected)


def test_one_process_goes_on_where_two_have_stopped(folder: Path, found: list[dict]) -> None:
    """Their checkpoint of the first epoch is of the whole training."""
    expected = outcome(fit(make_model(), splits(), config=CONFIG))
    check_equal(outcome(fit_in(folder / "two", ALONE)), expected)


def test_predictions_are_those_of_every_image_once_and_in_order(found: list[dict]) -> None:
    expected = evaluate(make_model().eval(), batches(TEST, 2, batch_size=5))
    assert len(set(expected[0].tolist())) > 1
    for own in found:
        assert own["evaluated"][0].tolist() == expected[0].tolist()
        assert own["evaluated"][1].tolist() == expected[1].tolist()
        assert own["mode"] == [True]


def test_dropout_draws_other_numbers_in_every_process(found: list[dict]) -> None:
    one, other = (own["masks"].ne(0) for own in found)
    assert one.shape == other.shape
    assert not torch.equal(one, other)


def test_what_cannot_be_shared_is_refused_by_all(found: list[dict]) -> None:
    expected = {
        "small": "SettingError: expected batches of at least one image for each of 2 processes, got one of 1 "
        "images in 1 parts; choose another batch size, or start fewer processes",
        "parts": "SettingError: expected batches of at least one image for each of 3 processes, got one of 9 "
        "images in 4 parts; choose another batch size, or start fewer processes",
        "compile": "SettingError: expected compile = false in a training under torchrun, got true; leave it "
        "out",
        "graphs": "SettingError: expected cuda_graphs = false in a training under torchrun, got true; leave "
        "it out",
        "plain": "SettingError: expected batches of which several processes can have their shares, got "
        "PlainBatches; use TensorBatches",
        "untracked": "SettingError: expected batch norms with running statistics, as each process evaluates "
        "its own share, got BatchNorm1d layers.8 without; make it with track_running_stats=True, or train it "
        "in one process",
        "untracked map": "SettingError: expected batch norms with running statistics, as each process "
        "evaluates its own share, got ScaleBatchNorm2d layers.1 without; make it with "
        "track_running_stats=True, or train it in one process",
        "data": "SettingError: expected the same network, data, settings and checkpoint in all processes, "
        "got others in process 1 than in process 0; give all the same data, and a results folder that all of "
        "them see",
        "nan": "TrainingError: expected a finite loss, got nan in epoch 1 at learning rate 0.05; lower the "
        "learning rate or check the data",
        "stray output": "TrainingError: expected finite outputs, got others; lower the learning rate or "
        "check the data",
    }
    for own in found:
        assert dict(zip(ERRORS, own["errors"], strict=True)) == expected


class Skipping(nn.Module):
    """A layer that some forward passes of a training leave out, and one that is for evaluation alone.

    Each row of ``plan`` is a forward pass, and says of either half of the images whether it leaves it out;
    ``rank`` is the half that this process has, None for both.
    """

    def __init__(self, plan: Tensor, rank: int | None) -> None:
        super().__init__()
        self.plan, self.rank = iter(plan.tolist()), rank
        self.first, self.between, self.last = nn.Linear(72, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.in_evaluation = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        if not self.training:
            return self.last(self.in_evaluation(self.between(x)))
        skipped = next(self.plan)
        halves = (
            zip(x.tensor_split(2), skipped, strict=True) if self.rank is None else [(x, skipped[self.rank])]
        )
        return self.last(
            torch.cat([half if skip else half + self.between(half).tanh() for half, skip in halves])
        )


CONFIG_OF_SKIPPING = {
    "whole": replace(CONFIG, epochs=1, optimizer=OptimizerSettings("sgd", momentum=0.9, weight_decay=0.1)),
    "parts": replace(CONFIG, epochs=1, accumulate=2),
}
STEPS = 5
PASSES = {"whole": STEPS, "parts": 2 * STEPS - 1}  # the last batch of three images has one part


def plan(who: str, passes: int) -> Tensor:
    """Which forward passes leave the layer out; the last one does."""
    drawn = torch.rand(passes, generator=torch.Generator().manual_seed(2)) < 0.5
    drawn[-1] = True
    return torch.stack([drawn if who == "all" else torch.zeros_like(drawn), drawn], 1)


SKIPS = [(who, how) for who in ("all", "one") for how in CONFIG_OF_SKIPPING]


def skipping(who: str, how: str, group: Group) -> dict[str, object]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Skipping(plan(who, PASSES[how]), None if group is ALONE else group.rank).double()
    state = fit(model, splits(group), config=CONFIG_OF_SKIPPING[how])
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return {**outcome(state), "left": list(model.plan), "without": without}


def skip(rank: int) -> dict[tuple[str, str], dict[str, object]]:
    group = Processes()
    fit(make_model(unused=False), splits(group), config=replace(CONFIG, epochs=1))  # all are used
    return {case: skipping(*case, group) for case in SKIPS}


def test_steps_may_leave_parameters_out_in_all_processes_or_in_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    both = together(skip, tmp_path)
    assert "Warning" not in capfd.readouterr().err
    never = ["in_evaluation.weight", "in_evaluation.bias"]
    skipped = ["between.weight", "between.bias"]  # in the last step by all
    for who, how in SKIPS:
        expected = skipping(who, how, ALONE)
        assert expected["left"] == []
        assert expected["without"] == (skipped if who == "all" else []) + never
        for own in (found[who, how] for found in both):
            check_equal(own, expected)
            assert (own["left"], own["without"]) == (expected["left"], expected["without"])
        one, other = (found[who, how]["weights"] for found in both)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_plan_has_steps_of_both_kinds() -> None:
    for passes in PASSES.values():
        assert 0 < int(plan("one", passes)[:-1, 1].sum()) < passes - 1


def lose(rank: int, folder: Path) -> None:
    """Process 1 is killed within a step; what process 0 says then."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)

    class Killed(NotANumber):
        def epoch(self, generator=None, *, share=None):
            for step, batch in enumerate(self.inner.epoch(generator, share=share)):
                if step == 2 and self.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

    try:
        fit(make_model(), replace(splits(Processes()), train=Killed(rank)), config=CONFIG)
    except LostProcessError as error:
        (folder / "said").write_text(str(error))
        os._exit(0)  # there is nobody to part from


def test_the_end_of_one_process_ends_the_other_soon(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    workers = [context.Process(target=lose, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, -signal.SIGKILL]
    assert "expected all processes to go on, got: " in (tmp_path / "said").read_text()


def test_it_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not is_launched()
    with (
        pytest.raises(SettingError, match=r"got none of RANK, WORLD_SIZE, LOCAL_RANK.*; start with torchrun"),
        processes("cpu"),
    ):
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "one")
    assert is_launched()
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with (
        pytest.raises(SettingError, match="expected a whole number in the variable WORLD_SIZE, got 'one'"),
        processes("cpu"),
    ):
        pass
    assert not dist.is_initialized()
