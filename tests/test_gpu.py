"""What must be the same on a GPU: layers, augmentation, a whole run. Skipped where there is none."""

from collections.abc import Generator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from equiscale import create_model, list_models
from equiscale._machine import has_compiler
from equiscale.data import TensorBatches, normalize, random_rescale
from equiscale.data.augment import crop_flip_cutout
from equiscale.errors import TrainingStoppedError
from equiscale.experiments.execute import RunOptions, evaluation_batch, execute_run
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.runner import Jobs, prepare_options
from equiscale.experiments.spec import load_suite
from equiscale.experiments.sweep import run_sweep
from equiscale.experiments.worker import RunEvent
from equiscale.train import Checkpoint, EpochResult, Numerics, Splits, TrainConfig, TrainState, fit
from equiscale.train.step import EagerGradients, GraphedGradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


SMALL = [name for name in list_models() if "wrn_16" not in name]


def images_for(name: str) -> torch.Tensor:
    shapes = {"mnist": (1, 28, 28), "scale": (1, 64, 64), "ses": (1, 32, 32), "wrn": (3, 96, 96)}
    shape = shapes[name.split("_")[0]]
    return torch.randn(4, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_networks_agree_with_the_cpu_in_float64(name: str) -> None:
    model, images = create_model(name).double().eval(), images_for(name)
    on_gpu = create_model(name).double().eval()
    on_gpu.load_state_dict(model.state_dict())
    with torch.no_grad():
        actual = on_gpu.cuda()(images.cuda()).cpu()
        torch.testing.assert_close(actual, model(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_agree_with_the_cpu_in_float64(name: str) -> None:
    settings = {} if name.startswith(("scale", "ses_unet")) else {"dropout": 0.0}
    model, images, gradients = create_model(name, **settings).double(), images_for(name), []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        model(images.to(device)).square().sum().backward()
        gradients.append({key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None})
    for key, gradient in gradients[0].items():
        tolerance = 1e-8 * (1 + float(gradient.abs().max()))
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-6, atol=tolerance)


def test_natural_image_augmentation_is_the_same_as_on_the_cpu() -> None:
    images = torch.randint(256, (16, 3, 96, 96), generator=torch.Generator().manual_seed(0)).byte()
    on_cpu, on_gpu = (
        crop_flip_cutout(
            images.to(device), mean=0.5, std=0.25, generator=torch.Generator().manual_seed(1)
        ).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-6)


def test_a_wide_resnet_trains_in_bfloat16() -> None:
    model = create_model("wrn_10_1_ses_b").cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    images, labels = torch.randn(32, 3, 96, 96, device="cuda"), torch.arange(32, device="cuda") % 10
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0], losses


def test_augmentation_agrees_with_the_cpu() -> None:
    images = torch.randint(256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    on_cpu, on_gpu = (
        random_rescale(images.to(device), generator=torch.Generator().manual_seed(1)).cpu()
        for device in ("cpu", "cuda")
    )
    assert (on_cpu - on_gpu).abs().max() <= 1
    assert (on_cpu == on_gpu).double().mean() > 0.999


def test_a_run_learns(tmp_path: Path) -> None:
    suite = load_suite("digits-scale")
    run = plan_runs(suite, Selection("mnist_ses_vector_28", realisations=[0]))[0]
    record = execute_run(run, RunOptions(tmp_path, device="cuda"))
    assert record.test is not None
    assert record.test.error < 30
    assert "gpu" in record.provenance.machine


# --- the training step: recorded, compiled, and without waiting ---


def noisy_digits(count: int = 88, *, resident: bool = True, shuffle: bool = True) -> TensorBatches:
    """Batches of 32, the last one of 24; their labels can be learned, their images are augmented."""
    images = torch.randint(200, (count, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(count) % 2
    images[labels == 1, :, 8:20, 8:20] += 55
    gpu = torch.device("cuda", torch.cuda.current_device())

    def augment(batch: Tensor, generator: torch.Generator | None) -> Tensor:
        assert batch.is_cuda
        if generator is not None:
            batch = random_rescale(batch, low=0.8, high=1.25, generator=generator)
        return normalize(batch, 0.4, 0.25)

    return TensorBatches(
        images.to(gpu) if resident else images,
        labels.to(gpu) if resident else labels,
        batch_size=32,
        transform=augment,
        shuffle=shuffle,
        device=gpu,
    )


def train_digits(numerics: Numerics, *, epochs: int = 2, dropout: float = 0.0, **options) -> TrainState:
    torch.manual_seed(0)
    model = create_model("mnist_ses_scalar_28", dropout=dropout).cuda()
    config = TrainConfig(epochs=epochs, learning_rate=1e-3, numerics=numerics)
    return fit(model, Splits(noisy_digits(), noisy_digits(shuffle=False)), config=config, **options)


def assert_same_training(first: TrainState, second: TrainState, tolerance: float) -> None:
    for one, other in zip(first.history, second.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance, abs=tolerance)
    counts = [state.model.state_dict() for state in (first, second)]
    for name, tensor in counts[0].items():
        if name.endswith("num_batches_tracked"):  # steps of the recording do not count
            assert int(tensor) == int(counts[1][name]) == 3 * len(first.history)


class Watched:
    """Batches during which waiting for the GPU is an error."""

    def __init__(self, batches: TensorBatches) -> None:
        self.batches = batches

    def epoch(self, generator: torch.Generator | None = None) -> Generator[tuple[Tensor, Tensor], None, None]:
        epoch = self.batches.epoch(generator)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from epoch
        finally:
            torch.cuda.set_sync_debug_mode("default")


# torch says so once, when the mode is set.
prototype = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")


@prototype
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("name", ["mnist_cnn_28", "mnist_ses_scalar_28", "mnist_ses_vector_28"])
def test_nothing_waits_for_the_gpu_within_an_epoch(name: str, resident: bool) -> None:
    batches = Watched(noisy_digits(resident=resident))
    validation = Watched(noisy_digits(resident=resident, shuffle=False))
    config = TrainConfig(epochs=2, learning_rate=1e-3)
    state = fit(create_model(name).cuda(), Splits(batches, validation), config=config)
    assert len(state.history) == 2


@prototype
def test_the_watch_notices_who_waits() -> None:
    batches = Watched(noisy_digits()).epoch(torch.Generator().manual_seed(0))
    images, _ = next(batches)
    with pytest.raises(RuntimeError, match="synchronizing"):
        images.sum().item()
    batches.close()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "name", ["mnist_cnn_28", "mnist_ses_scalar_28", "mnist_ses_vector_28", "wrn_10_1_ses_b"]
)
def test_a_replayed_step_has_the_gradients_of_an_eager_one(name: str, accumulate: int) -> None:
    """Of other images than were recorded, before and after a batch of another size."""
    model = create_model(name, dropout=0.0).cuda()
    config = TrainConfig(epochs=1, learning_rate=0.1, accumulate=accumulate)
    eager = EagerGradients(model, config)
    graphed = GraphedGradients(EagerGradients(model, config))
    batches = [images_for(name).float().cuda() for _ in range(4)]
    labels = torch.arange(4, device="cuda")
    for images in (batches[0], batches[1], batches[2][:3], batches[3]):
        results = []
        for gradients in (eager, graphed):
            loss, mistakes = gradients(images, labels[: len(images)])
            values = [parameter.grad.clone() for parameter in model.parameters()]
            results.append((float(loss), float(mistakes), values))
        (loss, mistakes, expected), (again, mistakes_again, actual) = results
        assert again == pytest.approx(loss, rel=1e-3)
        assert mistakes_again == mistakes
        largest = max(float(gradient.abs().max()) for gradient in expected)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=5e-3 * largest)  # TF32


def test_recording_leaves_buffers_and_random_numbers_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(2704, 2)
    )
    model.cuda()
    images, labels = torch.randn(8, 1, 28, 28, device="cuda"), torch.zeros(8, dtype=torch.long, device="cuda")
    before = torch.cuda.get_rng_state()
    gradients = GraphedGradients(EagerGradients(model, TrainConfig(epochs=1, learning_rate=0.1)))
    gradients._capture(images, labels)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert int(model[1].num_batches_tracked) == 0
    assert torch.equal(model[1].running_mean, torch.zeros(4, device="cuda"))


def test_replays_draw_new_dropout() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 2)).cuda()
    images, labels = torch.ones(8, 1, 28, 28, device="cuda"), torch.zeros(8, dtype=torch.long, device="cuda")
    gradients = GraphedGradients(EagerGradients(model, TrainConfig(epochs=1, learning_rate=0.1)))
    losses = {float(gradients(images, labels)[0]) for _ in range(5)}
    assert len(losses) == 5
    torch.manual_seed(7)
    first = float(gradients(images, labels)[0])
    torch.manual_seed(7)
    assert float(gradients(images, labels)[0]) == first, "as the epoch's seed promises"


@pytest.mark.parametrize("plain", [Numerics(), Numerics("bfloat16", channels_last=True)])
def test_a_recorded_training_learns_the_same(plain: Numerics) -> None:
    recorded = Numerics(plain.precision, plain.channels_last, cuda_graphs=True)
    tolerance = 1e-2 if plain.precision == "float32" else 0.1
    assert_same_training(train_digits(plain), train_digits(recorded), tolerance)


def test_a_recorded_training_resumes(tmp_path: Path) -> None:
    """The fused optimiser's state too; and the weights that a checkpoint brings are those of the graph."""

    class InterruptedTestError(Exception):
        pass

    def interrupt(result: EpochResult) -> None:
        if result.epoch == 1:
            raise InterruptedTestError

    checkpoint, recorded = Checkpoint(tmp_path / "checkpoint.safetensors"), Numerics(cuda_graphs=True)
    with pytest.raises(InterruptedTestError):
        train_digits(recorded, epochs=3, checkpoint=checkpoint, on_epoch=interrupt)
    resumed = train_digits(recorded, epochs=3, checkpoint=checkpoint)
    assert_same_training(train_digits(recorded, epochs=3), resumed, 1e-2)


def test_a_deterministic_training_has_the_same_bits_stopped_at_any_step_or_not(tmp_path: Path) -> None:
    exact, polls = Numerics(deterministic=True), count(1)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    whole = train_digits(exact, epochs=2, dropout=0.5)
    with pytest.raises(TrainingStoppedError):
        train_digits(exact, dropout=0.5, checkpoint=checkpoint, should_stop=lambda: next(polls) == 2)
    resumed = train_digits(exact, dropout=0.5, checkpoint=checkpoint)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not has_compiler("cuda"), reason="needs a C++ compiler and Triton")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_compiled_training_learns_the_same(cuda_graphs: bool) -> None:
    """Of torch's own layers: the run-time shape checks of the tests are not for the compiler."""
    states = []
    for numerics in (Numerics(), Numerics(compile=True, cuda_graphs=cuda_graphs)):
        torch.manual_seed(0)
        front = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(7)]
        model = nn.Sequential(*front, nn.Flatten(), nn.Linear(196, 2)).cuda()
        config = TrainConfig(epochs=2, learning_rate=1e-3, numerics=numerics)
        states.append(fit(model, Splits(noisy_digits(), noisy_digits(shuffle=False)), config=config))
    assert_same_training(*states, tolerance=1e-2)


def test_evaluation_takes_more_images_at_a_time_than_on_a_cpu() -> None:
    model = create_model("mnist_ses_scalar_28")
    sizes = [
        evaluation_batch(model.to(device), (1, 28, 28), torch.device(device)) for device in ("cpu", "cuda")
    ]
    assert sizes[0] <= 128 < sizes[1] <= 4096


def test_several_runs_share_a_gpu(tmp_path: Path) -> None:
    runs = plan_runs(load_suite("digits-scale"), Selection("mnist_cnn_28", realisations=[0, 1], epochs=1))
    options, jobs = prepare_options(
        runs, folder=tmp_path, data_root=None, device="cuda", jobs=Jobs(on_each=2), resume=True
    )
    events: list[RunEvent] = []
    assert run_sweep(runs, options, jobs=jobs, on_event=events.append).failures == ()
    assert [event.kind for event in events[:2]] == ["started", "started"], "side by side"
