"""One run of any network on any data: natural images, the whole recipe, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from equiscale.cli import app
from equiscale.data import dataset_info, load
from equiscale.errors import CheckpointError, ModelError, SettingError
from equiscale.experiments import execute, runner
from equiscale.experiments.execute import (
    RunOptions,
    check_networks,
    checkpoint_path,
    evaluation_splits,
    execute_run,
    weights_path,
)
from equiscale.experiments.plan import Selection, ad_hoc_run, plan_runs
from equiscale.experiments.records import RunSettings, read_record, record_path
from equiscale.experiments.spec import Augmentation, Treatment, load_suite, make_protocol
from equiscale.models import create_model
from equiscale.models.weights import load as load_network
from equiscale.train import EpochResult

TINY_WRN = (("dropout", 0.1), ("width", 1))
TINY_CNN = (("channels", (4, 4, 4)), ("hidden", 16))
LARGEST_PICTURES = 300_000


def settings(
    dataset: str,
    model: str = "wrn_10_2",
    *,
    overrides: tuple = TINY_WRN,
    augment: Augmentation = "none",
    **protocol: object,
) -> RunSettings:
    defaults = {"epochs": 2, "batch_size": 12, "learning_rate": 0.05, "lr_steps": (1,), "lr_gamma": 0.2}
    return ad_hoc_run(
        Treatment(model, overrides, augment, dataset),
        protocol=make_protocol(**{**defaults, "select": "last", **protocol}),
    )


def digits(**protocol: object) -> RunSettings:
    defaults = {"batch_size": 100, "select": "best-validation"}
    return settings("digits-scale", "mnist_cnn_28", overrides=TINY_CNN, **{**defaults, **protocol})


# --- from end to end ---


def test_train_on_ones_own_images_from_the_command_line(
    tmp_path: Path, photographs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "available_cores", lambda: 1)
    command = [
        "train",
        "wrn_10_2",
        "--data",
        photographs,
        "--results",
        str(tmp_path),
        "--root",
        str(tmp_path),
    ]
    command += [
        "--epochs",
        "3",
        "--batch-size",
        "12",
        "--optimizer",
        "sgd",
        "--lr",
        "0.05",
        "--lr-steps",
        "2",
    ]
    command += ["--weight-decay", "5e-4", "--augment", "crop-flip-cutout", "--precision", "bfloat16"]
    command += [
        "--channels-last",
        "--accumulate",
        "2",
        "--ema",
        "0.5",
        "--test-every",
        "2",
        "--set",
        "width=1",
    ]
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "train").glob("*.json")
    record = read_record(path)
    assert (record.data.train, record.data.validation, record.data.test) == (36, 0, 15)
    assert record.settings.overrides == (("width", 1),)
    assert [epoch.validation_error for epoch in record.epochs] == [None] * 3
    assert [epoch.test_error is None for epoch in record.epochs] == [True, False, True]
    assert record.test.error < 60, "chance is 67 %"
    assert (record.test.epoch, record.test.by_factor, record.notes) == (3, None, ())
    assert record.equivariance[0].layer == "conv1"
    weights = weights_path(tmp_path, record.settings)
    network = create_model("wrn_10_2", num_classes=3, width=1)
    network.load_state_dict(load_file(weights))
    printed = result.output.replace("\n", "")
    assert f"test error {record.test.error:.2f} % after epoch 3" in result.output
    assert f"weights: {weights}" in printed
    assert f"record: {path}" in printed

    pictures = path.with_suffix(".npz")
    assert pictures.stat().st_size < LARGEST_PICTURES
    with np.load(pictures) as arrays:
        assert arrays["samples"].shape == (15, 3, 16, 16)
        assert arrays["feature_inputs"].shape == (3, 16, 16)
        assert sum(name.startswith("filters/") for name in arrays) == 6

    again = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert again.exit_code == 0
    assert "has a record already" in " ".join(again.output.split())
    assert f"test error {record.test.error:.2f} % after epoch 3" in again.output


def test_changed_images_do_not_get_the_record_of_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        picture(
            tmp_path / f"mine/{'train' if number < 6 else 'test'}/{'ab'[number % 2]}/{number}.png", number
        )
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", "1", "--batch-size", "6", "--device", "cpu", "--root", "root", "--set", "width=1"]

    def train(name: str, *more: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["train", "wrn_10_2", "--data", name, *options, *more])
        return result.exit_code, " ".join(result.output.split())

    assert train("image-folder:mine?size=16")[0] == 0
    code, output = train(f"image-folder:{tmp_path}/mine?size=16&on_corrupt=refuse")
    assert (code, "has a record already" in output) == (0, True), "one folder has one name"
    (path,) = (tmp_path / "runs/train").glob("*.json")
    assert read_record(path).settings.dataset == f"image-folder:{tmp_path}/mine?size=16"

    picture(tmp_path / "mine/train/a/new.png", 9)
    picture(tmp_path / "mine/train/b/new.png", 10)
    code, output = train("image-folder:mine?size=16")
    assert code == 1, output
    assert "expected a record of the images that are in image-folder:/" in output
    assert "delete it, or give another folder with --results" in output
    assert train("image-folder:mine?size=16", "--results", "other", "--batch-size", "4")[0] == 0


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (16, 16, 3)).astype(np.uint8)).save(path)


def test_the_record_says_what_is_to_be_said_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = replace(dataset_info("digits-scale"), notes=("one image was left out",))
    monkeypatch.setattr(execute, "dataset_info", lambda *_, **__: info)
    assert execute._Run(digits(), RunOptions(tmp_path)).record().notes == info.notes


def test_the_trained_factors_are_those_after_the_augmentation(tmp_path: Path) -> None:
    plain, scaled = (
        execute._Run(run, RunOptions(tmp_path))._data_record().train_factors
        for run in (digits(), digits().model_copy(update={"augment": "scale"}))
    )
    assert scaled == pytest.approx((plain[0] * 0.5, plain[1] * 2.0))


def test_all_images_of_large_data_may_stay_in_main_memory(
    tmp_path: Path, photographs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(photographs, epochs=1)
    resident = execute_run(run, RunOptions(tmp_path / "a", data_root=tmp_path))
    monkeypatch.setattr(execute, "_RESIDENT_BYTES", 1)
    mapped = execute_run(run, RunOptions(tmp_path / "b", data_root=tmp_path))
    assert mapped.test == resident.test
    assert mapped.epochs[0].train_loss == resident.epochs[0].train_loss


def test_the_augmentation_changes_the_training_and_not_the_test(tmp_path: Path, photographs: str) -> None:
    """The published pad, crop and cutout of 96 pixels, in proportion to the image's side."""
    seen: list[torch.Tensor] = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3 * 16 * 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            logits: torch.Tensor = self.linear(x.flatten(1))
            return logits

    run = settings(photographs, augment="crop-flip-cutout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "create_model", lambda *_, **__: Spy())
        prepared = execute._Run(run, RunOptions(tmp_path, data_root=tmp_path))
    generator = torch.Generator().manual_seed(0)
    images = prepared.train_split.images
    augmented = prepared._transform()(images, generator)
    plain = prepared._normalized(images)
    assert augmented.shape == plain.shape
    zeros = (augmented == 0).all(1)  # of holes; a normalised grey level is never 0
    assert zeros.flatten(1).sum(1).max() == 25, "a third of 16, squared"
    assert not (plain == 0).all(1).any()
    assert len(seen) == 1, "one image, before any work"


# --- exact resumption of whole runs ---


class InterruptedTestError(Exception):
    pass


@pytest.mark.parametrize(
    "protocol",
    [
        {"optimizer": "sgd", "weight_decay": 5e-4, "accumulate": 4},
        {"ema_decay": 0.9, "test_every": 1},
        {"optimizer": "sgd", "precision": "bfloat16", "channels_last": True, "select": "last"},
    ],
)
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, protocol: dict) -> None:
    run, records = digits(epochs=2, **protocol), []

    def interrupt(result: EpochResult) -> None:
        if result.epoch == 1:
            raise InterruptedTestError

    with pytest.raises(InterruptedTestError):
        execute_run(run, RunOptions(tmp_path / "resumed"), on_epoch=interrupt)
    assert checkpoint_path(tmp_path / "resumed", run).exists()
    for folder in ("resumed", "whole"):
        records.append(execute_run(run, RunOptions(tmp_path / folder)))
    resumed, whole = (load_file(weights_path(tmp_path / name, run)) for name in ("resumed", "whole"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert records[0].test == records[1].test
    assert [(epoch.train_loss, epoch.validation_error, epoch.test_error) for epoch in records[0].epochs] == [
        (epoch.train_loss, epoch.validation_error, epoch.test_error) for epoch in records[1].epochs
    ]


# --- what is tested ---


def test_pictures_that_fail_do_not_cost_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no picture today")

    monkeypatch.setattr(execute, "inspect_network", fail)
    run = digits(epochs=1)
    record = execute_run(run, RunOptions(tmp_path))
    assert record == read_record(record_path(tmp_path, run))
    assert (record.status, record.inspection) == ("finished", None)
    assert record.test is not None
    assert record.equivariance
    assert record.notes == ("no pictures: RuntimeError: no picture today",)
    assert weights_path(tmp_path, run).exists()


def test_weights_that_cannot_be_a_networks_file_are_left_as_plain_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CheckpointError("expected another network")

    run = digits(epochs=1)
    assert execute_run(run, RunOptions(tmp_path)).notes == ()
    expected = load_file(weights_path(tmp_path, run))
    assert load_network(weights_path(tmp_path, run)).settings.hidden == 16
    monkeypatch.setattr(execute, "save", refuse)
    record = execute_run(run, RunOptions(tmp_path / "plain"))
    assert record.notes == ("weights as plain tensors: expected another network",)
    found = load_file(weights_path(tmp_path / "plain", run))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(CheckpointError, match="build the network with create_model and load them"):
        load_network(weights_path(tmp_path / "plain", run))


def test_what_was_measured_on_a_machine_does_not_reach_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: object) -> str:
        raise AssertionError("a choice was looked up")

    monkeypatch.setattr("equiscale.functional.algorithms.planner.fastest_measured", measured)
    overrides = (("channels", (2, 2, 2)), ("hidden", 8))
    run = settings("digits-scale", "mnist_ses_scalar_28", overrides=overrides, epochs=1, batch_size=500)
    assert execute_run(run, RunOptions(tmp_path)).status == "finished"
    with pytest.raises(AssertionError, match="a choice was looked up"):  # the control
        execute.build_network(run, dataset_info("digits-scale"))


def test_mistakes_are_counted_by_the_data_sets_own_factors() -> None:
    test = load("digits-scale", split="test")
    wrong = torch.arange(600) % 3 == 0
    published = execute._by_factor(test, wrong)
    assert published.edges == tuple(np.linspace(0.3, 1.0, 15).round(3))
    own = replace(test, info=replace(test.info, factor_edges=(0.25, 0.5, 1.0)))
    counted = execute._by_factor(own, wrong)
    assert counted.edges == (0.25, 0.5, 1.0)
    small = test.factors < 0.5
    assert counted.images == (int(small.sum()), 600 - int(small.sum()))
    assert counted.mistakes == (int((small & wrong).sum()), int((~small & wrong).sum()))
    assert execute._by_factor(replace(test, factors=torch.ones(600)), wrong) is None


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (2**29, 128),  # as many as are of use
        (100 * 2 * 7 * 36 * 4, 64),  # a hundred images of the largest layer: 7 maps go in, and out flat
        (2 * 7 * 36 * 4, 1),
        (10, 1),
    ],
)
def test_evaluation_takes_as_many_images_as_fit(
    monkeypatch: pytest.MonkeyPatch, budget: int, expected: int
) -> None:
    monkeypatch.setitem(execute._EVALUATION_BYTES, "cpu", budget)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 7, 3), torch.nn.Flatten(), torch.nn.Linear(252, 2))
    assert execute.evaluation_batch(network, (1, 8, 8), torch.device("cpu")) == expected
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": 9, "val": 9, "test": 9}, ("val", "test")),
        ({"train": 9, "test": 9}, (None, "test")),
        ({"train": 9, "val": 9}, (None, "val")),
    ],
)
def test_which_split_selects_and_which_is_tested(splits: dict[str, int], expected: tuple) -> None:
    assert evaluation_splits(replace(dataset_info("stl10"), split_sizes=splits)) == expected


def test_data_without_anything_to_test_on() -> None:
    info = replace(dataset_info("stl10"), split_sizes={"train": 9})
    with pytest.raises(SettingError, match="expected data with a test or val split, got stl10 with train"):
        evaluation_splits(info)


# --- refused before any work ---


def test_networks_that_do_not_fit_the_images_are_refused(photographs: str, tmp_path: Path) -> None:
    run = settings(photographs, "mnist_cnn_28", overrides=())
    message = r"expected a network for \(3, 16, 16\) images of image-folder:.*, got 'mnist_cnn_28': .*28, 28"
    with pytest.raises(SettingError, match=message):
        check_networks([run], data_root=tmp_path)
    with pytest.raises(SettingError, match=message):
        execute_run(run, RunOptions(tmp_path / "results", data_root=tmp_path))
    assert not (tmp_path / "results").exists()


def test_unknown_overrides_are_refused_with_what_exists(photographs: str, tmp_path: Path) -> None:
    run = settings(photographs, overrides=(("breadth", 3),))
    message = r"expected overrides of depth, width, .* for 'wrn_10_2', got breadth"
    with pytest.raises(ModelError, match=message):
        check_networks([run], data_root=tmp_path)


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "pretrained"])
def test_what_the_data_decide_cannot_be_overridden(name: str, photographs: str, tmp_path: Path) -> None:
    run = settings(photographs, overrides=((name, 3),))
    with pytest.raises(
        SettingError, match=f"got {name}, which the data of image-folder:.* decide; leave them out"
    ):
        check_networks([run], data_root=tmp_path)


def test_the_best_validation_epoch_needs_validation_images(photographs: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"a validation split beside .* without; .* select = \"last\""):
        check_networks([settings(photographs, select="best-validation")], data_root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist_cnn_28", "--data", "digits-scale", "--lr", "0"], "expected a valid protocol, got learning"),
        (["mnist_cnn_28", "--data", "digits-scale", "--set", "depth"], "expected each setting once, as name"),
        (["mnist_cnn_28", "--data", "digits-scale", "--set", "depth=9"], "expected overrides of upsample"),
        (["mnist_cnn_28", "--data", "digits-scale", "--seed", "-1"], "seed: Input should be greater than or"),
        (["wrn_10_2", "--data", "digits-scale", "--set", "width=big"], "'wrn_10_2', got width=big: "),
        (["mnist_cnn_28", "--data", "digits-scale", "--set", "channels=8"], "got channels=8: TypeError: "),
        (
            ["wrn_10_2_ses_b", "--data", "digits-scale", "--set", "scale_sizes=2"],
            "expected overrides of legal values for 'wrn_10_2_ses_b', got scale_sizes=2: TypeError: ",
        ),
        (["mnist_cnn_28", "--data", "digits"], "expected a data set of"),
        (["mnist", "--data", "digits-scale"], "expected a model of"),
        (["wrn_10_2", "--data", "image-folder:/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    options = ["--device", "cpu", "--results", str(tmp_path), "--root", str(tmp_path)]
    result = CliRunner().invoke(app, ["train", *arguments, *options])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("equiscale: ")
    assert message in result.output


@pytest.mark.parametrize(
    "model",
    ["mnist_learnable_28", "mnist_sevf_vector_28", "mnist_dss_scalar_28", "mnist_ss_28", "mnist_xu_28"],
)
def test_networks_of_every_kind_leave_a_record_and_weights(model: str, tmp_path: Path) -> None:
    suite, overrides = load_suite("digits-scale"), {"channels": (2, 3, 4), "hidden": 8}
    if model == "mnist_xu_28":  # a column for each scale
        overrides["scales"] = (0.67, 1.0)
    settings = plan_runs(suite, Selection(realisations=[0], epochs=1))[0].model_copy(
        update={"model": model, "overrides": tuple(sorted(overrides.items()))}
    )
    record = execute_run(settings, RunOptions(tmp_path))
    assert record.status == "finished", record.failure
    assert record.notes == ()
    network = create_model(model, **overrides)
    network.load_state_dict(load_file(weights_path(tmp_path, settings)))
    assert load_network(weights_path(tmp_path, settings)).settings == network.settings
