"""The layers of a model: when a forward pass calls them, what they hold, and what runs before them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from harness.errors import PluginError

# Module -> its positions in the order of calls, ascending; a module that is not called has none.
Calls: TypeAlias = dict[nn.Module, list[int]]


def black_images(model: nn.Module, image_size: int) -> Tensor:
    """Return two black images, (2, 3, image_size, image_size), of the model's device and dtype."""
    like = next(model.parameters(), torch.empty(0))
    return torch.zeros(2, 3, image_size, image_size, device=like.device, dtype=like.dtype)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode; restore all but its parameters, and torch's random state, on leaving."""
    flags = [(module, module.training) for module in model.modules()]
    # A forward pass may leave values on its modules, or put other tensors in the place of buffers.
    plain = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in plain]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    # Fused attention hides its parts and its FLOPs, and runs only while nothing asks for a gradient.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, attributes, own in kept:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(own)
        # Attention of LeViT and its kin caches biases in eval mode and drops them only in `train(True)`.
        model.train()
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, saved in buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def record_calls(model: nn.Module, image_size: int) -> Calls:
    """Return when a forward pass enters each module: positions in one order, ascending.

    Raises:
        PluginError: The model does not run on images of this size, or gives something else than logits.
    """
    calls: Calls = {}
    position = 0

    def enter(module: nn.Module, _: object) -> None:
        nonlocal position
        calls.setdefault(module, []).append(position)
        position += 1

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    try:
        with undisturbed(model), torch.no_grad():
            logits = model(black_images(model, image_size))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise PluginError(
            f"the backbone does not run on images of 3x{image_size}x{image_size}",
            where=type(model).__name__,
            why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            fixes=["choose another train.image_size", "report it to the author of the backbone"],
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and logits.is_floating_point()):
        found = (
            f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        )
        raise PluginError(
            "the backbone gives no logits",
            where=type(model).__name__,
            why=f"for two images it returns {found}, not a float tensor (2, classes)",
            fixes=["let BackboneSpec.build wrap it in a module that returns the logits alone"],
        )
    return calls


def find_layers(model: nn.Module, calls: Calls) -> dict[str, int]:
    """Return each parameter's layer, as the position of the layer's first call.

    A parameter is owned by the closest module around it that is called. A layer is an owner that holds no
    other. What any other owner holds (a position embedding, a layer scale) goes with the first layer in it.
    """
    owner: dict[str, nn.Module] = {}
    for name, _ in model.named_parameters():
        path = name.split(".")[:-1]
        around = (model.get_submodule(".".join(path[:end])) for end in range(len(path), -1, -1))
        owner[name] = next((module for module in around if module in calls), model)
    owners = set(owner.values())
    first_in = {
        module: min(
            (calls[inner][0] for inner in module.modules() if inner in owners and inner is not module),
            default=calls[module][0],
        )
        for module in owners
    }
    return {name: first_in[module] for name, module in owner.items()}


def last_layer(model: nn.Module, calls: Calls, layer_of: Mapping[str, int]) -> str:
    """Return the name of the layer that is called last.

    Raises:
        PluginError: No submodule with parameters is called.
    """
    layers = set(layer_of.values())
    called = [(calls[module], name) for name, module in model.named_modules() if module in calls]
    found = [(positions[-1], name) for positions, name in called if positions[0] in layers]
    name = max(found)[1] if found else ""
    if not name:
        raise PluginError(
            "the head cannot be told from the backbone",
            where=type(model).__name__,
            why="no submodule with parameters is called",
            fixes=["name the head's modules in BackboneSpec.head"],
        )
    return name


def place_modules(
    model: nn.Module, frozen: set[int], calls: Calls
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the outermost frozen modules and all modules in eval mode, given the frozen parameters' ids."""
    order = {module: (place, name) for place, (name, module) in enumerate(model.named_modules())}
    held = {module: [id(parameter) for parameter in module.parameters()] for module in order}
    whole = {module for module, ids in held.items() if ids and frozen.issuperset(ids)}
    trained = {module for module, ids in held.items() if ids and frozen.isdisjoint(ids)}
    inner = {part for module in whole for part in module.modules() if part is not module}
    called: dict[nn.Module, Sequence[int]] = {module: calls.get(module, []) for module in order}
    placed: dict[nn.Module, Sequence[int]] = {module: [place] for module, (place, _) in order.items()}
    last_called = _last_before(whole, trained, called)
    last_placed = _last_before(whole, trained, placed)

    still = set(whole)
    for module in order:
        if not held[module]:
            # Dropout, drop path, BatchNorm without affine: nothing before a frozen layer may be random.
            # A module that only training calls has no place among the calls, and takes that among the names.
            first = called[module][0] < last_called if called[module] else placed[module][0] < last_placed
            still |= {module} if first else set()
        elif _keeps_statistics(module) and any(id(p) in frozen for p in module.parameters(recurse=False)):
            # A partly frozen BatchNorm: new statistics would change what its frozen half computes.
            still.add(module)
    still = {part for module in still for part in module.modules()}
    return (
        tuple(name for module, (_, name) in order.items() if module in whole - inner),
        tuple(name for module, (_, name) in order.items() if module in still),
    )


def _last_before(
    frozen: set[nn.Module], trained: set[nn.Module], positions: Mapping[nn.Module, Sequence[int]]
) -> int:
    """Return the last position of a frozen module that no trained one precedes, -1 for none.

    What a trained module precedes is no fixed feature, whatever comes in between: it may be random.
    """
    end = min((position for module in trained for position in positions[module]), default=math.inf)
    return max((p for module in frozen for p in positions[module] if p < end), default=-1)


def _keeps_statistics(module: nn.Module) -> bool:
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))
