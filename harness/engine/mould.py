"""Copies of a model, made in a fraction of the time that `copy.deepcopy` takes for them."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn


class Mould:
    """Makes equal copies of a model as it then is.

    `copy.deepcopy` walks through some ten objects a layer in Python; pickle does so in C, and is shown them
    once. Tensors are left to torch. What pickle does not take, or would not copy as `copy.deepcopy` does
    (layers that say themselves how, tensors that share memory, traced and scripted parts), goes the slow way.

    Args:
        model: Is not changed, and may change its numbers later, but no more its structure.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors: list[Tensor] = []
        self._graph = b""
        if _is_plain(model):
            file = io.BytesIO()
            pickler = _Pickler(file)
            try:
                pickler.dump(model)
            # Whatever a layer's attributes raise: lambdas and open files are no data.
            except Exception:
                return
            self._tensors, self._graph = pickler.tensors, file.getvalue()

    def copy(self) -> nn.Module:
        """Return a copy that shares nothing with the model."""
        if not self._graph:
            return copy.deepcopy(self._model)
        copied: nn.Module = _Unpickler(io.BytesIO(self._graph), self._tensors).load()
        return copied


def _is_plain(model: nn.Module) -> bool:
    special = torch.fx.GraphModule | torch.jit.ScriptModule
    modules = list(model.modules())
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
    return len(set(places)) == len(places) and not any(
        isinstance(module, special) or hasattr(module, "__deepcopy__") for module in modules
    )


class _Pickler(pickle.Pickler):
    """Keeps tensors, in the order in which they come, and writes down their numbers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    """Puts copies of tensors in their places; one that has several stays one."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._copies: dict[int, Tensor] = {}

    def persistent_load(self, number: int) -> Tensor:
        if number not in self._copies:
            self._copies[number] = _copy(self._tensors[number])
        return self._copies[number]


def _copy(tensor: Tensor) -> Tensor:
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
    if type(tensor) is Tensor and not tensor.requires_grad:
        return tensor.clone()
    return copy.deepcopy(tensor)
