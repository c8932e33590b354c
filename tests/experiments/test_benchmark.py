"""The benchmark: who is measured, by which clock, and what counts as a regression."""

import mmap
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from equiscale.basis import HermiteBasis
from equiscale.citations import SESN
from equiscale.errors import BenchmarkError, ModelError, RecordError, SettingError
from equiscale.experiments.benchmark import measure, memory, session
from equiscale.experiments.benchmark.compare import compare, missing_kinds
from equiscale.experiments.benchmark.contenders import (
    DEFAULT_MODELS,
    Subject,
    build,
    check_equal,
    choose_models,
    default_batch,
    line_up,
)
from equiscale.experiments.benchmark.dense import PublishedConv2d, as_published, has_published_form
from equiscale.experiments.benchmark.measure import ProbeSizes, interleave, machine_state, make_step
from equiscale.experiments.benchmark.memory import MemoryTask, peak_in_own_process, peak_memory
from equiscale.experiments.benchmark.peer import PublicCode
from equiscale.experiments.benchmark.record import (
    KINDS,
    BenchmarkSettings,
    Peaks,
    Timing,
    make_settings,
    read_benchmark,
    write_benchmark,
)
from equiscale.experiments.benchmark.session import Listeners, prepare_settings, run_benchmark
from equiscale.experiments.benchmark.work import Operation, operations, summary
from equiscale.models import create_model, list_models
from equiscale.models.mnist.ses import SesSettings, build_ses_scalar, build_ses_vector
from equiscale.models.registry import _REGISTRY, ModelEntry, register
from equiscale.nn import LiftConv2d, ScaleConv2d
from equiscale.scales import ScaleGrid
from tests.benchmark_records import benchmark_record, kind_result, measured, model_result, probes

CPU = torch.device("cpu")
TINY_PROBES = ProbeSizes(product=8, channels=2, images=1, pixels=8, copied=64)
SMALL = {"channels": (2, 3, 4), "hidden": 8, "effective_size": 3, "kernel_size": 7, "dropout": 0.5}


@pytest.fixture
def small() -> Iterator[str]:
    """A registered network that takes no time."""
    for name, builder in (("bench_small", build_ses_scalar), ("bench_vector", build_ses_vector)):
        register(ModelEntry(name, "SESN scalar", SesSettings(**SMALL), builder, SESN))
    yield "bench_small"
    for name in ("bench_small", "bench_vector"):
        del _REGISTRY[name]


@pytest.fixture
def public(tmp_path: Path) -> PublicCode:
    """A checkout that prints, warns, and has a broken file beside the good one."""
    models = tmp_path / "public" / "models"
    (models / "impl").mkdir(parents=True)
    (models / "__init__.py").write_text("raise RuntimeError('imports everything')\n")
    (models / "broken.py").write_text("import no_such_package\ndef mnist_ss_28(**kwargs): pass\n")
    (models / "impl" / "size.py").write_text("CLASSES = 10\n")
    (models / "nets.py").write_text(
        "import warnings\n"
        "from equiscale import create_model\n"
        "from .impl.size import CLASSES\n\n"
        "def bench_small(**kwargs):\n"
        "    print('building')\n"
        "    warnings.warn('old', DeprecationWarning)\n"
        "    return create_model('bench_small', num_classes=CLASSES)\n"
    )
    return PublicCode(tmp_path / "public")


# --- settings and records ---


def test_the_summary_of_rounds_lies_within_them() -> None:
    one, many = Timing.of([0.5]), Timing.of([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (one.quartile_1, one.median, one.quartile_3, one.rounds) == (0.5, 0.5, 0.5, 1)
    assert (many.quartile_1, many.median, many.quartile_3, many.rounds) == (2.0, 3.0, 4.0, 5)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = benchmark_record()
    write_benchmark(tmp_path / "a" / "speed.json", record)
    assert read_benchmark(tmp_path / "a" / "speed.json") == record


@pytest.mark.parametrize("content", [None, "", "{}", '{"benchmark": "training_step"}'])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "speed.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecordError, match=r"expected the record of a benchmark in .*speed\.json, got"):
        read_benchmark(path)


def test_ratios_are_of_medians_and_missing_where_a_kind_is() -> None:
    result = model_result()
    assert result.ratio("dense", "ours", "train") == pytest.approx(8)
    assert result.memory_ratio("ours", "peer", "evaluate") == pytest.approx(0.4)
    alone = model_result(kinds=(kind_result("ours"),))
    assert alone.ratio("dense", "ours", "train") is None
    assert alone.memory_ratio("ours", "dense", "train") is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
        ({"batch_size": 1}, "batch_size: Input should be greater than or equal to 2"),
        ({"threads": 0}, "threads: Input should be"),
        ({"precision": "float16"}, "precision: Input should be 'float32', 'tf32' or 'bfloat16'"),
        ({"precision": "tf32", "device": "cpu"}, "expected a CUDA device for the precision tf32, got cpu"),
        ({"device": "tpu"}, "expected a device of auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"models": ["mnist_cnn_29"]}, "expected a model of .* such as .*mnist_cnn_28.*, got 'mnist_cnn_29'"),
        ({"models": ["nothing_*"]}, r"expected a pattern that fits a model .*, got 'nothing_\*'"),
    ],
)
def test_settings_are_checked_before_anything_runs(wanted: dict[str, object], message: str) -> None:
    with pytest.raises((SettingError, ModelError), match=message):
        prepare_settings(wanted)


def test_settings_that_are_not_asked_for_are_the_older_records_or_the_defaults() -> None:
    default = prepare_settings({"rounds": None, "device": "cpu"})
    assert (default.models, default.rounds) == (DEFAULT_MODELS, 9)
    older = make_settings(models=["wrn_10_1"], batch_size=2, rounds=3, threads=5, memory=False)
    again = prepare_settings({"rounds": 4, "models": None}, older)
    assert again == older.model_copy(update={"rounds": 4})


# --- who is measured ---


def test_models_by_name_and_pattern_each_once() -> None:
    chosen = choose_models(["mnist_cnn_56", "mnist_cnn_*", "wrn_10_1"])
    assert chosen == ("mnist_cnn_56", "mnist_cnn_28", "wrn_10_1")
    assert set(DEFAULT_MODELS) <= set(list_models())
    assert len(choose_models(["*"])) == len(list_models()), "every network can be measured"


@pytest.mark.parametrize(
    ("model", "plain", "shape", "optimizer"),
    [
        ("mnist_ses_vector_56p", "mnist_cnn_56", (1, 28, 28), "adam"),
        ("mnist_ss_28", "mnist_cnn_28", (1, 28, 28), "adam"),
        ("mnist_cnn_28", None, (1, 28, 28), "adam"),
        ("wrn_10_2_ses_b", "wrn_10_2", (3, 96, 96), "sgd"),
        ("wrn_16_8", None, (3, 96, 96), "sgd"),
        ("scale_ses_vector", "scale_cnn", (1, 112, 112), "adam"),
        ("scale_cnn", None, (1, 112, 112), "adam"),
    ],
)
def test_the_plain_network_of_the_same_size(
    model: str, plain: str | None, shape: tuple[int, int, int], optimizer: str
) -> None:
    subject = Subject(model, 4)
    assert (subject.plain, subject.image_shape) == (plain, shape)
    assert subject.family.optimizer.name == optimizer


def test_the_plain_network_has_as_many_weights(small: str) -> None:
    def weights(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    ours, cnn = (build(Subject("mnist_ses_scalar_28", 4), kind).network for kind in ("ours", "cnn"))
    assert weights(cnn) == pytest.approx(weights(ours), rel=0.01)
    steered, cnn = (build(Subject("mnist_ss_28", 4), kind).network for kind in ("ours", "cnn"))
    assert weights(cnn) == pytest.approx(weights(steered), rel=0.02), "not the plain one of its channels"
    assert build(Subject(small, 4), "cnn").network.settings.channels == SMALL["channels"]


def test_the_protocols_batch_and_few_photographs_on_a_cpu() -> None:
    assert [default_batch("mnist_cnn_28", device) for device in ("cpu", "cuda:1")] == [128, 128]
    assert [default_batch("wrn_16_8", device) for device in ("cpu", "cuda")] == [4, 128]


def test_images_and_labels_are_the_same_every_time_and_leave_the_generator_alone(small: str) -> None:
    state = torch.random.get_rng_state()
    first, second = (Subject(small, 4).batch(CPU) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].shape == (4, 1, 28, 28)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_all_kinds_line_up_with_the_same_weights(small: str, public: PublicCode) -> None:
    notes: list[str] = []
    contenders = line_up(Subject(small, 4, public), notes)
    assert [contender.kind for contender in contenders] == ["ours", "dense", "peer", "cnn"]
    assert notes == []
    check_equal(contenders, torch.randn(4, 1, 28, 28), "float32")
    with torch.no_grad():
        contenders[2].network.main[0].weight.mul_(1.01)
    with pytest.raises(BenchmarkError, match=r"expected equal outputs of ours and peer, got a difference of"):
        check_equal(contenders, torch.randn(4, 1, 28, 28), "float32")


def test_a_plain_network_stands_alone() -> None:
    assert [contender.kind for contender in line_up(Subject("mnist_cnn_28", 4), [])] == ["ours"]


# --- the published formulation ---


@pytest.mark.parametrize("model", ["bench_small", "bench_vector"])
def test_the_published_formulation_of_networks_gives_the_same_gradients(
    small: str, float64: None, model: str
) -> None:
    ours = create_model(model).eval()
    published = as_published(ours)
    images = torch.randn(3, 1, 28, 28)
    gradients = []
    for network in (ours, published):
        network(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert any(isinstance(module, PublishedConv2d) for module in published.modules())
    assert not any(isinstance(module, PublishedConv2d) for module in ours.modules())
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale_size", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_published_scale_convolution_is_the_layers(float64: None, scale_size: int, stride: int) -> None:
    options = {"kernel_size": 7, "grid": ScaleGrid.geometric(0.9, 1.41, 3), "basis": HermiteBasis(3)}
    layer = ScaleConv2d(2, 4, scale_size=scale_size, stride=stride, padding="same", **options)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 2, 3, 9, 12)
    torch.testing.assert_close(PublishedConv2d(layer)(x), layer(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(PublishedConv2d(layer)(x.flip(2)), layer(x))


def test_what_was_never_published_has_no_published_form() -> None:
    options = {"kernel_size": 5, "grid": ScaleGrid([0.8, 1.1])}
    assert has_published_form(LiftConv2d(2, 4, **options))
    assert not has_published_form(LiftConv2d(2, 4, groups=2, **options))
    assert not has_published_form(LiftConv2d(2, 4, padding="same", padding_mode="circular", **options))
    assert not has_published_form(nn.Conv2d(2, 4, 5))


# --- the public code ---


def test_the_public_code_is_imported_quietly_and_hides_nothing(
    small: str, public: PublicCode, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    assert isinstance(public.build(small, 10), nn.Module)
    assert capsys.readouterr().out == ""
    assert "models" not in sys.modules
    assert public.commit == "unknown"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mnist_ss_28", "expected mnist_ss_28 of broken.py to run, got ModuleNotFoundError: No module named"),
        ("wrn_10_1", "expected wrn_10_1 among the networks of the public code, got no such function"),
    ],
)
def test_what_the_public_code_cannot_do_becomes_a_note(public: PublicCode, model: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        public.build(model, 10)
    notes: list[str] = []
    contenders = line_up(Subject(model, 4, public), notes)
    assert "peer" not in {contender.kind for contender in contenders}
    assert notes[0].startswith(f"the public code was not measured: {message}")


def test_a_folder_without_the_public_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"expected a checkout of the public SESN code with models/\*\.py"):
        PublicCode(tmp_path)


# --- what a step does ---


def test_arithmetic_of_a_convolution_and_its_gradients() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    filters = torch.randn(5, 3, 3, 3, requires_grad=True)
    forward = 2 * (2 * 5 * 3) * (3 * 8 - 2) ** 2
    with torch.no_grad():
        (found,) = operations(lambda: conv2d(x, filters, padding=1))
    assert found == Operation(forward, 4 * (x.numel() + filters.numel() + 2 * 5 * 8 * 8))
    step = operations(lambda: conv2d(x, filters, padding=1).sum().backward())
    assert sum(operation.flops for operation in step) == 3 * forward, "once forward, twice backward"


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_arithmetic_of_the_gradients_of_grouped_convolutions(groups: int, wanted: tuple[bool, bool]) -> None:
    x = torch.randn(2, 8, 6, 7, requires_grad=wanted[0])
    filters = torch.randn(12, 8 // groups, 3, 3, requires_grad=wanted[1])
    forward = 2 * (2 * 12 * 4 * 5) * (8 // groups * 3 * 3)
    step = operations(lambda: conv2d(x, filters, groups=groups).sum().backward())
    assert sum(operation.flops for operation in step) == (1 + sum(wanted)) * forward


@pytest.mark.parametrize(
    "moved",
    [
        {"padding": 2},
        {"padding": (0, 6)},
        {"stride": (2, 3), "padding": 1},
        {"dilation": 2, "padding": 2},
        {"stride": 2, "dilation": (1, 2), "padding": (3, 1)},
    ],
)
@pytest.mark.parametrize("convolve", [conv2d, conv_transpose2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_only_taps_on_pixels_count_forward_and_backward(
    moved: dict[str, object], convolve: Callable[..., Tensor], groups: int
) -> None:
    x = torch.ones(2, 4, 7, 9, requires_grad=True)
    channels = (4, 6 // groups) if convolve is conv_transpose2d else (6, 4 // groups)
    filters = torch.ones(*channels, 3, 5, requires_grad=True)
    with torch.no_grad():  # ones add up to the number of products
        products = int(convolve(x, filters, groups=groups, **moved).sum())
    step = operations(lambda: convolve(x, filters, groups=groups, **moved).sum().backward())
    assert sum(operation.flops for operation in step) == 3 * 2 * products


def test_traffic_is_of_what_lies_in_memory() -> None:
    x = torch.ones(1, 1000)
    assert operations(lambda: x.view(10, 100).transpose(0, 1)) == []
    assert operations(lambda: torch.empty(1000)) == []
    assert operations(lambda: x.relu()) == [Operation(0, 8000)]
    assert operations(lambda: x.add_(1)) == [Operation(0, 8000)]
    assert operations(lambda: x.expand(50, 1000).sum()) == [Operation(0, 4004)]
    assert operations(lambda: x.zero_()) == [Operation(0, 4000)]
    assert operations(lambda: torch._foreach_add_([x, x], 1)) == [Operation(0, 16000)]
    assert operations(lambda: torch.add(x, x, out=torch.empty_like(x))) == [Operation(0, 12000)]


def test_the_limit_is_a_roofline_an_operation() -> None:
    peaks = Peaks(product=50.0, convolution=100.0, bandwidth=10.0)
    work = summary([Operation(200, 10), Operation(10, 30)], peaks)
    assert (work.flops, work.bytes) == (210, 40)
    assert work.bound_seconds == pytest.approx(2 + 3)


# --- the clock ---


def test_steps_take_turns_and_every_round_begins_with_another() -> None:
    order: list[str] = []
    rounds: list[int] = []
    seconds = interleave(
        {name: (lambda name=name: order.append(name)) for name in "abc"},
        4,
        time_step=lambda step: (step(), float(len(order)))[1],
        on_round=rounds.append,
    )
    assert "".join(order) == "abcbcacababc"
    assert rounds == [1, 2, 3, 4]
    assert seconds["a"] == [1.0, 6.0, 8.0, 10.0]


def test_the_stopwatch_measures_seconds() -> None:
    import time

    assert 0.02 <= measure.stopwatch(CPU)(lambda: time.sleep(0.02)) < 1


def test_probes_give_the_machines_peak() -> None:
    sizes = ProbeSizes(product=10, channels=2, images=3, pixels=5, copied=1000)
    peaks = sizes.peaks({"product": 2.0, "convolution": 0.5, "traffic": 4.0})
    assert (peaks.product, peaks.bandwidth) == (1000.0, 500.0)
    assert peaks.convolution == 2 * 3 * 13 * 13 * (2 * 2) / 0.5
    assert peaks.flops == peaks.convolution
    steps = measure.probe_steps(sizes, CPU, "bfloat16")
    counted = {name: operations(step) for name, step in steps.items()}
    assert counted["product"][0].flops == 2 * 10**3
    assert counted["convolution"][0].flops == 2 * 3 * 13 * 13 * (2 * 2)
    assert counted["traffic"][0].bytes == 2 * 1000


def state() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    products = torch.get_float32_matmul_precision()
    return torch.get_num_threads(), products, cudnn.benchmark, cudnn.allow_tf32


def test_the_state_of_the_machine_is_restored() -> None:
    generator, before = torch.random.get_rng_state(), state()
    with machine_state(3, CPU, "tf32"):
        assert state() == (3, "high", True, True)
        first = torch.rand(1)
    assert state() == before
    with machine_state(3, CPU, "float32"):
        assert torch.equal(torch.rand(1), first)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert state() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("user", [("high", True), ("highest", False)])
def test_tf32_is_for_those_who_ask_for_it(precision: str, user: tuple[str, bool]) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(user[0])
        torch.backends.cudnn.allow_tf32 = user[1]
        with machine_state(2, CPU, precision):
            assert state() == (2, "highest", True, False)
        assert state()[1::2] == user
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_learns_and_an_evaluation_does_not(small: str, precision: str) -> None:
    contender, subject = build(Subject(small, 4), "ours"), Subject(small, 4)
    weights = [parameter.detach().clone() for parameter in contender.network.parameters()]

    def unchanged() -> list[bool]:
        return [torch.equal(*pair) for pair in zip(weights, contender.network.parameters(), strict=True)]

    make_step(contender, subject, "evaluate", precision)()
    assert not contender.network.training
    assert all(unchanged())
    make_step(contender, subject, "train", precision)()
    assert contender.network.training
    assert not any(unchanged())


# --- memory ---


def _resident(size: int) -> Tensor:
    """So many bytes straight from the kernel: malloc might find them among what earlier tests freed."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).fill_(1)


def test_growth_is_the_peak_and_not_what_is_left() -> None:
    size = 32 * 2**20
    ballast = _resident(4 * size)  # an older peak must not hide the step's
    del ballast
    growth = memory.peak_growth(lambda: _resident(size), CPU)
    assert 0.97 * size < growth < 1.3 * size, "the kernel counts pages in lots"
    assert memory.peak_growth(lambda: None, CPU) < size / 10


def test_a_process_of_its_own_knows_nothing_of_this_one() -> None:
    ballast = torch.ones(384 * 2**20, dtype=torch.uint8)
    task = MemoryTask(
        Subject("mnist_cnn_28", 8), "ours", "train", BenchmarkSettings(models=("mnist_cnn_28",))
    )
    assert 2**20 < peak_in_own_process(task) < len(ballast) / 3


def test_more_images_take_more_memory(small: str) -> None:
    settings = BenchmarkSettings(models=(small,))
    few, many = (
        peak_memory(MemoryTask(Subject(small, images), "ours", "train", settings)) for images in (2, 512)
    )
    pixels = 512 * 28 * 28 * 4
    assert few < many
    assert many > 4 * pixels, "at least the first layer's features and their gradients"


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    task = MemoryTask(Subject("no_such", 2), "ours", "train", BenchmarkSettings(models=("no_such",)))
    monkeypatch.setattr(memory, "multiprocessing", _InThisProcess)
    with pytest.raises(
        BenchmarkError, match=r"peak memory of ours \(train\), got none: ModelError: expected"
    ):
        peak_in_own_process(task)
    monkeypatch.setattr(memory, "_work", lambda task, sender: sender.close())
    with pytest.raises(BenchmarkError, match="its process died, perhaps for want of memory"):
        peak_in_own_process(task)


def test_a_process_ends_with_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Receiver:
        def recv(self) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            ended.append("closed")

    class Process:
        def __init__(self, **_: object) -> None:
            self.start = lambda: None
            self.terminate = lambda: ended.append("terminated")
            self.join = lambda: ended.append("joined")

    context = type("Context", (), {"Process": Process, "Pipe": lambda self, duplex: (Receiver(), Receiver())})
    monkeypatch.setattr(memory.multiprocessing, "get_context", lambda _: context())
    task = MemoryTask(
        Subject("mnist_cnn_28", 2), "ours", "train", BenchmarkSettings(models=("mnist_cnn_28",))
    )
    with pytest.raises(KeyboardInterrupt):
        peak_in_own_process(task)
    assert ended == ["closed", "terminated", "closed", "joined"]


class _InThisProcess:
    """A context of multiprocessing whose processes are function calls."""

    @staticmethod
    def get_context(_: str) -> object:
        import multiprocessing

        class Process:
            def __init__(self, target, args, daemon):
                self.start = lambda: target(*args)

            def join(self) -> None:
                pass

        class Context:
            Pipe = staticmethod(multiprocessing.Pipe)

        Context.Process = Process
        return Context


# --- a session ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "probe_sizes", lambda _: TINY_PROBES)


def test_a_session_measures_every_kind_and_writes_after_each_network(
    small: str, public: PublicCode, quick: None, tmp_path: Path
) -> None:
    settings = BenchmarkSettings(models=(small, "mnist_cnn_28"), batch_size=4, rounds=1, memory=False)
    output, stages, written = tmp_path / "speed.json", [], []
    tell = Listeners(stages.append, lambda record: written.append((record, read_benchmark(output))))
    record = run_benchmark(settings, output, peer=public, tell=tell)
    assert [len(seen.models) for seen, _ in written] == [1, 2]
    assert all(seen == on_disk for seen, on_disk in written)
    first, second = record.models
    assert [kind.kind for kind in first.kinds] == ["ours", "dense", "peer", "cnn"]
    assert {kind.kind for kind in first.kinds} == set(KINDS)
    assert (first.plain, first.batch_size, first.image_shape) == ("mnist_cnn_28", 4, (1, 28, 28))
    assert [kind.kind for kind in second.kinds] == ["ours"]
    assert set(first.algorithms) == {"main.0", "main.5", "main.10"}
    assert "dense" not in first.algorithms.values()
    assert record.peer == "unknown"
    assert record.machine["threads"] == "1"
    for kind in first.kinds:
        assert kind.train.work.flops > 2 * kind.evaluate.work.flops > 0
        assert kind.train.seconds.rounds == 1
        assert kind.train.peak_bytes is None
    assert first.kind("dense").train.work.flops > first.kind("ours").train.work.flops
    assert "bench_small (1 of 2): training, round 1 of 1" in stages
    assert max(map(len, stages)) < 70, "with a spinner and the time it has to fit into 80 columns"


def test_what_is_counted_of_a_step_is_done_in_every_step(
    small: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[list[Operation], list[Operation]]] = []

    def count_twice(step: measure.Step) -> list[Operation]:
        counted.append((operations(step), operations(step)))
        return counted[-1][0]

    monkeypatch.setattr(session, "operations", count_twice)
    settings = BenchmarkSettings(models=(small,), batch_size=4, rounds=1, memory=False)
    run_benchmark(settings, tmp_path / "speed.json")
    assert len(counted) == 2 * len(("ours", "dense", "cnn"))
    assert [first == second for first, second in counted] == [True] * len(counted)


def test_memory_that_cannot_be_measured_becomes_a_note(
    small: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: MemoryTask) -> int:
        if task.kind == "dense":
            raise BenchmarkError("expected memory, got none")
        return 1000 + (task.mode == "train")

    monkeypatch.setattr(session, "peak_in_own_process", fail)
    settings = BenchmarkSettings(models=(small,), batch_size=4, rounds=1)
    (result,) = run_benchmark(settings, tmp_path / "speed.json").models
    assert (result.kind("ours").train.peak_bytes, result.kind("ours").evaluate.peak_bytes) == (1001, 1000)
    assert result.kind("dense").train.peak_bytes is None
    assert result.notes == ("expected memory, got none",) * 2


def test_nothing_is_measured_where_outputs_differ(
    small: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "interleave", lambda *_, **__: pytest.fail("it was timed"))
    monkeypatch.setattr(session, "peak_in_own_process", lambda _: pytest.fail("its memory was measured"))
    monkeypatch.setattr(
        "equiscale.experiments.benchmark.dense.synthesize_filters",
        lambda weight, basis: 1.01 * (weight @ basis.flatten(1)).view(*weight.shape[:-1], *basis.shape[1:]),
    )
    settings = BenchmarkSettings(models=(small,), batch_size=4, rounds=1)
    with pytest.raises(BenchmarkError, match=r"equal outputs of ours and dense.*neither this network was"):
        run_benchmark(settings, tmp_path / "speed.json")
    assert not (tmp_path / "speed.json").exists()


# --- comparisons ---


def verdicts(old: float, new: float, drift: float = 1.0, kind: str = "ours") -> tuple[str, bool]:
    """Of the training step's time."""
    before = model_result(kinds=(replace_seconds(kind, old),))
    after = model_result(
        kinds=(replace_seconds(kind, new),), probes={m: probes(drift) for m in ("train", "evaluate")}
    )
    change = next(
        change
        for change in compare(benchmark_record(before), benchmark_record(after))
        if (change.mode, change.quantity) == ("train", "time")
    )
    assert change.ratio == pytest.approx(new / old)
    return change.verdict, change.is_regression


def replace_seconds(kind, seconds):
    return kind_result(kind).model_copy(update={"train": measured(seconds, 10**8, 10**9)})


def test_a_change_beyond_the_noise_is_one_and_less_is_not() -> None:
    assert verdicts(1.0, 1.0) == ("same", False)
    assert verdicts(1.0, 1.10) == ("same", False), "the quartile ranges meet"
    assert verdicts(1.0, 1.20) == ("worse", True)
    assert verdicts(1.0, 0.80) == ("better", False)


def test_a_slow_machine_is_no_regression_and_a_fast_one_hides_none() -> None:
    assert verdicts(1.0, 2.0, drift=2.0) == ("same", False)
    assert verdicts(1.0, 1.0, drift=0.5) == ("worse", True)


def test_the_public_code_cannot_regress() -> None:
    assert verdicts(1.0, 3.0, kind="peer") == ("worse", False)
    assert verdicts(1.0, 3.0, kind="dense") == ("worse", True)


@pytest.mark.parametrize(
    ("size", "verdict"), [(100, "same"), (104, "same"), (110, "worse"), (91, "better"), (95, "same")]
)
def test_memory_counts_from_eight_mebibytes(size: int, verdict: str) -> None:
    before, after = (
        model_result(
            kinds=(kind_result("ours").model_copy(update={"train": measured(1.0, mega * 10**6, 1)}),)
        )
        for mega in (100, size)
    )
    change = next(
        change
        for change in compare(benchmark_record(before), benchmark_record(after))
        if (change.mode, change.quantity) == ("train", "memory")
    )
    assert (change.verdict, change.drift) == (verdict, 1.0)


@pytest.mark.parametrize("kind", ["ours", "peer"])
@pytest.mark.parametrize("wanted", [True, False])
def test_memory_that_can_no_longer_be_measured_became_worse(kind: str, wanted: bool) -> None:
    then = kind_result(kind)
    now = then.model_copy(update={"train": measured(then.train.seconds.median, None, 10**9)})
    before, after = (model_result(kinds=(each,)) for each in (then, now))
    changes = compare(benchmark_record(before), benchmark_record(after, settings={"memory": wanted}))
    lost = [change for change in changes if (change.mode, change.quantity) == ("train", "memory")]
    assert [(change.verdict, change.new.median) for change in lost] == [("worse", inf)] * wanted
    assert any(change.is_regression for change in changes) == (wanted and kind == "ours")
    assert compare(benchmark_record(after), benchmark_record(after)), "nor was it then"


def test_kinds_that_are_gone_are_named() -> None:
    old = benchmark_record(model_result(), model_result("wrn_10_1"))
    new = benchmark_record(model_result(kinds=(kind_result("ours"), kind_result("cnn"))))
    assert missing_kinds(old, new) == [("mnist_ses_scalar_28", "dense"), ("mnist_ses_scalar_28", "peer")]
    assert missing_kinds(new, old) == []


def test_all_that_both_records_have_is_compared() -> None:
    old = benchmark_record(model_result(), model_result("wrn_10_1"))
    new = benchmark_record(
        model_result("wrn_10_1", kinds=(kind_result("ours"),)), model_result("mnist_ss_28")
    )
    found = [(change.model, change.kind, change.mode, change.quantity) for change in compare(old, new)]
    modes = [(mode, quantity) for mode in ("train", "evaluate") for quantity in ("time", "memory")]
    assert found == [("wrn_10_1", "ours", *each) for each in modes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 3}, "expected threads=2, as in the older record, got 3"),
        ({"precision": "bfloat16"}, "expected precision=float32, as in the older record, got bfloat16"),
        ({"keep_memory": True}, "expected keep_memory=False"),
        (
            {"models": ("wrn_16_8",)},
            r"expected a network of the older record \(mnist_ses_scalar_28, .*wrn_16_8",
        ),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        compare(benchmark_record(), benchmark_record(settings=changes))


def test_another_number_of_images_is_not_compared() -> None:
    with pytest.raises(SettingError, match="expected a network with as many images a step"):
        compare(benchmark_record(model_result()), benchmark_record(model_result(batch_size=2)))
