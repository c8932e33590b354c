"""The recipe of natural images: SGD, accumulation, bfloat16, averages, what is tested, exact resumption."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from equiscale.data import TensorBatches
from equiscale.errors import SettingError
from equiscale.train import (
    Checkpoint,
    EpochResult,
    Numerics,
    OptimizerSettings,
    Splits,
    TrainConfig,
    TrainState,
    WeightAverage,
    evaluate,
    fit,
)
from equiscale.train.loop import error_percent

SGD = OptimizerSettings("sgd", weight_decay=5e-2)


class InterruptedTestError(Exception):
    pass


class Recorded:
    """Batches that remember the model's weights before each of them is taken."""

    def __init__(self, batches: TensorBatches, model: nn.Module) -> None:
        self.batches, self.model = batches, model
        self.seen: list[dict[str, Tensor]] = []

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches.epoch(generator):
            self.seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            yield batch


def make_batches(count: int = 40, batch_size: int = 8, *, shuffle: bool = False) -> TensorBatches:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 2, 6, 6, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long()
    return TensorBatches(images, labels, batch_size=batch_size, shuffle=shuffle)


def make_model(*, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    front = [nn.Conv2d(2, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]
    return nn.Sequential(*front, nn.Dropout(0.2 if norm else 0.0), nn.Flatten(), nn.Linear(64, 2))


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "learning_rate": 0.05, "lr_steps": (2,), "seed": 3, **settings})


def train(settings: TrainConfig, **options) -> TrainState:
    return fit(
        make_model(),
        Splits(make_batches(shuffle=True), make_batches(24), make_batches(16)),
        config=settings,
        **options,
    )


# --- SGD ---


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_the_published_update_by_hand(nesterov: bool, float64: None) -> None:
    momentum, decay, rate = 0.9, 5e-2, 0.1
    model, batches = make_model(norm=False).double(), make_batches()
    batches.images = batches.images.double()
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    names = [name for name, _ in model.named_parameters()]
    for images, labels in batches.epoch():
        logits = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (images,))
        gradients = torch.autograd.grad(cross_entropy(logits, labels), weights)
        for index, gradient in enumerate(gradients):
            gradient = gradient + decay * weights[index].detach()
            velocity[index] = momentum * velocity[index] + gradient
            step = gradient + momentum * velocity[index] if nesterov else velocity[index]
            weights[index] = (weights[index].detach() - rate * step).requires_grad_()
    settings = config(
        epochs=1, learning_rate=rate, optimizer=OptimizerSettings("sgd", momentum, nesterov, decay)
    )
    fit(model, Splits(batches, batches), config=settings)
    for actual, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


# --- gradient accumulation ---


class Sizes(nn.Module):
    """Remembers how many images each forward pass in training saw."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.sizes = module, []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.sizes.append(len(x))
        return self.module(x)


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate: int, float64: None) -> None:
    """Also where the parts of a batch are not of one size: 5 images in 2 parts."""
    results = []
    for parts in (1, accumulate):
        model, batches = Sizes(make_model(norm=False)), make_batches(37)
        batches.images = batches.images.double()
        state = fit(model, Splits(batches, batches), config=config(epochs=1, optimizer=SGD, accumulate=parts))
        results.append((model, state.history[0]))
    (whole, expected), (parted, actual) = results
    for one, other in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert actual.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    assert actual.train_error == expected.train_error
    assert whole.sizes == [8, 8, 8, 8, 5]
    assert max(parted.sizes) == {2: 4, 3: 3, 8: 3}[accumulate]
    assert min(parted.sizes) >= 2, "batch norm cannot train on a single image"
    assert sum(parted.sizes) == 37


# --- precision and layout ---


def test_bfloat16_rounds_the_forward_pass_and_leaves_the_weights_alone() -> None:
    exact = train(config())
    rounded = train(config(numerics=Numerics("bfloat16")))
    assert {tensor.dtype for tensor in rounded.best.values()} == {torch.float32, torch.int64}
    pairs = [
        (one.train_loss, other.train_loss) for one, other in zip(exact.history, rounded.history, strict=True)
    ]
    assert all(one == pytest.approx(other, rel=0.05) for one, other in pairs)
    assert all(one != other for one, other in pairs), "nothing was rounded"
    with torch.no_grad():
        logits = Numerics("bfloat16").logits(make_model().eval(), make_batches().images)
        expected = Numerics().logits(make_model().eval(), make_batches().images)
    assert logits.dtype == torch.float32
    assert 1e-4 < float((logits - expected).abs().max() / expected.abs().max()) < 2e-2


def test_channels_last_changes_the_layout_and_not_the_numbers() -> None:
    """Without dropout, which draws in the order of the memory."""
    plain, laid_out = (
        fit(
            make_model(norm=False),
            Splits(make_batches()),
            config=config(select="last", numerics=Numerics(channels_last=channels_last)),
        )
        for channels_last in (False, True)
    )
    assert laid_out.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain.history, laid_out.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)


# --- the average of the weights ---


def test_the_average_is_evaluated_and_kept_and_the_training_goes_on_with_the_weights() -> None:
    settings = config(optimizer=SGD, ema_decay=0.8, select="last")
    model = make_model()
    batches = Recorded(make_batches(shuffle=True), model)
    validation = make_batches(400)
    state = fit(model, Splits(batches, validation), config=settings)
    weights = [*batches.seen[1:], model.state_dict()]  # after each step
    average = {name: tensor.clone() for name, tensor in batches.seen[0].items()}
    for step, after in enumerate(weights, start=1):
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in after.items():
            counts = not tensor.is_floating_point()
            average[name] = tensor if counts else decay * average[name] + (1 - decay) * tensor
    for name, tensor in state.best.items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-5, atol=1e-6)
    plain = train(config(optimizer=SGD, select="last"))
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), "evaluation must not touch the weights"
    assert any(not torch.equal(tensor, plain.best[name]) for name, tensor in state.best.items())
    tested = make_model()
    tested.load_state_dict(state.best)
    of_average, of_weights = (
        error_percent(*evaluate(network, validation)) for network in (tested, state.model)
    )
    assert state.history[-1].validation_error == of_average != of_weights


# --- which epoch is kept, and the periodic test ---


def test_the_last_epoch_is_kept_without_validation() -> None:
    state = fit(make_model(), Splits(make_batches()), config=config(select="last"))
    assert state.best_epoch == 3
    assert all(torch.equal(tensor, state.best[name]) for name, tensor in state.model.state_dict().items())
    assert [result.validation_error for result in state.history] == [None] * 3


def test_the_last_epoch_is_kept_however_bad_it_is() -> None:
    for select, kept in (("last", 3), ("best-validation", 1)):
        model = nn.Linear(1, 1)
        state = TrainState(model, torch.optim.Adam(model.parameters()), select=select)
        for epoch, error in enumerate([5.0, 6.0, 7.0], start=1):
            with torch.no_grad():
                model.weight.fill_(epoch)
            state.record(EpochResult(epoch, 0.1, 1.0, 1.0, error, 0.0))
        assert (state.best_epoch, state.best["weight"].item()) == (kept, kept)


def test_the_periodic_test_is_recorded_and_changes_nothing() -> None:
    tested, untested = train(config(test_every=2)), train(config())
    assert [result.test_error is None for result in tested.history] == [True, False, True]
    assert [result.test_error for result in untested.history] == [None] * 3
    assert tested.best_epoch == untested.best_epoch
    assert all(torch.equal(tensor, untested.best[name]) for name, tensor in tested.best.items())
    model = make_model()
    two = fit(
        model,
        Splits(make_batches(shuffle=True), make_batches(24)),
        config=config(epochs=2, select="last"),
    )
    expected = error_percent(*evaluate(two.model, make_batches(16)))
    assert tested.history[1].test_error == expected


def test_missing_splits_are_refused_before_any_work() -> None:
    with pytest.raises(SettingError, match=r"expected a validation split .* select = \"last\""):
        fit(make_model(), Splits(make_batches()), config=config())
    with pytest.raises(SettingError, match=r"expected test batches .* leave out test_every"):
        fit(make_model(), Splits(make_batches(), make_batches()), config=config(test_every=1))


# --- resumption ---

RECIPES = {
    "sgd": config(optimizer=SGD),
    "plain sgd": config(optimizer=OptimizerSettings("sgd", 0.0, nesterov=False)),
    "average": config(ema_decay=0.9),
    "sgd, average, last": config(optimizer=SGD, ema_decay=0.5, select="last"),
    "accumulate": config(optimizer=SGD, accumulate=3, test_every=1),
    "bfloat16, channels last": config(
        optimizer=SGD, numerics=Numerics("bfloat16", channels_last=True), ema_decay=0.9
    ),
}


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_a_resumed_training_ends_with_the_same_bits(
    tmp_path: Path, settings: TrainConfig, stop_after: int
) -> None:
    def interrupt(result: EpochResult) -> None:
        if result.epoch == stop_after:
            raise InterruptedTestError

    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    with pytest.raises(InterruptedTestError):
        train(settings, checkpoint=checkpoint, on_epoch=interrupt)
    resumed, whole = train(settings, checkpoint=checkpoint), train(settings)
    assert resumed.best_epoch == whole.best_epoch
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert set(resumed.best) == set(whole.best)
    assert all(torch.equal(resumed.best[name], tensor) for name, tensor in whole.best.items())
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert (one.train_loss, one.validation_error, one.test_error) == (
            other.train_loss,
            other.validation_error,
            other.test_error,
        )
    if whole.average is not None:
        assert isinstance(resumed.average, WeightAverage)
        assert resumed.average.steps == whole.average.steps == 15
