"""What a forward pass does beside its output: it draws random numbers, or changes buffers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from harness.engine.boundary import CutError


def watch_effects(model: nn.Module) -> Callable[[Iterable[Tensor]], tuple[bytes, int]]:
    """Return what gives another value once random numbers were drawn or a buffer was changed in place."""
    device = next(model.parameters()).device

    def look(buffers: Iterable[Tensor]) -> tuple[bytes, int]:
        drawn = torch.get_rng_state().numpy().tobytes()
        if device.type == "cuda":
            drawn += torch.cuda.get_rng_state(device).numpy().tobytes()
        return drawn, sum(buffer._version for buffer in buffers)

    return look


def run_and_watch(root: object, graph: fx.Graph, model: nn.Module, images: Tensor) -> set[str]:
    """Run a graph node by node; return the names of nodes that draw random numbers or change a buffer.

    Args:
        root: What its nodes find layers and tensors in.
        graph: Traced from the model.
        model: Of whose buffers changes count.
        images: What it runs on.

    Raises:
        CutError: It does not run, or a node changes a buffer that is not within its reach.
    """
    watcher = _Watcher(root, graph, model)
    buffers = list(model.buffers())
    before = sum(buffer._version for buffer in buffers)
    try:
        with torch.no_grad():
            watcher.run(images.clone())
    except Exception as error:
        raise CutError(f"its graph does not run: {type(error).__name__}: {error}") from error
    if sum(buffer._version for buffer in buffers) - before != watcher.changes:
        raise CutError("a layer changes a buffer of another one")
    return watcher.unstable


class _Watcher(fx.Interpreter):
    """Runs a graph, and around each node looks at the buffers within its reach.

    Looking at all of them would take time that grows with the square of the model's size.
    """

    def __init__(self, root: object, graph: fx.Graph, model: nn.Module) -> None:
        super().__init__(cast(nn.Module, root), graph=graph)
        self.unstable: set[str] = set()
        self.changes = 0
        """Made in place, of buffers."""
        self._effects = watch_effects(model)
        self._known = {id(buffer) for buffer in model.buffers()}
        self._in_memory: defaultdict[int, list[Tensor]] = defaultdict(list)
        for buffer in model.buffers():
            self._in_memory[_memory(buffer)].append(buffer)

    def run_node(self, n: fx.Node) -> Any:
        buffers = self._within_reach(n)
        before = self._effects(buffers)
        value = super().run_node(n)
        after = self._effects(buffers)
        if after != before:
            self.unstable.add(n.name)
            self.changes += after[1] - before[1]
        return value

    def _within_reach(self, n: fx.Node) -> list[Tensor]:
        """Return the buffers of a node's layer, and those that its inputs are or are views of."""
        found = list(self.fetch_attr(str(n.target)).buffers()) if n.op == "call_module" else []
        for value in tree_leaves([self.env[source] for source in n.all_input_nodes]):
            if isinstance(value, Tensor):
                found += self._in_memory.get(_memory(value), ())
        return [
            buffer for key, buffer in {id(buffer): buffer for buffer in found}.items() if key in self._known
        ]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
