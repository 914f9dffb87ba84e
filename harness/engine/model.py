"""A trial's model: built and frozen, with all that was found out about its frozen part when it first came."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.engine.cut import Cut, cut_model, find_linear_head
from harness.engine.freeze import Flops, FreezePlan, apply_freeze, count_flops, plan_freeze
from harness.engine.heads import init_head, sets_all
from harness.engine.layout import lay_out, layout_of
from harness.engine.mould import Mould
from harness.errors import PluginError
from harness.records import TrialConfig
from harness.specs import BackboneSpec

_KEPT = 2**29
"""Bytes of copies that nobody trains, the one in use aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPart:
    """What a freeze depth makes of a model."""

    plan: FreezePlan
    cut: Cut
    flops: Flops | None
    """Of a forward pass of the whole model; None where they cannot be counted."""
    head: str | None
    """The linear layer that is all that trains, on one vector an image; None where more or else trains."""
    digests: Mapping[bool, str]
    """Names of what the prefix computes, by mode (whether training); none where there is no cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A model that nobody trains."""

    model: nn.Module
    parts: tuple[FrozenPart, ...]
    """What the study's freeze depths make of it."""
    mould: Mould
    """Of the model."""
    seed: int
    """That it was built from."""

    @property
    def is_untouched(self) -> bool:
        """Whether it is as it was built: a replayed prefix may run layers that train; they change buffers."""
        return all(part.cut.method == "trace" for part in self.parts)


class Models:
    """Builds the models of one data set's trials; plans and cuts each architecture and freeze depth once.

    Args:
        num_classes: Of the data set.
        device: That the models are going to run on; how they lie in memory follows it.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._device = device
        self._layouts: dict[tuple[str, int], torch.memory_format] = {}
        self._cuts: dict[tuple[object, ...], tuple[FreezePlan, Cut, Flops | None, str | None]] = {}
        # By weights and freeze depth: in brief what the prefix reads, and what is known of it.
        self._parts: dict[tuple[object, ...], tuple[dict[str, str], FrozenPart]] = {}
        # By weights, the last used last.
        self._copies: dict[tuple[object, ...], _Copy] = {}
        # By weights: the head, where builds of two seeds were alike in all the rest; else None.
        self._heads: dict[tuple[object, ...], Sequence[str] | None] = {}

    def build(
        self, backbone: BackboneSpec, config: TrialConfig, weights: Path | None, *, reuse: bool = False
    ) -> tuple[nn.Module, FrozenPart]:
        """Build a backbone with a new head and freeze it; draws from torch's global generator.

        Args:
            backbone: What builds it.
            config: The trial.
            weights: Its checkpoint.
            reuse: Leave out the build where two of other seeds were alike in all but their heads, and nothing
                of the head stays as it is built; a ridge head, which the caller places, is then that of an
                earlier trial. Where a linear head is all that trains, what is returned is the copy that
                nobody trains, and the caller's until the next call.

        Raises:
            PluginError: Frozen layers are others than in the trial before it, from the same weights: what
                was computed for that one would be taken for this one's.
        """
        origin = self._origin(config, weights)
        twin = self._copies.get(origin)
        head = self._heads.get(origin)
        if (
            reuse
            and twin is not None
            and twin.is_untouched
            and head is not None
            and sets_all(twin.model, head, config.head_init)
        ):
            _, part = self._parts.get((origin, config.freeze_depth), ({}, None))
            model = twin.model if part is not None and part.head else twin.mould.copy()
            if part is None:
                # Cut and named where all are: another device rounds otherwise.
                part = self._part(model.cpu(), backbone, config, weights, config.freeze_depth)
            apply_freeze(model, part.plan)
        else:
            model = backbone.build(self._num_classes, weights, config.image_size)
            self._lay_out(model, config)
            part = self._part(model, backbone, config, weights, config.freeze_depth)
            if weights and twin is not None and twin.seed != config.seed and origin not in self._heads:
                head = part.plan.head
                self._heads[origin] = head if _are_alike(model, twin.model, head) else None
        init_head(model, part.plan.head, config.head_init, seed=config.seed)
        return model, part

    def copy_untrained(
        self,
        model: nn.Module,
        backbone: BackboneSpec,
        config: TrialConfig,
        weights: Path | None,
        depths: Sequence[float],
        on_step: Callable[[], None],
    ) -> tuple[nn.Module, tuple[FrozenPart, ...]]:
        """Return a copy that nobody trains, on the device, and what some freeze depths make of it.

        Copies are kept for later trials of the same weights, those last used if they are large.

        Args:
            model: Built by `build`, and not trained yet.
            backbone: Its backbone.
            config: Its trial.
            weights: Its checkpoint.
            depths: Of the study; those that cannot be cut are left out. Random weights are shared with no
                other trial, so that none of them counts.
            on_step: Called after each depth.
        """
        key = self._origin(config, weights)
        if key not in self._copies:
            twin = copy.deepcopy(model)
            parts = []
            for depth in sorted(set(depths)) if weights else ():
                parts.append(self._part(twin, backbone, config, weights, depth))
                on_step()
            cut = tuple(part for part in parts if part.cut.method != "none")
            twin = twin.to(self._device)
            self._copies[key] = _Copy(model=twin, parts=cut, mould=Mould(twin), seed=config.seed)
        found = self._copies[key] = self._copies.pop(key)
        while len(self._copies) > 1 and sum(_bytes_of(kept.model) for kept in self._copies.values()) > _KEPT:
            del self._copies[next(iter(self._copies))]
        return found.model, found.parts

    def _lay_out(self, model: nn.Module, config: TrialConfig) -> None:
        """Lay out a model in memory; each architecture is tried once."""
        key = config.backbone, config.image_size
        if key in self._layouts:
            model.to(memory_format=self._layouts[key])
        else:
            lay_out(model, config.image_size, self._device)
            self._layouts[key] = layout_of(model)

    def _part(
        self,
        model: nn.Module,
        backbone: BackboneSpec,
        config: TrialConfig,
        weights: Path | None,
        depth: float,
    ) -> FrozenPart:
        """Apply a freeze depth to a model and return what is known of it."""
        origin = self._origin(config, weights)
        names = (config.backbone, config.image_size, depth), (origin, depth)
        found = next((self._cuts[name] for name in names if name in self._cuts), None)
        if found is None:
            blocks = backbone.blocks(model) if backbone.blocks else None
            head = backbone.head(model) if backbone.head else None
            plan = plan_freeze(model, depth, blocks=blocks, head=head, image_size=config.image_size)
            flops = count_flops(model, plan, config.image_size)
            apply_freeze(model, plan)
            cut = cut_model(model, plan, config.image_size)
            found = plan, cut, flops, find_linear_head(model, plan, cut)
            self._cuts[names[1] if found[1].holds_tensors else names[0]] = found
        plan, cut, flops, linear = found
        apply_freeze(model, plan)
        modes = (True, False) if cut.method != "none" else ()
        # Both modes read much the same.
        reads = {name: value for mode in modes for name, value in cut.half(mode).reads(model).items()}
        values = {name: _brief(value) for name, value in reads.items()}
        if (origin, depth) not in self._parts:
            digests = {mode: digest_prefix(model, cut, training=mode) for mode in modes}
            part = FrozenPart(plan=plan, cut=cut, flops=flops, head=linear, digests=digests)
            self._parts[origin, depth] = values, part
        known, part = self._parts[origin, depth]
        if values != known:
            other = next(name for name in values if values[name] != known.get(name))
            raise PluginError(
                f"backbone {config.backbone!r} builds other frozen layers each time: {other} differs",
                why="what is frozen has to come from the weights alone, for trials share what it computes",
                fixes=["let its build load all but the head from the file that it is given"],
            )
        return part

    def _origin(self, config: TrialConfig, weights: Path | None) -> tuple[object, ...]:
        """Name what the backbone's values come from."""
        return config.backbone, config.image_size, str(weights) if weights else config.seed


def _are_alike(one: nn.Module, other: nn.Module, head: Sequence[str]) -> bool:
    """Say whether two models hold the same in all but their heads."""
    first, second = (dict([*model.named_parameters(), *model.named_buffers()]) for model in (one, other))
    apart = tuple(f"{name}." for name in head)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name].to(value.device))
        for name, value in first.items()
        if not name.startswith(apart)
    )


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _brief(value: Tensor) -> str:
    """Return what tells two tensors of one shape apart, at the speed of reading them."""
    if not value.numel():
        return ""
    # Its own precision will do: what is compared is added up in the same order.
    return f"{int(torch.hash_tensor(value).view(torch.int64))} {value.sum().item()}"


def digest_prefix(model: nn.Module, cut: Cut, *, training: bool) -> str:
    """Name what a prefix computes: its operations, and the values of the parameters and buffers it reads."""
    half = cut.half(training)
    found = hashlib.sha256(half.describe(model).encode())
    for name, tensor in sorted(half.reads(model).items()):
        value = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
