"""Autotune: what it looks at, what it leaves alone, what it chooses, keeps and reads again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equiscale import ScaleGrid
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.algorithms import Convolution, algorithm, choices, unmeasured
from equiscale.functional.algorithms.autotune import AutotuneReport, autotune, clear_autotune, race
from equiscale.functional.algorithms.choices import choices_file
from equiscale.functional.algorithms.planner import ALGORITHMS, estimate, observed
from equiscale.nn import (
    LearnableLiftConv2d,
    LearnableScales,
    LiftConv2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleDropout2d,
)
from tests.functional.algorithms.conftest import forget

OPTIONS: dict[str, Any] = {
    "kernel_size": 5,
    "grid": ScaleGrid.geometric(0.9, 1.41, 2),
    "padding": "same",
}
IMAGES = torch.randn(2, 1, 10, 12, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("choices_path")


class Network(nn.Module):
    """Two blocks of a like shape, one convolution used twice, and one without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = LiftConv2d(1, 4, **OPTIONS)
        self.blocks = nn.Sequential(ScaleConv2d(4, 4, **OPTIONS), nn.Sequential(ScaleConv2d(4, 4, **OPTIONS)))
        self.norm = ScaleBatchNorm2d(4)
        self.dropout = ScaleDropout2d(0.5)
        self.last = ScaleConv2d(4, 3, projection="max", **OPTIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.lift(x)))
        y: Tensor = self.last(self.dropout(x))
        return y


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let one algorithm look faster than all others, and the clock stand still meanwhile."""

    def prefer(fastest: str) -> None:
        def fake(contenders: dict[str, Callable[[], float]]) -> dict[str, float | None]:
            for run in contenders.values():
                assert run() >= 0.0
            return {name: 1.0 if name == fastest else 2.0 for name in contenders}

        monkeypatch.setattr("equiscale.functional.algorithms.autotune.race", fake)

    return prefer


def algorithms_of(network: nn.Module) -> set[str | None]:
    return {
        module.filter_cache.algorithm
        for module in network.modules()
        if isinstance(module, LiftConv2d | ScaleConv2d)
    }


# --- what it looks at ---


def test_every_distinct_convolution_is_measured_once_and_names_its_layers(
    network: Network, quick: Callable[[str], None]
) -> None:
    quick("cropped")
    report = autotune(network, IMAGES)
    assert [found.layers for found in report.measurements] == [
        ("lift",),
        ("blocks.0", "blocks.1.0"),
        ("last",),
    ]
    assert [found.problem.x for found in report.measurements] == [
        (2, 1, 10, 12),
        (2, 4, 2, 10, 12),
        (2, 4, 2, 10, 12),
    ]
    assert [found.problem.gradients for found in report.measurements] == [
        ("weight",),
        ("x", "weight"),
        ("x", "weight"),
    ]
    assert all(set(found.seconds) == set(ALGORITHMS) for found in report.measurements)
    with pytest.raises(FrozenInstanceError):
        report.file = None  # type: ignore[misc]


def test_training_and_evaluation_are_different_problems(
    network: Network, quick: Callable[[str], None]
) -> None:
    quick("dense")
    trained = autotune(network, IMAGES)
    evaluated = autotune(network.eval(), IMAGES)
    assert {found.problem.gradients for found in evaluated.measurements} == {()}
    assert not any(found.remembered for found in evaluated.measurements)
    assert autotune(network, IMAGES, backward=True).measurements[0].problem == trained.measurements[0].problem
    assert all(found.remembered for found in autotune(network, IMAGES, backward=True).measurements)
    assert autotune(network.train(), IMAGES, backward=False).measurements[0].remembered


def test_the_example_may_be_all_arguments(quick: Callable[[str], None]) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift = LiftConv2d(1, 2, **OPTIONS)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z: Tensor = self.lift(x + y)
            return z

    quick("dense")
    assert len(autotune(Sum(), (IMAGES, IMAGES)).measurements) == 1


def test_a_network_without_such_convolutions_has_nothing_to_choose(choices_path: Path) -> None:
    report = autotune(nn.Conv2d(1, 2, 3), IMAGES)
    assert report.measurements == ()
    assert str(report) == "No lifting or scale convolution was computed: there is nothing to choose."
    assert not choices_path.exists()


def test_noise_lies_in_memory_as_the_input_did(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    strides: list[tuple[int, ...]] = []

    def fake(convolution: Convolution) -> Iterator[Tensor]:
        strides.append(convolution.x.stride())
        return iter([convolution.x.sum()[None, None, None, None]])

    x = torch.randn(12, 10, 2, 2, 4).permute(3, 4, 2, 1, 0)
    layer = ScaleConv2d(4, 4, **OPTIONS)
    with observed(lambda convolution: strides.append(convolution.x.stride())):
        layer(x)
    monkeypatch.setitem(ALGORITHMS, "cropped", fake)
    autotune(layer, x)
    assert len(strides) > 1
    assert set(strides) == {x.stride()}


# --- what it leaves alone ---


def state(network: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        "wanted": [p.requires_grad for p in network.parameters()],
        "training": [module.training for module in network.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "random": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(before: Any, after: Any) -> None:
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_the_network_and_the_generators_are_as_before(network: Network) -> None:
    network(IMAGES).sum().backward()
    network.blocks[0].eval()
    network.lift.weight.requires_grad_(False)
    before = state(network)
    versions = {name: tensor._version for name, tensor in network.named_parameters()}
    autotune(network, IMAGES)
    assert_same(before, state(network))
    assert versions == {name: tensor._version for name, tensor in network.named_parameters()}
    network(IMAGES)
    after = state(network)
    with pytest.raises(AssertionError):  # the control: a forward pass changes statistics and generators
        assert_same(before["tensors"], after["tensors"])
    assert not torch.equal(before["random"], after["random"])


def test_they_are_as_before_also_when_the_network_fails(network: Network) -> None:
    before = state(network)
    handle = network.last.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        autotune(network, IMAGES)
    handle.remove()
    with pytest.raises(ShapeError, match="expected an input"):
        autotune(network, IMAGES[:, :, 0])
    assert_same(before, state(network))


def test_what_the_first_look_kept_of_the_filters_is_dropped(
    network: Network, quick: Callable[[str], None]
) -> None:
    quick("dense")
    with torch.no_grad():
        autotune(network.eval(), IMAGES)
    assert network.last.filter_cache.kept == {}


def test_it_runs_in_inference_mode_and_under_no_grad(network: Network, quick: Callable[[str], None]) -> None:
    quick("cropped")
    with torch.inference_mode():
        assert autotune(network, IMAGES).measurements[0].problem.gradients == ("weight",)
    with torch.no_grad():
        assert autotune(network, IMAGES).measurements[0].remembered
    network(IMAGES).sum().backward()


# --- what it chooses ---


@pytest.mark.parametrize("fastest", ALGORITHMS)
def test_the_fastest_is_used_from_then_on_and_shown(
    network: Network, quick: Callable[[str], None], fastest: str
) -> None:
    quick(fastest)
    network.dropout.p = 0.0
    expected = network(IMAGES)
    report = autotune(network, IMAGES)
    assert {found.algorithm for found in report.measurements} == {fastest}
    assert str(network).count(f"algorithm={fastest}") == 4
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert algorithms_of(network) == {fastest}
    other = Network()
    other(IMAGES)
    assert algorithms_of(other) == {fastest}, "of any network with the same shapes"


def test_what_works_for_longer_is_not_chosen(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of the measurement is replaced: real clocks, real gradients."""
    with torch.no_grad():
        network(IMAGES)

    def slowed(real: Callable[[Convolution], Iterator[Tensor]]) -> Callable[[Convolution], Iterator[Tensor]]:
        def run(convolution: Convolution) -> Iterator[Tensor]:
            begun = time.process_time()
            while time.process_time() < begun + 0.03:
                pass
            return real(convolution)

        return run

    for name, real in list(ALGORITHMS.items()):
        if name != "projected":
            monkeypatch.setitem(ALGORITHMS, name, slowed(real))
    report = autotune(network.last, torch.randn(2, 4, 2, 10, 12))
    (found,) = report.measurements
    assert found.algorithm == "projected"
    assert found.seconds["projected"] == min(s for s in found.seconds.values() if s is not None)
    assert found.seconds["dense"] is not None
    assert found.seconds["dense"] > 0.03


def test_algorithms_that_fail_are_passed_over(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(convolution: Convolution) -> Iterator[Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setitem(ALGORITHMS, "dense", failing)
    report = autotune(network.lift, IMAGES)
    assert report.measurements[0].seconds["dense"] is None
    assert "dense failed" in str(report)


def test_bfloat16_is_measured_as_such(network: Network, quick: Callable[[str], None]) -> None:
    quick("fourier")
    with torch.autocast("cpu", torch.bfloat16):
        report = autotune(network, IMAGES)
        network(IMAGES)
    assert {found.problem.autocast for found in report.measurements} == {"bfloat16"}
    assert algorithms_of(network) == {"fourier"}
    assert not autotune(network, IMAGES).measurements[0].remembered
    seen: list[torch.dtype] = []

    def look(convolution: Convolution) -> None:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)

    with observed(look):
        network(IMAGES)
    assert seen == [torch.float32] * 4


def test_learned_bases_get_their_gradients_too(quick: Callable[[str], None]) -> None:
    quick("cropped")
    scales = LearnableScales(2, min_scale=0.9, scale_range=2.0)
    layer = LearnableLiftConv2d(1, 2, kernel_size=7, scales=scales, padding="same")
    report = autotune(layer, IMAGES)
    assert [found.problem.gradients for found in report.measurements] == [("weight", "basis")]


# --- the race ---


class Runner:
    """A contender of known seconds that counts its runs."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.runs = seconds, 0

    def __call__(self) -> float:
        self.runs += 1
        return self.seconds[min(self.runs, len(self.seconds)) - 1]


def test_the_hopeless_run_once_and_the_slow_a_few_times() -> None:
    runners = {"best": Runner(1.0), "near": Runner(1.2), "slow": Runner(3.0), "hopeless": Runner(5.0)}
    result = race(runners)
    assert result == {"best": 1.0, "near": 1.2, "slow": 3.0, "hopeless": 5.0}
    assert [runner.runs for runner in runners.values()] == [11, 10, 3, 1]


def test_a_slow_first_run_of_little_time_proves_nothing() -> None:
    runners = {"warm": Runner(0.001), "cold": Runner(0.09, 0.0005)}
    assert race(runners) == {"warm": 0.001, "cold": 0.0005}


def test_what_runs_first_does_not_pay_for_all() -> None:
    assert race({"first": Runner(9.0, 1.0), "second": Runner(2.0)}) == {"first": 1.0, "second": 2.0}


def test_one_outlier_does_not_decide() -> None:
    runners = {"steady": Runner(1.0, 1.0), "noisy": Runner(0.9, 0.9, 5.0, 0.9)}
    assert race(runners) == {"steady": 1.0, "noisy": 0.9}


def test_no_round_begins_after_the_budget() -> None:
    runners = {"one": Runner(1.0), "two": Runner(1.0)}
    race(runners, budget=1e-9)
    assert [runner.runs for runner in runners.values()] == [3, 2]

    def lasting() -> float:
        time.sleep(0.01)
        return 1.0

    begun = time.perf_counter()
    race({"one": lasting, "two": lasting}, budget=0.045)  # three rounds of 0.02 s, not nine
    assert time.perf_counter() - begun < 9 * 0.02


def test_when_all_fail_the_first_ones_error_is_seen() -> None:
    def fail(message: str) -> Callable[[], float]:
        def run() -> float:
            raise RuntimeError(message)

        return run

    assert race({"bad": fail("a"), "good": Runner(1.0)}) == {"bad": None, "good": 1.0}
    with pytest.raises(RuntimeError, match="first"):
        race({"one": fail("first"), "two": fail("second")})


# --- what it keeps ---


def test_choices_are_kept_and_not_measured_again(
    network: Network,
    quick: Callable[[str], None],
    choices_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick("fourier")
    first = autotune(network, IMAGES)
    assert first.file == choices_path
    written = choices_path.read_bytes()
    forget(monkeypatch)
    quick("dense")  # would be the fastest now
    again = autotune(network, IMAGES)
    assert all(found.remembered for found in again.measurements)
    assert {found.algorithm for found in again.measurements} == {"fourier"}
    assert [found.seconds for found in again.measurements] == [found.seconds for found in first.measurements]
    assert choices_path.read_bytes() == written
    network(IMAGES)
    assert algorithms_of(network) == {"fourier"}


def test_another_process_reads_them_at_its_first_convolution(
    network: Network, quick: Callable[[str], None], choices_path: Path
) -> None:
    quick("dense")
    autotune(network.lift, IMAGES)
    code = (
        "import torch; torch.set_num_threads(1); from equiscale import ScaleGrid, nn; "
        "layer = nn.LiftConv2d(1, 4, kernel_size=5, grid=ScaleGrid.geometric(0.9, 1.41, 2), padding='same'); "
        "layer(torch.zeros(2, 1, 10, 12)); print(layer.filter_cache.algorithm)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "dense"


def test_nothing_is_written_unless_it_is_called(network: Network, choices_path: Path) -> None:
    network(IMAGES)
    assert not choices_path.exists()
    assert not choices_path.parent.exists()


def test_a_choice_does_not_change_under_a_running_process(
    network: Network, quick: Callable[[str], None], choices_path: Path
) -> None:
    quick("fourier")
    autotune(network, IMAGES)
    choices_path.write_text(choices_path.read_text().replace('"fourier"', '"dense"'))
    network(IMAGES)
    assert algorithms_of(network) == {"fourier"}


def test_a_new_algorithm_is_measured(
    network: Network, quick: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick("dense")
    autotune(network.lift, IMAGES)
    monkeypatch.setitem(ALGORITHMS, "new", ALGORITHMS["cropped"])
    quick("new")
    (found,) = autotune(network.lift, IMAGES).measurements
    assert (found.algorithm, found.remembered) == ("new", False)


def test_what_others_have_written_meanwhile_stays(
    network: Network, quick: Callable[[str], None], choices_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, both of which began with an empty file."""
    quick("dense")
    autotune(network.lift, IMAGES)
    forget(monkeypatch)
    choices.TABLE._known = {}  # read before the other process wrote
    quick("cropped")
    autotune(network, IMAGES)
    network(IMAGES)
    assert network.lift.filter_cache.algorithm == "cropped"
    forget(monkeypatch)
    network(IMAGES)
    assert network.lift.filter_cache.algorithm == "dense", "who wrote first wins"
    assert network.last.filter_cache.algorithm == "cropped"


def test_it_can_be_forgotten(network: Network, quick: Callable[[str], None], choices_path: Path) -> None:
    clear_autotune()  # also where there is nothing
    quick("dense")
    autotune(network, IMAGES)
    clear_autotune()
    assert not choices_path.exists()
    network(IMAGES)
    assert "dense" not in algorithms_of(network)


def test_switched_off_nothing_is_read_or_written(
    network: Network, quick: Callable[[str], None], choices_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick("dense")
    autotune(network, IMAGES)
    written = choices_path.read_bytes()
    monkeypatch.setenv("EQUISCALE_AUTOTUNE", "off")
    forget(monkeypatch)
    network(IMAGES)
    assert "dense" not in algorithms_of(network)
    quick("cropped")
    report = autotune(network, IMAGES)
    assert report.file is None
    assert "Kept in this process alone." in str(report)
    network(IMAGES)
    assert algorithms_of(network) == {"cropped"}
    clear_autotune()
    assert choices_path.read_bytes() == written


def test_the_switch_is_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUISCALE_AUTOTUNE", "of")
    with pytest.raises(SettingError, match=r"^expected EQUISCALE_AUTOTUNE to be 'on' or 'off', got 'of'$"):
        choices_file()


def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EQUISCALE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choices_file() == tmp_path / "equiscale" / "autotune.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choices_file() == tmp_path / ".cache" / "equiscale" / "autotune.json"


# --- files that are no help ---


def damaged(text: str) -> Iterator[tuple[str, str]]:
    content = json.loads(text)
    yield "empty", ""
    yield "cut off", text[: len(text) // 2]
    yield "not JSON", "algorithm = fourier"
    yield "a list", "[]"
    yield "a number", "1"
    yield "another format", json.dumps({**content, "format": 99})
    yield "no choices", json.dumps({"format": 1})
    entry = content["choices"][0]
    for name, change in {
        "a field more": {"problem": {**entry["problem"], "colour": "red"}},
        "a field less": {"place": {}},
        "no time": {"seconds": {}},
        "a time in words": {"seconds": dict.fromkeys(entry["seconds"], "long")},
        "an unhashable field": {"problem": {**entry["problem"], "stride": {}}},
        "a null": {"problem": None},
    }.items():
        yield name, json.dumps({**content, "choices": [{**entry, **change}]})


def test_damaged_and_foreign_files_are_left_out_with_a_warning_and_written_anew(
    network: Network, quick: Callable[[str], None], choices_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick("dense")
    autotune(network.lift, IMAGES)
    good = choices_path.read_text()
    network.lift(IMAGES)
    assert network.lift.filter_cache.algorithm == "dense"
    for name, text in damaged(good):
        choices_path.write_text(text)
        forget(monkeypatch)
        with pytest.warns(UserWarning, match="expected measured choices of equiscale.autotune in"):
            network.lift(IMAGES)
        assert network.lift.filter_cache.algorithm != "dense", name
        network.lift(IMAGES)  # no further warning
        with pytest.warns(UserWarning, match="it is ignored until equiscale.autotune writes it anew"):
            autotune(network.lift, IMAGES)
        assert json.loads(choices_path.read_text()) == json.loads(good), name


def test_a_binary_file_and_a_folder_are_left_out_too(
    network: Network, choices_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices_path.parent.mkdir()
    choices_path.write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="UnicodeDecodeError"):
        network.lift(IMAGES)
    choices_path.unlink()
    choices_path.mkdir()
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="IsADirectoryError"):
        network.lift(IMAGES)


def test_where_nothing_can_be_written_the_choices_hold_for_the_process(
    network: Network, quick: Callable[[str], None], choices_path: Path
) -> None:
    choices_path.parent.write_text("a file where the folder should be")
    quick("dense")
    with pytest.warns(UserWarning, match="what was measured holds for this process alone"):
        report = autotune(network, IMAGES)
    assert report.file is None
    network(IMAGES)
    assert algorithms_of(network) == {"dense"}


# --- the report ---


def test_the_report_is_a_table_of_80_columns(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: dict[str, float | None] = {name: 0.25 * (1 + index) for index, name in enumerate(ALGORITHMS)}
    seconds["fourier"] = 0.001
    monkeypatch.setattr("equiscale.functional.algorithms.autotune.race", lambda contenders: seconds)
    lines = str(autotune(network, IMAGES)).splitlines()
    assert lines[0] == "layer                    input            filters           chosen          time"
    assert lines[1] == "lift                     2×1×10×12        4×1×5×5           fourier      1.00 ms"
    assert lines[2].startswith("    dense 250×, cropped 500×, unfolded 750×")
    assert "blocks.0 (+1) " in "\n".join(lines)
    assert max(map(len, lines[:-1])) <= 80


def test_long_names_are_cut_at_the_front(quick: Callable[[str], None]) -> None:
    quick("dense")
    network = nn.Sequential()
    network.add_module("an_even_longer_name_of_a_module", nn.Sequential(LiftConv2d(1, 4, **OPTIONS)))
    text = str(autotune(network, IMAGES))
    assert "\n…nger_name_of_a_module.0" in text
    assert max(map(len, text.splitlines()[:-1])) == 80


def test_an_empty_report_says_so() -> None:
    assert "nothing to choose" in str(AutotuneReport((), None))


# --- compiled networks, and runs ---


def test_a_compiled_network_is_looked_at_as_it_is_written(
    network: Network, quick: Callable[[str], None]
) -> None:
    torch._dynamo.reset()
    quick("dense")
    compiled = torch.compile(network, backend="eager")
    report = autotune(compiled, IMAGES)  # type: ignore[arg-type]
    assert len(report.measurements) == 3


def test_left_out_where_bits_must_not_depend_on_a_file(
    network: Network, quick: Callable[[str], None]
) -> None:
    seen: list[Convolution] = []
    with observed(seen.append):
        network.lift(IMAGES)
    name = next(name for name in ALGORITHMS if name != estimate(seen[0]))
    quick(name)
    autotune(network.lift, IMAGES)
    with unmeasured():
        network.lift(IMAGES)
    assert network.lift.filter_cache.algorithm == estimate(seen[0])
    with algorithm("dense"):
        network.lift(IMAGES)
    assert network.lift.filter_cache.algorithm == "dense"
