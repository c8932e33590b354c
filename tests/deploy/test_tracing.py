"""Networks as graphs that compute the same, or a refusal: never a graph that computes something else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from equiscale import ScaleGrid
from equiscale.deploy.tracing import EXAMPLE, MODE, trace
from equiscale.errors import ModelError
from equiscale.nn import LiftConv2d, ScaleProjection
from tests.deploy.networks import NETWORKS, Between, DenseNet, Functional, ResNet, UNet, stirred

pytestmark = pytest.mark.usefixtures("float64")

EXAMPLE_SIZE, OTHER_SIZE = (2, 3, 21, 25), (3, 3, 13, 17)  # of the same parity at every stage


class Computes(nn.Module):
    """A function of the image as a network."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.full((3, 1, 1), 2.0))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tree_flatten(network(x.clone()))[0]


def assert_the_same(network: nn.Module, other: nn.Module, x: Tensor) -> None:
    expected, actual = outputs(network, x), outputs(other, x)
    assert len(expected) == len(actual)
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "decides"])
def test_the_graph_computes_the_same_for_other_images_and_sizes(name: str) -> None:
    network = stirred(NETWORKS[name]()).eval()
    traced = trace(network, torch.zeros(EXAMPLE_SIZE))
    for x in (image(*EXAMPLE_SIZE), image(*OTHER_SIZE)):
        assert_the_same(network, traced, x)


def test_layers_are_taken_as_a_whole_and_shared() -> None:
    grid = ScaleGrid([1.0, 2.0])
    network = nn.Sequential(LiftConv2d(3, 2, kernel_size=15, grid=grid), nn.Sequential(ScaleProjection()))
    traced = trace(network, torch.zeros(1, 3, 20, 20))
    assert [node.target for node in traced.graph.nodes] == ["input", "0", "1.0", "output"]
    assert traced.get_submodule("0") is network[0]


def test_every_node_knows_its_value_for_the_example() -> None:
    network, x = stirred(ResNet()).eval(), image(*EXAMPLE_SIZE)
    traced = trace(network, x)
    shapes = {
        node.name: tuple(node.meta[EXAMPLE].shape) for node in traced.graph.nodes if node.op != "output"
    }
    assert (shapes["conv1"], shapes["maxpool"], shapes["fc"]) == ((2, 4, 11, 13), (2, 4, 6, 7), (2, 5))
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    torch.testing.assert_close(output.meta[EXAMPLE], network(x).detach())


def statement(method: str, *args: object) -> Callable[[nn.Module, Tensor], Tensor]:
    """Call a method that writes, and go on with the tensor that it wrote into."""

    def function(_: nn.Module, x: Tensor) -> Tensor:
        y = 2 * x
        getattr(y, method)(*args)
        return y + y.mean()

    return function


def written_by_a_function(_: nn.Module, x: Tensor) -> Tensor:
    y = 2 * x
    F.relu(y, inplace=True)
    z = y - 1
    y += z
    y *= y
    return torch.cat([y, z], 1)


def written_through_a_second_name(_: nn.Module, x: Tensor) -> Tensor:
    y = 2 * x
    z = F.dropout(y, 0.5, training=False)  # in evaluation the same tensor
    z.neg_()
    return y + 1


def used_before_and_after(_: nn.Module, x: Tensor) -> Tensor:
    y = 2 * x
    before = y + 1
    y.sub_(3)
    return before * y


@pytest.mark.parametrize(
    "function",
    [
        statement("relu_"),
        statement("add_", 1.0),
        statement("clamp_", 0.1),
        written_by_a_function,
        written_through_a_second_name,
        used_before_and_after,
        lambda _, x: x.sub_(1.0).abs_(),
    ],
)
def test_what_writes_into_its_input_is_not_lost(function: Callable[..., object]) -> None:
    network, example = Computes(function), image(2, 3, 4, 5)
    kept = example.clone()
    traced = trace(network, example)
    assert torch.equal(example, kept), "the caller's example was written into"
    assert_the_same(network, traced, image(3, 3, 6, 4, seed=1))


def test_a_layer_that_writes_into_its_input_is_not_lost() -> None:
    class Statement(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.LeakyReLU(0.5, inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            self.act(y)
            return 3 * y

    assert_the_same(Statement(), trace(Statement(), torch.zeros(1, 1, 2, 2)), image(2, 1, 3, 3))


def written_in_part(_: nn.Module, x: Tensor) -> Tensor:
    y = 2 * x
    y[:, :1].neg_()
    return y


def item_set(_: nn.Module, x: Tensor) -> Tensor:
    y = 2 * x
    y[:, 0] = 1.0
    return y


def counted(self: nn.Module, x: Tensor) -> Tensor:
    self.count.add_(x.mean())
    return x * self.count


def looks_at_a_value(_: nn.Module, x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def looks_at_an_item(_: nn.Module, x: Tensor) -> Tensor:
    return x if x.max().item() > 100 else -x


def looks_at_a_weight(self: nn.Module, x: Tensor) -> Tensor:
    return x if self.weight.sum() > 0 else -x


def asks_for_the_type(_: nn.Module, x: Tensor) -> Tensor:
    return 2 * x if isinstance(x, Tensor) else x


def asks_for_the_length(_: nn.Module, x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (written_in_part, "neg_ writes into a part of mul, which is used again"),
        (item_set, "does not support item assignment"),
        (counted, "add_ writes into count"),
        (looks_at_a_value, "the network decides by values, the result of .*gt"),
        (looks_at_an_item, "the network decides by values, the result of .*gt"),
        (looks_at_a_weight, "the network decides by values, the result of .*gt"),
        (asks_for_the_type, "a graph does not: it asks for the types of tensors"),
        (asks_for_the_length, r"the length of a tensor would be that of the example; use its shape\[0\]"),
        (lambda _, x: x.reshape(int(x.shape[0]), -1), "TypeError"),
        (lambda _, x: x @ x, "RuntimeError: .*"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(function: Callable[..., object], text: str) -> None:
    expected = rf"expected a network that can be traced for an input \(2, 3, 4, 5\), got .*{text}"
    with pytest.raises(ModelError, match=expected):
        trace(Computes(function), image(2, 3, 4, 5))


def test_a_second_input_is_refused_and_a_default_is_kept() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = True) -> Tensor:
            x = x if mask is None else x * mask
            return 2 * x if double else x

    with pytest.raises(ModelError, match="missing 1 required positional argument: 'y'"):
        trace(Two(), torch.zeros(1, 1, 2, 2))
    assert_the_same(Optional(), trace(Optional(), torch.zeros(1, 1, 2, 2)), image(2, 1, 3, 3))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 9, 9)])
def test_decisions_by_shapes_are_those_of_the_example(shape: tuple[int, ...]) -> None:
    network = Computes(lambda _, x: F.pad(x, (0, 1)) if x.shape[-1] % 2 else x[..., 1:])
    traced = trace(network, image(*shape))
    assert_the_same(network, traced, image(*shape[:2], shape[2] + 2, shape[3] + 2))
    other = image(*shape[:2], shape[2] + 1, shape[3] + 1)
    assert traced(other).shape != network(other).shape


def test_a_check_of_the_input_leaves_no_node() -> None:
    traced = trace(Functional().eval(), torch.zeros(EXAMPLE_SIZE))
    assert not any("ndim" in str(node.args) for node in traced.graph.nodes)


def test_modes_and_randomness_are_left_alone() -> None:
    network = stirred(UNet()).train()
    network.down2.eval()
    modes = [module.training for module in network.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trace(network, torch.zeros(EXAMPLE_SIZE))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in network.modules()] == modes
    assert all(type(module.training) is bool for module in network.modules())
    with pytest.raises(ModelError):
        trace(network.train(), torch.zeros(1, 2, 8, 8))
    assert all(module.training is True for module in network.modules())


def test_randomness_that_does_not_rest_in_evaluation_is_kept() -> None:
    network = Computes(lambda _, x: F.dropout(x, 0.5))
    traced = trace(network, torch.ones(1, 1, 8, 8))
    assert 0 < int((traced(torch.ones(1, 1, 8, 8)) == 0).sum()) < 64


def test_who_asks_for_the_mode_is_written_down() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            return x * torch.rand(x.shape[0], 1, 1, 1)

    network = nn.Sequential(nn.Conv2d(3, 3, 1), Drops(), nn.Dropout())
    assert trace(network, torch.zeros(1, 3, 2, 2)).meta[MODE] == {"1": "Drops"}
    densenet = trace(DenseNet(), torch.zeros(EXAMPLE_SIZE))
    assert densenet.meta[MODE] == {}
    told = [node for node in densenet.graph.nodes if node.meta.get(MODE)]
    assert [node.target for node in told] == [F.dropout] * 3
    assert all(node.kwargs["training"] is False for node in told)


def test_weights_used_in_functions_learn() -> None:
    network = Between(lambda self, y: y * self.gamma + self.shift)
    traced = trace(network, image(*EXAMPLE_SIZE))
    traced(image(*EXAMPLE_SIZE)).sum().backward()
    assert network.gamma.grad is not None
    assert bool((network.gamma.grad != 0).any())
