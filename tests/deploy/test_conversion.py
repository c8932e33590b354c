"""Converted networks: the original on one scale and on the reference scale, equivariant on several."""

import copy
import io
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from equiscale import ConversionPolicy, ScaleGrid, convert
from equiscale.basis import DiscoBasis, HermiteBasis
from equiscale.deploy import ConversionReport, project_filters
from equiscale.deploy.conversion import ModuleFate
from equiscale.errors import BasisError, ModelError, SettingError, ShapeError
from equiscale.nn import (
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleBatchNorm2d,
    ScaleProjection,
    ScaleWise,
)
from equiscale.testing import BandLimitedImage, equivariance_error
from tests.deploy.networks import (
    NETWORKS,
    Bottleneck,
    Decides,
    DenseNet,
    MobileNet,
    Preactivation,
    ResNet,
    UNet,
    UpsamplingUNet,
    fate,
    features,
    image,
    projections,
    stirred,
    vgg,
)

pytestmark = pytest.mark.usefixtures("float64")

ONE, TWO, THREE = ScaleGrid([1.0]), ScaleGrid([1.0, 2.0]), ScaleGrid([1.0, 1.5, 2.25])
SIZE, OTHER = (2, 3, 21, 25), (3, 3, 13, 17)
EVERY_NETWORK = pytest.mark.parametrize("name", list(NETWORKS))


def outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    return tree_flatten(network(x.clone()))[0]


def assert_the_same(network: nn.Module, other: nn.Module, x: Tensor, tolerance: float = 1e-12) -> None:
    for a, b in zip(outputs(network, x), outputs(other, x), strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(sum(y.square().sum() for y in tree_flatten(network(1 * x))[0]), x)
    return grad


def kinds(report: ConversionReport) -> list[str]:
    return [fate.after for fate in report.fates if fate.after]


# --- one scale: the same network ---


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *((name, "end") for name in NETWORKS),
        *((name, "stage") for name in ("resnet50", "unet-upsampling", "convnext")),
        *((name, "layer") for name in ("resnet18", "unet", "shufflenet", "decides")),
    ],
)
def test_on_one_scale_the_network_is_the_original(name: str, where: str) -> None:
    network = stirred(NETWORKS[name]()).eval()
    converted, report = convert(network, ONE, example=torch.zeros(SIZE), where=where)
    assert report.traced == (name != "decides")
    for x in (image(), image(*OTHER)):
        assert_the_same(network, converted, x)
    torch.testing.assert_close(gradient(converted, image()), gradient(network, image()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet50", "densenet", "unet"])
def test_on_one_scale_it_trains_as_the_original(name: str) -> None:
    network = stirred(NETWORKS[name]()).eval()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    converted, _ = convert(network, ONE, example=image())
    for steps in (network, converted):
        if name != "densenet":  # which drops at random
            steps.train()
        optimiser = torch.optim.SGD(steps.parameters(), lr=1e-3)
        for seed in range(2):
            optimiser.zero_grad()
            sum(y.square().mean() for y in outputs(steps, image(seed=seed))).backward()
            optimiser.step()
        steps.eval()
    assert_the_same(network, converted, image(seed=7), tolerance=1e-9)


# --- several scales ---


@pytest.mark.parametrize(
    ("name", "features_of"),
    [
        ("resnet18", ["conv1", "layer1.0.bn2", "layer2.0.bn2", "layer2.0.downsample.1"]),
        ("resnet50", ["layer1.0.conv3", "layer2.0.bn3"]),
        ("unet", ["up", "conv.4", "head"]),
        ("unet-upsampling", ["conv1.4", "head"]),
        ("vgg", ["7"]),
        ("densenet", ["norms.2", "transition.1"]),
        ("shufflenet", ["branch.1", "shuffle"]),
        ("convnext", ["block2.dwconv"]),
        ("decides", ["conv2"]),
    ],
)
def test_features_on_the_reference_scale_are_the_originals(name: str, features_of: list[str]) -> None:
    network, x = stirred(NETWORKS[name]()).eval(), image()
    converted, report = convert(network, TWO, example=torch.zeros(SIZE))
    assert report.worst_residual < 1e-12
    for module in features_of:
        expected, actual = features(network, module, x), features(converted, module, x)
        torch.testing.assert_close(actual[:, :, 0], expected, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(actual[:, :, 1], expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_a_reference_scale_other_than_the_smallest(scale: int) -> None:
    """On it the filters are those of the original as far as the basis there holds them."""
    network = stirred(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)))
    policy = ConversionPolicy(reference=(1.0, 2.0, 3.0)[scale])
    grid = ScaleGrid([1.0, 2.0, 3.0])
    converted, report = convert(network, grid, example=image(), where=policy, basis="hermite-a")
    layer = converted.get_submodule("0")
    kernel = layer.kernel_size // 2
    filters = torch.einsum("oif,fxy->oixy", layer.weight, layer.basis[:, scale])
    wanted = F.pad(network[0].weight, [kernel - 1] * 4)
    error = float(((filters - wanted).norm() / wanted.norm()).detach())
    assert fate(report, "0").residual == pytest.approx(error, rel=1e-9)
    assert 1e-3 < error < 1
    for s in range(3):  # what is left over is orthogonal to the functions of this scale, and of no other
        functions = layer.basis[:, s]
        rest = torch.einsum("oif,fxy->oixy", layer.weight, functions) - wanted
        along = float(torch.einsum("oixy,fxy->oif", rest, functions).detach().abs().max())
        assert (along < 1e-9) == (s == scale)


@pytest.mark.parametrize("basis", ["pixel", "hermite-a", "bspline", DiscoBasis, HermiteBasis])
def test_the_residual_bounds_the_error_of_the_features(basis) -> None:
    network, x = stirred(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2))), image()
    converted, report = convert(network, ScaleGrid([1.5, 3.0]), example=x, basis=basis)
    expected, actual = network(x), features(converted, "0", x)[:, :, 0]
    residual = report.worst_residual
    patches = F.unfold(F.pad(x, [20] * 4), 41).norm(dim=1).max()  # Cauchy and Schwarz, at every pixel
    bound = residual * float(network[0].weight.detach().norm()) * float(patches)
    error = float((actual - expected.detach()).abs().max())
    assert error <= bound + 1e-12
    assert (residual < 1e-12) == (basis == "pixel" or basis is DiscoBasis)
    assert error < 1e-12 or error > bound / 1000


def test_projected_filters_are_the_nearest_ones() -> None:
    basis = HermiteBasis(3).sample(11, TWO)
    kernel = image(4, 2, 3, 3)
    weights, residual = project_filters(kernel, basis, scale=1)
    functions, target = basis[:, 1].flatten(1), F.pad(kernel, [4] * 4).flatten(2)
    rest = target - weights @ functions
    assert float((rest @ functions.t()).abs().max()) < 1e-12, "the rest is orthogonal to all functions"
    assert residual == pytest.approx(float(rest.norm() / kernel.norm()), rel=1e-12)
    assert 0.01 < residual < 1
    assert project_filters(0 * kernel, basis)[1] == 0.0
    assert project_filters(kernel.half(), basis)[0].dtype == torch.float16


@pytest.mark.parametrize("shape", [(4, 2, 2, 2), (4, 2, 3, 5), (4, 2, 13, 13), (2, 3, 3)])
def test_kernels_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    basis = DiscoBasis(3, "pixel").sample(5, TWO)
    with pytest.raises(ShapeError, match=r"expected kernels \(C', C, k, k\) with odd k of at most 5, got"):
        project_filters(torch.zeros(shape), basis)


# --- where the axis is ---


def test_the_end_is_in_front_of_the_head() -> None:
    report = convert(ResNet(), TWO, example=image()).report
    assert projections(report) == ["in front of avgpool"]
    assert fate(report, "conv1").after == "LiftConv2d"
    assert fate(report, "layer1.0.conv1").after == "ScaleConv2d"
    assert fate(report, "layer2.0.downsample.0").after == "PointwiseScaleConv2d"
    assert fate(report, "maxpool").after == "ScaleMaxPool2d"
    assert fate(report, "fc").after == ""
    assert report.not_equivariant == ()


def test_a_stage_ends_where_the_resolution_falls() -> None:
    report = convert(ResNet(), TWO, example=image(), where="stage").report
    assert projections(report) == [f"in front of {name}" for name in ("maxpool", "layer2.0.conv1", "avgpool")]
    lifts = [fate.name for fate in report.fates if fate.after == "LiftConv2d"]
    assert lifts == ["conv1", "layer1.0.conv1", "layer2.0.conv1"]


def test_permuted_axes_begin_no_stage() -> None:
    report = convert(NETWORKS["convnext"](), TWO, example=image(), where="stage").report
    assert projections(report) == ["in front of down.1", "in front of mean"]


def test_by_layer_every_feature_is_an_image() -> None:
    network = stirred(ResNet()).eval()
    for projection in ("max", "mean", "logsumexp"):
        policy = ConversionPolicy(project="layer", projection=projection)
        converted, report = convert(network, TWO, example=image(), where=policy)
        lifts = [fate.name for fate in report.fates if fate.after == "LiftConv2d"]
        assert lifts == ["conv1", *(f"layer{i}.0.conv{j}" for i in (1, 2) for j in (1, 2))]
        assert features(converted, "layer1.0.bn2", image()).ndim == 4
        assert len(projections(report)) == (0 if projection == "max" else 5)


def test_the_mean_over_scales_is_the_mean_of_the_lifted() -> None:
    network, x = stirred(ResNet()).eval(), image()
    for projection, reduce in (("mean", lambda y: y.mean(2)), ("logsumexp", lambda y: y.logsumexp(2))):
        policy = ConversionPolicy(project="layer", projection=projection)
        converted, _ = convert(network, TWO, example=x, where=policy)
        seen = features(converted, "projection_0", x)
        torch.testing.assert_close(seen, reduce(features(converted, "conv1", x)))
    assert [m.mode for m in converted.modules() if isinstance(m, ScaleProjection)] == ["logsumexp"] * 5


def test_named_modules_begin_behind_a_projection_shortcuts_too() -> None:
    """No scale map passes the border of layer2, neither through its first function nor its shortcut."""
    network, x = stirred(Preactivation()).eval(), image()
    policy = ConversionPolicy(project=("layer2",), lift=("stem",))
    converted, report = convert(network, TWO, example=x, where=policy)
    assert projections(report) == ["in front of layer2.relu"]
    image_of_layer1 = features(converted, "projection_0", x)
    expected = network.fc(F.relu(network.layer2(image_of_layer1)).mean([2, 3]))
    torch.testing.assert_close(converted(x), expected)
    assert [fate.name for fate in report.not_equivariant] == ["layer2.conv1", "layer2.conv2"]
    assert fate(report, "layer2.conv1").note == "stays an ordinary convolution: not among those that may lift"


def test_named_modules_may_lift_again() -> None:
    policy = ConversionPolicy(project=("layer2", "avgpool"))
    report = convert(stirred(ResNet()), TWO, example=image(), where=policy).report
    assert projections(report) == ["in front of layer2.0.conv1", "in front of avgpool"]
    assert fate(report, "layer2.0.conv1").after == "LiftConv2d"
    assert fate(report, "layer2.0.downsample.0").after == ""  # sees the projected image, as conv1 does


def test_patterns_name_what_may_lift() -> None:
    network = stirred(ResNet()).eval()
    policy = ConversionPolicy(lift=("layer?.*.conv1",))
    converted, report = convert(network, TWO, example=image(), where=policy)
    assert fate(report, "conv1").after == ""
    assert not fate(report, "conv1").equivariant
    assert fate(report, "layer1.0.conv1").after == "LiftConv2d"
    for x in (image(),):
        assert torch.equal(features(converted, "bn1", x), features(network, "bn1", x))


# --- what carries over ---


def test_statistics_biases_and_slopes_carry_over() -> None:
    network = stirred(UpsamplingUNet()).eval()
    converted, _ = convert(network, TWO, example=image())
    for name in ("down1.0.bias", "down1.1.weight", "down1.2.weight", "head.weight", "head.bias"):
        owner, _, leaf = name.rpartition(".")
        module = converted.get_submodule(owner)
        module = module.module if isinstance(module, ScaleWise) else module
        assert torch.equal(module.get_parameter(leaf), network.get_parameter(name)), name
    network = stirred(ResNet()).eval()
    network.bn1.momentum, network.bn1.eps = 0.3, 0.25
    norm = convert(network, TWO, example=image()).model.get_submodule("bn1")
    assert isinstance(norm, ScaleBatchNorm2d)
    assert (norm.momentum, norm.eps) == (0.3, 0.25)
    for name, tensor in network.bn1.state_dict().items():
        assert torch.equal(norm.state_dict()[name], tensor), name


def test_what_is_frozen_stays_frozen() -> None:
    network = stirred(ResNet(Bottleneck)).train()
    for name in ("conv1", "bn1", "layer1.0.conv1", "layer1.0.conv2"):
        network.get_submodule(name).requires_grad_(False)
    network.bn1.eval()
    converted, _ = convert(network, TWO, example=image())
    learning = {name: p.requires_grad for name, p in network.named_parameters()}
    assert {name: p.requires_grad for name, p in converted.named_parameters()} == learning
    assert converted.training
    modes = {name: m.training for name, m in converted.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["bn1"]


# --- the original and the result ---


@pytest.mark.parametrize(
    ("name", "training"), [("resnet18", True), ("densenet", False), ("decides", True), ("convnext", False)]
)
def test_the_original_is_untouched(name: str, training: bool) -> None:
    network, x = stirred(NETWORKS[name]()).train(training), image()
    first = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm))
    first.train(not training)
    state, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    attributes, example = {**vars(network)}, x.clone()
    converted, _ = convert(network, TWO, example=x)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(1.0)
    converted(x)
    assert {**vars(network)} == attributes
    assert torch.equal(x, example)
    assert [m.training for m in network.modules()] == modes
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert converted.training == training


class Remembers(nn.Module):
    """Keeps its features, counts, and writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.features = nn.Conv2d(3, 4, 3), None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        self.calls += 1
        self.features = self.conv(x)
        return self.features


def test_what_a_network_remembers_is_not_disturbed() -> None:
    network, x = Remembers(), torch.zeros(1, 3, 8, 8)
    converted, report = convert(network, TWO, example=x)
    assert network.features is None
    assert float(network.calls) == 0
    assert not bool(x.any())
    assert report.traced
    torch.testing.assert_close(converted(image(1, 3, 8, 8)), converted.conv(image(1, 3, 8, 8) - 0.5).amax(2))


@EVERY_NETWORK
def test_it_trains_and_is_copied(name: str) -> None:
    converted, _ = convert(stirred(NETWORKS[name]()), TWO, example=image(1, *SIZE[1:]))
    assert converted.training
    x = image(2, 3, 13, 17)
    sum(y.square().mean() for y in outputs(converted, x)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())
    converted.zero_grad()
    clone = copy.deepcopy(converted).eval()
    assert_the_same(converted.eval(), clone, x, tolerance=0)


@pytest.mark.parametrize("name", ["mobilenet", "convnext", "decides"])
def test_its_state_makes_a_round_trip(name: str) -> None:
    first, second = (
        convert(stirred(NETWORKS[name](), seed=seed).eval(), TWO, example=image(*OTHER)).model
        for seed in (0, 1)
    )
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    expected = first(image(*OTHER))
    assert not torch.allclose(second(image(*OTHER)), expected)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(second(image(*OTHER)), expected)


def test_dropout_as_a_function_drops_in_training() -> None:
    network = stirred(DenseNet()).eval()
    converted, report = convert(network, TWO, example=image())
    assert [f.after for f in report.fates if f.before == "dropout"] == ["Dropout"] * 3
    assert torch.equal(converted(image()), converted(image()))
    converted.train()
    for norm in converted.modules():
        if isinstance(norm, nn.BatchNorm3d | nn.BatchNorm2d):
            norm.eval()
    assert not torch.equal(converted(image()), converted(image()))


def test_what_else_a_network_does_in_training_is_told() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rand(()) if self.training else x

    network = nn.Sequential(nn.Conv2d(3, 4, 3), DropPath())
    report = convert(network, TWO, example=image()).report
    assert fate(report, "1").note == "decides by its mode: here always as in evaluation"
    assert fate(report, "1").before == "DropPath"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("mobilenet", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
        *(("convnext", torch.float32), ("resnet50", torch.bfloat16), ("unet", torch.float16)),
    ],
)
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    network = stirred(NETWORKS[name]()).eval()
    double, _ = convert(network, TWO, example=image())
    converted, report = convert(network.to(dtype), TWO, example=image().to(dtype))
    assert report.traced
    assert {p.dtype for p in converted.parameters()} == {dtype}
    error = (converted(image().to(dtype)).double() - double(image())).norm() / double(image()).norm()
    rounding = torch.finfo(dtype).eps
    assert rounding / 100 < float(error.detach()) < 30 * rounding


def test_a_network_in_double_precision_where_single_is_the_default() -> None:
    network = stirred(ResNet(Bottleneck)).eval()
    torch.set_default_dtype(torch.float32)  # the fixture sets it back
    converted, _ = convert(network, ONE, example=torch.zeros(SIZE, dtype=torch.float64))
    assert_the_same(network, converted, image().double())


def test_weights_that_are_computed_from_others_are_taken_as_they_are() -> None:
    network = stirred(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))).eval()
    for index in (0, 2):
        torch.nn.utils.parametrizations.weight_norm(network[index])
    converted, _ = convert(network, ONE, example=image())
    assert_the_same(network, converted, image())


def test_it_is_exported_with_any_batch() -> None:
    converted, _ = convert(stirred(MobileNet()).eval(), TWO, example=image())
    batch = torch.export.Dim("batch")
    exported = torch.export.export(converted, (image(),), dynamic_shapes=({0: batch},), strict=False).module()
    x = image(5, *SIZE[1:])
    torch.testing.assert_close(exported(x), converted(x), rtol=1e-9, atol=1e-9)


# --- equivariance ---


def smooth() -> nn.Module:
    """Random filters as smooth as trained ones are, and without a mean, as most of the trained."""
    network = stirred(
        nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2, bias=False), nn.Tanh(), nn.Conv2d(6, 6, 5, padding=2), nn.Tanh()),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        )
    )
    window = torch.exp(-torch.arange(-2.0, 3.0).square() / 2)
    with torch.no_grad():
        for conv in (network[0], network[2]):
            conv.weight.mul_(window[:, None] * window)
        network[0].weight.sub_(network[0].weight.mean((2, 3), keepdim=True))
    return network.eval()


def test_the_converted_network_is_far_nearer_to_equivariance_and_invariance() -> None:
    generator = torch.Generator().manual_seed(1)
    x = BandLimitedImage.random(4, 1, size=(48, 48), generator=generator, band=0.45)
    network, grid = smooth(), ScaleGrid([1.0, 2.0, 4.0])
    converted, _ = convert(network, grid, example=x.render())
    body = convert(network[:4], grid, example=x.render()).model
    body.projection_0 = nn.Identity()  # the scale map in front of the projection
    features = [equivariance_error(m, x, [2.0], grid=grid, margin=8).worst for m in (network[:4], body)]
    assert features[0] > 0.05
    assert 1e-4 < features[1] < features[0] / 4
    logits = [equivariance_error(m, x, [2.0]).worst for m in (network, converted)]
    assert logits[0] > 0.02
    assert 1e-4 < logits[1] < logits[0] / 4


# --- fresh weights ---


def test_fresh_weights_are_drawn_anew_and_nothing_is_projected() -> None:
    network = stirred(ResNet()).eval()
    torch.manual_seed(0)
    fresh, report = convert(network, TWO, example=image(), init="fresh")
    pretrained, _ = convert(network, TWO, example=image())
    assert all(fate.residual is None for fate in report.fates)
    for (name, a), (other, b) in zip(
        fresh.state_dict().items(), pretrained.state_dict().items(), strict=True
    ):
        assert (name, a.shape) == (other, b.shape)
        assert not torch.equal(a, b) or "num_batches" in name, name
    assert torch.equal(fresh.get_parameter("bn1.weight"), torch.ones(4))


# --- the report ---


def test_costs_are_counted_as_by_hand() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )
    _, report = convert(network, TWO, example=torch.zeros(2, 3, 10, 8))
    pixels = 10 * 8
    assert report.parameters == (4 * 3 * 9 + 4 + 20 + 10 + 2,) * 2
    before = pixels * (4 * 3 * 9 + 4 * 5) + 10
    after = pixels * (4 * 3 * (9 + 25) + 2 * 4 * 5) + 10  # windows of 3 and 5 pixels on the two scales
    assert report.multiply_adds == (before, after)


@pytest.mark.parametrize("name", ["mobilenet", "convnext", "decides", "densenet"])
def test_reports_are_readable_and_plain(name: str) -> None:
    _, report = convert(NETWORKS[name](), TWO, example=image())
    text = str(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert f"{report.parameters[1]:,}" in text
    assert f"({report.multiply_adds[1] / report.multiply_adds[0]:.1f}×)" in text
    record = json.loads(json.dumps(report.as_dict()))
    assert record["traced"] == (name != "decides")
    assert len(record["fates"]) == len(report.fates)
    assert record["fates"][0]["after"] == "LiftConv2d"
    assert all(name in text for name in ("module", "residual", "multiply-adds"))


def test_long_names_and_notes_stay_within_the_page() -> None:
    long = ModuleFate("a" * 60, "Averylongnamethatnobodygives", "AnotherVeryLongNameOfALayer", "words " * 40)
    text = str(ConversionReport((long,), (1, 1), (1, 1)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("words") == 40


def test_what_is_not_equivariant_is_listed() -> None:
    report = convert(UNet(), TWO, example=image()).report
    assert [(f.name, f.note) for f in report.not_equivariant] == [("up", "the same filter on every scale")]
    report = convert(UNet(), TWO, example=image(), where="layer").report
    assert [f.name for f in report.not_equivariant] == ["up"]
    report = convert(NETWORKS["convnext"](), TWO, example=image()).report
    assert [f.name for f in report.not_equivariant] == ["down.1"]
    assert convert(vgg(), TWO, example=image()).report.not_equivariant == ()


# --- refusals ---


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x + y)


@pytest.mark.parametrize(
    ("network", "options", "error", "text"),
    [
        (vgg, {"where": "begin"}, SettingError, "project to be one of end, stage, layer or a tuple of names"),
        (vgg, {"init": "zero"}, SettingError, "init to be pretrained or fresh, got 'zero'"),
        (vgg, {"basis": "pixels"}, BasisError, "a basis of bspline, .*, got 'pixels'"),
        (vgg, {"grid": [1.0, 2.0]}, SettingError, r"a ScaleGrid, got \[1.0, 2.0\]; write ScaleGrid"),
        (
            vgg,
            {"where": ConversionPolicy(reference=1.7)},
            SettingError,
            r"a reference scale of ScaleGrid\(\[1.0, 2.0\]\), got 1.7",
        ),
        (
            vgg,
            {"where": ConversionPolicy(project=("layer3",))},
            SettingError,
            "names of modules, got 'layer3', which the network does not have",
        ),
        (
            vgg,
            {"where": ConversionPolicy(lift=("conv*",))},
            SettingError,
            r"names of modules, got 'conv\*', which",
        ),
        (vgg, {"example": torch.zeros(3, 21, 25)}, ShapeError, r"example \(B, C, H, W\), .*\(3, 21, 25\)"),
        (vgg, {"example": [1]}, ShapeError, r"example \(B, C, H, W\), a tensor, got list"),
        (
            vgg,
            {"example": torch.zeros(1, 5, 9, 9)},
            ModelError,
            r"traced for an input \(1, 5, 9, 9\), got Runt",
        ),
        (
            lambda: nn.Conv2d(3, 4, 1),
            {},
            ModelError,
            "can be converted, got none; a 1×1 convolution knows no",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 2)),
            {},
            ModelError,
            r"got none \(0: stays an ordinary convolution: a kernel of 2×2 is not square and odd\)",
        ),
        (lambda: nn.Flatten(), {}, ModelError, "a convolution that can be converted, got none"),
        (TwoInputs, {}, ModelError, "missing 1 required positional argument: 'y'"),
    ],
)
def test_refusals(network: Callable[[], nn.Module], options: dict, error: type, text: str) -> None:
    settings = {"grid": TWO, "example": image()} | options
    with pytest.raises(error, match=f"expected .*{text}"):
        convert(network(), settings.pop("grid"), **settings)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"project": "nowhere"}, "project to be one of end, stage, layer or a tuple of names, got 'nowhere'"),
        ({"projection": "argmax-scale"}, "a projection of max, mean or logsumexp, got 'argmax-scale'"),
        ({"projection": "min"}, "a projection of max, mean or logsumexp, got 'min'"),
        ({"lift": "conv1"}, "lift to be a tuple of names, got 'conv1'"),
    ],
)
def test_policies_that_do_not_exist_are_refused(options: dict, text: str) -> None:
    with pytest.raises(SettingError, match=f"expected {text}"):
        ConversionPolicy(**options)


# --- module by module ---


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    network = stirred(Decides()).eval()
    network.between = function
    return network


def test_an_untraceable_network_is_converted_module_by_module() -> None:
    network, x = stirred(Decides()).eval(), image(*OTHER)
    converted, report = convert(network, THREE, example=image())
    assert not report.traced
    assert kinds(report) == [
        *("LiftConv2d", "ScaleBatchNorm2d", "ScaleMaxPool2d", "ScaleConv2d", "Sequential")
    ]
    y = converted.pool(F.relu(converted.norm(converted.conv1(x))))
    y = converted.conv2(torch.tanh(y)).amax(2).mean((2, 3))
    torch.testing.assert_close(converted(x), network.fc(y))
    assert converted(1e6 * x).isfinite().all()


def test_an_untraceable_network_has_only_simple_policies() -> None:
    for policy in ("stage", ConversionPolicy(project=("avgpool",)), ConversionPolicy(lift=("conv1",))):
        with pytest.raises(ModelError, match="project='end' or 'layer' for a network that cannot be traced"):
            convert(Decides(), TWO, example=image(), where=policy)
    converted, _ = convert(Decides(), TWO, example=image(), where="layer")
    assert isinstance(converted.conv2, LiftConv2d)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flip(2),
        lambda x: x.cumsum(2),
        lambda x: x.softmax(2),
        lambda x: x[:, :, ::2],
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: x * x.shape[2],
        lambda x: x / x.norm(),
    ],
    ids=range(7),
)
def test_functions_between_modules_that_take_scales_for_rows_are_refused(function) -> None:
    """x.flip(2) would turn the scale axis round: there is no error but the numbers."""
    network = between(function)
    text = "expected functions between modules that do the same to scale maps|got: .*; and: .*"
    with pytest.raises(ModelError, match=text):
        convert(network, THREE, example=torch.zeros(SIZE))


def test_functions_between_modules_that_do_the_same_are_taken() -> None:
    for function in (
        lambda x: x.flip(-1),
        lambda x: x.softmax(1),
        lambda x: x - x.mean((-2, -1), keepdim=True),
    ):
        assert not convert(between(function), THREE, example=torch.zeros(SIZE)).report.traced


def test_the_pointwise_layers_of_an_untraceable_network_are_scale_convolutions() -> None:
    network = between(nn.Conv2d(4, 4, 1))
    converted, _ = convert(network, TWO, example=image())
    assert isinstance(converted.between, PointwiseScaleConv2d)
    assert bool(converted(image()).isfinite().all())
