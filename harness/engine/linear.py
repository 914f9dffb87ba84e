"""One linear head while it trains: its numbers, and whatever its plugins compute.

What a plugin wrote runs for one head at a time, on that head's own random numbers, and its errors are that
head's alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from harness import metrics
from harness.engine.fit import DivergedError, Prediction, build_optimizer, warmed_up
from harness.engine.precision import dtype_of
from harness.engine.randomness import RandomState
from harness.engine.updates import rule_of, smoothing_of
from harness.isolation import naming
from harness.records import EpochRecord, TrialConfig
from harness.specs import OptimizerSpec, ScheduleSpec

ALIGN = 32
"""Floats. Whatever belongs to a head starts at a multiple of them: BLAS may round otherwise where memory is
aligned otherwise, and torch where a row ends within a vector of its loops."""
_EVAL_ROWS = 512

Head: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight (C, D) and bias (C,), or None for a head without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadJob:
    """A linear head and how it trains. No two jobs share a loss module."""

    config: TrialConfig
    """Its precision is not `auto`."""
    weight: Tensor
    """(C, D) float32, where training starts; stays as it is."""
    bias: Tensor | None
    """(C,) float32."""
    loss: nn.Module
    """`(logits, labels) -> scalar`."""
    optimizer: OptimizerSpec
    schedule: ScheduleSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadResult:
    """What the training of a head leaves behind."""

    head: Head
    """To evaluate: the averaged one where an average was kept."""
    curve: tuple[EpochRecord, ...]
    val: Prediction | None
    """Of the last epoch; None where no epoch was completed."""
    pruned: bool
    error: Exception | None
    """Why the head failed: DivergedError, or what its loss, optimizer or schedule raised."""
    seconds: float
    """Its share of the training time."""
    images: int


class LinearHead:
    """A head while it trains. Rows hold its parameters, then each moment of theirs, in one padded layout."""

    def __init__(self, job: HeadJob, train_size: int, device: torch.device) -> None:
        config = self.config = job.config
        self.batch = min(config.batch_size, train_size)
        self.steps_per_epoch, self.train_size = train_size // self.batch, train_size
        self.dtype = dtype_of(config.precision)
        self.images = 0
        self.seconds = self.epoch_seconds = self.train_loss = 0.0
        self.curve: list[EpochRecord] = []
        self.val: Prediction | None = None
        self.pruned = False
        self.error: Exception | None = None
        self.random = RandomState(config.seed, device)

        self.model = nn.Module()
        self.weight = self.model.weight = nn.Parameter(job.weight.detach().to(device, copy=True))
        self.bias: nn.Parameter | None = None
        if job.bias is not None:
            self.bias = self.model.bias = nn.Parameter(job.bias.detach().to(device, copy=True))
        self.rows = self.weight.new_zeros(1, padded(self.weight) + padded(self.bias))
        self.store()
        ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema else None
        self.ema_decay = ema.get_decay if ema else None
        self.average = self.rows[0].clone() if ema else None
        with self.alone():
            self.loss = job.loss
            self.optimizer = build_optimizer(self.model, self.loss, config, job.optimizer)
            self.base = [group["lr"] for group in self.optimizer.param_groups]
            steps = config.epochs * self.steps_per_epoch
            self.schedule = list(map(warmed_up(job.schedule, steps, config.warmup), range(steps)))
            self.smoothing = smoothing_of(self.loss)
            self.rule, self.weight_decay = rule_of(self.optimizer, self.weight, self.bias)
            self.rows = self.rows.repeat(1 + (self.rule.moments if self.rule else 0), 1)
            self.rows[1:] = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run what a plugin wrote: an error is this head's, and random numbers are its own."""
        try:
            with self.random:
                yield
        except Exception as error:
            self.error = error

    def begin(self, epoch: int) -> bool:
        """Prepare an epoch; false if there is none."""
        if self.error or self.pruned or epoch >= self.config.epochs:
            return False
        self.steps = epoch * self.steps_per_epoch
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train_size)
        self.order = torch.from_numpy(order[: self.steps_per_epoch * self.batch]).view(-1, self.batch)
        self.factors = self.schedule[self.steps : self.steps + self.steps_per_epoch]
        return True

    def views(self, rows: Tensor) -> Head:
        """Return weights (..., C, D) and biases (..., C) that lie in rows (..., P)."""
        weight = rows[..., : self.weight.numel()].unflatten(-1, self.weight.shape)
        start = padded(self.weight)
        return weight, None if self.bias is None else rows[..., start : start + len(self.bias)]

    def store(self) -> None:
        """Copy the parameters that an optimizer module works on to the row."""
        for view, parameter in zip(self.views(self.rows[0]), (self.weight, self.bias), strict=True):
            if view is not None and parameter is not None:
                view.copy_(parameter.detach())

    def head(self) -> Head:
        """Return what is evaluated."""
        return self.views(self.rows[0] if self.average is None else self.average)

    def apply_loss(self, logits: Tensor, labels: Tensor, loss: Tensor, slopes: Tensor) -> None:
        """Write the loss module's value, and its gradient at the logits, both (C, B)."""
        if self.error:
            return
        with self.alone():
            leaf = logits.t().float().contiguous().requires_grad_()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad(), naming("loss", self.config.loss):
                value: Tensor = self.loss(leaf, labels)
            value.backward()
            loss.copy_(value.detach())
            slopes.zero_() if leaf.grad is None else slopes.copy_(leaf.grad.t())

    def clip(self, gradient: Tensor) -> None:
        """Bring a gradient's norm down to the largest allowed, as `clip_grad_norm_` does."""
        norm = torch.linalg.vector_norm(gradient)
        gradient *= (self.config.clip_grad / (norm + 1e-6)).clamp(max=1.0)

    def step(self, gradient: Tensor, step: int) -> None:
        """Take a step of the optimizer module itself."""
        if self.error:
            return
        with self.alone():
            # Clones: the optimizer may keep them.
            weight, bias = self.views(gradient.clone())
            self.weight.grad = weight
            if self.bias is not None:
                self.bias.grad = bias
            for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
                group["lr"] = lr * self.factors[step]
            with naming("optimizer", self.config.optimizer):
                self.optimizer.step()
            self.store()

    def update_average(self, step: int) -> None:
        """Move the averaged parameters towards the row's."""
        if self.average is not None and self.ema_decay is not None:
            self.average.lerp_(self.rows[0], 1 - self.ema_decay(self.steps + step))

    def finish_epoch(self, losses: Tensor, seconds: float) -> None:
        """Note the losses of an epoch's images and its training time."""
        self.train_loss = float(losses.double().mean())
        if self.error is None and not np.isfinite(self.train_loss):
            epoch = self.steps // self.steps_per_epoch + 1
            self.error = DivergedError(
                f"the training loss is {self.train_loss} in epoch {epoch}, lr {self.config.lr:.3g}"
            )
        self.images += losses.numel()
        self.epoch_seconds = seconds
        self.seconds += seconds

    def score(self, probabilities: Tensor, labels: npt.NDArray[np.int64], epoch: int, seconds: float) -> None:
        """Note what an epoch's probabilities (N, C) are worth, or that they cannot be scored.

        `seconds` is how long they took to compute.
        """
        started = time.perf_counter()
        predicted = probabilities.numpy()
        if not np.isfinite(predicted.sum()):
            self.error = DivergedError(f"outputs on the val split are not finite, lr {self.config.lr:.3g}")
            return
        self.val = predicted, labels
        accuracy, f1 = metrics.point_scores(labels, predicted.argmax(axis=1), predicted.shape[1])
        self.curve.append(
            EpochRecord(
                epoch=epoch + 1,
                lr=self.base[0] * self.factors[-1],
                train_loss=self.train_loss,
                val_accuracy=accuracy,
                val_f1=f1,
                seconds=self.epoch_seconds + seconds + time.perf_counter() - started,
            )
        )

    def result(self) -> HeadResult:
        """Return what there is."""
        weight, bias = self.head()
        return HeadResult(
            # Copies: a row is part of what a whole chunk needed to train.
            head=(weight.clone(), None if bias is None else bias.clone()),
            curve=tuple(self.curve),
            val=self.val,
            pruned=self.pruned,
            error=self.error,
            seconds=self.seconds,
            images=self.images,
        )


def padded(tensor: Tensor | None) -> int:
    """Return the floats that a tensor takes in a row."""
    return 0 if tensor is None else -(-tensor.numel() // ALIGN) * ALIGN


def predict_heads(
    heads: Sequence[Head], features: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return each head's class probabilities (N, C), float32 on the CPU, the same bits in any company.

    Args:
        heads: On one device, with as many classes.
        features: (N, D) on that device.
        dtype: What the products are computed in: bfloat16 where the training's were.
    """
    heads = [(weight.to(dtype), None if bias is None else bias.to(dtype)[:, None]) for weight, bias in heads]
    num_classes = len(heads[0][0])
    probabilities = [torch.empty(len(features), num_classes) for _ in heads]
    width = min(_EVAL_ROWS, -(-len(features) // ALIGN) * ALIGN)
    # The same memory for all parts, as new pages take longer than what is computed in them. Zeros: what lies
    # behind the last image goes through the softmax too.
    logits = features.new_zeros(len(heads), num_classes, width, dtype=dtype)
    shares = torch.empty_like(logits, dtype=torch.float32)
    turned = shares.new_empty(len(heads), width, num_classes)
    for start in range(0, len(features), _EVAL_ROWS):
        part = features[start : start + _EVAL_ROWS].to(dtype).t()
        for (weight, bias), out in zip(heads, logits[:, :, : part.shape[1]], strict=True):
            if bias is None:
                torch.mm(weight, part, out=out)
            else:
                # In one, as a layer does: in bf16 a sum that is rounded twice is another class now and then.
                torch.addmm(bias, weight, part, out=out)
        # Classes first: over a few numbers that lie side by side torch's softmax is many times slower. Its
        # logarithm, as in training: how softmax itself rounds depends on how many heads there are.
        torch.exp(torch.log_softmax(logits.float(), dim=1, out=shares), out=shares)
        turned.copy_(shares.transpose(1, 2))
        for rows, own in zip(probabilities, turned.cpu(), strict=True):
            rows[start : start + _EVAL_ROWS] = own[: part.shape[1]]
    return probabilities
