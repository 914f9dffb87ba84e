"""Cut a model at its freeze depth, exactly or not at all: a prefix that is run once, a suffix that trains.

On first use of an architecture and a freeze depth a cut is compared with the whole model: outputs, gradients,
buffers. A cut by tracing that fails gives way to one by replay, and that to none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from harness.engine.boundary import Boundary, CutError
from harness.engine.freeze import FreezePlan, set_train_mode
from harness.engine.layers import undisturbed
from harness.engine.layout import layout_of
from harness.engine.replay import cut_by_replay
from harness.engine.trace import cut_by_tracing

Method: TypeAlias = Literal["trace", "replay", "none"]
Forward: TypeAlias = Callable[[Sequence[Tensor], bool], Tensor]
"""(inputs with a row an image, whether the model is in train mode) -> logits."""
TOLERANCE = 1e-5
"""Largest difference from the whole model, as a share of the largest value."""


class Half(Protocol):
    """One mode of a model, cut in two; fits any other of its architecture, unless it holds tensors."""

    @property
    def boundary(self) -> Boundary:
        """How the values that cross the cut are stored."""

    @property
    def holds_tensors(self) -> bool:
        """Whether it fits only models whose buffers and frozen parameters have the same values."""

    def bind_prefix(self, model: nn.Module) -> Callable[[Tensor], Sequence[Any]]:
        """Return images -> the values that cross the cut."""

    def bind_suffix(self, model: nn.Module) -> Callable[[Sequence[Any], int], Tensor]:
        """Return (values, number of images) -> logits."""

    def reads(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that the prefix reads, by name."""

    def describe(self, model: nn.Module) -> str:
        """Return all that the prefix computes with, the values of tensors aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a model is cut, in train and in eval mode."""

    method: Method
    train: Half | None
    eval: Half | None
    why: str = ""
    """Why a better method was passed over."""

    def half(self, training: bool) -> Half:
        """Return the half of a mode; only of a cut that is not `none`."""
        half = self.train if training else self.eval
        assert half is not None
        return half

    @property
    def holds_tensors(self) -> bool:
        """Whether it fits only models whose buffers and frozen parameters have the same values."""
        return any(half is not None and half.holds_tensors for half in (self.train, self.eval))


NO_CUT = Cut(method="none", train=None, eval=None)
"""Everything trains: the boundary is the image."""


def bind_suffix(model: nn.Module, cut: Cut) -> Forward:
    """Return the part of a model after the cut; without a cut, the model."""
    if cut.method == "none":
        return lambda inputs, training: model(inputs[0])
    suffixes = {training: cut.half(training).bind_suffix(model) for training in (True, False)}

    def run(inputs: Sequence[Tensor], training: bool) -> Tensor:
        images, device = len(inputs[0]), inputs[0].device
        return suffixes[training](cut.half(training).boundary.unpack(inputs, images, device), images)

    return run


def cut_model(model: nn.Module, plan: FreezePlan, image_size: int) -> Cut:
    """Cut a model to which a plan is applied; it stays as it is.

    Costs a trace and some twenty passes of a few images, once for an architecture and what is frozen of it.

    Args:
        model: On any device, in full precision. The images lie in memory as its weights do.
        plan: Says what trains and what is held in eval mode.
        image_size: Side of the square input, in pixels.
    """
    if not plan.frozen:
        return NO_CUT
    why: list[str] = []
    for method, cut in (("trace", cut_by_tracing), ("replay", cut_by_replay)):
        try:
            changing = _changing(model, plan, image_size)
            halves: dict[bool, Half] = {}
            for training in (True, False):
                with _mode(model, plan, training):
                    halves[training] = cut(model, *_images(model, image_size), changing)
            found = Cut(method=method, train=halves[True], eval=halves[False], why="; ".join(why))  # type: ignore[arg-type]
            check_cut(model, plan, found, image_size)
            return found
        except CutError as error:
            why.append(f"{method}: {error}")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # A model may fail on parts of its own pass in any way; uncut it trains all the same.
            why.append(f"{method}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return Cut(method="none", train=None, eval=None, why="; ".join(why))


def find_linear_head(model: nn.Module, plan: FreezePlan, cut: Cut) -> str | None:
    """Return the name of the linear layer that is all there is behind a cut; None where there is more.

    It is not read off the model's code but tried out: what is behind the cut must make of random vectors
    what the layer makes of them, in training and in evaluation.

    Args:
        model: To which the plan is applied; stays as it is.
        plan: Says what trains.
        cut: Of this model.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and {f"{name}.{own}" for own, _ in layer.named_parameters()} == trainable
    ]
    if cut.method == "none" or len(layers) != 1:
        return None
    name: str
    name, layer = layers[0]
    boundaries = [cut.half(training).boundary for training in (True, False)]
    # One vector an image, the same in both modes.
    if any(
        len(boundary.rows) != 1
        or boundary.rows[0].times != 1
        or boundary.rows[0].dtype != layer.weight.dtype
        or math.prod(boundary.rows[0].shape) != layer.in_features
        for boundary in boundaries
    ):
        return None
    run = bind_suffix(model, cut)
    like = layer.weight
    vectors = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2)).to(like)
    for training, boundary in zip((True, False), boundaries, strict=True):
        with _disturbed(model), _mode(model, plan, training), torch.no_grad():
            found = run([vectors.reshape(5, *boundary.rows[0].shape)], training)
            expected = layer(vectors)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return None
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            return None
    return name


def check_cut(model: nn.Module, plan: FreezePlan, cut: Cut, image_size: int) -> None:
    """Compare a cut with the whole model: outputs, and gradients and buffers of a step in train mode.

    Parameters are disturbed meanwhile, so that a block that starts at zero hides no wrong edge.

    Raises:
        CutError: They differ, or the prefix mixes the images of a batch.
    """
    # A batch of another size than those that the cut was worked out with.
    images = torch.cat(_images(model, image_size))
    with _disturbed(model):
        packed = {}
        for training in (False, True):
            with _mode(model, plan, training):
                packed[training] = _store(model, cut.half(training), images)
        with _mode(model, plan, True):
            # The prefix runs on a copy that nobody trains, and must fit a model whose buffers have moved.
            with torch.no_grad():
                model(images.clone())
            for training in (False, True):
                half = cut.half(training)
                with _mode(model, plan, training):
                    whole = _step(model, partial(model, images.clone()), training)
                with _mode(model, plan, training):
                    suffix = half.bind_suffix(model)
                    values = half.boundary.unpack(packed[training], len(images), images.device)
                    parts = _step(model, partial(suffix, values, len(images)), training)
                if lone := sorted(whole.keys() ^ parts.keys()):
                    raise CutError(f"{lone[0]} is found in one of both only")
                for name, expected in whole.items():
                    _same(name, expected, parts[name])


def _store(model: nn.Module, half: Half, images: Tensor) -> list[Tensor]:
    """Return what crosses a cut as it comes from the store.

    Raises:
        CutError: It depends on the other images of the batch.
    """
    some = [3, 1]
    prefix = half.bind_prefix(model)
    with torch.no_grad():
        # Copies: two values may share their memory.
        packed = [rows.clone() for rows in half.boundary.pack(prefix(images.clone()))]
        apart = half.boundary.pack(prefix(images[some]))
    for rows, own in zip(packed, apart, strict=True):
        # In other places, and in another company.
        _same("images of a batch reach each other before the cut", rows[some], own)
    return packed


def _changing(model: nn.Module, plan: FreezePlan, image_size: int) -> frozenset[str]:
    """Return the names of the buffers that training changes: a validation between two epochs reads them."""
    with _mode(model, plan, True), torch.no_grad():
        buffers = model.named_buffers(remove_duplicate=False)
        before = {name: (buffer, buffer._version) for name, buffer in buffers}
        model(torch.cat(_images(model, image_size)))
        now = dict(model.named_buffers(remove_duplicate=False))
        return frozenset(
            name
            for name, (buffer, version) in before.items()
            if now.get(name) is not buffer or buffer._version != version
        )


def _step(model: nn.Module, forward: Callable[[], Tensor], training: bool) -> dict[str, Tensor]:
    """Return what a step leaves behind; `undisturbed` puts the buffers back afterwards."""
    torch.manual_seed(0)
    with torch.set_grad_enabled(training):
        logits = forward()
    found = {"output": logits.detach().clone()}
    if training:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Their sum is not 0: what all logits share has a gradient as well.
        weight = torch.linspace(-1, 2, logits.numel(), device=logits.device).view_as(logits)
        gradients = torch.autograd.grad((logits * weight).sum(), [*parameters.values()], allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        found |= {f"gradient of {name}": value for name, value in pairs if value is not None}
        found |= {f"buffer {name}": value.detach().clone() for name, value in model.named_buffers()}
    return found


def _same(what: str, expected: Tensor, found: Tensor) -> None:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise CutError(f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    if torch.equal(expected, found) or not expected.numel():
        return
    scale = float(expected.double().abs().max())
    off = float((expected.double() - found.double()).abs().max())
    if not off <= TOLERANCE * max(scale, TOLERANCE):
        raise CutError(f"{what}: off by {off:.2g} of {scale:.2g}")


def _images(model: nn.Module, image_size: int) -> tuple[Tensor, Tensor]:
    """Return two images, and three brighter ones, in case the forward pass looks at that."""
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(5, 3, image_size, image_size, generator=generator).to(like)
    # What crosses the cut is given back as it lies for these.
    batch = batch.contiguous(memory_format=layout_of(model))
    return batch[:2].clone(), 2 * batch[2:] + 1


@contextmanager
def _mode(model: nn.Module, plan: FreezePlan, training: bool) -> Iterator[None]:
    """Put a model into one of the modes in which a trial runs it."""
    with undisturbed(model):
        if training:
            set_train_mode(model, plan)
        yield


@contextmanager
def _disturbed(model: nn.Module) -> Iterator[None]:
    """Move all parameters a little, and put them back."""
    generator = torch.Generator().manual_seed(1)
    saved = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        with torch.no_grad():
            for parameter, value in saved:
                noise = torch.randn(value.shape, generator=generator).to(value)
                parameter.add_(noise * (0.05 * value.abs().mean() + 0.01))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)
