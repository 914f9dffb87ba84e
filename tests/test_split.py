from __future__ import annotations

import random
from collections import Counter

from harness.data.split import Labelled, SplitRules, split_images

RULES = SplitRules(val=0.2, test=0.1, seed=3)


def images(**classes: int) -> list[Labelled]:
    return [(label, f"{label}-{index}", None) for label, count in classes.items() for index in range(count)]


def tally(found: list[Labelled], rules: SplitRules = RULES) -> Counter[tuple[str, str]]:
    splits, _ = split_images(found, rules)
    return Counter((label, split) for (label, _, _), split in zip(found, splits, strict=True))


def test_each_class_gives_its_exact_share() -> None:
    counts = tally(images(a=50, b=20))
    assert (counts["a", "train"], counts["a", "val"], counts["a", "test"]) == (35, 10, 5)
    assert (counts["b", "train"], counts["b", "val"], counts["b", "test"]) == (14, 4, 2)


def test_each_split_gets_at_least_one_of_a_class_of_three() -> None:
    counts = tally(images(a=3))
    assert [counts["a", split] for split in ("train", "val", "test")] == [1, 1, 1]


def test_training_keeps_one_image_when_shares_would_take_all() -> None:
    counts = tally(images(a=4), SplitRules(val=0.8, test=0.8))
    assert counts["a", "train"] == 1
    assert counts["a", "val"] + counts["a", "test"] == 3


def test_a_lone_image_is_for_training() -> None:
    assert tally(images(a=1)) == {("a", "train"): 1}


def test_the_split_of_an_image_does_not_depend_on_order() -> None:
    found = images(a=30, b=30)
    expected = dict(zip(found, split_images(found, RULES)[0], strict=True))
    shuffled = random.Random(0).sample(found, len(found))
    assert dict(zip(shuffled, split_images(shuffled, RULES)[0], strict=True)) == expected


def test_another_seed_splits_differently() -> None:
    found = images(a=60)
    assert split_images(found, RULES)[0] != split_images(found, SplitRules(val=0.2, test=0.1, seed=4))[0]


def test_other_classes_do_not_change_a_class() -> None:
    alone = split_images(images(a=30), RULES)[0]
    together = split_images(images(a=30, b=12), RULES)[0]
    assert together[:30] == alone


def test_copies_stay_in_one_split() -> None:
    found: list[Labelled] = [("a", f"content-{index % 20}", None) for index in range(100)]
    splits = split_images(found, RULES)[0]
    homes = {
        sha256: {split for (_, other, _), split in zip(found, splits, strict=True) if other == sha256}
        for _, sha256, _ in found
    }
    assert all(len(home) == 1 for home in homes.values())
    assert len(set(splits)) == 3


def test_official_splits_are_kept() -> None:
    found: list[Labelled] = [("a", "1", "train"), ("a", "2", "val"), ("a", "3", "test")]
    assert split_images(found, RULES) == (["train", "val", "test"], "official")


def test_a_missing_validation_split_comes_out_of_the_training_images() -> None:
    found: list[Labelled] = [("a", str(index), "train" if index < 20 else "test") for index in range(30)]
    splits, rule = split_images(found, RULES)
    assert Counter(splits) == {"train": 16, "val": 4, "test": 10}
    assert splits[20:] == ["test"] * 10
    assert rule == "official train and test; val 0.2 of each class by content hash, seed 3"


def test_a_missing_test_split_comes_out_of_the_training_images() -> None:
    found: list[Labelled] = [("a", str(index), "train" if index < 20 else "val") for index in range(30)]
    splits, _ = split_images(found, RULES)
    assert Counter(splits) == {"train": 18, "test": 2, "val": 10}
    assert splits[20:] == ["val"] * 10


def test_images_that_are_all_official_training_images_are_split_like_unsplit_ones() -> None:
    found = images(a=40)
    official: list[Labelled] = [(label, sha256, "train") for label, sha256, _ in found]
    assert split_images(official, RULES)[0] == split_images(found, RULES)[0]


def test_the_rule_names_shares_and_seed() -> None:
    assert split_images(images(a=9), RULES)[1] == "val 0.2 and test 0.1 of each class by content hash, seed 3"


def test_the_splits_of_a_fixed_set_never_change() -> None:
    # A golden value: an edit of the rule would silently change every published table.
    splits, _ = split_images(images(a=10), RULES)
    assert "".join(split[1] for split in splits) == "rrarerrrar"
