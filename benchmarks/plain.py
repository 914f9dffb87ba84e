"""The loop that everybody writes: PIL, torchvision, a DataLoader, frozen layers without gradients.

Kept as the reference for what the engine saves. It decodes and resizes each image in each epoch, runs the
whole model on it, and leaves frozen modules in eval mode. Weight decay, warm-up, cosine and clipping are
those of the default study.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm.optim
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from harness import metrics
from harness.engine.freeze import FreezePlan, set_train_mode


class Photos(Dataset):
    """Files of a split with their labels, decoded whenever one is asked for."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.classes = sorted(path.name for path in folder.iterdir())
        self._files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).iterdir())
        ]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        file, label = self._files[row]
        with Image.open(file) as image:
            return self._transform(image.convert("RGB")), label


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainResult:
    """What a training by the plain loop came to."""

    seconds: list[float]
    """CPU seconds of each epoch with its validation."""
    scores: list[tuple[float, float]]
    """Accuracy and macro-F1 on the validation split after each epoch, in [0, 1]."""
    step: float
    """CPU seconds of the quickest step, its images being there."""
    probabilities: Tensor
    """(N, classes) on the validation split after the last epoch."""


def train_plain(
    model: nn.Module,
    plan: FreezePlan,
    folder: Path,
    *,
    size: int,
    batch: int,
    epochs: int,
    lr: float,
    seed: int,
    optimizer: str = "adamw",
    fused: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
    precision: str = "fp32",
    transform: Callable[[Image.Image], Tensor] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> PlainResult:
    """Train a model to which a plan is applied.

    Args:
        model: Maps (N, 3, size, size) to logits.
        plan: What of it is frozen.
        folder: Of `train` and `val`.
        size: Side of the images, in pixels.
        batch: Images of a step.
        epochs: Of the training.
        lr: The largest learning rate.
        seed: Of the order of the images.
        optimizer: timm's name of it.
        fused: Whether to take torch's fused kernels for it.
        layout: Of the model and its images in memory.
        precision: `fp32`, or `bf16` by autocast.
        transform: From an image to (3, size, size); None: short side and centre crop by torchvision.
        augment: Of what that makes of a training image; None: nothing.
    """
    transform = transform or resize_and_crop(size)
    augmented = v2.Compose([transform, augment]) if augment else transform
    train, val = Photos(folder / "train", augmented), Photos(folder / "val", transform)
    batch = min(batch, len(train))
    model.to(memory_format=layout)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # timm leaves biases and norms out of the weight decay.
    kernels = {"fused": True} if fused else {}
    updater = timm.optim.create_optimizer_v2(model, opt=optimizer, lr=lr, weight_decay=0.05, **kernels)
    amp = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    factor = partial(_warmed_up_cosine, epochs * (len(train) // batch))
    schedule = torch.optim.lr_scheduler.LambdaLR(updater, factor)
    seconds, scores, steps = [], [], []
    # What a loader draws for workers that it does not have must not shift dropout.
    generator = torch.Generator()
    torch.manual_seed(seed)
    for epoch in range(epochs):
        began = time.process_time()
        order = np.random.default_rng([seed, epoch]).permutation(len(train)).tolist()
        set_train_mode(model, plan)
        for images, labels in DataLoader(train, batch, sampler=order, drop_last=True, generator=generator):
            images = images.contiguous(memory_format=layout)
            start = time.process_time()
            with amp():
                logits = model(images)
            loss = cross_entropy(logits.float(), labels)
            updater.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            updater.step()
            schedule.step()
            steps.append(time.process_time() - start)
        model.eval()
        with torch.inference_mode(), amp():
            found = [
                (model(images.contiguous(memory_format=layout)).float().softmax(1), labels)
                for images, labels in DataLoader(val, batch, generator=generator)
            ]
        probabilities, truth = (torch.cat(part) for part in zip(*found, strict=True))
        chosen = probabilities.argmax(1).numpy()
        scores.append(metrics.point_scores(truth.numpy(), chosen, len(train.classes)))
        seconds.append(time.process_time() - began)
    return PlainResult(seconds=seconds, scores=scores, step=min(steps), probabilities=probabilities)


def resize_and_crop(size: int) -> Callable[[Image.Image], Tensor]:
    """Return the usual transform of an evaluation."""
    return v2.Compose(
        [
            v2.Resize(size, antialias=True),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def _warmed_up_cosine(steps: int, step: int) -> float:
    """Return the factor on the learning rate: up over a tenth of the steps, then half a cosine to zero."""
    warm = steps // 10
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
