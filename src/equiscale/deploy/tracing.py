"""From a network to its graph of modules, with branches on shapes decided by an example."""

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from equiscale.errors import ModelError

EXAMPLE = "example"  # the key in a node's meta under which the example's value lies

MODE = "mode"  # the key of what was told the mode of its module
_BY_VALUES = "by_values"
_WRITES = "writes"

# What answers by the shape of a tensor, whatever its values.
_ASK_FOR_SHAPES = (
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_contiguous"),
    *("get_device", "type", "element_size", torch.numel, torch.is_floating_point),
)

# Two runs of the same layers.
_ROUNDING = 1e-5

# Where the layers live that are taken as a whole.
_LEAVES = ("torch.nn", "equiscale.nn")


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a network whose nodes are layers and functions, with the example's values in their meta.

    Layers of torch.nn and of equiscale.nn are taken as a whole. What the network decides by shapes (a
    check of its input, a padding where sizes are odd) is decided as for the example; sizes that it
    computes with stay free. Arguments behind the first keep their defaults. Where a function or a layer
    writes into its input, whatever is used later is its result, so that no node is there for its effect.
    Blocks of `torch.no_grad` and `torch.autocast` leave no trace.

    Args:
        model: The network, which is run twice in evaluation mode without gradients; its modules are shared
            with the result.
        example: Its one input.

    Returns:
        A module that computes the same; ``node.meta["example"]`` of every node holds its value. Nodes that
        were told the mode have ``node.meta["mode"]``; ``meta["mode"]`` of the module has the names and the
        types of the modules that decide by their mode: as in evaluation.

    Raises:
        ModelError: If the network decides by values, writes into a part of what it uses again, computes for
            the example what a graph does not, or fails for it.

    Example:
        >>> traced = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2))
        >>> [node.target for node in traced.graph.nodes]
        ['input', '0', '1', 'output']
    """
    tracer = _GuidedTracer(example.clone())
    try:
        with evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            expected = _seeded(lambda: model(example.clone()))
            _mark_modes(model, tracer)
            graph = _seeded(lambda: tracer.trace(model))
            _follow_writes(graph)
        (output,) = (node.meta[EXAMPLE] for node in graph.nodes if node.op == "output")
        if not _agree(output, expected):
            raise TypeError("what the network computes, a graph does not: it asks for the types of tensors")
    except Exception as error:
        raise ModelError(
            f"expected a network that can be traced for an input {tuple(example.shape)}, got "
            f"{type(error).__name__}: {error}"
        ) from error
    drop_unused(graph)
    traced = fx.GraphModule(tracer.root, graph, type(model).__name__)
    traced.meta[MODE] = {
        name: type(module).__name__ for name, module in model.named_modules() if module in tracer.asked
    }
    return traced


class _Mode(int):
    """The mode of a module in evaluation: false, and it is written down who asks."""

    module: nn.Module
    tracer: "_GuidedTracer"

    def __bool__(self) -> bool:
        self.tracer.asked.add(self.module)
        return False


class _GuidedProxy(fx.Proxy):
    """A value to come, that knows how long it is for the example."""

    def __len__(self) -> int:
        if isinstance(self.node.meta[EXAMPLE], Tensor):
            raise TypeError("the length of a tensor would be that of the example; use its shape[0]")
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
        self.asked: set[nn.Module] = set()  # for their mode

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds_others = isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return type(m).__module__.startswith(_LEAVES) and not holds_others

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The image alone: other arguments are left to their defaults."""
        names = list(inspect.signature(root_fn).parameters)[1:] or ["input"]
        return root_fn, [self.root, self.create_proxy("placeholder", names[0], (), {})]

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **others: Any
    ) -> fx.Node:
        told = any(isinstance(a, _Mode) for a in (*args, *kwargs.values()))
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: False if isinstance(a, _Mode) else a)
        node = super().create_node(kind, target, args, kwargs, *more, **others)
        self.computing = True
        node.meta[EXAMPLE] = self._value(node)
        node.meta[_BY_VALUES] = _by_values(node)
        self.computing = False
        if told:
            node.meta[MODE] = True
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
        if _by_values(obj.node):
            raise TypeError(f"the network decides by values, the result of {obj.node.target}")
        return bool(obj.node.meta[EXAMPLE])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, index) for index in range(len(obj.node.meta[EXAMPLE]))])

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.example
        before = {used: _version(used) for used in node.all_input_nodes}
        value = evaluate(node, self.root)
        written = [used for used in before if _version(used) != before[used]]
        if written:
            node.meta[_WRITES] = [
                (other, _place_of(other.meta[EXAMPLE]) == _place_of(value))
                for other in self.graph.nodes
                if other is not node and any(_overlap(other.meta[EXAMPLE], used) for used in written)
            ]
        return value


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation, and afterwards in the modes they had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _mark_modes(model: nn.Module, tracer: _GuidedTracer) -> None:
    for module in model.modules():
        if not tracer.is_leaf_module(module, ""):
            mode = _Mode()
            mode.module, mode.tracer = module, tracer
            module.training = mode  # type: ignore[assignment]


def _seeded(compute: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return compute()


def _agree(a: Any, b: Any) -> bool:
    """Whether two outputs, maybe of several tensors, are the same."""
    those, these = tree_flatten(a)[0], tree_flatten(b)[0]
    return len(those) == len(these) and all(_equal(x, y) for x, y in zip(those, these, strict=True))


def _equal(x: Any, y: Any) -> bool:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return type(x) is type(y) and bool(x == y)
    return x.shape == y.shape and torch.allclose(x, y, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)


# --- what a decision is made by ---


def _by_values(node: fx.Node) -> bool:
    """Whether a node's value changes with the values of the image or of the weights, not their shapes."""
    if _BY_VALUES in node.meta:
        return bool(node.meta[_BY_VALUES])
    value = node.meta[EXAMPLE]
    asks = node.target is getattr or node.target in _ASK_FOR_SHAPES
    if asks and not isinstance(value, Tensor):
        return False
    if node.op in ("placeholder", "get_attr"):
        return isinstance(value, Tensor)
    return any(_by_values(used) for used in node.all_input_nodes)


# --- what is written into ---


def _follow_writes(graph: fx.Graph) -> None:
    """Use the result of what writes into its input, wherever that input is used later."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        for other, is_same in node.meta.pop(_WRITES, ()):
            later = [user for user in other.users if order[user] > order[node]]
            if other.op == "get_attr":
                raise TypeError(f"{node.target} writes into {other.target}")
            if later and not is_same:
                raise TypeError(f"{node.target} writes into a part of {other.name}, which is used again")
            for user in later:
                user.replace_input_with(other, node)


def _version(node: fx.Node) -> list[int]:
    return [x._version for x in tree_flatten(node.meta[EXAMPLE])[0] if isinstance(x, Tensor)]


def _overlap(value: Any, written: fx.Node) -> bool:
    those = {_storage(x) for x in tree_flatten(value)[0] if isinstance(x, Tensor)}
    return any(_storage(x) in those for x in tree_flatten(written.meta[EXAMPLE])[0] if isinstance(x, Tensor))


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _place_of(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return value.data_ptr(), value.shape, value.stride(), value.dtype


# --- graphs ---


def evaluate(node: fx.Node, root: nn.Module, *, keep: bool = False) -> Any:
    """The value of a node, from the examples of those that it uses and the modules of the root.

    With ``keep`` the examples keep their values, even if the node writes into its inputs.
    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: used.meta[EXAMPLE])
    if keep:
        args, kwargs = fx.node.map_aggregate(
            (args, kwargs), lambda x: x.clone() if isinstance(x, Tensor) else x
        )
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


def place(root: nn.Module, name: str, thing: nn.Module | Tensor) -> None:
    """Set ``root.a.b.c`` for the name "a.b.c", with empty modules on the way."""
    *path, leaf = name.split(".")
    for step in path:
        if not hasattr(root, step):
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    if isinstance(thing, nn.Module):
        root.add_module(leaf, thing)
    elif isinstance(thing, nn.Parameter):
        root.register_parameter(leaf, thing)
    else:
        root.register_buffer(leaf, thing)
