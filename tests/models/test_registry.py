"""Names, settings and overrides."""

from functools import partial

import pytest

from equiscale import create_model, list_models
from equiscale.errors import ModelError
from equiscale.models import model_entry
from equiscale.models.registry import register

METHODS = ("cnn", "ss", "kanazawa", "xu", "sevf_scalar", "sevf_vector", "dss_scalar", "dss_vector")
PUBLISHED = [
    *(f"mnist_{method}_{size}" for method in METHODS for size in (28, 56)),
    *(f"mnist_ses_{kind}_{size}" for kind in ("scalar", "vector") for size in ("28", "28p", "56", "56p")),
]


def test_the_24_published_networks_are_listed() -> None:
    assert len(PUBLISHED) == 24
    assert set(PUBLISHED) < set(list_models())
    assert list_models() == sorted(list_models())
    assert list_models("mnist_ses_scalar_*p") == ["mnist_ses_scalar_28p", "mnist_ses_scalar_56p"]


def test_overrides_replace_settings() -> None:
    model = create_model("mnist_ses_scalar_28", num_classes=3, in_channels=2, dropout=0.1, kernel_size=9)
    assert (model.settings.num_classes, model.settings.in_channels) == (3, 2)
    assert model.linear[-1].out_features == 3
    assert model.linear[3].p == 0.1
    assert model.main[0].in_channels == 2
    assert model.main[0].kernel_size == 9
    assert model_entry("mnist_ses_scalar_28").settings.kernel_size == 15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: create_model("mnist_cnn"),
            r"a model of list_models\(\), such as mnist_cnn_\d\d, mnist_cnn_\d\d, .* got 'mnist_cnn'",
        ),
        (
            lambda: create_model("mnist_cnn_28", kernel_size=3),
            "expected overrides of upsample, channels, .* for 'mnist_cnn_28', got kernel_size",
        ),
        (
            lambda: create_model("mnist_cnn_56", pretrained=True),
            r"network of list_pretrained\(\), such as mnist_\w+, got 'mnist_cnn_56', for which .* no trained",
        ),
        (
            lambda: create_model("mnist_cnn_28", pretrained=True, num_classes=3),
            "published settings of 'mnist_cnn_28' with pretrained=True, got .*num_classes=3.* last layer",
        ),
        (lambda: create_model("mnist_cnn_28", channels=(8,)), r"three positive channel counts, got \(8,\)"),
        (
            lambda: create_model("mnist_cnn_28", effective_size=4),
            "an odd effective_size for a plain CNN, got 4",
        ),
        (lambda: create_model("mnist_cnn_28", num_classes=0), "expected at least one class"),
        (lambda: create_model("mnist_cnn_28", dropout=1.5), "a dropout with 0 <= p < 1, got 1.5"),
        *(
            (
                partial(create_model, name, effective_size=3),
                r"effective_size=\d, that of .* got 3; override both",
            )
            for name in ("mnist_disco", "mnist_rescaled_28", "mnist_ss_28", "scale_disco", "scale_rescaled")
        ),
        (lambda: register(model_entry("mnist_cnn_28")), "'mnist_cnn_28', which is registered already"),
    ],
)
def test_errors_say_what_was_expected(call, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call()
