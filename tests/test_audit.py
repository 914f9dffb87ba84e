from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_fingerprint import jpeg, resized, scene

from harness.data import audit as module
from harness.data.audit import Audit, audit
from harness.data.decode import Pixels
from harness.data.fingerprint import fingerprint
from harness.data.manifest import Item, Manifest, SplitRules, check_dataset
from harness.data.scan import content_sha256
from harness.registry import load_registry
from harness.specs import Split

CLASSES = ("cat", "dog")


def look(cache: Path, *images: tuple[str, Split, int, Pixels]) -> Audit:
    items = [
        Item(id=id, split=split, label=label, sha256=content_sha256(pixels), image=pixels)
        for id, split, label, pixels in images
    ]
    return audit(items, CLASSES, [fingerprint(pixels) for *_, pixels in images], cache)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "near.json"


def clean() -> list[tuple[str, Split, int, Pixels]]:
    splits: tuple[Split, ...] = ("train", "train", "val", "test")
    return [
        (f"{CLASSES[label]}{number}", split, label, scene(10 * label + number))
        for label in (0, 1)
        for number, split in enumerate(splits)
    ]


def test_a_clean_data_set_has_nothing_to_say(cache: Path) -> None:
    found = look(cache, *clean())
    record = found.record()
    assert record.missing_classes == {"train": 0, "val": 0, "test": 0}
    assert found.warnings() == []
    assert not any(
        (
            record.exact_across_splits,
            record.near_across_splits,
            record.exact_within_split,
            record.exact_two_labels,
            record.near_two_labels,
            record.leaked_test,
            record.featureless,
        )
    )


def test_copies_and_near_duplicates_across_splits_are_told_apart(cache: Path) -> None:
    images = clean()
    images += [("copy", "test", 0, images[0][3]), ("small", "test", 1, resized(images[4][3], 0.5))]
    found = look(cache, *images)
    assert found.exact_across_splits == (("cat0", "copy"),)
    assert found.near_across_splits == (("dog0", "small"),)
    assert found.exact_two_labels == found.near_two_labels == found.exact_within_split == ()
    assert found.leaked_test == 2


def test_a_test_image_that_leaks_twice_is_counted_once(cache: Path) -> None:
    images = clean()
    images += [("copy", "test", 0, images[0][3]), ("again", "val", 0, jpeg(images[0][3], 50))]
    found = look(cache, *images)
    assert found.exact_across_splits == (("cat0", "copy"),)
    assert found.near_across_splits == (("cat0", "copy", "again"),)
    assert found.leaked_test == 1
    assert found.record().near_across_splits == 3


def test_one_picture_under_two_labels_is_named_in_one_split_too(cache: Path) -> None:
    images = clean()
    images += [("copy", "train", 1, images[0][3]), ("again", "train", 0, jpeg(images[5][3], 60))]
    found = look(cache, *images)
    assert found.exact_two_labels == (("cat0", "copy"),)
    assert found.near_two_labels == (("dog1", "again"),)
    assert found.exact_within_split == (("cat0", "copy"),)
    assert found.exact_across_splits == found.near_across_splits == ()
    labels, near = found.warnings()
    assert labels.startswith("images with copies under another label (1)\n      cat0 = copy\n")
    assert near.startswith("images with near duplicates under another label (1)\n      dog1 ~ again\n")
    assert "correct it" in labels


def test_near_duplicates_of_one_class_in_one_split_are_no_leak(cache: Path) -> None:
    images = clean()
    images += [("again", "train", 0, jpeg(images[0][3], 60))]
    found = look(cache, *images)
    assert found.near_across_splits == found.near_two_labels == ()
    assert found.warnings() == []


def test_mirrored_pictures_are_no_duplicates(cache: Path) -> None:
    images = clean()
    images += [("mirrored", "test", 0, np.ascontiguousarray(images[0][3][:, ::-1]))]
    assert look(cache, *images).leaked_test == 0


def test_images_without_structure_are_compared_by_content_only(cache: Path) -> None:
    flat = [
        (f"{shade}", split, 0, np.full((8, 8, 3), shade, np.uint8))
        for shade, split in ((10, "train"), (11, "test"), (12, "val"))
    ]
    flat += [("copy", "test", 0, np.full((8, 8, 3), 10, np.uint8))]
    found = look(cache, *clean(), *flat)
    assert found.featureless == 4
    assert found.near_across_splits == ()
    assert found.exact_across_splits == (("10", "copy"),)


def test_missing_classes_are_named_by_split(cache: Path) -> None:
    images = [image for image in clean() if image[1:3] != ("val", 1)]
    found = look(cache, *images)
    assert found.missing_classes == {"train": (), "val": ("dog",), "test": ()}
    assert found.record().missing_classes == {"train": 0, "val": 1, "test": 0}


def test_many_frames_of_one_film_make_one_group(cache: Path) -> None:
    frame = scene(50)
    frames = [
        (f"{number:02}", ("train", "test")[number % 2], 0, np.clip(frame.astype(int) + number, 0, 255))
        for number in range(30)
    ]
    found = look(cache, *[(id, split, label, pixels.astype(np.uint8)) for id, split, label, pixels in frames])
    assert [len(group) for group in found.near_across_splits] == [30]
    assert found.leaked_test == 15
    assert "00 ~ 01 ~ 02 ~ ..." in found.warnings()[0]


def test_images_are_compared_once_and_again_when_a_split_changes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = clean()
    images += [("again", "test", 0, jpeg(images[0][3], 60))]
    first = look(cache, *images)
    compare = module.alike

    def refuse(*_: object) -> None:
        raise AssertionError("images were compared")

    monkeypatch.setattr(module, "alike", refuse)
    assert look(cache, *images) == first
    monkeypatch.setattr(module, "alike", compare)
    assert look(cache, *images[:-1], ("again", "train", *images[-1][2:])).near_across_splits == ()


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "null"])
def test_a_damaged_cache_only_costs_time(cache: Path, text: str) -> None:
    cache.write_text(text)
    assert look(cache, *clean()).leaked_test == 0


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file" / "near.json", *clean()).leaked_test == 0


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Official splits: a test image is a resized one of train, another a copy."""
    root = tmp_path / "photos"
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(scene(10 * number + label)).save(root / split / name / "0.png")
    small = io.BytesIO()
    Image.fromarray(resized(scene(0), 0.6)).save(small, "JPEG", quality=70)
    (root / "test" / "cat" / "small.jpg").write_bytes(small.getvalue())
    (root / "test" / "dog" / "copy.png").write_bytes((root / "train" / "dog" / "0.png").read_bytes())
    return root


def manifest(root: Path, home: Path) -> Manifest:
    check = check_dataset(str(root), load_registry(()), rules=SplitRules(), home=home)
    assert check.problems == ()
    return check.manifest


def test_the_record_counts_and_the_protocol_does_not(leaky: Path, tmp_path: Path) -> None:
    found = manifest(leaky, tmp_path / "home")
    counts = found.dataset_record().audit
    assert (counts.exact_across_splits, counts.near_across_splits, counts.leaked_test) == (2, 2, 2)
    other = replace(found, audit=replace(found.audit, near_across_splits=(), leaked_test=0))
    assert other.protocol() == found.protocol()
    assert found.without("test").dataset_record().audit == counts


def test_a_second_check_reads_and_compares_nothing(
    leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manifest(leaky, tmp_path / "home")

    def refuse(*_: object) -> None:
        raise AssertionError("images were read or compared")

    monkeypatch.setattr("harness.data.scan._look", refuse)
    monkeypatch.setattr(module, "alike", refuse)
    assert manifest(leaky, tmp_path / "home") == first
