"""From a network to its graph of modules, with branches on shapes decided by an example."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from equiscale.errors import ModelError

EXAMPLE = "example"  # the key in a node's meta under which the example's value lies

# Where the layers live that are taken as a whole.
_LEAVES = ("torch.nn", "equiscale.nn")


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a network whose nodes are layers and functions, with the example's values in their meta.

    Layers of torch.nn and of equiscale.nn are taken as a whole. What the network decides by shapes (a
    check of its input, a padding where sizes are odd) is decided as for the example; sizes that it
    computes with stay free.

    Args:
        model: The network, which is run once in evaluation mode without gradients; its modules are shared
            with the result.
        example: Its one input.

    Returns:
        A module that computes the same; ``node.meta["example"]`` of every node holds its value.

    Raises:
        ModelError: If the network decides by values that a graph cannot hold, or fails for the example.

    Example:
        >>> traced = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2))
        >>> [node.target for node in traced.graph.nodes]
        ['input', '0', '1', 'output']
    """
    tracer = _GuidedTracer(example)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            graph = tracer.trace(model)
    except Exception as error:
        raise ModelError(
            f"expected a network that can be traced for an input {tuple(example.shape)}, got "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    drop_unused(graph)
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


class _GuidedProxy(fx.Proxy):
    """A value to come, that knows how long it is for the example."""

    def __len__(self) -> int:
        return len(self.node.meta[EXAMPLE])

    def __getattr__(self, name: str) -> Any:
        if name in ("node", "tracer") or callable(getattr(self.node.meta[EXAMPLE], name)):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})


class _GuidedTracer(fx.Tracer):
    """Records the graph while it computes every node's value for the example."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example
        self.computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds_others = isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return type(m).__module__.startswith(_LEAVES) and not holds_others

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.computing = True
        node.meta[EXAMPLE] = self._value(node)
        self.computing = False
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _GuidedProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(obj.node.meta[EXAMPLE])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, index) for index in range(len(obj.node.meta[EXAMPLE]))])

    def _value(self, node: fx.Node) -> Any:
        return self._input(node) if node.op == "placeholder" else evaluate(node, self.root)

    def _input(self, node: fx.Node) -> Any:
        if not any(other.op == "placeholder" and other is not node for other in self.graph.nodes):
            return self.example
        if not node.args:
            raise TypeError(f"the network has a second input {node.target!r} without a default")
        return node.args[0]


def evaluate(node: fx.Node, root: nn.Module) -> Any:
    """The value of a node, from the examples of those that it uses and the modules of the root."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: used.meta[EXAMPLE])
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root)
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_function" and callable(node.target):
        return node.target(*args, **kwargs)
    return args[0]  # the output


def drop_unused(graph: fx.Graph) -> None:
    """Remove what only decided a branch: no function here is called for its effect."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
