from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from harness.data import resident
from harness.data.bank import Bank
from harness.data.manifest import Item
from harness.data.resident import ResidentBank, read_policies, resident_bytes
from harness.data.scan import content_sha256
from harness.data.views import Augmentation, eval_batch, train_batch
from harness.specs import InputSpec

CPU = torch.device("cpu")
INPUTS = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop=0.8)
BICUBIC = InterpolationMode.BICUBIC


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """Return images of 40 px and more, some of them enlarged to that."""
    rng = np.random.default_rng(0)
    shapes = [(40, 40), (40, 71), (66, 40), (17, 30), (33, 12), (40, 53), (90, 61)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    items = [
        Item(id=str(number), label=0, split="train", sha256=content_sha256(image), image=image)
        for number, image in enumerate(images)
    ]
    return Bank.open(items, 40, "bicubic", tmp_path)


def policy_named(registry, name):
    return Augmentation(name, registry.augmentations.get(name).spec.build(INPUTS), "set")


def test_a_bank_knows_the_shapes_of_its_images(bank):
    for row in range(len(bank)):
        assert bank.shape(row) == tuple(bank.image(row).shape[1:])
    assert resident_bytes(bank) == sum(bank.image(row).numel() for row in range(len(bank)))


@pytest.mark.parametrize("name", ["flip-crop", "flip", "none"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("chunk", [1, 1 << 26])
def test_views_made_together_have_the_same_bytes(bank, registry, monkeypatch, name, interpolation, chunk):
    monkeypatch.setattr(resident, "_CHUNK", chunk)
    inputs = dataclasses.replace(INPUTS, interpolation=interpolation)
    policy = Augmentation(name, registry.augmentations.get(name).spec.build(inputs), "set")
    together = ResidentBank(bank, CPU)
    rows = [6, 0, 3, 3, 5, 1, 2, 4]
    for view in range(6):
        expected = train_batch(bank, rows, view, policy)
        for _ in range(2):
            found = together.train_batch(rows, view, policy)
            assert torch.equal(found, expected)


def test_crops_for_evaluation_have_the_same_bytes(bank):
    rows = [4, 1, 0, 6]
    assert torch.equal(ResidentBank(bank, CPU).eval_batch(rows, 33), eval_batch(bank, rows, 33))


def test_the_generators_are_left_as_they_were(bank, registry):
    together, policy = ResidentBank(bank, CPU), policy_named(registry, "flip-crop")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    together.train_batch([0, 1], 0, policy)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_policy_whose_resizing_changes_the_image_is_left_to_the_cpu(bank):
    policy = v2.Compose([v2.Resize(48, interpolation=BICUBIC, antialias=True), v2.CenterCrop(32)])
    assert ResidentBank(bank, CPU).train_batch([0], 0, Augmentation("larger", policy, "set")) is None


def hooked() -> v2.Compose:
    crop = v2.RandomResizedCrop(32)
    crop.register_forward_hook(lambda *_: None)
    return v2.Compose([crop])


class OwnCrop(v2.RandomResizedCrop):
    """Might do anything."""


def brighten(image: Tensor) -> Tensor:
    return image + 1


@pytest.mark.parametrize(
    "policy",
    [
        brighten,
        v2.Compose([v2.RandomHorizontalFlip()]),
        v2.Compose([v2.RandomResizedCrop(32), v2.RandomVerticalFlip()]),
        v2.Compose([v2.RandomResizedCrop(32, antialias=False)]),
        v2.Compose([v2.RandomResizedCrop((32, 24))]),
        v2.Compose([v2.RandomResizedCrop(32, interpolation=InterpolationMode.NEAREST)]),
        v2.Compose([v2.Resize((32, 32)), v2.CenterCrop(32)]),
        v2.Compose([v2.Resize(32, max_size=64), v2.CenterCrop(32)]),
        v2.Compose([v2.Resize(40), v2.CenterCrop((32, 24))]),
        v2.Compose([OwnCrop(32)]),
        hooked(),
    ],
)
def test_any_other_policy_is_left_to_the_cpu(policy):
    assert read_policies(Augmentation("other", policy, "set")) is None


@pytest.mark.parametrize("name", ["trivial-augment", "rand-augment"])
def test_policies_that_do_more_are_left_to_the_cpu(registry, name):
    assert read_policies(policy_named(registry, name)) is None


def test_a_crop_without_a_flip_draws_as_it_does_alone(bank):
    policy = v2.Compose([v2.RandomResizedCrop(24, interpolation=BICUBIC, antialias=True)])
    crop = Augmentation("crop", policy, "set")
    assert torch.equal(
        ResidentBank(bank, CPU).train_batch([2, 5], 1, crop), train_batch(bank, [2, 5], 1, crop)
    )


def test_a_flip_after_a_centre_crop_draws_as_it_does_alone(bank):
    policy = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.RandomHorizontalFlip()])
    rows = list(range(7))
    flip = Augmentation("flip", policy, "set")
    assert torch.equal(ResidentBank(bank, CPU).train_batch(rows, 1, flip), train_batch(bank, rows, 1, flip))


def test_policies_of_different_sizes_are_left_to_the_cpu():
    policies = tuple(v2.Compose([v2.Resize(40), v2.CenterCrop(size)]) for size in (32, 24))
    assert read_policies(Augmentation("sizes", policies, "set")) is None


def test_boxes_are_drawn_once_for_each_policy_and_view(bank, monkeypatch):
    together = ResidentBank(bank, CPU)
    drawn = []
    choose = Augmentation.choose
    monkeypatch.setattr(Augmentation, "choose", lambda *of: (drawn.append((of[1].id, of[2])), choose(*of))[1])
    wide, narrow = (v2.Compose([v2.RandomResizedCrop(32, scale=scale)]) for scale in ((0.9, 1.0), (0.1, 0.2)))
    for policy, view in ((wide, 0), (wide, 0), (wide, 1), (narrow, 0)):
        together.train_batch([0, 1, 0], view, Augmentation("crop", policy, "set"))
    assert drawn == [("0", 0), ("1", 0), ("0", 1), ("1", 1), ("0", 0), ("1", 0)]
