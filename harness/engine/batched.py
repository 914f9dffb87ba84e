"""Train linear heads side by side on cached feature vectors. One head takes the same path.

A head gives the same bits in any company: what heads share rounds the same for any number of them. Products
of matrices are made one head at a time on a CPU, where a batched product rounds by the size of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.views import send
from harness.engine.linear import ALIGN, HeadJob, HeadResult, LinearHead, predict_heads
from harness.engine.updates import UpdateRule, cross_entropy, place_labels
from harness.errors import UsageError
from harness.isolation import kept_random_state
from harness.records import EpochRecord

__all__ = ["FeatureSource", "HeadJob", "HeadResult", "fit_heads"]

SLOTS = 8
"""Heads that step together on a GPU, as many as a study asks for at once. Empty slots are computed too, for
its kernels depend on their number."""
_CHUNK = 1_000_000
"""Floats of the heads that step together on a CPU: little more than its second-level cache holds."""
_BLOCK = 32_000
"""Floats that are updated at a time on a CPU: they stay in its cache, and with one thread."""


class FeatureSource(Protocol):
    """Feature vectors of a data set's images."""

    train_size: int

    def train(self, epoch: int) -> Tensor:
        """Return features (N, D) of the training images as augmented in an epoch, counted from 0."""

    def split(self, name: str) -> Tensor:
        """Return features (N, D) of a split."""

    def labels(self, name: str) -> Tensor:
        """Return int64 class numbers (N,) of a split, `train` included."""


def fit_heads(
    jobs: Sequence[HeadJob],
    source: FeatureSource,
    *,
    num_classes: int,
    device: torch.device,
    on_step: Callable[[], None],
    on_epoch: Callable[[int, EpochRecord], bool],
) -> list[HeadResult]:
    """Train heads and evaluate each on the validation split after each epoch, as `fit` does with a model.

    All heads, and what their optimizers keep, are on the device until the last one ends.

    Args:
        jobs: Any mixture of settings over the same features and classes.
        source: Yields the features, each epoch's once.
        num_classes: C.
        device: Where they train.
        on_step: Called after each step of heads that train together, and after their evaluation.
        on_epoch: Called with a job's position and its record after each epoch, in order of position; true
            ends that head's training.

    Returns:
        A result for each job, in order. A head that fails disturbs no other.

    Raises:
        UsageError: A weight does not fit the classes.
    """
    for job in jobs:
        if len(job.weight) != num_classes:
            raise UsageError(f"a head with {len(job.weight)} outputs does not fit {num_classes} classes")
    with kept_random_state():
        heads = [LinearHead(job, source.train_size, device) for job in jobs]
    for epoch in range(max((job.config.epochs for job in jobs), default=0)):
        active = [head for head in heads if head.begin(epoch)]
        if not active:
            break
        began = time.perf_counter()
        features, labels = send(source.train(epoch), device), send(source.labels("train"), device)
        share = (time.perf_counter() - began) / len(active)
        with kept_random_state():
            for chunk in _chunks(active, device):
                _train_epoch(chunk, features, labels, on_step, share)
        features, truth = send(source.split("val"), device), source.labels("val").cpu().numpy()
        for chunk in _chunks([head for head in active if not head.error], device):
            _evaluate(chunk, features, truth, epoch)
            on_step()
        for number, head in enumerate(heads):
            # The last epoch's verdict changes nothing: the trial is complete.
            pruned = len(head.curve) == epoch + 1 and on_epoch(number, head.curve[-1])
            if pruned and epoch + 1 < head.config.epochs:
                head.pruned = True
    return [head.result() for head in heads]


def _is_stacked(device: torch.device) -> bool:
    """Say whether heads share their products too: where to start a kernel costs more than its work."""
    return device.type != "cpu"


def _chunks(heads: Sequence[LinearHead], device: torch.device) -> Iterator[list[LinearHead]]:
    """Yield heads that can step together."""
    kinds: dict[tuple[object, ...], list[LinearHead]] = {}
    for head in heads:
        kind = head.batch, head.dtype, head.bias is None, head.smoothing, head.rule
        kinds.setdefault(kind, []).append(head)
    for alike in kinds.values():
        num_classes, dim = alike[0].weight.shape
        floats = alike[0].rows.numel() + num_classes * dim + alike[0].batch * (dim + 3 * num_classes)
        size = SLOTS if _is_stacked(device) else min(32, max(4, _CHUNK // floats))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


@torch.no_grad()
def _train_epoch(
    heads: Sequence[LinearHead],
    features: Tensor,
    labels: Tensor,
    on_step: Callable[[], None],
    fetching: float,
) -> None:
    started = time.perf_counter()
    first, device = heads[0], features.device
    dtype, rule, smoothing, batch = first.dtype, first.rule, first.smoothing, first.batch
    stacked = _is_stacked(device)
    slots = SLOTS if stacked else len(heads)
    steps, width = first.steps_per_epoch, -(-batch // ALIGN) * ALIGN

    rows = torch.zeros(len(first.rows), slots, first.rows.shape[1], device=device)
    chosen = torch.zeros(steps, slots, width, dtype=torch.int64)
    rates = np.zeros((steps, slots))
    decays = np.zeros(slots)
    for i, head in enumerate(heads):
        rows[:, i] = head.rows
        head.rows = rows[:, i]
        chosen[:, i, :batch] = head.order
        rates[:, i] = np.multiply(head.base[0], head.factors)
        decays[i] = head.weight_decay
    chosen = chosen.to(device)
    targets = labels[chosen[:, :, :batch]]
    places = place_labels(targets, len(first.weight), width)
    gradients = torch.zeros_like(rows[0])
    (weights, biases), (weight_gradients, bias_gradients) = first.views(rows[0]), first.views(gradients)
    updates = _updates(rule, rows, gradients, rates, decays, first) if rule else []

    # What the products read and write, in their precision: the same memory in every step.
    features = features.to(dtype)
    gathered = features.new_empty(slots * width, features.shape[1])
    inputs = gathered.view(slots, width, -1)
    factors, products = weights.to(dtype), weight_gradients.to(dtype)
    logits = features.new_empty(slots, len(first.weight), width)
    padded_slopes = torch.zeros_like(logits)
    slopes = padded_slopes[:, :, :batch]
    forward = _product(factors, inputs.transpose(1, 2), logits, stacked)
    backward = _product(slopes, inputs[:, :batch], products, stacked)
    losses = torch.zeros(steps, slots, batch, device=device)

    clip = _clipping(heads, gradients, stacked)
    averaged = [head for head in heads if head.config.ema]

    addends = None if biases is None else biases.unsqueeze(2)
    for step, rows_chosen in enumerate(chosen.flatten(1).unbind()):
        torch.index_select(features, 0, rows_chosen, out=gathered)
        if factors is not weights:
            factors.copy_(weights)
        forward()
        if addends is not None:
            logits += addends.to(dtype)
        if smoothing is not None:
            losses[step], gradient = cross_entropy(logits, places[step], smoothing, batch)
            padded_slopes.copy_(gradient)
        else:
            for head, loss, part, target, slope in zip(
                heads, losses[step], logits[:, :, :batch], targets[step], slopes, strict=False
            ):
                head.apply_loss(part, target, loss, slope)
        backward()
        if products is not weight_gradients:
            weight_gradients.copy_(products)
        if bias_gradients is not None:
            bias_gradients.copy_(slopes.sum(2))
        clip()
        if rule:
            for update in updates:
                update(step)
        else:
            for head, gradient in zip(heads, gradients, strict=False):
                head.step(gradient, step)
        for head in averaged:
            head.update_average(step)
        on_step()

    # Waits for a GPU, so that its work is in the time.
    losses = losses.cpu()
    seconds = fetching + (time.perf_counter() - started) / len(heads)
    for head, loss in zip(heads, losses.unbind(1), strict=False):
        head.finish_epoch(loss, seconds)


def _evaluate(
    heads: Sequence[LinearHead], features: Tensor, labels: npt.NDArray[np.int64], epoch: int
) -> None:
    started = time.perf_counter()
    probabilities = predict_heads([head.head() for head in heads], features, heads[0].dtype)
    seconds = (time.perf_counter() - started) / len(heads)
    for head, own in zip(heads, probabilities, strict=True):
        head.score(own, labels, epoch, seconds)


def _product(left: Tensor, right: Tensor, out: Tensor, stacked: bool) -> Callable[[], object]:
    """Return a function that multiplies each head's matrices."""
    if stacked:
        return partial(torch.bmm, left, right, out=out)
    heads = list(zip(left.unbind(), right.unbind(), out.unbind(), strict=True))

    def multiply() -> None:
        # One by one: how a batched product rounds depends on how many there are, under several threads.
        for a, b, product in heads:
            torch.mm(a, b, out=product)

    return multiply


def _clipping(heads: Sequence[LinearHead], gradients: Tensor, stacked: bool) -> Callable[[], None]:
    """Return a function that brings the norm of each head's gradient down to the largest allowed."""
    clipped = [pair for pair in zip(heads, gradients, strict=False) if pair[0].config.clip_grad]
    if not stacked or not clipped:

        def clip_alone() -> None:
            for head, gradient in clipped:
                head.clip(gradient)

        return clip_alone
    # As many rows as there are slots, whoever is in them.
    largest = torch.full((len(gradients), 1), torch.inf)
    for i, head in enumerate(heads):
        if head.config.clip_grad:
            largest[i] = head.config.clip_grad
    largest = largest.to(gradients.device)

    def clip_together() -> None:
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        gradients.mul_((largest / (norms + 1e-6)).clamp(max=1.0))

    return clip_together


def _updates(
    rule: UpdateRule,
    rows: Tensor,
    gradients: Tensor,
    rates: npt.NDArray[np.float64],
    decays: npt.NDArray[np.float64],
    first: LinearHead,
) -> list[Callable[[int], None]]:
    """Return functions of the epoch's step, each of which updates some of the heads."""
    factors = [
        torch.from_numpy(factor).float().unsqueeze(2).to(rows.device)
        for factor in rule.factors(rates, decays, first.steps)
    ]
    size = rows.shape[1] if _is_stacked(rows.device) else max(1, _BLOCK // rows.shape[2])

    def update_of(part: slice) -> Callable[[int], None]:
        (parameters, *moments), own = rows[:, part].unbind(), gradients[part]
        moves, shrinking = (factor[:, part].unbind() for factor in factors)

        def update(step: int) -> None:
            rule.update(
                parameters,
                own,
                moments,
                moves=moves[step],
                shrinking=shrinking[step],
                decayed=first.weight.numel(),
                step=first.steps + step,
            )

        return update

    return [update_of(slice(start, start + size)) for start in range(0, rows.shape[1], size)]
