"""Named data sets: generated shapes, and public sets through torchvision with their official splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from harness import DatasetSpec, Sample, hookimpl
from harness_builtin.shapes import build_shapes

Part = tuple[Literal["train", "val", "test"], Any]
NOT_STATED = "not stated"

# Traffic signs have numbers upstream; these are the names of the benchmark's own table.
_SIGNS = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
    "speed limit 80", "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing",
    "no passing for trucks", "right of way at next intersection", "priority road", "yield", "stop",
    "no vehicles", "no trucks", "no entry", "general caution", "dangerous curve left",
    "dangerous curve right", "double curve", "bumpy road", "slippery road", "road narrows on the right",
    "road work", "traffic signals", "pedestrians", "children crossing", "bicycles crossing", "ice or snow",
    "wild animals crossing", "end of all limits", "turn right ahead", "turn left ahead", "ahead only",
    "straight or right", "straight or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for trucks",
)  # fmt: skip


def build_flowers(folder: Path, download: bool) -> Iterable[Sample]:
    """Oxford 102 flowers: 1,020 train, 1,020 val, 6,149 test."""
    from torchvision.datasets import Flowers102

    parts: list[Part] = [
        (split, Flowers102(folder, split, download=download)) for split in ("train", "val", "test")
    ]
    return _files(folder, parts, "_image_files", "_labels")


def build_pets(folder: Path, download: bool) -> Iterable[Sample]:
    """Oxford-IIIT pets: 3,680 trainval, 3,669 test."""
    from torchvision.datasets import OxfordIIITPet

    parts: list[Part] = [
        ("train", OxfordIIITPet(folder, "trainval", download=download)),
        ("test", OxfordIIITPet(folder, "test", download=download)),
    ]
    return _files(folder, parts, "_images", "_labels")


def build_dtd(folder: Path, download: bool) -> Iterable[Sample]:
    """Describable textures, partition 1: 1,880 images in each split."""
    from torchvision.datasets import DTD

    parts: list[Part] = [
        (split, DTD(folder, split, partition=1, download=download)) for split in ("train", "val", "test")
    ]
    return _files(folder, parts, "_image_files", "_labels")


def build_eurosat(folder: Path, download: bool) -> Iterable[Sample]:
    """EuroSAT, the RGB version: 27,000 images without a split."""
    from torchvision.datasets import EuroSAT

    data = EuroSAT(folder, download=download)
    for path, label in data.samples:
        yield Sample(id=_relative(path, folder), label=data.classes[label], image=Path(path))


def build_cifar10(folder: Path, download: bool) -> Iterable[Sample]:
    """CIFAR-10: 50,000 train, 10,000 test, 32 pixels."""
    from torchvision.datasets import CIFAR10

    return _arrays("train", CIFAR10(folder, True, download=download)), CIFAR10(folder, False)


def build_cifar100(folder: Path, download: bool) -> Iterable[Sample]:
    """CIFAR-100, the fine labels: 50,000 train, 10,000 test, 32 pixels."""


def build_food101(folder: Path, download: bool) -> Iterable[Sample]:
    """Food-101: 75,750 train, 25,250 test."""
    from torchvision.datasets import Food101

    parts: list[Part] = [
        (split, Food101(folder, split, download=download)) for split in ("train", "test")
    ]
    return _files(folder, parts, "_image_files", "_labels")
