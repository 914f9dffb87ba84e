from __future__ import annotations

import dataclasses
import hashlib
import math
import random

import numpy as np
import pytest

import harness
from harness.data.manifest import SplitRules, load_manifest
from harness_builtin import datasets, drawing, petals

SPECS = {spec.name: spec for spec in datasets.harness_datasets() if spec.name in petals.GARDENS}
GARDEN = petals.GARDENS["petals"]


@pytest.fixture
def small(monkeypatch):
    """Make a garden of each variant, small enough to be drawn in a test."""
    sizes = {"petals": (3, 1, 2), "petals-hard": (1, 1, 1), "petals-longtail": (10, 1, 1)}
    for name, garden in petals.GARDENS.items():
        monkeypatch.setitem(petals.GARDENS, name, dataclasses.replace(garden, sizes=sizes[name]))
    return petals.GARDENS


def test_the_images_never_change():
    # Golden values: other pixels would be another data set under the same name. Raise VERSION with them.
    assert petals.VERSION == 1
    digests = {}
    for name, garden in petals.GARDENS.items():
        drawn = [petals.render(garden, label % 3, label, label) for label in range(len(garden.flowers))]
        digests[name] = hashlib.sha256(b"".join(image.tobytes() for image in drawn)).hexdigest()[:16]
    assert digests == {
        "petals": "2bc7d0a3a14fc01b",
        "petals-hard": "5c572a4fe11bfac2",
        "petals-longtail": "a2ca6753a2d5f61f",
    }


def test_an_image_depends_on_its_place_alone():
    image = petals.render(GARDEN, 0, 3, 7)
    np.random.seed(1)
    random.seed(1)
    assert np.array_equal(petals.render(GARDEN, 0, 3, 7), image)
    for other in ((1, 3, 7), (0, 4, 7), (0, 3, 8)):
        assert not np.array_equal(petals.render(GARDEN, *other), image)
    assert not np.array_equal(petals.render(petals.GARDENS["petals-longtail"], 0, 3, 7), image)


def test_colour_and_light_tell_nothing_of_the_class():
    means = np.array(
        [[petals.render(GARDEN, 0, label, index).mean((0, 1)) for index in range(12)] for label in (0, 11)]
    )
    # Within a class images differ in colour far more than classes do from each other.
    assert means.std(axis=1).mean() > 15
    assert abs(means[0].mean(0) - means[1].mean(0)).max() < means.std(axis=1).mean()


@pytest.mark.parametrize("name", petals.GARDENS)
def test_every_split_has_every_class(name):
    garden = petals.GARDENS[name]
    names = [flower.name for flower in garden.flowers]
    assert len(set(names)) == len(names)
    places = petals.list_places(garden)
    assert len(set(places)) == len(places)
    assert {place[:2] for place in places} == {
        (split, label) for split in range(3) for label in range(len(names))
    }


def test_the_sizes_are_those_that_are_stated():
    assert len(petals.list_places(GARDEN)) == 3_120
    assert len(GARDEN.flowers) == 12
    assert len(petals.list_places(petals.GARDENS["petals-hard"])) == 6_300
    assert len(petals.GARDENS["petals-hard"].flowers) == 18


def test_the_long_tail_is_ten_to_one_in_every_split():
    garden = petals.GARDENS["petals-longtail"]
    for split in range(3):
        counts = [garden.count(label, split) for label in range(12)]
        assert counts[0] == 10 * counts[-1]
        assert counts == sorted(counts, reverse=True)
    # Powers may round differently elsewhere; that must change no count.
    assert [garden.count(label, 0) for label in range(12)] == [
        *(300, 243, 197, 160, 130, 105, 85, 69, 56, 46, 37, 30)
    ]


def test_a_data_set_is_drawn_once_and_then_read(tmp_path, small, monkeypatch):
    first = list(SPECS["petals"].build(tmp_path / "petals", False))
    assert len({sample.id for sample in first}) == len(first) == 12 * 6
    monkeypatch.setattr(petals, "render", None)
    again = list(SPECS["petals"].build(tmp_path / "petals", False))
    assert [sample.id for sample in again] == [sample.id for sample in first]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(first, again, strict=True))
    assert [file.name for file in (tmp_path / "petals").iterdir()] == ["images-1.npy"]


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_damaged_file_is_drawn_again(tmp_path, small, damage):
    first = list(SPECS["petals"].build(tmp_path, False))
    file = tmp_path / "images-1.npy"
    if damage == "foreign":
        np.save(file, np.zeros((3, 3)))
    else:
        file.write_bytes(file.read_bytes()[:5000] if damage == "cut" else b"")
    again = list(SPECS["petals"].build(tmp_path, False))
    assert all(np.array_equal(one.image, other.image) for one, other in zip(first, again, strict=True))


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, small):
    (tmp_path / "file").touch()
    assert len(list(SPECS["petals"].build(tmp_path / "file" / "petals", False))) == 12 * 6


def test_who_takes_a_few_images_only_waits_for_a_few(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        petals, "render", lambda *place: drawn.append(place) or np.zeros((64, 64, 3), np.uint8)
    )
    next(iter(SPECS["petals"].build(tmp_path, False)))
    assert len(drawn) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", petals.GARDENS)
def test_it_loads_as_a_data_set(tmp_path, small, name):
    registry = harness.load_registry(["no:terminal"])
    manifest = load_manifest(name, registry, rules=SplitRules(), home=tmp_path)
    garden = small[name]
    assert manifest.split_rule == "official"
    assert set(manifest.classes) == {flower.name for flower in garden.flowers}
    assert sum(manifest.counts()["train"]) == sum(
        garden.count(label, 0) for label in range(len(garden.flowers))
    )


def test_the_cosine_is_one():
    for turns in np.linspace(-2, 2, 401):
        assert drawing._cosine(float(turns)) == pytest.approx(math.cos(2 * math.pi * turns), abs=1e-12)
