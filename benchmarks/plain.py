"""The loop that everybody writes: PIL, torchvision, a DataLoader, frozen layers without gradients.

Kept as the reference for what the engine saves. It decodes and resizes each image in each epoch, runs the
whole model on it, and leaves frozen modules in eval mode.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from harness.engine.freeze import FreezePlan, set_train_mode


class Photos(Dataset):
    """Files of a split with their labels, decoded whenever one is asked for."""

    def __init__(self, folder: Path, size: int) -> None:
        classes = sorted(path.name for path in folder.iterdir())
        self._files = [
            (file, label) for label, name in enumerate(classes) for file in sorted((folder / name).iterdir())
        ]
        self._transform = v2.Compose(
            [
                v2.Resize(size, antialias=True),
                v2.CenterCrop(size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        file, label = self._files[row]
        with Image.open(file) as image:
            return self._transform(image.convert("RGB")), label


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
) -> tuple[list[float], list[float]]:
    """Train a model to which a plan is applied.

    Returns:
        Seconds of each epoch with its validation, and the accuracy on the validation split after it, in [0,
        1].
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    train, val = Photos(folder / "train", size), Photos(folder / "val", size)
    seconds, accuracies = [], []
    for epoch in range(epochs):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed + epoch)
        set_train_mode(model, plan)
        for images, labels in DataLoader(train, batch, shuffle=True, drop_last=True, generator=generator):
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right = []
        with torch.inference_mode():
            for images, labels in DataLoader(val, batch):
                right.append((model(images).argmax(1) == labels).float().numpy())
        seconds.append(time.perf_counter() - began)
        accuracies.append(float(np.concatenate(right).mean()))
    return seconds, accuracies
