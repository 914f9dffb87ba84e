"""A cut by replay, for models that cannot be traced: the original forward pass, its frozen calls answered.

While the pass is recorded, each outermost call of a module whose output training cannot reach becomes a stub.
On replay a stub whose output is read returns the stored value, and any other one zeros of the right shape.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.boundary import Boundary, CutError
from harness.engine.effects import watch_effects

Answer = Callable[[int, Callable[[], Any]], Any]
"""Gets a stub's number and its original call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedHalf:
    """One mode of a model, cut in two; holds no parameter."""

    stubs: tuple[tuple[str, int], ...]
    """Module, and which of its calls outside other stubs; in the order of the calls."""
    live: tuple[int, ...]
    """Numbers of the stubs whose output is read by what training can reach."""
    outputs: Boundary
    """Of all stubs."""
    image: tuple[int, ...]
    """Shape of one image."""

    @property
    def boundary(self) -> Boundary:
        """How the outputs of the live stubs are stored."""
        return Boundary(tuple(self.outputs.parts[number] for number in self.live))

    @property
    def holds_tensors(self) -> bool:
        """Whether it fits only models whose buffers and frozen parameters have the same values."""
        return self.outputs.holds_tensors

    def bind_prefix(self, model: nn.Module) -> Callable[[Tensor], Sequence[Any]]:
        """Return images -> the values that cross the cut, on a model's own parameters."""

        def run(images: Tensor) -> list[Any]:
            values = _record(model, self.stubs, images, last=self.live[-1])
            return [values[number] for number in self.live]

        return run

    def bind_suffix(self, model: nn.Module) -> Callable[[Sequence[Any], int], Tensor]:
        """Return (values, number of images) -> logits, on a model's own parameters."""

        def run(values: Sequence[Any], images: int) -> Tensor:
            like = next(model.parameters())
            answers = dict(zip(self.live, values, strict=True))

            def answer(number: int, original: object) -> Any:
                if number in answers:
                    return answers[number]
                dead = Boundary((self.outputs.parts[number],))
                # Not one zero expanded: the pass may change them in place.
                zeros = [torch.zeros(images, *r.shape, dtype=r.dtype, device=like.device) for r in dead.rows]
                return dead.unpack(zeros, images, like.device)[0]

            with _answered(model, self.stubs, answer):
                logits: Tensor = model(like.new_zeros(images, *self.image))
            return logits

        return run

    def reads(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that the prefix may read, by name."""
        state = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        stubs = tuple(f"{name}." for name, _ in self.stubs)
        return {
            name: tensor
            for name, tensor in state.items()
            if name.startswith(stubs) or not tensor.requires_grad
        }

    def describe(self, model: nn.Module) -> str:
        """Return all that the prefix computes with, the values of tensors aside."""
        sources = {_source(type(module).__module__) for module in model.modules()}
        return "\n".join([repr(self.stubs), repr(self.live), repr(model), *sorted(sources)])


def cut_by_replay(
    model: nn.Module, images: Tensor, others: Tensor, changing: Collection[str]
) -> ReplayedHalf:
    """Cut a model in its present mode; like `cut_by_tracing`.

    Raises:
        CutError: Nothing is frozen, or its boundary cannot be stored by image.
    """
    try:
        stubs = _find_stubs(model, images, changing)
        if not stubs:
            raise CutError("no call of a module is out of training's reach")
        every = range(len(stubs))
        two, three = (_record(model, stubs, batch, last=len(stubs) - 1) for batch in (images, others))
        live = _find_live(model, stubs, [two[number] for number in every], images)
    except CutError:
        raise
    except Exception as error:
        raise CutError(f"its calls cannot be replayed: {type(error).__name__}: {error}") from error
    outputs = Boundary.between([two[number] for number in every], [three[number] for number in every])
    half = ReplayedHalf(stubs=tuple(stubs), live=tuple(live), outputs=outputs, image=tuple(images.shape[1:]))
    if not half.boundary.rows:
        raise CutError("training reaches the image itself")
    return half


def _find_stubs(model: nn.Module, images: Tensor, changing: Collection[str]) -> list[tuple[str, int]]:
    """Return the outermost calls that training cannot reach and that always give the same."""
    names = {module: name for name, module in model.named_modules()}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    unsteady = {id(buffers[name]) for name in changing}
    effects = partial(watch_effects(model), list(model.buffers()))
    counts: Counter[str] = Counter()
    found: list[tuple[str, int]] = []
    entered: list[tuple[int, Counter[str], tuple[bytes, int]]] = []

    def enter(module: nn.Module, _: object) -> None:
        entered.append((len(found), counts.copy(), effects()))

    def leave(module: nn.Module, _: object, output: object) -> object:
        kept, counted, before = entered.pop()
        tensors = list(_tensors(output))
        stable = effects() == before and unsteady.isdisjoint(map(id, module.buffers()))
        if stable and tensors and not any(tensor.requires_grad for tensor in tensors):
            # What was called within is answered with it.
            del found[kept:]
            counts.clear()
            counts.update(counted)
            found.append((names[module], counts[names[module]]))
        counts[names[module]] += 1
        # What follows from it is not the same each time either.
        return output if stable else _mapped(output, _asking)

    handles = [
        handle
        for module in names
        for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        with torch.enable_grad():
            model(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _asking(tensor: Tensor) -> Tensor:
    """Return a copy that asks for a gradient, where a tensor of this type can."""
    # A copy of the leaf, for an operation in place must not meet a leaf.
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _record(model: nn.Module, stubs: Sequence[tuple[str, int]], images: Tensor, last: int) -> dict[int, Any]:
    """Return copies of the stubs' outputs, by number; the pass ends after the last one that is wanted."""
    values: dict[int, Any] = {}

    def keep(number: int, original: Callable[[], Any]) -> Any:
        output = original()
        # A later operation may change it in place.
        values[number] = _mapped(output, lambda tensor: tensor.detach().clone())
        if number == last:
            raise _EnoughError
        return output

    with torch.no_grad(), _answered(model, stubs, keep), suppress(_EnoughError):
        model(images.clone())
    return values


def _find_live(
    model: nn.Module, stubs: Sequence[tuple[str, int]], outputs: Sequence[Any], images: Tensor
) -> list[int]:
    """Return the numbers of the stubs that the logits depend on.

    Raises:
        CutError: They depend on the image beside the stubs.
    """
    leaves: dict[int, list[Tensor]] = {}
    live = []
    answers = []
    for number, output in enumerate(outputs):
        own: list[Tensor] = []

        def leaf(tensor: Tensor, own: list[Tensor] = own) -> Tensor:
            copy = tensor.clone()
            if copy.is_floating_point():
                own.append(copy.requires_grad_())
            # An operation in place must not meet a leaf.
            return copy.clone()

        answers.append(_mapped(output, leaf))
        leaves[number] = own
        if len(own) < len(list(_tensors(output))):
            live.append(number)
    image = images.clone().requires_grad_()
    with torch.enable_grad(), _answered(model, stubs, lambda number, original: answers[number]):
        logits = model(image.clone())
    wanted = [image, *(leaf for own in leaves.values() for leaf in own)]
    gradients = torch.autograd.grad(logits.float().sum(), wanted, allow_unused=True)
    if gradients[0] is not None:
        raise CutError("training reaches the image itself")
    reached = {id(leaf) for leaf, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    live += [number for number, own in leaves.items() if any(id(leaf) in reached for leaf in own)]
    return sorted(set(live))


@contextmanager
def _answered(model: nn.Module, stubs: Sequence[tuple[str, int]], answer: Answer) -> Iterator[None]:
    """Let `answer` stand in for the stubs' calls."""
    numbers = {stub: number for number, stub in enumerate(stubs)}
    counts: Counter[str] = Counter()
    inside = False

    def stand_in(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*arguments, **options)
            number = numbers.get((name, counts[name]))
            counts[name] += 1
            if number is None:
                return original(*arguments, **options)

            def call() -> Any:
                nonlocal inside
                inside = True
                try:
                    return original(*arguments, **options)
                finally:
                    inside = False

            return answer(number, call)

        return forward

    modules = {name: model.get_submodule(name) for name, _ in stubs}
    own = {name: vars(module)["forward"] for name, module in modules.items() if "forward" in vars(module)}
    for name, module in modules.items():
        module.forward = stand_in(name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            del module.forward
            if name in own:
                module.forward = own[name]


class _EnoughError(Exception):
    """All that is wanted of a forward pass is there."""


def _source(module: str) -> str:
    """Return the code of a Python module, but for those whose version is part of each key anyway."""
    if module.partition(".")[0] in ("torch", "timm"):
        return ""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return module


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
