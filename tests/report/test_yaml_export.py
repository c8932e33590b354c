"""The export reads back as the published file's fields."""

import pytest
import yaml

from equiscale.errors import RecordError
from equiscale.report.yaml_export import results_yaml


def test_the_line_of_a_run(make_record):
    text = results_yaml([make_record("ses_28", error=1.97)])
    assert text == (
        "- {model: 'ses_28', acc: 0.9803, batch_size: 128, cuda: false, "
        "data_dir: 'toy-digits', dataset: 'toy-digits', decay: 0.0001, "
        "elapsed_time: 120, epochs: 6, extra_scaling: 1.0, lr: 0.01, lr_gamma: 0.1, lr_steps: [2, 4], "
        "momentum: 0.9, nesterov: false, num_parameters: 494549, optim: 'adam', save_model_path: '', "
        "tag: 'sesn_experiments', time_per_epoch: 20}\n"
    )


def test_it_parses_with_the_right_values(make_record):
    protocol = make_record().settings.protocol.model_copy(update={"learning_rate": 1e-5})
    cuda = make_record().provenance.model_copy(update={"machine": {"device": "cuda:0"}})
    records = [
        make_record("it's, {x} # [y]", "scale", 4, dataset="mnist-scale", protocol=protocol, provenance=cuda),
        make_record(realisation=5, error=3.456),
    ]
    first, second = yaml.safe_load(results_yaml(records))
    assert first["model"] == "it's, {x} # [y]"
    assert (first["extra_scaling"], first["lr"], first["cuda"]) == (0.5, 1e-5, True)
    assert (first["dataset"], first["data_dir"]) == ("scale_mnist", "MNIST_scale/seed_4/scale_0.3_1.0")
    assert (second["acc"], second["extra_scaling"], second["nesterov"]) == (0.96544, 1.0, False)
    assert list(first) == ["model", *sorted(set(first) - {"model"})]


def test_weight_decay_and_the_settings_of_the_network_are_told(make_record):
    protocol = make_record().settings.protocol
    overrides = (("channels", (8, 16)), ("mode", "it's"))
    records = [
        make_record(protocol=protocol.model_copy(update={"weight_decay": 0.02}), overrides=overrides),
        make_record(protocol=protocol.model_copy(update={"optimizer": "sgd"})),
    ]
    adam, sgd = yaml.safe_load(results_yaml(records))
    assert (adam["decay"], adam["overrides"]) == (0.02, ["channels=8,16", "mode=it's"])
    assert (sgd["decay"], sgd["nesterov"], "overrides" in sgd) == (0.0, True, False)


def test_failed_runs_are_left_out(make_record):
    assert results_yaml([make_record(status="failed", test=None)]) == ""


def test_unprintable_names_are_refused(make_record):
    with pytest.raises(RecordError, match=r"expected printable text for YAML, got 'mode=a\\nb'"):
        results_yaml([make_record(overrides=(("mode", "a\nb"),))])
