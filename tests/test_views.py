from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.data.bank import Bank, short_side
from harness.data.manifest import Item
from harness.data.scan import content_sha256
from harness.data.views import Augmentation, eval_batch, normalise, train_batch
from harness.errors import PluginError
from harness.specs import InputSpec


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 24 + index, 3), dtype=np.uint8) for index in range(6)]
    items = [
        Item(id=str(index), label=0, split="train", sha256=content_sha256(image), image=image)
        for index, image in enumerate(images)
    ]
    return Bank.open(items, 16, "bicubic", tmp_path)


def policy(image: Tensor) -> Tensor:
    """Draw from all three generators."""
    top = int(torch.randint(0, 9, ()))
    left = int(np.random.randint(0, 9))
    cut = image[:, top : top + 8, left : left + 8]
    return cut.flip(2) if random.random() < 0.5 else cut


def batch(bank: Bank, rows: list[int], view: int = 0, name: str = "crop", key: str = "set") -> Tensor:
    return train_batch(bank, rows, view, Augmentation(name, policy, key))


def test_a_batch_has_the_policys_size(bank: Bank) -> None:
    views = batch(bank, [0, 1, 2])
    assert views.dtype == torch.uint8
    assert tuple(views.shape) == (3, 3, 8, 8)
    assert views.is_contiguous()


def test_a_view_does_not_depend_on_the_batch_or_its_order(bank: Bank) -> None:
    whole = batch(bank, [0, 1, 2, 3, 4, 5])
    assert torch.equal(batch(bank, [5, 3, 1]), whole[[5, 3, 1]])
    assert torch.equal(torch.cat([batch(bank, [row]) for row in range(6)]), whole)


def test_a_view_does_not_depend_on_the_global_generators(bank: Bank) -> None:
    torch.manual_seed(1)
    first = batch(bank, [0, 1])
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert torch.equal(batch(bank, [0, 1]), first)


def test_a_view_belongs_to_the_image_not_to_its_row(bank: Bank, tmp_path: Path) -> None:
    turned = Bank.open(bank.items[::-1], 16, "bicubic", tmp_path)
    assert torch.equal(batch(turned, [5, 0]), batch(bank, [0, 5]))


def test_views_policies_and_data_sets_differ(bank: Bank) -> None:
    rows = list(range(6))
    first = batch(bank, rows)
    for other in (batch(bank, rows, view=1), batch(bank, rows, name="b"), batch(bank, rows, key="c")):
        assert not torch.equal(other, first)


def test_the_generators_are_left_as_they_were(bank: Bank) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)])
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    batch(bank, [0, 1, 2])
    found = (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)])
    assert found == expected


def test_the_generators_are_restored_after_a_failure(bank: Bank) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(PluginError):
        train_batch(bank, [0], 0, Augmentation("crop", lambda image: image.no_such_thing, "set"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda image: None, "returns NoneType"),
        (lambda image: image.float(), "returns torch.float32"),
        (lambda image: image, r"returns shape \(3, 16, \d+\)"),
        (lambda image: image[0, :8, :8], r"returns shape \(8, 8\)"),
        (lambda image: image[:, : image.shape[2] - 12, : image.shape[2] - 12], "after"),
        (lambda image: 1 / 0, "fails on an image of shape"),
    ],
)
def test_a_wrong_policy_is_named(bank: Bank, bad: object, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        train_batch(bank, [0, 5], 0, Augmentation("upside-down", bad, "set"))
    assert "'upside-down'" in caught.value.what
    assert caught.value.exit_code == 7


def test_counted_views_come_in_turn_and_begin_anywhere(bank: Bank) -> None:
    rows, size = list(range(6)), 8
    policies = tuple(lambda image, value=value: image[:, :size, :size] * 0 + value for value in range(3))
    three = Augmentation("three", policies, "set")
    assert three.views == 3
    seen = [train_batch(bank, rows, view, three)[:, 0, 0, 0].tolist() for view in range(4)]
    assert all(sorted(of_image) == [0, 1, 2] for of_image in zip(*seen[:3], strict=True))
    assert seen[3] == seen[0]
    assert len(set(seen[0])) > 1
    assert train_batch(bank, rows[::-1], 0, three)[:, 0, 0, 0].tolist() == seen[0][::-1]


def test_a_half_of_the_images_is_mirrored_in_each_epoch(bank: Bank, registry) -> None:
    inputs = InputSpec(size=12, crop=0.75, interpolation="bicubic")
    flip = Augmentation("flip", registry.augmentations.get("flip").spec.build(inputs), "flowers")
    rows = list(range(6))
    plain = eval_batch(bank, rows, 12)
    first, second = (train_batch(bank, rows, view, flip) for view in range(2))
    assert torch.equal(second, first.flip(3))
    mirrored = [not torch.equal(one, other) for one, other in zip(first, plain, strict=True)]
    assert 0 < sum(mirrored) < 6
    assert torch.equal(torch.where(torch.tensor(mirrored)[:, None, None, None], second, first), plain)


@pytest.mark.parametrize("built", [None, (), (None,), [lambda image: image]])
def test_what_is_no_policy_is_refused(built: object) -> None:
    with pytest.raises(PluginError, match="'odd' cannot be used"):
        Augmentation("odd", built, "set")


def test_a_policy_cannot_change_the_bank(bank: Bank) -> None:
    before = bank.image(0)
    train_batch(bank, [0], 0, Augmentation("zero", lambda image: image.zero_()[:, :8, :8], "set"))
    assert torch.equal(bank.image(0), before)


def test_evaluation_takes_the_centre(bank: Bank) -> None:
    views = eval_batch(bank, [0, 5], 12)
    assert tuple(views.shape) == (2, 3, 12, 12)
    assert views.dtype == torch.uint8
    left = round((bank.image(5).shape[2] - 12) / 2)
    assert torch.equal(views[1], bank.image(5)[:, 2:14, left : left + 12])


def test_normalising_shifts_and_scales_each_channel() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = images.clone()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    values = normalise(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(
        std
    ).double().view(3, 1, 1)
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), expected, atol=1e-6)
    assert torch.equal(images, before)
    laid_out = normalise(images, mean, std, torch.channels_last)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid_out, values)


@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("size", [24, 29, 224])
def test_without_augmentation_training_sees_what_evaluation_sees(registry, tmp_path, size, crop) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 341, 3), dtype=np.uint8)
    item = Item(id="0", label=0, split="train", sha256=content_sha256(image), image=image)
    bank = Bank.open([item], short_side(size, crop), "bicubic", tmp_path)
    inputs = InputSpec(size=size, crop=crop, interpolation="bicubic")
    none = Augmentation("none", registry.augmentations.get("none").spec.build(inputs), "set")
    assert torch.equal(train_batch(bank, [0], 0, none), eval_batch(bank, [0], size))
