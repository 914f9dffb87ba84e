"""A cut by tracing: colour the graph of a forward pass by what training can reach.

A node is *tainted* when it reads a trainable parameter or a buffer that training changes, when running it
draws random numbers or changes a buffer, or when an input of it is tainted. What the image reaches without
taint is the prefix; its values that a tainted node reads are the boundary; the rest is the suffix, plain
torch on the model's own parameters. Parallel streams, skips over the cut, shared modules and frozen sets
that are no prefix of the network need no rule of their own. See `docs/engine.md`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from harness.engine.boundary import Boundary, CutError
from harness.engine.effects import run_and_watch

_COMPILED: WeakKeyDictionary[fx.Graph, dict[torch.device, Callable[..., Any]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedHalf:
    """One mode of a model, cut in two; holds no parameter."""

    prefix_graph: fx.Graph
    suffix_graph: fx.Graph
    constants: Mapping[str, Tensor]
    """Tensors that the forward pass makes from literals, or from buffers alone."""
    boundary: Boundary

    @property
    def holds_tensors(self) -> bool:
        """Whether it fits only models whose buffers and frozen parameters have the same values."""
        return bool(self.constants) or self.boundary.holds_tensors

    def bind_prefix(self, model: nn.Module) -> Callable[[Tensor], Sequence[Any]]:
        """Return images -> the values that cross the cut, on a model's own parameters."""
        return self._bind(model, self.prefix_graph)

    def bind_suffix(self, model: nn.Module) -> Callable[[Sequence[Any], int], Tensor]:
        """Return (values, number of images) -> logits, on a model's own parameters."""
        run = self._bind(model, self.suffix_graph)
        return lambda values, images: run(*values)

    def reads(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that the prefix reads, by name."""
        found: dict[str, Tensor] = {}
        for node in self.prefix_graph.nodes:
            if node.op in ("call_module", "get_attr"):
                name = str(node.target)
                if name in self.constants:
                    found[name] = self.constants[name]
                else:
                    found |= _tensors_at(model, name)
        return found

    def describe(self, model: nn.Module) -> str:
        """Return all that the prefix computes with, the values of tensors aside."""
        modules = [node.target for node in self.prefix_graph.nodes if node.op == "call_module"]
        leaves = [f"{name}: {model.get_submodule(name)!r}" for name in dict.fromkeys(modules)]
        return "\n".join([self.prefix_graph.python_code("self").src, *leaves])

    def _bind(self, model: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
        """Return a graph of this architecture on a model's own parameters."""
        device = next(model.parameters()).device
        constants = {name: value.to(device) for name, value in self.constants.items()}
        # The leaves are the model's own, and so are their training flags.
        return partial(_compile(graph, device), _Root(model, constants))


class _Root:
    """A model together with the constants of its forward pass, by name; what a graph's code calls `self`."""

    def __init__(self, model: nn.Module, constants: Mapping[str, Tensor]) -> None:
        self.model = model
        self.constants = constants

    def __getattr__(self, name: str) -> Any:
        constants = self.__dict__["constants"]
        return constants[name] if name in constants else getattr(self.__dict__["model"], name)


def _compile(graph: fx.Graph, device: torch.device) -> Callable[..., Any]:
    """Return a graph as a function of what holds its tensors, and its inputs; compiled once for a device."""
    compiled = _COMPILED.setdefault(graph, {})
    if device not in compiled:
        code = _placed(graph, device).python_code("self")
        names: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, "<cut>", "exec"), names)
        compiled[device] = names["forward"]
    return compiled[device]


def _placed(graph: fx.Graph, device: torch.device) -> fx.Graph:
    """Return a graph that makes its tensors on a device.

    A forward pass that asks a buffer where it lies is traced with the answer, which is the CPU.
    """
    placed = fx.Graph()
    placed.output(placed.graph_copy(graph, {}))
    for node in placed.nodes:
        node.args, node.kwargs = (
            fx.node.map_aggregate(part, lambda value: device if isinstance(value, torch.device) else value)
            for part in (node.args, node.kwargs)
        )
    return placed


def join_prefixes(halves: Sequence[TracedHalf]) -> tuple[list[int], TracedHalf]:
    """Join the prefixes of one architecture, cut at several depths, so that one pass gives all their values.

    Returns:
        The numbers of the halves that are part of the longest one, and that one with a prefix that gives a
        tuple for each of them.
    """
    longest = max(halves, key=lambda half: len(half.prefix_graph.nodes))
    nodes = {_wording(node): node for node in longest.prefix_graph.nodes if node.op != "output"}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(longest.prefix_graph, copies)
    joined, results = [], []
    for number, half in enumerate(halves):
        own = [node for node in half.prefix_graph.nodes if node.op != "output"]
        if all(_wording(node) in nodes for node in own) and _same_constants(half, longest):
            result = next(node for node in half.prefix_graph.nodes if node.op == "output").args[0]
            joined.append(number)
            results.append(fx.node.map_arg(result, lambda node: copies[nodes[_wording(node)]]))
    graph.output(tuple(results))
    graph.lint()
    return joined, dataclasses.replace(longest, prefix_graph=graph)


def cut_by_tracing(model: nn.Module, images: Tensor, others: Tensor, changing: Collection[str]) -> TracedHalf:
    """Cut a model in its present mode: training flags and `requires_grad` say what training can reach.

    Args:
        model: Stays as it is, but for random state and buffers, which a run in train mode moves.
        images: (2, 3, S, S).
        others: (3, 3, S, S), of which no image is among `images`.
        changing: Names of the buffers that training changes, which nothing may read that runs only once.

    Raises:
        CutError: The forward pass cannot be traced, training reaches the image itself, or the boundary cannot
            be stored by image.
    """
    graph, constants = _trace(model)
    image = next(node for node in graph.nodes if node.op == "placeholder")
    traced = _Root(model, constants)
    unstable = run_and_watch(traced, graph, model, images)
    tainted, dependent = _colour(traced, graph, image, unstable, changing)
    needed = _needed(graph)
    live = [
        node
        for node in graph.nodes
        if node in dependent
        and node not in tainted
        and any(user in needed and user in tainted for user in node.users)
    ]
    if not live or image in live:
        raise CutError("training reaches the image itself")
    prefix = _subgraph(graph, needed - tainted, [], live)
    result = next(node for node in graph.nodes if node.op == "output")
    constant = {node for node in needed if node not in dependent and node not in tainted}
    suffix = _subgraph(graph, (needed & tainted) | constant, live, result.args[0])
    half = TracedHalf(prefix_graph=prefix, suffix_graph=suffix, constants=constants, boundary=Boundary(()))
    run = half.bind_prefix(model)
    with torch.no_grad():
        boundary = Boundary.between(run(images.clone()), run(others.clone()))
    if not boundary.rows:
        raise CutError("no image changes what crosses the cut")
    return dataclasses.replace(half, boundary=boundary)


class _Tracer(fx.Tracer):
    """Steps into everything but torch's own layers and what timm says cannot be traced."""

    def __init__(self) -> None:
        functions = tuple(function for function in get_notrace_functions() if callable(function))
        super().__init__(autowrap_modules=(math,), autowrap_functions=functions)
        self._leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        # The image alone is an input: whatever else the forward pass takes keeps its default.
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


def _trace(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    before = set(vars(model))
    try:
        graph = _Tracer().trace(model)
        constants = {name: getattr(model, name) for name in set(vars(model)) - before}
    except Exception as error:
        raise CutError(f"it cannot be traced: {type(error).__name__}: {error}") from error
    finally:
        # The tracer leaves tensors that a forward pass makes from literals on the model.
        for name in set(vars(model)) - before:
            delattr(model, name)
    tensors = {name: value for name, value in constants.items() if isinstance(value, Tensor)}
    return graph, tensors


def _colour(
    traced: _Root, graph: fx.Graph, image: fx.Node, unstable: set[str], changing: Collection[str]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the tainted nodes, and those that the image reaches."""
    tainted: set[fx.Node] = set()
    dependent = {image}
    for node in graph.nodes:
        if node in dependent:
            continue
        sources = node.all_input_nodes
        moved = node.name in unstable or _reads_training(traced, node, changing)
        if moved or any(source in tainted for source in sources):
            tainted.add(node)
        if any(source in dependent for source in sources):
            dependent.add(node)
    return tainted, dependent


def _reads_training(traced: _Root, node: fx.Node, changing: Collection[str]) -> bool:
    """Tell whether a node reads what a step of training moves, be it run in eval mode."""
    return node.op in ("call_module", "get_attr") and any(
        tensor.requires_grad or name in changing
        for name, tensor in _tensors_at(traced, str(node.target)).items()
    )


def _tensors_at(model: nn.Module | _Root, name: str) -> dict[str, Tensor]:
    """Return the tensors of a module, or the one, of this name."""
    value = operator.attrgetter(name)(model)
    if not isinstance(value, nn.Module):
        return {name: value} if isinstance(value, Tensor) else {}
    return {
        **dict(value.named_parameters(prefix=name, remove_duplicate=False)),
        **dict(value.named_buffers(prefix=name, remove_duplicate=False)),
    }


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Return what the output depends on; a change in place counts, although nobody reads its result."""
    waiting = [node for node in graph.nodes if node.op == "output" or _changes_in_place(node)]
    needed: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _wording(node: fx.Node) -> tuple[str, str, str, str, str]:
    """Return what a node computes from which nodes, to be compared between traces of one model."""
    return node.name, node.op, str(node.target), str(node.args), str(node.kwargs)


def _same_constants(half: TracedHalf, other: TracedHalf) -> bool:
    """Tell whether what a half's prefix reads under the names of constants is the same in another half."""
    names = {str(node.target) for node in half.prefix_graph.nodes} & {*half.constants, *other.constants}
    return all(
        name in half.constants
        and name in other.constants
        and torch.equal(half.constants[name], other.constants[name])
        for name in names
    )


def _changes_in_place(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and node.target is operator.setitem


def _subgraph(graph: fx.Graph, keep: set[fx.Node], inputs: Sequence[fx.Node], outputs: Any) -> fx.Graph:
    """Copy some nodes into a graph of their own, in their order."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {node: part.placeholder(f"cut_{node.name}") for node in inputs}
    wanted = {node for node in keep if node.op not in ("output", "placeholder")}
    for node in graph.nodes:
        if node.op == "placeholder" and node not in inputs and node in keep:
            copies[node] = part.node_copy(node)
        elif node in wanted:
            copies[node] = part.node_copy(node, lambda source: copies[source])
    part.output(fx.node.map_arg(tuple(outputs) if isinstance(outputs, list) else outputs, copies.__getitem__))
    part.eliminate_dead_code(
        is_impure_node=lambda n: n.op in ("placeholder", "output") or _changes_in_place(n)
    )
    part.lint()
    return part
