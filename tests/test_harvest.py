from __future__ import annotations

from io import FileIO

import numpy as np
import pytest
import torch
from PIL import Image

from harness import load_registry, run_study
from harness.data import bank as bank_module
from harness.data import scan as scan_module
from harness.data.bank import Bank
from harness.data.harvest import Harvest
from harness.data.manifest import SplitRules, load_manifest
from harness.errors import StorageError

RECIPES = [(16, "bilinear"), (24, "bicubic")]


@pytest.fixture
def photos(tmp_path):
    """A folder of 24 images of two classes, in three splits."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded, by whomever."""
    names = []
    for module in (scan_module, bank_module):

        def count(image, where, *, decode=module.decode):
            names.append(where)
            return decode(image, where)

        monkeypatch.setattr(module, "decode", count)
    return names


def load(photos, harvest, home):
    rules = SplitRules()
    return load_manifest(str(photos), load_registry(), rules=rules, home=home, keep=harvest.add)


def left_over(home):
    return [path.name for path in (home / "bank").iterdir() if path.name.endswith(".part")]


def test_a_study_decodes_an_image_once_and_again_only_where_the_test_split_is_opened(
    tiny, registry, photos, tmp_path, decoded
):
    study = tiny(dataset=str(photos), trials=2, init="scratch", space={"backbone": "tiny-net"})
    result = run_study(study, registry=registry, runs=tmp_path / "runs")
    assert [record.kind for record in result.records].count("final") == 1
    assert len(set(decoded)) == 24
    again = [name for name in set(decoded) if decoded.count(name) == 2]
    assert len(decoded) == 24 + len(again)
    assert sorted(again) == sorted(name for name in set(decoded) if name.startswith("test/"))


def test_a_second_study_decodes_nothing(tiny, registry, photos, tmp_path, decoded):
    for seed in (0, 1):
        study = tiny(dataset=str(photos), trials=1, seed=seed, space={"backbone": "tiny-net"})
        run_study(study, registry=registry, runs=tmp_path / "runs")
    assert len(decoded) == 24 + 6


def test_banks_hold_what_they_would_decode_themselves(photos, tmp_path, decoded):
    home = tmp_path / "home"
    with Harvest("photos", RECIPES, home) as harvest:
        manifest = load(photos, harvest, home)
        harvest.fill(manifest)
    assert len(decoded) == 24
    for recipe in RECIPES:
        for split in ("train", "val"):
            items = manifest.of(split)
            harvested = Bank.open(items, *recipe, home)
            assert len(decoded) == 24
            own = Bank.open(items, *recipe, tmp_path / "other")
            assert harvested.content == own.content
            assert all(torch.equal(harvested.image(row), own.image(row)) for row in range(len(items)))
            del decoded[24:]
    assert left_over(home) == []
    assert len(list((home / "bank").glob("*/index.json"))) == 4, "none of the sealed split"


def test_what_was_checked_before_is_left_to_the_banks(photos, tmp_path):
    home = tmp_path / "home"
    load_manifest(str(photos), load_registry(), rules=SplitRules(), home=home)
    (photos / "train" / "cat" / "0.png").touch()
    with Harvest("photos", RECIPES, home) as harvest:
        harvest.fill(load(photos, harvest, home))
    assert [path for path in (home / "bank").glob("*") if path.is_dir()] == []


def test_an_image_that_changes_on_the_way_is_not_taken_for_the_old_one(photos, tmp_path):
    home = tmp_path / "home"
    with Harvest("photos", RECIPES[:1], home) as harvest:
        manifest = load(photos, harvest, home)
        expected = Bank.open(manifest.of("train"), *RECIPES[0], tmp_path / "other")
        Image.new("RGB", (40, 40)).save(photos / "train" / "cat" / "0.png")
        harvest.fill(manifest)
    found = Bank.open(manifest.of("train"), *RECIPES[0], home)
    assert all(torch.equal(found.image(row), expected.image(row)) for row in range(len(found)))


def test_a_disk_that_fills_up_costs_only_the_shortcut(photos, tmp_path):
    home = tmp_path / "home"

    class Full(FileIO):
        """Has room for some images and then, as a full disk has, for a part of one."""

        room = 10_000

        def write(self, data):
            taken = super().write(memoryview(data)[: self.room])
            self.room -= taken
            return taken

    with Harvest("photos", RECIPES[:1], home) as harvest:
        (folder,) = (home / "bank").glob(".*.part")
        harvest._files[RECIPES[0]] = harvest._stack.enter_context(Full(folder / "0.bin", "wb+"))
        harvest.fill(load(photos, harvest, home))
    assert left_over(home) == []
    assert not list((home / "bank").glob("*/index.json"))


def test_where_there_is_no_room_for_both_the_banks_are_left_to_who_needs_them(photos, tmp_path, monkeypatch):
    home = tmp_path / "home"

    def full(*values, **named):
        raise StorageError("decoded images cannot be stored", why="No space left on device")

    with Harvest("photos", RECIPES[:1], home) as harvest:
        manifest = load(photos, harvest, home)
        with monkeypatch.context() as patch:
            patch.setattr(Bank, "open", full)
            harvest.fill(manifest)
    assert left_over(home) == []
    assert len(Bank.open(manifest.of("train"), *RECIPES[0], home)) > 0


def test_of_two_at_a_time_one_takes_nothing(photos, tmp_path):
    home = tmp_path / "home"
    with Harvest("photos", RECIPES, home) as first, Harvest("photos", RECIPES, home) as second:
        manifest = load(photos, second, home)
        second.fill(manifest)
        assert not list((home / "bank").glob("*/index.json"))
        first.fill(manifest)
    assert left_over(home) == []


def test_what_a_killed_process_left_is_replaced(photos, tmp_path):
    home = tmp_path / "home"
    dead = Harvest("photos", RECIPES, home)
    dead.__enter__()
    (name,) = left_over(home)
    dead._stack.pop_all()._exit_callbacks.clear()
    (home / "bank" / name / "junk").write_bytes(b"x")
    dead._lock_file.unlink()
    with Harvest("photos", RECIPES, home) as harvest:
        harvest.fill(load(photos, harvest, home))
        assert not (home / "bank" / name / "junk").exists()
    assert left_over(home) == []
    assert len(list((home / "bank").glob("*/index.json"))) == 4


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("no such size")])
def test_what_cannot_be_kept_is_left_to_the_banks(photos, tmp_path, monkeypatch, fault):
    home = tmp_path / "home"

    def fail(*_):
        raise fault

    with Harvest("photos", RECIPES, home) as harvest:
        with monkeypatch.context() as patch:
            patch.setattr("harness.data.harvest.reduce_image", fail)
            manifest = load(photos, harvest, home)
        harvest.fill(manifest)
    assert not list((home / "bank").glob("*/index.json"))
    assert len(Bank.open(manifest.of("val"), *RECIPES[0], home)) == 6


def test_a_home_that_cannot_be_written_is_no_concern_of_a_scan(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with Harvest("photos", RECIPES, tmp_path / "file") as harvest:
        manifest = load(photos, harvest, tmp_path / "home")
        harvest.fill(manifest)
    assert len(manifest.items) == 24


def test_nothing_is_left_when_the_data_are_refused(photos, tmp_path):
    home = tmp_path / "home"
    (photos / "val" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(Exception, match="unreadable"), Harvest("photos", RECIPES, home) as harvest:
        load(photos, harvest, home)
    assert left_over(home) == []
