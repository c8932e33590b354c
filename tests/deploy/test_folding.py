"""Folded networks: the same outputs from torch's modules alone, layer by layer and as whole networks."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from equiscale import HermiteBasis, ScaleGrid, create_model
from equiscale.deploy import fold
from equiscale.deploy.folding import example_input, takes_other_sizes
from equiscale.errors import ModelError
from equiscale.nn import (
    ColumnBatchNorm2d,
    ImageBatchNorm2d,
    ImageMaxPool2d,
    LearnableLiftConv2d,
    LearnableScaleConv2d,
    LearnableScales,
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleChannelDropout,
    ScaleConv2d,
    ScaleDropout2d,
    ScaleMaxPool2d,
    ScaleProjection,
    ScaleUNetUp2d,
    ScaleUpsample2d,
    ScaleWise,
    ValueDropout,
)

GRID = ScaleGrid.geometric(1.0, 1.5, 3)
STEERABLE = {"kernel_size": 7, "grid": GRID, "basis": HermiteBasis(2)}
MAP = (2, 4, 3, 9, 10)


@pytest.fixture(autouse=True)
def _in_float64(float64: None) -> None:
    torch.manual_seed(0)


def stirred(model: nn.Module) -> nn.Module:
    """In evaluation, with norms that do something."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(-1.5, 1.5)
                module.bias.normal_()
    return model.eval()


def kinds(folded: nn.Module) -> set[str]:
    return {type(module).__name__ for module in folded.modules() if not isinstance(module, fx.GraphModule)}


def assert_folds(
    model: nn.Module, x: Tensor, *, batch_norm: bool = False, others: tuple[Tensor, ...] = ()
) -> fx.GraphModule:
    """The folded network agrees for its example, for one and for more images, and for other inputs."""
    model = stirred(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model, x, batch_norm=batch_norm)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for other in (x, x[:1], torch.cat([x, torch.randn_like(x), x[1:]]), *others):
        expected = model(other)
        got = folded(other)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max().clamp_min(1)
    for module in folded.modules():
        assert type(module).__module__.startswith(("torch.", "abc")) or isinstance(module, fx.GraphModule)
    return folded


# --- layers ---

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"padding": "same"},
    {"padding": 1},
    {"padding": 5},
    {"padding": "same", "stride": 2},
    {"stride": 3, "padding": 2},
    {"padding": "same", "groups": 2},
    {"padding": "same", "groups": 2, "bias": False, "stride": 2},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "replicate", "stride": 2},
    {"padding": 1, "padding_mode": "replicate"},
    {"padding": "same", "projection": "max"},
    {"padding": "same", "pooling": 2},
    {"padding": "same", "pooling": 2, "projection": "max", "groups": 2},
]
INTER: list[dict[str, Any]] = [
    {"scale_size": size, "scale_padding": beyond, "groups": groups, "padding": "same"}
    for size in (2, 3)
    for beyond in ("zeros", "replicate")
    for groups in (1, 2)
] + [{"scale_size": 2, "projection": "max"}, {"scale_size": 3, "pooling": 2, "padding": "same", "stride": 2}]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_lifting_convolutions(options: dict[str, Any]) -> None:
    folded = assert_folds(LiftConv2d(4, 6, **STEERABLE, **options), torch.randn(2, 4, 9, 10))
    assert kinds(folded) - {"Module", "MaxPool2d"} == {"Conv2d"}


@pytest.mark.parametrize("options", GEOMETRIES + INTER, ids=str)
def test_scale_convolutions(options: dict[str, Any]) -> None:
    folded = assert_folds(ScaleConv2d(4, 6, **STEERABLE, **options), torch.randn(MAP))
    assert kinds(folded) - {"Module", "MaxPool2d"} == {"Conv2d"}


def test_filters_of_each_scale_have_their_own_window() -> None:
    """Where the whole kernel would be mostly zeros; and none is cut that reaches further than the border."""
    narrow = ScaleGrid([0.5, 2.0])
    layer = LiftConv2d(1, 2, kernel_size=13, grid=narrow, basis=HermiteBasis(2), padding="same")
    folded = assert_folds(layer, torch.randn(2, 1, 16, 17))
    small, large = (m for m in folded.modules() if isinstance(m, nn.Conv2d))
    assert small.kernel_size[0] < large.kernel_size[0] <= 13
    unpadded = LiftConv2d(1, 2, kernel_size=13, grid=narrow, basis=HermiteBasis(2), padding=1)
    folded = assert_folds(unpadded, torch.randn(2, 1, 16, 17))
    assert [m.kernel_size[0] for m in folded.modules() if isinstance(m, nn.Conv2d)] == [13, 13]


def test_filters_that_are_zero() -> None:
    layer = ScaleConv2d(4, 6, **STEERABLE, scale_size=2, padding="same")
    nn.init.zeros_(layer.weight)
    nn.init.normal_(layer.bias)
    assert_folds(layer, torch.randn(MAP))


def learnable() -> LearnableScales:
    return LearnableScales(3, min_scale=1.1, scale_range=1.9)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "pointwise": lambda: PointwiseScaleConv2d(4, 6),
    "pointwise strided": lambda: PointwiseScaleConv2d(4, 6, stride=2, groups=2, bias=False),
    "learnable": lambda: LearnableScaleConv2d(
        4, 6, kernel_size=7, basis=HermiteBasis(2), scales=learnable(), scale_size=2, padding="same"
    ),
    "norm": lambda: ScaleBatchNorm2d(4),
    "norm of torch": lambda: nn.BatchNorm3d(4),
    "norm without affine": lambda: ScaleBatchNorm2d(4, affine=False),
    "max pool": lambda: ScaleMaxPool2d(3, stride=2, padding=1),
    "max pool without stride": lambda: ScaleMaxPool2d(2),
    "mean pool": lambda: ScaleAvgPool2d(3, stride=1, padding=1),
    "max": lambda: ScaleProjection("max"),
    "mean": lambda: ScaleProjection("mean"),
    "logsumexp": lambda: ScaleProjection("logsumexp"),
    "argmax-scale": lambda: ScaleProjection("argmax-scale"),
    "dropout": lambda: nn.Sequential(
        ScaleDropout2d(0.3), ScaleChannelDropout(0.3), ValueDropout(0.3), nn.Tanh()
    ),
    "scale by scale": lambda: ScaleWise(nn.Conv2d(4, 5, 3, stride=2, padding=1)),
    "scale by scale, ours": lambda: ScaleWise(nn.Sequential(ImageMaxPool2d(2), ImageBatchNorm2d(4))),
    "without a rule": lambda: ScaleUpsample2d(2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_other_layers(name: str) -> None:
    assert_folds(LAYERS[name](), torch.randn(MAP))


@pytest.mark.parametrize(
    "layer", [ImageBatchNorm2d(4), ImageMaxPool2d(3, stride=2, padding=1), nn.Conv2d(4, 2, 3)]
)
def test_layers_of_images(layer: nn.Module) -> None:
    assert_folds(nn.Sequential(layer.double()), torch.randn(2, 4, 9, 10))


def test_learnable_lift() -> None:
    scales = learnable()
    layer = LearnableLiftConv2d(1, 4, kernel_size=7, basis=HermiteBasis(2), scales=scales, projection="max")
    assert_folds(layer, torch.randn(2, 1, 12, 13))


# --- functions on scale maps ---

LIFT = {"in_channels": 1, "out_channels": 4, **STEERABLE, "padding": "same"}


class Between(nn.Module):
    """A function between two layers whose scale maps lie as images."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 4) -> None:
        super().__init__()
        self.lift, self.other = LiftConv2d(**LIFT), LiftConv2d(**LIFT)
        self.last = PointwiseScaleConv2d(channels, 2)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.lift(x), self.other(x)))


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "sum": (lambda m, a, b: a + b, 4),
    "sum in place": (lambda m, a, b: a.add_(b).relu_(), 4),
    "relu": (lambda m, a, b: F.relu(a), 4),
    "where": (lambda m, a, b: torch.where(a > b, a, 2 * b), 4),
    "cat over channels": (lambda m, a, b: torch.cat([a, b], 1), 8),
    "softmax over channels": (lambda m, a, b: a.softmax(1), 4),
    "softmax over scales": (lambda m, a, b: a.softmax(2), 4),
    "softmax over rows": (lambda m, a, b: a.softmax(-2), 4),
    "mean over scales": (lambda m, a, b: a * b.mean(2, keepdim=True), 4),
    "mean over pixels": (lambda m, a, b: a * b.mean((-2, -1), keepdim=True), 4),
    "some scales": (lambda m, a, b: a[:, :, 1:], 4),
    "some pixels": (lambda m, a, b: a[..., 2:-1], 4),
    "gain": (lambda m, a, b: a * m.gain, 4),
    "flipped scales": (lambda m, a, b: a.flip(2), 4),
    "flipped rows": (lambda m, a, b: a.flip(3), 4),
    "shape": (lambda m, a, b: a.reshape(a.shape[0], a.shape[1], a.shape[2], *b.shape[3:]), 4),
    "padded": (lambda m, a, b: F.pad(a, (1, 0, 2, 1)), 4),
    "pooled in three dimensions": (lambda m, a, b: F.max_pool3d(a, (1, 2, 2)), 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch", [2, 4])
def test_functions_on_scale_maps(name: str, batch: int) -> None:
    assert_folds(Between(*FUNCTIONS[name]), torch.randn(batch, 1, 8, 8))


@pytest.mark.parametrize(
    "name", ["flipped scales", "flipped rows", "gain", "cat over channels", "softmax over scales"]
)
def test_examples_that_say_nothing(name: str) -> None:
    """For zeros all scales, rows and channels of some maps are alike; others are not."""
    model = Between(*FUNCTIONS[name])
    nn.init.zeros_(model.lift.bias)
    nn.init.zeros_(model.other.bias)
    x = torch.randn(4, 1, 8, 8)
    folded = fold(stirred(model), torch.zeros(4, 1, 8, 8))
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-12)


def test_pointwise_operations_leave_maps_as_they_lie() -> None:
    """Else maps would be copied back and forth: an operation lies directly between two convolutions."""
    model = nn.Sequential(
        LiftConv2d(**LIFT), nn.ReLU(), ScaleBatchNorm2d(4), PointwiseScaleConv2d(4, 2), ScaleProjection()
    )
    folded = assert_folds(model, torch.randn(2, 1, 8, 8))
    functions = [node.target for node in folded.graph.nodes if node.op in ("call_function", "call_method")]
    assert functions == [torch.cat, "unflatten", "transpose", torch.amax]


# --- batch norms in convolutions ---


def norms(folded: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())


def conv() -> ScaleConv2d:
    return ScaleConv2d(4, 4, **STEERABLE, scale_size=2, padding="same", bias=False)


class Twice(nn.Module):
    """One convolution, with another norm behind it the second time, or none."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.conv, self.first, self.second = conv(), ScaleBatchNorm2d(4), second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)).relu()))


class Branching(nn.Module):
    """What the convolution gives is used beside the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), ScaleBatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def plain_pair() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), ImageBatchNorm2d(2)
    )


@pytest.mark.parametrize(
    ("build", "shape", "left"),
    [
        (lambda: nn.Sequential(conv(), ScaleBatchNorm2d(4)), MAP, 0),
        (
            lambda: nn.Sequential(LiftConv2d(4, 6, **STEERABLE, groups=2), ScaleBatchNorm2d(6)),
            (2, 4, 9, 10),
            0,
        ),
        (
            lambda: nn.Sequential(PointwiseScaleConv2d(4, 6, groups=2), ScaleBatchNorm2d(6, affine=False)),
            MAP,
            0,
        ),
        (plain_pair, (2, 4, 9, 10), 0),
        (lambda: nn.Sequential(conv(), ScaleDropout2d(), ScaleBatchNorm2d(4)), MAP, 1),
        (lambda: nn.Sequential(conv(), nn.ReLU(), ScaleBatchNorm2d(4)), MAP, 1),
        (lambda: nn.Sequential(ScaleBatchNorm2d(4), conv()), MAP, 1),
        (
            lambda: nn.Sequential(ScaleConv2d(4, 4, **STEERABLE, projection="max"), ImageBatchNorm2d(4)),
            MAP,
            1,
        ),
        (
            lambda: nn.Sequential(ScaleConv2d(4, 4, **STEERABLE, pooling=2, padding=3), ScaleBatchNorm2d(4)),
            MAP,
            1,
        ),
        (Branching, MAP, 1),
        (lambda: Twice(ScaleBatchNorm2d(4)), MAP, 0),
        (lambda: Twice(nn.Sigmoid()), MAP, 0),
    ],
)
def test_norms_are_folded_where_nothing_stands_in_between(
    build: Callable[[], nn.Module], shape: tuple[int, ...], left: int
) -> None:
    model, x = build(), torch.randn(shape)
    assert norms(assert_folds(model, x, batch_norm=True)) == left
    assert norms(assert_folds(model, x)) > left or left == 1


def test_norms_of_another_kind_are_not_folded() -> None:
    """The columns of a scale map have a mean each, in another order: a graph, not a part of the filters."""
    assert_folds(nn.Sequential(conv(), ColumnBatchNorm2d(4, 3)), torch.randn(MAP), batch_norm=True)


@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_norms_without_running_statistics_keep_those_of_the_batch(options: dict[str, bool]) -> None:
    """Of all scales together, as in the layer."""
    model = nn.Sequential(conv(), ScaleBatchNorm2d(4, track_running_stats=False, **options)).eval()
    x = torch.randn(MAP) + torch.arange(3.0).view(3, 1, 1)
    folded = fold(model, x, batch_norm=True)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-12)


# --- layers used several times ---


class SharedNorm(nn.Module):
    """A norm and a pointwise convolution on maps of three scales and of two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = ScaleBatchNorm2d(4), PointwiseScaleConv2d(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x))[:, :, :2] + self.mix(self.norm(x[:, :, 1:]))


class TwoOrders(nn.Module):
    """Two grouped inter-scale convolutions of the same map, over two scales and over three."""

    def __init__(self) -> None:
        super().__init__()
        self.two = ScaleConv2d(4, 4, **STEERABLE, scale_size=2, groups=2)
        self.three = ScaleConv2d(4, 4, **STEERABLE, scale_size=3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x) + self.three(x)


class OwnWeight(nn.Module):
    """A layer whose weight is also used by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.plain = conv(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.weight.square().sum() + self.plain.weight.sum()


@pytest.mark.parametrize("build", [SharedNorm, TwoOrders, OwnWeight, lambda: Twice(nn.Identity())])
def test_layers_used_several_times(build: Callable[[], nn.Module]) -> None:
    assert_folds(build(), torch.randn(MAP))
    assert_folds(build(), torch.randn(MAP), batch_norm=True)


def test_shared_layers_are_stored_once() -> None:
    shared = conv()
    folded = assert_folds(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(MAP))
    single = assert_folds(nn.Sequential(shared), torch.randn(MAP))
    assert sum(t.numel() for t in folded.parameters()) == sum(t.numel() for t in single.parameters())


def test_layers_of_two_inputs_and_settings_of_a_call() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = ScaleUNetUp2d(4, 3, **STEERABLE, skip_channels=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x[:, :4, :, ::2, ::2].contiguous(), x[:, 4:])

    assert_folds(Up(), torch.randn(2, 6, 3, 8, 10))


# --- networks ---

NETWORKS: dict[str, dict[str, Any]] = {
    "mnist_cnn_28": {},
    "mnist_ses_scalar_28": {},
    "mnist_ses_vector_28p": {},
    "mnist_learnable_28": {},
    "mnist_disco": {},
    "mnist_rescaled_28": {},
    "mnist_ss_28": {},
    "scale_ses_vector": {"channels": (4, 6)},
}


def small(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    channels = settings or {"channels": (4, 6, 8), "hidden": 16}
    return stirred(create_model(name, **channels))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_networks(name: str, batch_norm: bool) -> None:
    model = small(name, **NETWORKS[name])
    x = example_input(model)
    others: tuple[Tensor, ...] = ()
    if takes_other_sizes(model, x):
        others = (torch.randn(2, 1, x.shape[-1] + 5, x.shape[-1] + 2),)
    folded = assert_folds(model, x, batch_norm=batch_norm, others=others)
    assert not any(p.requires_grad for p in folded.parameters())
    assert not folded.training


@pytest.mark.parametrize("name", ["wrn_10_1_ses_b", "wrn_10_1_disco"])
def test_wide_residual_networks(name: str) -> None:
    model = stirred(create_model(name))
    x = torch.randn(2, 3, 40, 36)
    folded = assert_folds(model, x, batch_norm=True, others=(torch.randn(1, 3, 51, 48),))
    assert 0 < norms(folded) < norms(model), "those in front of a convolution stay"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_follow(dtype: torch.dtype) -> None:
    model = small("mnist_ses_vector_28").to(dtype)
    folded = fold(model, batch_norm=True)
    x = example_input(model)
    assert folded(x).dtype == x.dtype == dtype
    assert {t.dtype for t in folded.state_dict().values()} - {torch.int64} == {dtype}
    error = (folded(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 30 * torch.finfo(dtype).eps


def test_the_original_is_left_in_the_modes_it_had() -> None:
    model = small("mnist_ses_scalar_28").train()
    model.main[1].eval()
    modes = [module.training for module in model.modules()]
    fold(model)
    assert [module.training for module in model.modules()] == modes
    assert not all(modes)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "build", [lambda: small("mnist_rescaled_28"), lambda: stirred(Between(*FUNCTIONS["gain"]))]
)
def test_the_folded_network_shares_nothing(build: Callable[[], nn.Module]) -> None:
    model = build()
    x = torch.randn(4, 1, 28, 28)
    folded = fold(model, x)
    expected = folded(x)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert torch.equal(folded(x), expected)


@pytest.mark.parametrize("name", ["mnist_ses_scalar_28", "mnist_rescaled_28"])
def test_compiled_networks_and_single_images(name: str) -> None:
    model = small(name)
    x = torch.randn(1, 1, 28, 28)
    folded = fold(torch.compile(model, backend="eager"), x)  # type: ignore[arg-type]
    torch.testing.assert_close(folded(torch.cat([x, -x])), model(torch.cat([x, -x])), rtol=0, atol=1e-12)


# --- without equiscale ---

READERS = {
    "torch.load": "net = torch.load(folder + '/net.pt', weights_only=False)",
    "to_folder": "sys.path.insert(0, folder); from net import Folded; net = Folded()",
    "torch.export": "net = torch.export.load(folder + '/net.pt2').module()",
}
READING = """
import sys, warnings
sys.modules["equiscale"] = None
import torch
folder = sys.argv[1]
{reader}
x, expected = torch.load(folder + "/values.pt")
assert not [name for name in sys.modules if name.startswith("equiscale.")]
print(float((net(x).double() - expected).abs().max()))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    model = small("mnist_rescaled_28").float()
    first = nn.Sequential(
        LiftConv2d(1, 1, **STEERABLE, padding="same", pooling=2), ScaleProjection(), nn.Upsample(28)
    )
    both = nn.Sequential(first, model).float().eval()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float32)
    folded = fold(both, x)
    torch.save(folded, folder / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what has no repr is pickled
        folded.to_folder(folder / "net", "Folded")
    torch.export.save(torch.export.export(folded, (x,), strict=False), folder / "net.pt2")
    torch.save((x, both(x).double().detach()), folder / "values.pt")
    return folder


@pytest.mark.parametrize("way", READERS)
def test_is_read_without_equiscale(way: str, written: Path) -> None:
    code = READING.format(reader=READERS[way])
    done = subprocess.run(
        [sys.executable, "-c", code, str(written)], capture_output=True, text=True, cwd=written
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


# --- what is refused ---


class DecidesByValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class OwnLift(LiftConv2d):
    """A layer of one's own, which the tracer looks into."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("model", "example", "text"),
    [
        (nn.Flatten(), None, r"expected an example, since Flatten has no example_shape \(C, H, W\)"),
        (nn.Flatten(), torch.zeros(3), r"expected a batch of inputs as example, got \(3,\)"),
        (nn.Flatten(), torch.zeros(0, 3), r"expected a batch of inputs as example, got \(0, 3\)"),
        (nn.Flatten(), [1.0], r"expected a batch of inputs as example, got list"),
        (DecidesByValues(), torch.ones(2, 3), "expected a network that can be traced .* decides by values"),
        (nn.Linear(3, 2), torch.ones(2, 4), "expected a network that can be traced for an input"),
        (OwnLift(4, 6, **STEERABLE), torch.ones(2, 4, 9, 9), "expected a network that can be traced"),
    ],
)
def test_refuses(model: nn.Module, example: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        fold(model, example)
    assert model.training
