"""The training loop: plain torch, one loop for every trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import timm.optim
import timm.utils
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness import metrics
from harness.engine.cut import Cut, Forward, bind_suffix
from harness.engine.freeze import FreezePlan, set_train_mode
from harness.engine.precision import autocast
from harness.engine.source import Source
from harness.errors import PluginError
from harness.isolation import naming
from harness.records import EpochRecord, TrialConfig
from harness.specs import OptimizerSpec, ParamGroup, ScheduleSpec

Prediction: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Class probabilities (N, C) and labels (N,), in the order of their split."""


Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(logits, labels) -> scalar`."""

_SHORTAGE = (
    # Of cuDNN, when no algorithm found the room to run.
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class DivergedError(Exception):
    """The loss or the outputs stopped being finite numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What training leaves behind."""

    model: nn.Module
    """The weights to evaluate: the averaged ones where an average was kept."""
    curve: tuple[EpochRecord, ...]
    val: Prediction
    """Of the last epoch."""
    pruned: bool
    seconds: float
    images: int
    micro_batch: int
    """Images that went through the model at a time."""
    norm_in_parts: bool
    """Whether a BatchNorm that trains saw parts of a batch."""


def fit(
    model: nn.Module,
    source: Source,
    config: TrialConfig,
    *,
    plan: FreezePlan,
    cut: Cut,
    loss: nn.Module,
    optimizer: OptimizerSpec,
    schedule: ScheduleSpec,
    num_classes: int,
    device: torch.device,
    on_step: Callable[[], None],
    on_epoch: Callable[[EpochRecord], bool],
    forward: Forward | None = None,
    make_room: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train a model and evaluate it on the validation split after each epoch.

    Args:
        model: On `device`, with `plan` applied.
        source: Yields the batches.
        config: Epochs, batch size, learning rate and the like; its precision is not `auto`.
        plan: Says which modules stay in evaluation mode.
        cut: Says what of the model the batches have behind them.
        loss: `(logits, labels) -> scalar`, on `device`.
        optimizer: Builds the optimizer from the trainable parameters.
        schedule: Follows the warm-up.
        num_classes: C.
        device: Where it trains.
        on_step: Called after each step.
        on_epoch: Called after each epoch; true ends the training.
        forward: Runs the trainable part in training; None: what is behind `cut`, as it is written.
        make_room: Gives up memory of the device that the training does not need; says whether there was any.

    A batch that does not fit into memory goes through in halves, quarters and so on.

    Raises:
        DivergedError: The loss or the logits are not finite.
        PluginError: There are more or fewer logits than classes.
        OutOfMemoryError: One image does not fit.
    """
    updater = build_optimizer(model, loss, config, optimizer)
    base = [group["lr"] for group in updater.param_groups]
    steps_per_epoch = max(1, source.train_size // config.batch_size)
    factor = warmed_up(schedule, config.epochs * steps_per_epoch, config.warmup)
    average = timm.utils.ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    evaluated = average.module if average else model
    run_evaluated = bind_suffix(evaluated, cut)
    run = forward or (bind_suffix(model, cut) if average else run_evaluated)

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        with naming("loss", config.loss):
            value: Tensor = loss(logits, labels)
            return value

    step = images = 0
    parts = 1
    curve: list[EpochRecord] = []
    pruned = norm_in_parts = False
    training_seconds = 0.0
    for epoch in range(config.epochs):
        started = time.perf_counter()
        set_train_mode(model, plan)
        total = torch.zeros((), device=device)
        batches = 0
        for inputs, labels in source.train_batches(epoch, config.batch_size, config.seed):
            for group, lr in zip(updater.param_groups, base, strict=True):
                group["lr"] = lr * factor(step)
            while True:
                updater.zero_grad(set_to_none=True)
                try:
                    value = backward(run, criterion, inputs, labels, parts, config.precision)
                    break
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    freed = make_room()
                    if not freed and parts >= len(labels):
                        raise
                # Out here, where the error no longer holds what its frames held.
                if not freed:
                    # For good: what did not fit once will not fit the next time.
                    parts = min(2 * parts, len(labels))
                    norm_in_parts = any(_is_training_norm(module) for module in model.modules())
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            if config.clip_grad:
                nn.utils.clip_grad_norm_(trainable, config.clip_grad)
            with naming("optimizer", config.optimizer):
                updater.step()
            if average:
                average.update(model, step=step)
            total += value
            batches += 1
            images += len(labels)
            step += 1
            on_step()
        mean_loss = float(total) / batches
        if not np.isfinite(mean_loss):
            raise DivergedError(f"the training loss is {mean_loss} in epoch {epoch + 1}, lr {config.lr:.3g}")
        training_seconds += time.perf_counter() - started
        val = predict_split(evaluated, run_evaluated, source, "val", config, device, on_step)
        probabilities, labels_seen = val
        if probabilities.shape[1] != num_classes:
            raise PluginError(
                f"the backbone answers with {probabilities.shape[1]} classes where there are {num_classes}",
                where=type(model).__name__,
                fixes=["let BackboneSpec.build use the number of classes that it is given"],
            )
        accuracy, f1 = metrics.point_scores(labels_seen, probabilities.argmax(axis=1), num_classes)
        record = EpochRecord(
            epoch=epoch + 1,
            lr=base[0] * factor(step - 1),
            train_loss=mean_loss,
            val_accuracy=accuracy,
            val_f1=f1,
            seconds=time.perf_counter() - started,
        )
        curve.append(record)
        # The last epoch's verdict changes nothing: the trial is complete.
        if on_epoch(record) and epoch + 1 < config.epochs:
            pruned = True
            break
    return FitResult(
        model=evaluated,
        curve=tuple(curve),
        val=val,
        pruned=pruned,
        seconds=training_seconds,
        images=images,
        micro_batch=-(-min(config.batch_size, source.train_size) // parts),
        norm_in_parts=norm_in_parts,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Say whether a device's memory did not suffice, in whichever words its libraries say so."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGE)
    )


def _is_training_norm(module: nn.Module) -> bool:
    """Say whether a module normalises by the statistics of the batch that it sees."""
    norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    return isinstance(module, norms) and module.training


def backward(
    run: Forward, loss: Criterion, inputs: Sequence[Tensor], labels: Tensor, parts: int, precision: str
) -> Tensor:
    """Add up the gradients of a batch that goes through in parts, and return its mean loss.

    The sum is that of the whole batch for a loss that is a mean over images, but for the statistics of a
    BatchNorm that trains, which are each part's own.
    """
    total = torch.zeros((), device=labels.device)
    sizes = [len(part) for part in labels.chunk(parts)]
    for *own, targets in zip(*(tensor.split(sizes) for tensor in (*inputs, labels)), strict=True):
        with autocast(precision, labels.device):
            logits = run(own, True)
        value = loss(logits.float(), targets) * (len(targets) / len(labels))
        value.backward()
        total += value.detach()
    return total


def predict_split(
    model: nn.Module,
    run: Forward,
    source: Source,
    split: str,
    config: TrialConfig,
    device: torch.device,
    on_step: Callable[[], None] = lambda: None,
) -> Prediction:
    """Return class probabilities and labels of a split.

    Args:
        model: Is put into eval mode.
        run: The model's part after its cut.
        source: Yields the batches.
        split: Of them.
        config: Batch size and precision, which is not `auto`.
        device: Where it runs.
        on_step: Called after each batch.

    Raises:
        DivergedError: A logit is not finite. Its argmax would be a legal class, and its score a lie.
    """
    # Attention of LeViT and its kin keeps biases in eval mode, in timm 1.0.20 until it is trained again. An
    # average of weights never is: it would be evaluated with those of the epoch before.
    model.train()
    model.eval()
    outputs, labels = [], []
    with torch.inference_mode():
        for inputs, batch_labels in source.eval_batches(split, config.batch_size):
            with autocast(config.precision, device):
                logits = run(inputs, False)
            outputs.append(torch.softmax(logits.float(), dim=1))
            labels.append(batch_labels)
            on_step()
    # Once: each copy to the CPU waits for all that the GPU has to do.
    probabilities = torch.cat(outputs).cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise DivergedError(f"outputs on the {split} split are not finite, lr {config.lr:.3g}")
    return probabilities, torch.cat(labels).cpu().numpy()


def build_optimizer(model: nn.Module, loss: nn.Module, config: TrialConfig, spec: OptimizerSpec) -> Optimizer:
    """Build the optimizer over what trains; biases and norm scales get no weight decay."""
    # timm's networks name more parameters that decay would hurt: position embeddings and the like.
    name_exempt: Any = getattr(model, "no_weight_decay", None)
    exempt = name_exempt() if callable(name_exempt) else ()
    groups: list[ParamGroup] = timm.optim.param_groups_weight_decay(
        model, weight_decay=config.weight_decay, no_weight_decay_list=exempt
    )
    own = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    groups.append({"params": own, "weight_decay": 0.0})
    with naming("optimizer", config.optimizer):
        return spec.build([{**group, "lr": config.lr} for group in groups if group["params"]])


def warmed_up(schedule: ScheduleSpec, steps: int, warmup: float) -> Callable[[int], float]:
    """Return step -> factor on the learning rate: a linear rise, then the schedule."""
    warm = int(steps * warmup)
    with naming("schedule", schedule.name):
        after = schedule.build(max(1, steps - warm))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        with naming("schedule", schedule.name):
            # A factor that is an array or a tensor would be a record's learning rate, too.
            return float(after(step - warm))

    return factor
