"""Freeze depth: which parameters stay as they are, which modules stay in eval mode, and what that saves.

Freeze depth is the share of a backbone's ordered blocks that is frozen: 0 trains everything, 1 the head only.
Frozen means that parameters and buffers stay bit-identical: a frozen module is in eval mode, and so is
whatever is random or keeps statistics before the last frozen layer. See `docs/freeze-depth.md`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.layers import (
    black_images,
    find_layers,
    last_layer,
    place_modules,
    record_calls,
    undisturbed,
)
from harness.errors import HarnessError, PluginError, UsageError

# An attribute of a model: the parameters that `apply_freeze` froze, as opposed to its author's constants.
_APPLIED = "_harness_frozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezePlan:
    """What a freeze depth means for one model. Names are those of `named_parameters` and `named_modules`."""

    depth: float
    frozen: tuple[str, ...]
    """Parameters that stay bit-identical."""
    trainable: tuple[str, ...]
    """Parameters that train, the head's included."""
    frozen_modules: tuple[str, ...]
    """The outermost modules of which every parameter is frozen."""
    eval_modules: tuple[str, ...]
    """Every module that is held in eval mode while the model trains."""
    head: tuple[str, ...]
    """Modules that make up the head."""
    n_blocks: int
    n_frozen: int
    """Blocks that are frozen, counted from the input."""
    param_share: float
    """Share of the backbone's parameters, the head left out, that is frozen; in [0, 1]."""


def plan_freeze(
    model: nn.Module,
    depth: float,
    *,
    blocks: Sequence[Sequence[str]] | None = None,
    head: Sequence[str] | None = None,
    image_size: int = 224,
) -> FreezePlan:
    """Work out what a freeze depth means for a model, which stays as it is. Costs one forward pass.

    Freezes the first floor(depth * n + 0.5) of the n blocks. A parameter that asked for no gradient when the
    model was built is a constant: it is never trainable.

    Args:
        model: Maps (N, 3, image_size, image_size) to logits.
        depth: In [0, 1].
        blocks: Parameter names of each block from input to output; the head's are left out. None: each layer
            is a block, in the order in which a forward pass calls it.
        head: Names of the head's modules. None: the last layer that a forward pass calls.
        image_size: Side of the square input, in pixels.

    Raises:
        UsageError: `depth` is not in [0, 1].
        PluginError: The model does not run, or `blocks` or `head` do not fit it.
    """
    if not 0.0 <= depth <= 1.0:
        raise UsageError(f"freeze depth must be between 0 and 1 (got {depth!r})", where="freeze_depth")
    parameters = dict(model.named_parameters())
    calls = record_calls(model, image_size)
    layer_of = find_layers(model, calls)
    head = (last_layer(model, calls, layer_of),) if head is None else tuple(head)
    head_parameters = _parameters_of(model, head)
    body = [name for name in parameters if name not in head_parameters]
    ordered = _complete(_named_blocks(model, blocks or ()), body, layer_of)

    n_frozen = math.floor(depth * len(ordered) + 0.5)
    frozen = {name for block in ordered[:n_frozen] for name in block}
    earlier: frozenset[str] = getattr(model, _APPLIED, frozenset())
    frozen_modules, eval_modules = place_modules(model, {id(parameters[name]) for name in frozen}, calls)
    size = sum(parameters[name].numel() for name in body)
    return FreezePlan(
        depth=depth,
        frozen=tuple(name for name in parameters if name in frozen),
        trainable=tuple(
            name
            for name, parameter in parameters.items()
            if name not in frozen and (parameter.requires_grad or name in earlier)
        ),
        frozen_modules=frozen_modules,
        eval_modules=eval_modules,
        head=head,
        n_blocks=len(ordered),
        n_frozen=n_frozen,
        param_share=sum(parameters[name].numel() for name in frozen) / size if size else 0.0,
    )


def apply_freeze(model: nn.Module, plan: FreezePlan) -> None:
    """Let exactly the plan's trainable parameters ask for gradients, and drop gradients that the others hold.

    Raises:
        HarnessError: The plan is of another model.
    """
    parameters = dict(model.named_parameters())
    unknown = {*plan.frozen, *plan.trainable} - set(parameters)
    if unknown:
        raise HarnessError("a freeze plan is applied to another model", where=sorted(unknown)[0])
    trainable = set(plan.trainable)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
        if name not in trainable:
            parameter.grad = None
    setattr(model, _APPLIED, frozenset(plan.frozen))


def set_train_mode(model: nn.Module, plan: FreezePlan) -> None:
    """Put the model into train mode, except for what the plan holds in eval mode; call before every epoch."""
    model.train()
    for name in plan.eval_modules:
        module = model.get_submodule(name)
        # One call reaches all modules inside, whose own names follow.
        if module.training:
            module.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """What a forward pass computes."""

    image: float
    """Floating-point operations for one image."""
    frozen_share: float
    """In [0, 1]: of them in frozen modules."""


def count_flops(model: nn.Module, plan: FreezePlan, image_size: int) -> Flops | None:
    """Count the floating-point operations of a forward pass, and those spent in frozen modules.

    The model stays as it is. Counts what `torch.utils.flop_counter` knows: matrix products, convolutions and
    attention. What a module that is not frozen computes by itself counts as not frozen. None when the model
    cannot be counted.
    """
    counter = FlopCounterMode(display=False)
    entered: list[int] = []
    frozen = 0

    def enter(*_: object) -> None:
        entered.append(counter.get_total_flops())

    def leave(*_: object) -> None:
        nonlocal frozen
        start = entered.pop()
        frozen += 0 if entered else counter.get_total_flops() - start

    images = black_images(model, image_size)
    # The counter's own table names modules, which loses shared ones and lists that are never called.
    inside = {part for name in plan.frozen_modules for part in model.get_submodule(name).modules()}
    handles = [
        handle
        for module in inside
        for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        # Without autograd the counter's module tracker fails on models that pass parameters to submodules.
        with undisturbed(model), torch.enable_grad(), counter:
            model(images)
    except Exception:
        return None
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    return Flops(image=total / len(images), frozen_share=frozen / total) if total else None


def _parameters_of(model: nn.Module, head: Sequence[str]) -> set[str]:
    """Return the names of the parameters of the head's modules."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in head:
        if not name or name not in modules:
            raise PluginError(
                f"the head {name!r} is no submodule of the model",
                where=type(model).__name__,
                fixes=["correct BackboneSpec.head"],
            )
    held = {id(parameter) for name in head for parameter in modules[name].parameters()}
    if not held:
        raise PluginError(
            "the head has no parameters",
            where=f"{type(model).__name__}: {', '.join(head) or 'no head'}",
            why="a freeze depth of 1 would train nothing",
            fixes=["correct BackboneSpec.head", "build the model with num_classes > 0"],
        )
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


def _named_blocks(model: nn.Module, blocks: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the blocks with each tied parameter under its first name, in its first block."""
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    every_name = dict(model.named_parameters(remove_duplicate=False))
    seen: set[str] = set()
    placed: set[str] = set()
    named = []
    for number, block in enumerate(blocks):
        for name in block:
            if name not in every_name or name in seen:
                why = "it is named twice" if name in seen else "the model has no such parameter"
                raise PluginError(
                    f"block {number} names the parameter {name!r} wrongly",
                    where=type(model).__name__,
                    why=why,
                    fixes=["correct BackboneSpec.blocks"],
                )
            seen.add(name)
        firsts = dict.fromkeys(first_name[id(every_name[name])] for name in block)
        named.append([name for name in firsts if name not in placed])
        placed.update(firsts)
    return named


def _complete(
    blocks: Sequence[Sequence[str]], body: Sequence[str], layer_of: Mapping[str, int]
) -> list[list[str]]:
    """Return the blocks without the head and without empty ones, and with each parameter that none names.

    Such a parameter joins the block of the closest layer called up to its own, or the first block.
    """
    known = set(body)
    kept = [block for names in blocks if (block := [name for name in names if name in known])]
    if not kept:
        layers = sorted({layer_of[name] for name in body})
        return [[name for name in body if layer_of[name] == layer] for layer in layers]
    block_at: dict[int, int] = {}
    for number, block in enumerate(kept):
        for name in block:
            block_at.setdefault(layer_of[name], number)
    positions = sorted(block_at)
    for name in sorted(known - {name for block in kept for name in block}):
        before = bisect_right(positions, layer_of[name])
        kept[block_at[positions[before - 1]] if before else 0].append(name)
    return kept
