from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.bank import Bank
from harness.data.manifest import Item
from harness.data.resident import ResidentBank
from harness.data.scan import content_sha256
from harness.data.views import Augmentation
from harness.engine.source import Images
from harness.specs import InputSpec

INPUTS = InputSpec(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop=0.8)
CPU = torch.device("cpu")


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, 20 + number, 3), dtype=np.uint8) for number in range(12)]
    items = [
        Item(id=str(number), label=0, split="train", sha256=content_sha256(image), image=image)
        for number, image in enumerate(images)
    ]
    return Bank.open(items, 20, "bicubic", tmp_path)


@pytest.fixture
def make(bank, registry):
    def make(keep=lambda split: None, policy="flip-crop"):
        labels = torch.zeros(len(bank), dtype=torch.int64)
        return Images(
            {"train": bank, "val": bank},
            {"train": labels, "val": labels},
            augmentation=Augmentation(policy, registry.augmentations.get(policy).spec.build(INPUTS), "set"),
            policy_key="",
            inputs=INPUTS,
            device=CPU,
            keep=keep,
        )

    return make


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_the_same_wherever_they_are_made(make, bank, split):
    plain, resident = make(), make(keep=lambda split: ResidentBank(bank, CPU))
    for rows in ([3, 1, 7], range(12)):
        (expected,), (found,) = plain.fetch(split, 2, rows), resident.fetch(split, 2, rows)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
    if split == "train":
        assert (plain.place, resident.place) == ("host", "device")


class Spoiled(ResidentBank):
    """A device that computes otherwise."""

    def _resize(self, rows, boxes, size, interpolation):
        pixels = super()._resize(rows, boxes, size, interpolation).clone()
        pixels[-1, 0, 0, 0] ^= 1
        return pixels


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_device_that_makes_other_pixels_is_not_used(make, bank, split):
    images = make(keep=lambda split: Spoiled(bank, CPU))
    assert torch.equal(images.fetch(split, 0, [0, 1])[0], make().fetch(split, 0, [0, 1])[0])
    if split == "train":
        assert images.place == "host"


def test_images_that_find_no_room_on_the_device_after_all_stay_on_the_host(make):
    def full(split):
        raise torch.OutOfMemoryError("out of memory")

    images = make(keep=full)
    assert torch.equal(images.fetch("train", 0, [0, 1])[0], make().fetch("train", 0, [0, 1])[0])
    assert images.place == "host"


def test_images_that_a_policy_needs_on_the_cpu_take_no_room_on_the_device(make):
    asked = []
    images = make(keep=asked.append, policy="trivial-augment")
    assert images.place == ""
    images.fetch("train", 0, [0])
    assert asked == []
    images.fetch("val", 0, [0])
    assert asked == ["val"]


@pytest.mark.parametrize(("policy", "views"), [("none", 1), ("flip", 2), ("flip-crop", 5)])
def test_epochs_show_the_views_there_are_in_turn(make, policy, views):
    images = make(policy=policy)
    assert images.views(5) == views
    assert images.views(1) == 1
    assert [images.view(epoch) for epoch in range(5)] == [epoch % views for epoch in range(5)]


def test_the_device_is_asked_for_room_once(make):
    asked = []
    images = make(keep=asked.append)
    for _ in range(3):
        images.fetch("train", 0, [0])
    assert asked == ["train"]
