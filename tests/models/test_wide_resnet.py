"""Wide residual networks: sizes, keys and numbers as published, and what each method promises.

The golden numbers were computed once with the public code in float64, at depth 16 and width 1 (DSS: 2),
without dropout, from the weights that `published_state` makes: NumPy's legacy generator gives the same
numbers everywhere. The public networks pool over 24×24 pixels; for images of another size the average
was taken over all pixels there too.
"""

import copy
import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid, create_model, list_models, load_published_state_dict
from equiscale.errors import ModelError, ShapeError
from equiscale.models import model_entry
from equiscale.models.wide_resnet import WideResNet
from equiscale.nn import LiftConv2d, PointwiseScaleConv2d, ScaleConv2d, ScaleProjection, SteerableConv2d
from equiscale.testing import BandLimitedImage, equivariance_error

GOLDEN = Path(__file__).parents[1] / "golden" / "published_wrn_outputs.npz"

PARAMETERS = {
    "": 10_961_370,
    "_kanazawa": 10_961_370,
    "_xu": 10_975_770,
    "_ss": 10_846_835,
    "_dss": 10_939_482,
    "_disco": 10_961_370,
    "_ses_a": 10_961_370,
    "_ses_b": 10_961_370,
    "_ses_c": 10_979_802,
}
SES = ["_ses_a", "_ses_b", "_ses_c"]
EVERY = pytest.mark.parametrize("suffix", PARAMETERS)

# Buffers of the public code that are no part of the state dict here: bases and blurs.
FIXED = ("basis", "filter_real", "filter_imag", "kernelx_", "kernely_")


def small(suffix: str, **overrides) -> WideResNet:
    torch.manual_seed(0)
    network = create_model(f"wrn_10_2{suffix}", **{"width": 1, **overrides})
    assert isinstance(network, WideResNet)
    return network


def published_name(suffix: str) -> str:
    return suffix.removeprefix("_") or "wrn"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def published_shapes(golden: dict[str, np.ndarray], suffix: str) -> dict[str, list[int]]:
    return json.loads(str(golden[f"{published_name(suffix)}/shapes"]))


def is_fixed(key: str) -> bool:
    return key.rpartition(".")[2].startswith(FIXED)


def published_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict under the published keys, filled as it was for the golden numbers."""
    random = np.random.RandomState(0)
    return {key: filled(key, tuple(shapes[key]), random) for key in sorted(shapes) if not is_fixed(key)}


def filled(key: str, shape: tuple[int, ...], random: np.random.RandomState) -> Tensor:
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.tensor(7)
    outputs = shape[1] if last.startswith("mult_") else shape[0]
    size = 0.1 if len(shape) == 1 else (2 * outputs / np.prod(shape)) ** 0.5
    values = (random.standard_normal(shape) * size).astype(np.float32).astype(np.float64)
    if last == "running_var":
        values = 1 + np.abs(values)
    elif last == "weight" and len(shape) == 1:
        values = 1 + values
    return torch.from_numpy(values)


def our_key(published: str) -> str:
    return published.replace(".weights", ".weight").replace("steer_conv.", "")


def read_parameters(network: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """All but what the published SS-CNN registers and no output depends on."""
    return [(key, p) for key, p in network.named_parameters() if not key.endswith("const_real")]


def in_our_layout(tensor: Tensor, key: str, suffix: str) -> Tensor:
    """Columns of SiCNN run scale by scale in the public code; its DISCO has 1×1×1 convolutions."""
    if suffix == "_xu" and ".bn" in f".{key}" and tensor.ndim == 1:
        return tensor.view(3, -1).T.reshape(-1)
    return tensor.squeeze(-1) if suffix == "_disco" and tensor.ndim == 5 else tensor


@dataclass(frozen=True)
class GivenBasis:
    """Functions as they were published."""

    functions: np.ndarray
    num_functions: int = 9

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        return torch.from_numpy(self.functions)


def golden_network(golden: dict[str, np.ndarray], suffix: str) -> WideResNet:
    overrides = {"basis": GivenBasis(golden["disco/basis"])} if suffix == "_disco" else {}
    width = 2 if suffix == "_dss" else 1
    network = small(suffix, depth=16, width=width, dropout=0.0, **overrides)
    state = published_state(published_shapes(golden, suffix))
    network.load_state_dict(
        {our_key(key): in_our_layout(tensor, key, suffix) for key, tensor in state.items()}
    )
    return network


def images(*size: int) -> Tensor:
    values = np.random.RandomState(1).standard_normal(size).astype(np.float32)
    return torch.from_numpy(values).to(torch.get_default_dtype())


def close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    wanted = torch.from_numpy(expected).to(actual.dtype)
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


# --- as published ---


@EVERY
def test_the_published_number_of_parameters(suffix: str) -> None:
    network = create_model(f"wrn_16_8{suffix}")
    learned = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert learned == PARAMETERS[suffix]
    assert model_entry(f"wrn_16_8{suffix}").settings.dropout == 0.3


@EVERY
@pytest.mark.usefixtures("float64")
def test_numbers_of_the_public_code(suffix: str, golden: dict[str, np.ndarray]) -> None:
    network, name = golden_network(golden, suffix), published_name(suffix)
    x = images(3, 3, 40, 32)
    with torch.no_grad():
        close(network.eval()(x), golden[f"{name}/evaluation"], 1e-6)
    logits = network.train()(x)
    close(logits.detach(), golden[f"{name}/training"], 1e-5)
    (logits * torch.from_numpy(np.random.RandomState(2).standard_normal((3, 10)))).sum().backward()
    keys = json.loads(str(golden[f"{name}/gradient_keys"]))
    expected = dict(zip(keys, torch.from_numpy(golden[f"{name}/gradient_norms"]), strict=True))
    gradients = {key: parameter.grad.norm() for key, parameter in read_parameters(network)}
    for key, norm in expected.items():
        close(gradients.pop(our_key(key)), norm.numpy(), 1e-4)
    assert gradients == {}


@EVERY
@pytest.mark.usefixtures("float64")
def test_published_checkpoints_are_imported(suffix: str, golden: dict[str, np.ndarray]) -> None:
    expected = golden_network(golden, suffix).eval()
    state = {key: tensor.float() for key, tensor in published_state(published_shapes(golden, suffix)).items()}
    network = small(suffix, depth=16, width=2 if suffix == "_dss" else 1)
    if suffix == "_disco":
        for key in [key for key, module in network.named_modules() if isinstance(module, SteerableConv2d)]:
            state[f"{key}.basis.basis"] = torch.from_numpy(golden["disco/basis"])
    load_published_state_dict(network, state, adopt_bases=suffix == "_disco")
    x = images(2, 3, 40, 32)
    close(network.eval()(x).detach(), expected(x).detach().numpy(), 1e-6)


@EVERY
def test_logits_of_the_public_code_for_96_by_96_in_float32(
    suffix: str, golden: dict[str, np.ndarray]
) -> None:
    network = golden_network(golden, suffix).eval()
    with torch.no_grad():
        logits = network(images(2, 3, 96, 96))
    close(logits, golden[f"{published_name(suffix)}/evaluation_96"], 1e-4)
    assert (logits[0] - logits[1]).norm() > 1e-3 * logits.norm(), "the images must matter"


@pytest.mark.parametrize("suffix", ["", "_kanazawa", "_xu", *SES])
def test_keys_are_the_published_ones(suffix: str, golden: dict[str, np.ndarray]) -> None:
    ours = {key: list(tensor.shape) for key, tensor in small(suffix, depth=16).state_dict().items()}
    published = published_shapes(golden, suffix)
    assert ours == {key: shape for key, shape in published.items() if not is_fixed(key)}


def test_scales_are_the_published_ones() -> None:
    def scales(suffix: str, field: str) -> list[float]:
        return [round(scale, 3) for scale in getattr(model_entry(f"wrn_16_8{suffix}").settings, field)]

    assert scales("_kanazawa", "scales") == [0.5, 1.0, 2.0]
    assert scales("_xu", "scales") == [0.67, 1.0, 1.5]
    assert scales("_ss", "stem_sizes") == [3, 5, 7]
    assert scales("_ses_a", "grid") == scales("_ses_b", "grid") == [0.9, 1.269, 1.789]
    assert scales("_ses_c", "grid") == [1.1, 1.551, 2.187]
    assert scales("_disco", "grid") == [1.0, 1.414, 2.0]


def test_bases_are_the_published_ones_but_for_what_disco_fits(golden: dict[str, np.ndarray]) -> None:
    basis = small("_disco").conv1.basis
    published = torch.from_numpy(golden["disco/basis"]).float()
    torch.testing.assert_close(basis[:, [0, 2]], published[:, [0, 2]], rtol=1e-5, atol=1e-6)
    fitted = (basis[:, 1] - published[:, 1]).norm() / published[:, 1].norm()
    assert 0.01 < fitted < 0.3, "trained there, solved here"


@EVERY
@pytest.mark.parametrize("width", [1, 2])
def test_small_siblings_have_the_same_settings_but_for_the_size(suffix: str, width: int) -> None:
    large, sibling = (model_entry(f"wrn_{size}{suffix}").settings for size in ("16_8", f"10_{width}"))
    changed = {field for field in vars(large) if getattr(large, field) != getattr(sibling, field)}
    assert changed == {"depth", "width"}
    assert (large.depth, large.width, sibling.depth, sibling.width) == (16, 8, 10, width)


@pytest.mark.parametrize(("depth", "blocks"), [(10, 1), (16, 2), (22, 3)])
def test_depth_and_width(depth: int, blocks: int) -> None:
    network = small("", depth=depth, width=3)
    assert [len(stage.layer) for stage in (network.block1, network.block2, network.block3)] == [blocks] * 3
    assert network.conv1.out_channels == 16
    assert [network.block1.layer[0].conv1.out_channels, network.fc.in_features] == [48, 192]


@EVERY
def test_published_names_lead_to_our_modules(suffix: str, golden: dict[str, np.ndarray]) -> None:
    network = small(suffix, depth=16)
    modules, names = dict(network.named_modules()), network.published_names
    published = {key.rpartition(".")[0].removesuffix(".basis") for key in published_shapes(golden, suffix)}
    assert set(names) <= published
    assert {names.get(path, path) for path in published} <= set(modules)


# --- fresh weights ---


@EVERY
def test_fresh_weights_are_as_published(suffix: str) -> None:
    network = small(suffix, width=4)
    for key, tensor in read_parameters(network):
        parameter = tensor.detach()
        if key == "fc.weight":
            bound = parameter.shape[1] ** -0.5
            assert 0.9 * bound < parameter.abs().max() <= bound
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, "weight" in key)), key
        elif suffix == "_dss":
            assert_hands_channels_through(parameter)
        elif "mult_" in key:
            bound = (2 / parameter[0].numel()) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, key
        else:
            expected = (2 * parameter.shape[1] / parameter.numel()) ** 0.5
            assert abs(float(parameter.std()) / expected - 1) < 0.15, key
            assert abs(float(parameter.mean())) < 0.2 * expected, key


def assert_hands_channels_through(weight: Tensor) -> None:
    """Noise, and at the central pixel gcd(C, C') / C' where input and output are in the same block."""
    outputs, inputs = weight.shape[:2]
    blocks, center = math.gcd(outputs, inputs), weight.shape[-1] // 2
    given = weight[..., center, center] == blocks / outputs
    same = torch.arange(outputs)[:, None] * blocks // outputs == torch.arange(inputs) * blocks // inputs
    assert torch.equal(given, same[..., None].expand_as(given))
    noise = weight[..., center, center][~given]
    assert noise.numel() == 0 or 0.005 < noise.abs().max() <= 0.01


@EVERY
def test_fresh_weights_come_from_the_generator(suffix: str) -> None:
    first, second = small(suffix), small(suffix)
    for network in (first, second):
        network.reset_parameters(torch.Generator().manual_seed(5))
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key
    second.reset_parameters(torch.Generator().manual_seed(6))
    firsts = [next(network.conv1.parameters()) for network in (first, second)]
    assert not torch.equal(*firsts)


# --- as modules ---


@EVERY
@pytest.mark.parametrize("size", [(32, 32), (27, 34)])
def test_any_size_trains_and_the_gradient_reaches_every_parameter(suffix: str, size: tuple[int, int]) -> None:
    network = small(suffix)
    logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    silent = [key for key, p in read_parameters(network) if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@EVERY
def test_other_channels_and_classes(suffix: str) -> None:
    network = create_model(f"wrn_10_2{suffix}", width=1, in_channels=1, num_classes=7).eval()
    assert network(torch.randn(2, 1, 24, 24)).shape == (2, 7)


@EVERY
def test_channels_last_changes_nothing(suffix: str) -> None:
    network, x = small(suffix).eval(), torch.randn(2, 3, 24, 28)
    expected = network(x)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # PyTorch refuses modules with weights of five axes
            module.to(memory_format=torch.channels_last)
    last = network(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


@EVERY
def test_trains_under_bfloat16_autocast(suffix: str) -> None:
    network, x = small(suffix, dropout=0.0), torch.randn(4, 3, 24, 24)
    expected = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.bfloat16
    assert 1e-5 < (logits.float() - expected).norm() / expected.norm() < 0.15
    logits.float().square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for _, parameter in read_parameters(network))


@EVERY
def test_copies_compute_the_same(suffix: str) -> None:
    network, x = small(suffix).eval(), torch.randn(1, 3, 20, 20)
    for clone in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(clone(x), network(x))


@EVERY
def test_dropout_acts_in_training_only(suffix: str) -> None:
    network, x = small(suffix), torch.randn(2, 3, 16, 16)
    assert torch.equal(network.eval()(x), network(x))
    without = small(suffix, dropout=0.0).train()
    without.load_state_dict(network.state_dict())
    assert torch.equal(without(x), without(x))
    assert not torch.equal(network.train()(x), network(x))
    dropped = network.block1.layer[0].dropout(torch.ones(10_000)) == 0
    assert abs(float(dropped.float().mean()) - 0.3) < 0.03


# --- the three SES networks ---


def kinds(network: nn.Module) -> list[type]:
    counted = (LiftConv2d, ScaleConv2d, PointwiseScaleConv2d, ScaleProjection)
    return [type(module) for module in network.modules() if isinstance(module, counted)]


def test_the_three_ses_networks_differ_where_they_should() -> None:
    a, b, c = (small(suffix) for suffix in SES)
    assert [kinds(network).count(LiftConv2d) for network in (a, b, c)] == [1, 3, 1]
    assert [kinds(network).count(ScaleProjection) for network in (a, b, c)] == [1, 3, 1]
    assert kinds(a) == kinds(c)
    sizes = {
        key: module.scale_size
        for key, module in c.named_modules()
        if isinstance(module, ScaleConv2d) and module.scale_size > 1
    }
    assert sizes == {"block1.layer.0.conv1": 2}
    assert isinstance(b.block2.layer[0].conv1[0], ScaleProjection)
    assert isinstance(b.block3.layer[0].conv1[1], LiftConv2d)
    assert isinstance(b.block1.layer[0].conv1, ScaleConv2d)


# --- equivariance ---

STEP = 1.41


class ScalesReversed:
    """A mistake in the basis."""

    num_functions = 9

    def sample(self, kernel_size: int, grid: ScaleGrid) -> Tensor:
        return HermiteBasis(3, degenerate="allow").sample(kernel_size, grid).flip(1)


def feature_error(stage: str, **overrides) -> float:
    """The error of one stage's scale map, with running statistics and weights that are not trivial."""
    network = small("_ses_a", dropout=0.0, **overrides)
    image = BandLimitedImage.random(1, 3, size=(49, 53), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            network(image.render().float())
    features: list[Tensor] = []
    getattr(network, stage).register_forward_hook(lambda module, inputs, output: features.append(output))

    def stage_of_network(x: Tensor) -> Tensor:
        network(x.float())
        return features[-1]

    network.eval()
    with torch.no_grad():
        report = equivariance_error(
            stage_of_network, image, [1 / STEP, STEP], grid=network.settings.grid, margin=14
        )
    return report.worst


def test_features_are_as_equivariant_as_the_published_windows_allow() -> None:
    errors = {stage: feature_error(stage) for stage in ("conv1", "block1", "block3")}
    assert 0.1 < errors["conv1"] < 0.2
    assert 0.2 < errors["block1"] < 0.4
    assert 0.4 < errors["block3"] < 0.65


def test_features_are_equivariant_with_windows_that_hold_the_filters() -> None:
    error = feature_error("block1", kernel_size=19, grid=ScaleGrid.geometric(1.5, STEP, 3))
    assert 0.01 < error < 0.05


def test_features_of_a_reversed_basis_are_found_out() -> None:
    assert feature_error("block3", basis=ScalesReversed()) > 0.7


# --- errors ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 17}, r"expected a depth of 10, 16, 22, … \(6 n \+ 4, .*\), got 17"),
        ({"depth": 4}, "got 4"),
        ({"width": 0}, "expected a width of at least 1, got 0"),
        ({"dropout": 1.0}, "expected a dropout with 0 <= p < 1, got 1.0"),
        ({"kernel_size": 4}, "expected an odd kernel_size, got 4"),
        ({"lift_again": (3,)}, r"expected stages of 0, 1, 2 in lift_again, got \(3,\)"),
        ({"scale_sizes": (1, 1)}, r"expected three scale_sizes, one a stage, got \(1, 1\)"),
        ({"scale_sizes": (1, 2, 1), "lift_again": (1,)}, "a scale size of 1 where a stage lifts again"),
    ],
)
def test_wrong_settings_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("wrn_10_2_ses_a", **overrides)


@pytest.mark.parametrize("num_scales", [1, 2])
def test_scale_spaces_that_run_out_of_scales_are_refused(num_scales: int) -> None:
    with pytest.raises(ModelError, match=f"more num_scales, since two stages .* got 2 of {num_scales}"):
        create_model("wrn_10_2_dss", num_scales=num_scales)


def test_scale_spaces_without_interaction_are_as_wide_as_the_plain_network() -> None:
    network = create_model("wrn_10_2_dss", num_scales=1, scale_size=1)
    assert network.method.channels() == create_model("wrn_10_2").method.channels() == (16, 32, 64, 128)


@EVERY
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32)])
def test_wrong_images_are_refused(suffix: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"WideResNet: expected images \(B, 3, H, W\), got"):
        small(suffix)(torch.zeros(shape))


def test_every_registered_network_has_its_row() -> None:
    assert list_models("wrn_*") == sorted(
        f"wrn_{size}{s}" for size in ("16_8", "10_1", "10_2") for s in PARAMETERS
    )
