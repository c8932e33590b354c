"""What a sweep is said to cost: the arithmetic, and that real networks are timed."""

from dataclasses import replace

import pytest
import torch

from equiscale.data import dataset_info
from equiscale.errors import ModelError
from equiscale.experiments import estimate
from equiscale.experiments.estimate import Speed, estimate_runs, runs_abreast
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.progress import _duration, print_estimates
from equiscale.experiments.spec import load_suite

RUNS = plan_runs(load_suite("digits-scale"), Selection(epochs=3))


def test_every_epoch_trains_and_validates_and_one_test_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_measure", lambda *_: Speed(train=2.0, evaluate=0.5))
    sizes = dataset_info("digits-scale").split_sizes
    estimates = estimate_runs(RUNS)
    expected = 3 * (2.0 * sizes["train"] + 0.5 * sizes["val"]) + 0.5 * sizes["test"]
    assert [(e.settings.model, e.runs, e.seconds) for e in estimates] == [
        ("mnist_cnn_28", 3, expected),
        ("mnist_ses_scalar_28", 3, expected),
        ("mnist_ses_vector_28", 3, expected),
    ]
    assert estimates[0].total == 3 * expected


def test_data_without_test_images_are_tested_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_measure", lambda *_: Speed(train=2.0, evaluate=0.5))
    info = replace(dataset_info("digits-scale"), split_sizes={"train": 10, "val": 4})
    monkeypatch.setattr(estimate, "dataset_info", lambda *_, **__: info)
    (one, *_) = estimate_runs(RUNS)
    assert one.seconds == 3 * 10 * 2.0 + 4 * 0.5


def test_tests_on_the_way_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_measure", lambda *_: Speed(train=0.0, evaluate=0.5))
    often = RUNS[0].model_copy(update={"protocol": RUNS[0].protocol.model_copy(update={"test_every": 2})})
    (once, more) = estimate_runs([RUNS[0], often])
    assert more.seconds - once.seconds == 0.5 * dataset_info("digits-scale").split_sizes["test"]


def test_the_total_is_shared_among_the_runs_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    estimates = [estimate.Estimate(RUNS[0], runs=2, seconds=90.0)]
    print_estimates(estimates, jobs=2)
    assert "About 3.0 min, one run after the other; 1.5 min with 2 at a time." in said(capsys)
    print_estimates(estimates, jobs=1)
    assert "About 3.0 min, one run after the other. From" in said(capsys)


@pytest.mark.parametrize(
    ("jobs", "device", "abreast"),
    [(1, "cpu", 1), (2, "cpu", 2), (8, "cpu", 3), (4, "cuda:1", 1), (4, "cuda", 2), (1, "cuda", 1)],
)
def test_runs_that_share_cores_or_a_gpu_take_turns(
    monkeypatch: pytest.MonkeyPatch, jobs: int, device: str, abreast: int
) -> None:
    monkeypatch.setattr(estimate, "available_cores", lambda: 3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert runs_abreast(jobs, device) == abreast


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_real_networks_are_timed_and_nothing_else_is_touched() -> None:
    named: list[str] = []
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    (cnn,) = estimate_runs(RUNS[:1], on_model=named.append)
    threads = torch.get_num_threads()
    torch.set_num_threads(before)
    assert named == ["mnist_cnn_28"]
    images = 3 * 1_197 + 600
    assert 1e-6 < cnn.seconds / images < 1  # a pass of 45 MFLOP
    assert threads == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_runs_are_timed_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(estimate, "_time", lambda *_: seen.append(torch.is_autocast_enabled("cpu")) or 1.0)
    for precision in ("float32", "bfloat16"):
        estimate_runs(plan_runs(load_suite("digits-scale"), Selection("mnist_cnn_*", precision=precision)))
    assert seen == [False, False, True, True]


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ModelError, match="got 'no_such'"):
        estimate_runs([RUNS[0].model_copy(update={"model": "no_such"})])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 s"), (59.4, "59 s"), (90, "1.5 min"), (7_200, "2.0 h"), (864_000, "10.0 days")],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert _duration(seconds) == words
