"""Layers without a rule of their own as graphs of torch's operations."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import equiscale.nn
from equiscale.deploy.folding import _RULES
from equiscale.deploy.plain import plain_graph
from equiscale.errors import ModelError
from tests.nn.test_contracts import ROWS, Row, some_input, stirred

RULED = tuple(kind for kinds, _ in _RULES for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
WITHOUT_RULE = {name: row for name, row in ROWS.items() if not issubclass(row.layer, RULED)}


def assert_same(graph: fx.GraphModule, layer: nn.Module, *inputs: Tensor) -> None:
    torch.testing.assert_close(graph(*inputs), layer(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", WITHOUT_RULE.values(), ids=WITHOUT_RULE)
def test_layers_of_every_method(row: Row) -> None:
    layer, x = stirred(row.build()).double().eval(), some_input(row, torch.float64)
    state = copy.deepcopy(layer.state_dict())
    graph = plain_graph(layer, x, free_sizes=False)
    for batch in (x, x[:1], torch.cat([x, 3 - x, x[1:]])):
        assert_same(graph, layer, batch)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    assert "equiscale" not in graph.code
    assert [type(module) for module in graph.modules() if type(module) is not nn.Module] == [type(graph)]


def test_filters_are_constants() -> None:
    """Nothing is left of their synthesis: what is multiplied has the batch in it."""
    row = ROWS["ScaleSteeredConv2d"]
    layer, x = stirred(row.build()).eval(), some_input(row)
    graph = plain_graph(layer, x, free_sizes=False)
    called = [node for node in graph.graph.nodes if node.op == "call_function"]
    reached = {node for node in graph.graph.nodes if node.op == "placeholder"}
    for node in graph.graph.nodes:
        if reached & {*node.all_input_nodes}:
            reached.add(node)
    assert called
    assert set(called) <= reached


@pytest.mark.parametrize("name", ["RescaledKernelConv2d", "VectorFieldBatchNorm2d"])
def test_the_graph_shares_nothing_with_the_layer(name: str) -> None:
    row = ROWS[name]
    layer, x = stirred(row.build()).eval(), some_input(row)
    graph = plain_graph(layer, x, free_sizes=False)
    expected = graph(x)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.zero_()
    assert torch.equal(graph(x), expected)


@pytest.mark.parametrize(
    "name", ["MultiColumnLift2d", "RescaledKernelConv2d", "ScaleSpaceConv2d", "ScaleUpsample2d"]
)
def test_images_of_other_sizes(name: str) -> None:
    row = ROWS[name]
    layer, x = stirred(row.build()).double().eval(), some_input(row, torch.float64)
    graph = plain_graph(layer, x)
    for size in ((8, 9), (9, 12), (15, 10)):
        assert_same(graph, layer, torch.randn(3, *x.shape[1:-2], *size, dtype=torch.float64))


def test_what_was_made_for_one_size_does_not_compute_nonsense_for_another() -> None:
    row = ROWS["InputPyramid"]
    layer, x = stirred(row.build()).eval(), some_input(row)
    graph = plain_graph(layer, x, free_sizes=False)
    with pytest.raises(RuntimeError, match=r"size|shape|match"):
        graph(torch.randn(2, 4, 12, 13))


def test_several_inputs() -> None:
    layer = equiscale.nn.ScaleUNetUp2d(
        4, 3, kernel_size=7, grid=equiscale.ScaleGrid([1.0, 1.5, 2.25]), skip_channels=2
    ).eval()
    below, beside = torch.randn(2, 4, 3, 4, 5), torch.randn(2, 2, 3, 8, 10)
    graph = plain_graph(layer, below, beside, free_sizes=False)
    batch = (torch.randn(5, 4, 3, 4, 5), torch.randn(5, 2, 3, 8, 10))
    torch.testing.assert_close(graph(*batch), layer(*batch), rtol=1e-5, atol=1e-5)


class DecidesByValues(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x if x.sum() > 0 else -x


def test_refuses_what_torch_cannot_export() -> None:
    text = r"expected a layer that torch can export, got DecidesByValues for \(2, 3\)"
    with pytest.raises(ModelError, match=text):
        plain_graph(DecidesByValues(), torch.ones(2, 3))
    with pytest.raises(ModelError, match="got Named for"):
        plain_graph(DecidesByValues(), torch.ones(2, 3), name="Named")
