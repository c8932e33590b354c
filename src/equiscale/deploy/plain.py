"""A layer as a graph of torch's own operations, its filters computed."""

import inspect
import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from equiscale.deploy.tracing import drop_unused, place
from equiscale.errors import ModelError


def plain_graph(
    layer: nn.Module, *examples: Tensor, name: str | None = None, free_sizes: bool = True
) -> fx.GraphModule:
    """A layer in evaluation as operations of torch alone, for batches of any size.

    Filters that a layer makes of its weights are constants of the result. Images of any size are possible
    where the layer does not decide by it; otherwise the result is for the example's size.

    Args:
        layer: Of one output.
        *examples: Its inputs, with a batch of at least two.
        name: Of the graph's class; None: of the layer's.
        free_sizes: Try to leave height and width free; otherwise they are those of the example, which is
            found faster.

    Returns:
        The graph; it needs no import but torch.

    Raises:
        ModelError: If torch cannot export the layer.

    Example:
        >>> graph = plain_graph(nn.Linear(2, 3), torch.zeros(2, 2))
        >>> graph(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    name = type(layer).__name__ if name is None else name
    module = _exported(layer, examples, name=name, free_sizes=free_sizes)
    with torch.no_grad():
        _fold_constants(module)
    drop_unused(module.graph)
    return _by_itself(module, name)


def _exported(
    layer: nn.Module, examples: tuple[Tensor, ...], *, name: str, free_sizes: bool
) -> fx.GraphModule:
    failure: Exception | None = None
    for free in (True, False) if free_sizes else (False,):
        sizes = tuple(_sizes(example, free=free) for example in examples)
        shapes = (sizes,) if _takes_any_number(layer) else sizes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(layer, examples, dynamic_shapes=shapes, strict=False)
                return program.module(check_guards=False)
        except Exception as error:  # noqa: BLE001 (torch's exporter raises many kinds)
            failure = error
    got = ", ".join(str(tuple(example.shape)) for example in examples)
    raise ModelError(f"expected a layer that torch can export, got {name} for {got}: {failure}")


def _takes_any_number(layer: nn.Module) -> bool:
    """Whether torch sees all inputs as one, a tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(layer.forward).parameters.values()]
    return kinds[0] is inspect.Parameter.VAR_POSITIONAL


def _sizes(example: Tensor, *, free: bool) -> dict[int, Any]:
    """The batch is free, and with it the last two of three and more axes behind it."""
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if free:
        sizes |= dict.fromkeys(range(max(2, example.ndim - 2), example.ndim), torch.export.Dim.AUTO)
    return sizes


def _fold_constants(module: fx.GraphModule) -> None:
    """Replace what is computed from constants alone by its value."""
    known: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = operator.attrgetter(str(node.target))(module)
        elif node.op == "call_function" and node.all_input_nodes and known.keys() >= {*node.all_input_nodes}:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        needed = any(user not in known for user in node.users)
        if needed and node.op == "call_function" and isinstance(value, Tensor):
            _become_constant(module, node, value)


def _become_constant(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    name = f"constant_{node.name}"
    module.register_buffer(name, value.detach().clone())
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    node.replace_all_uses_with(constant)


def _by_itself(module: fx.GraphModule, name: str) -> fx.GraphModule:
    """The graph with nothing of the exporter's: its own tensors, one input, one output."""
    root, graph, env = nn.Module(), fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        if node.op == "output":
            (result,) = node.args[0]
            graph.output(env[result])
            break
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].meta.clear()
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(module)
            place(root, str(node.target), tensor.detach().clone())
    return fx.GraphModule(root, graph, name)
