"""Pictures and equivariance of networks of every method; a picture that is missing is no error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equiscale.data import Dataset, dataset_info, load
from equiscale.experiments import inspection
from equiscale.experiments.inspection import inspect_network, layer_equivariance
from equiscale.models import create_model, list_models

# Filters of these are no combinations of sampled functions, or have no scales to draw them on; a pyramid's
# features are several images for each.
NOT_DRAWN = ("dss", "sevf", "ss", "learnable", "pyramid")
LARGEST = 300_000


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits-scale", split="test")


@pytest.fixture(scope="module")
def photographs() -> Dataset:
    """Smooth noise in colour, of one size."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 3, 24, 24, generator=generator)
    smooth = nn.functional.interpolate(noise, size=96, mode="bicubic")
    return Dataset(
        images=(smooth * 50 + 128).clamp(0, 255).byte(),
        labels=torch.arange(32) % 10,
        factors=torch.ones(32, dtype=torch.float64),
        info=dataset_info("imagenette96"),
        split="test",
        realisation=0,
        checksum="",
    )


def small_networks() -> list[str]:
    """One of each kind: what 28 and 56 pixels or a second configuration distinguish is the same here."""
    skipped = ("p", "56")
    names = [name for name in list_models("mnist_*") if not name.endswith(skipped)]
    return [*names, *list_models("wrn_10_2*")]


@pytest.mark.parametrize("name", small_networks())
def test_every_network_is_drawn_as_far_as_it_can_be(
    name: str, digits: Dataset, photographs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_PROBES", 4)
    torch.manual_seed(0)
    if name.startswith("mnist"):
        network, test = create_model(name, channels=(2, 2, 2), hidden=8), digits
    else:
        small = photographs.images[:, :, ::4, ::4].contiguous()
        network, test = create_model(name, width=1), replace(photographs, images=small)
    drawn = inspect_network(network, test, torch.zeros(len(test), dtype=torch.long))
    measured = layer_equivariance(network, test)
    filters = [key.removeprefix("filters/") for key in drawn if key.startswith("filters/")]
    assert bool(filters) == (not any(part in NOT_DRAWN for part in name.split("_")))
    for layer in filters:
        count, scales = drawn[f"filters/{layer}"].shape[:2]
        assert 1 <= count <= 8
        assert drawn[f"filter_scales/{layer}"].shape == (scales,)
        assert drawn[f"features/{layer}"].shape[:2] == (3, scales)
    assert all(np.isfinite(result.error) and result.error > 0 for result in measured)
    assert len(measured) <= 6


def test_the_names_and_features_are_those_of_the_network(digits: Dataset) -> None:
    torch.manual_seed(0)
    network = create_model("mnist_cnn_28", channels=(2, 3, 4)).eval()
    drawn = inspect_network(network, digits, torch.zeros(600, dtype=torch.long))
    assert [key for key in drawn if key.startswith("filters/")] == [
        "filters/main.0",
        "filters/main.4",
        "filters/main.8",
    ]
    inputs = torch.from_numpy(drawn["feature_inputs"]).float()[:, None]
    with torch.no_grad():
        features = network.main[:5]((inputs / 255 - digits.mean) / digits.std)  # (3, 3, 14, 14)
    shown = torch.from_numpy(drawn["features/main.4"]).float()[:, 0]
    differences = (features - shown[:, None]).abs().amax((0, 2, 3))
    assert differences.min() < 1e-3, "one of the channels is shown"
    assert differences.max() > 1e-2
    assert np.array_equal(drawn["filters/main.4"], network.main[4].weight[:8, :1].detach().half().numpy())


@pytest.mark.parametrize("name", ["mnist_ses_scalar_28", "mnist_ses_vector_28"])
def test_features_are_those_before_maxima_over_scales_and_pixels(name: str, digits: Dataset) -> None:
    """Also where a convolution takes them in passing; the network is left as it was."""
    network = create_model(name, channels=(2, 2, 2), hidden=8)
    drawn = inspect_network(network, digits, torch.zeros(600, dtype=torch.long))
    conv = network.main[0]
    assert drawn["features/main.0"].shape == (3, len(conv.grid), 28, 28)
    assert conv.geometry == create_model(name).main[0].geometry
    assert conv.geometry.pooling == 2


def test_arrays_of_large_images_are_small(photographs: Dataset, tmp_path) -> None:
    torch.manual_seed(0)
    network = create_model("wrn_10_2_ses_a")
    drawn = inspect_network(network, photographs, torch.zeros(32, dtype=torch.long))
    assert drawn["samples"].shape == (14, 3, 48, 48)
    assert [len(drawn[f"sample_{name}"]) for name in ("labels", "predictions", "factors")] == [14] * 3
    assert drawn["feature_inputs"].shape == (3, 48, 48)
    assert max(max(array.shape[-2:]) for key, array in drawn.items() if array.ndim > 1) == 48
    assert sum(key.startswith("filters/") for key in drawn) == 6
    np.savez_compressed(tmp_path / "pictures.npz", **drawn)
    assert (tmp_path / "pictures.npz").stat().st_size < LARGEST


def sorted_by_class(dataset: Dataset, factors: torch.Tensor) -> Dataset:
    order = dataset.labels.argsort(stable=True)
    return replace(dataset, images=dataset.images[order], labels=dataset.labels[order], factors=factors)


def test_samples_and_probes_of_sorted_data_are_of_every_class(digits: Dataset) -> None:
    test = sorted_by_class(digits, torch.ones_like(digits.factors))
    drawn = inspect_network(Odd(), test, test.labels + 10)
    assert set(drawn["sample_labels"]) == set(range(10))
    assert np.array_equal(drawn["sample_predictions"], drawn["sample_labels"] + 10)
    assert np.array_equal(drawn["samples"][-1], test.images[-1, 0])
    probes = inspection._probes(test)
    assert len(set(probes.tolist())) == inspection._PROBES
    assert set(test.labels[probes].tolist()) == set(range(10))


def test_probes_have_the_largest_objects(digits: Dataset) -> None:
    factors = torch.linspace(0.3, 1, len(digits), dtype=torch.float64)
    probes = inspection._probes(replace(digits, factors=factors.flip(0)))
    assert sorted(probes.tolist()) == list(range(32))
    few = replace(digits, images=digits.images[:3], labels=digits.labels[:3], factors=factors[:3])
    assert inspection._probes(few).tolist() == [0, 1, 2]


class Odd(nn.Module):
    """A network whose parts nobody can draw: one is never called, one gives a pair."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 1, 3, 3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = nn.functional.conv2d(x, self.weight)
            return y, y

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.pair = nn.Conv2d(1, 2, 3), Odd.Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pair(x)[0].mean((2, 3))


def test_layers_that_cannot_be_drawn_are_left_out(digits: Dataset) -> None:
    drawn = inspect_network(Odd(), digits, torch.zeros(600, dtype=torch.long))
    assert not any(key.startswith(("filters/", "features/")) for key in drawn)
    assert drawn["samples"].shape == (24, 28, 28)
    assert layer_equivariance(Odd(), digits) == []


def test_pictures_leave_the_network_as_it_was(digits: Dataset) -> None:
    network = create_model("mnist_cnn_28", channels=(2, 2, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inspect_network(network, digits, torch.zeros(600, dtype=torch.long))
    layer_equivariance(network, digits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
