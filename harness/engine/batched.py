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
from harness.engine.linear import ALIGN, HeadJob, HeadResult, LinearHead
from harness.engine.updates import UpdateRule, cross_entropy
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
        on_step: Called after each step of heads that train together, and after each evaluation.
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
        for chunk in _chunks(active, device):
            with kept_random_state():
                _train_epoch(chunk, features, labels, on_step, share)
        features, labels = send(source.split("val"), device), source.labels("val")
        for number, head in enumerate(heads):
            if head not in active or head.error:
                continue
            record = head.evaluate(features, labels, num_classes, epoch)
            on_step()
            # The last epoch's verdict changes nothing: the trial is complete.
            if record and on_epoch(number, record) and epoch + 1 < head.config.epochs:
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
    chosen = torch.zeros(slots, steps, width, dtype=torch.int64)
    rates = np.zeros((steps, slots))
    decays = np.zeros(slots)
    for i, head in enumerate(heads):
        rows[:, i] = head.rows
        head.rows = rows[:, i]
        chosen[i, :, :batch] = head.order
        rates[:, i] = np.multiply(head.base[0], head.factors)
        decays[i] = head.weight_decay
    chosen = chosen.to(device)
    targets = labels[chosen]
    gradients = torch.zeros_like(rows[0])
    (weights, biases), (weight_gradients, bias_gradients) = first.views(rows[0]), first.views(gradients)
    updates = _updates(rule, rows, gradients, rates, decays, first) if rule else []

    # What the products read and write, in their precision: the same memory in every step.
    features = features.to(dtype)
    gathered = features.new_empty(slots * width, features.shape[1])
    inputs = gathered.view(slots, width, -1)
    factors, products = weights.to(dtype), weight_gradients.to(dtype)
    logits = features.new_empty(slots, len(first.weight), width)
    slopes = torch.zeros_like(logits)[:, :, :batch]
    forward = _product(factors, inputs.transpose(1, 2), logits, stacked)
    backward = _product(slopes, inputs[:, :batch], products, stacked)
    losses = torch.zeros(slots, steps, batch, device=device)

    clip = _clipping(heads, gradients, stacked)
    averaged = [head for head in heads if head.config.ema]

    for step in range(steps):
        torch.index_select(features, 0, chosen[:, step].reshape(-1), out=gathered)
        if factors is not weights:
            factors.copy_(weights)
        forward()
        if biases is not None:
            logits += biases.to(dtype).unsqueeze(2)
        if smoothing is not None:
            losses[:, step], gradient = cross_entropy(logits, targets[:, step], smoothing, batch)
            slopes.copy_(gradient)
        else:
            for head, loss, part, target, slope in zip(
                heads, losses[:, step], logits[:, :, :batch], targets[:, step, :batch], slopes, strict=False
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
    for head, loss in zip(heads, losses, strict=False):
        head.finish_epoch(loss, seconds)


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
    device, done = rows.device, first.steps
    step_sizes = torch.from_numpy(rule.step_sizes(rates, done)).float().unsqueeze(2).to(device)
    shrinking = rates * decays if rule.kind == "adamw" else np.tile(decays, (len(rates), 1))
    shrinkage = torch.from_numpy(shrinking).float().unsqueeze(2).to(device)
    size = rows.shape[1] if _is_stacked(device) else max(1, _BLOCK // rows.shape[2])

    def update(part: slice, step: int) -> None:
        rule.update(
            rows[0, part],
            gradients[part],
            rows[1:, part].unbind(),
            step_sizes=step_sizes[step, part],
            decays=shrinkage[step, part],
            decayed=first.weight.numel(),
            step=done + step,
        )

    return [partial(update, slice(start, start + size)) for start in range(0, rows.shape[1], size)]
