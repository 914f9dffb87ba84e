"""A data set, backbones and misbehaving components that train in a blink, for tests."""

from __future__ import annotations

import os
import time

import numpy as np

from harness import BackboneSpec, DatasetSpec, InputSpec, LossSpec, Sample, hookimpl

SIZES = {"train": 24, "val": 12, "test": 12}


def build_dots(folder, download):
    """Three classes told apart by the bright third of the image."""
    random = np.random.default_rng(0)
    for split, count in SIZES.items():
        for index in range(count):
            label = index % 3
            pixels = random.integers(0, 120, (24, 24, 3), dtype=np.uint8)
            pixels[:, 8 * label : 8 * label + 8] += 100
            yield Sample(id=f"{split}/{index:03d}", label=f"class-{label}", image=pixels, split=split)


def build_tiny_net(num_classes, weights, image_size):
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(256, num_classes),
    )


def build_wide_net(num_classes, weights, image_size):
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 12, 4, stride=4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Linear(432, num_classes),
    )


def build_crashing(classes):
    os._exit(7)


def build_hanging(classes):
    time.sleep(3600)


def build_raising(classes):
    raise RuntimeError("this loss is out of order")


def build_nan(classes):
    from torch import nn

    class NanLoss(nn.Module):
        def forward(self, logits, labels):
            return logits.sum() * float("nan")

    return NanLoss()


def build_oom(classes):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory (injected)")


def build_mumbling(classes):
    raise RuntimeError("caf\udce9")


def build_drawing(classes):
    import random

    from torch import nn

    class DrawingLoss(nn.Module):
        def forward(self, logits, labels):
            return nn.functional.cross_entropy(logits, labels) * (np.random.rand() + random.random())

    return DrawingLoss()


def build_slow(classes):
    from torch import nn

    class SlowLoss(nn.Module):
        def forward(self, logits, labels):
            time.sleep(0.05)
            return nn.functional.cross_entropy(logits, labels)

    return SlowLoss()


@hookimpl
def harness_datasets():
    yield DatasetSpec(
        name="dots",
        summary="bright stripes",
        build=build_dots,
        licence="CC0-1.0",
        url="https://example.org/dots",
    )


@hookimpl
def harness_backbones():
    small = InputSpec(size=24, crop=1.0, interpolation="bilinear")
    yield BackboneSpec(name="tiny-net", summary="two convolutions", build=build_tiny_net, input=small)
    yield BackboneSpec(name="wide-net", summary="one convolution", build=build_wide_net, input=small)


@hookimpl
def harness_losses():
    for name, build in (
        ("crashing", build_crashing),
        ("hanging", build_hanging),
        ("raising", build_raising),
        ("nan", build_nan),
        ("oom", build_oom),
        ("slow", build_slow),
        ("drawing", build_drawing),
        ("mumbling", build_mumbling),
    ):
        yield LossSpec(name=name, summary=f"{name}, for tests", build=build)
