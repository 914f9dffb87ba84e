"""What a data set's splits and labels give away: copies, near duplicates, classes that a split lacks."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.data.fingerprint import ALIKE, FINGERPRINT, Indices, alike, unpack
from harness.documents import canonical, write_atomically
from harness.errors import StorageError
from harness.records import AuditRecord
from harness.specs import Split
from harness.text import listed

if TYPE_CHECKING:
    from harness.data.manifest import Item

SCHEMA = "harness.audit/1"
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Groups = tuple[tuple[str, ...], ...]
"""Ids of images that belong together, at least two a group."""
_Numbers = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found; no image is in two groups of one kind."""

    exact_across_splits: Groups
    """Images of the same content in more than one split."""
    near_across_splits: Groups
    """Images of other content that show the same picture, in more than one split."""
    exact_within_split: Groups
    """Images of the same content in one split."""
    exact_two_labels: Groups
    near_two_labels: Groups
    missing_classes: Mapping[str, tuple[str, ...]]
    """By split."""
    leaked_test: int
    """Test images that train or val holds too, exactly or nearly."""
    featureless: int
    """Images without structure, which are compared by content only."""

    def record(self) -> AuditRecord:
        """Return the counts, which are of images."""
        return AuditRecord(
            exact_across_splits=_images(self.exact_across_splits),
            near_across_splits=_images(self.near_across_splits),
            exact_within_split=_images(self.exact_within_split),
            exact_two_labels=_images(self.exact_two_labels),
            near_two_labels=_images(self.near_two_labels),
            missing_classes={split: len(names) for split, names in self.missing_classes.items()},
            leaked_test=self.leaked_test,
            featureless=self.featureless,
        )

    def warnings(self) -> list[str]:
        """Say what makes scores doubtful, with the first examples, and what to do about it."""
        found = (
            ("images with copies under another label", "=", self.exact_two_labels, _LABELS),
            ("images with near duplicates under another label", "~", self.near_two_labels, _LABELS),
            ("images with copies in another split", "=", self.exact_across_splits, _ACROSS),
            ("images with near duplicates in another split", "~", self.near_across_splits, _ACROSS),
        )
        return [
            listed(what, [_joined(group, sign) for group in groups]) + f"\n      {advice}"
            for what, sign, groups, advice in found
            if groups
        ]


_ACROSS = "what training has seen is no test: scores come out too high; keep each picture in one split"
_LABELS = "at most one label of a picture is right: correct it, or remove the picture"


def audit(items: Sequence[Item], classes: Sequence[str], fingerprints: Sequence[str], cache: Path) -> Audit:
    """Look for what leaks from one split into another, and for pictures under two labels.

    Mirrored pictures are no duplicates: a mirrored letter or road sign is another class.

    Args:
        items: The images, with labels and splits.
        classes: Names of the labels.
        fingerprints: Of each image; empty where it has none.
        cache: JSON file that keeps the near duplicates of the last images; rewritten when they are others.
    """
    copies: dict[str, list[int]] = defaultdict(list)
    within: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        copies[item.sha256].append(index)
        within[item.sha256, item.split].append(index)
    across = [group for group in copies.values() if len({items[index].split for index in group}) > 1]
    labels = [group for group in copies.values() if len({items[index].label for index in group}) > 1]
    near_across, near_labels = _near(items, fingerprints, cache)
    present = {(item.split, item.label) for item in items}
    leaked = {index for group in (*across, *near_across) for index in group}

    def named(groups: Iterable[Sequence[int]]) -> Groups:
        return tuple(tuple(items[index].id for index in group) for group in groups)

    return Audit(
        exact_across_splits=named(across),
        near_across_splits=named(near_across),
        exact_within_split=named(group for group in within.values() if len(group) > 1),
        exact_two_labels=named(labels),
        near_two_labels=named(near_labels),
        missing_classes={
            split: tuple(name for label, name in enumerate(classes) if (split, label) not in present)
            for split in SPLITS
        },
        leaked_test=sum(items[index].split == "test" for index in leaked),
        featureless=sum(not text for text in fingerprints),
    )


def _near(items: Sequence[Item], fingerprints: Sequence[str], cache: Path) -> tuple[_Numbers, _Numbers]:
    """Return near duplicates across splits and across labels, as indices of items."""
    lines = (f"{item.sha256} {item.split} {item.label}\n" for item in items)
    head = f"{SCHEMA} {FINGERPRINT} {ALIKE}\n"
    key = hashlib.sha256("".join((head, *lines)).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        body = json.loads(cache.read_text(encoding="utf-8"))
        if body["key"] == key:
            return body["splits"], body["labels"]
    places = np.array([index for index, text in enumerate(fingerprints) if text], np.intp)
    vectors = unpack([text for text in fingerprints if text])
    contents = _codes([items[place].sha256 for place in places])
    splits = _Links(_codes([items[place].split for place in places]), contents)
    labels = _Links(np.array([items[place].label for place in places], np.intp), contents)
    for first, second in alike(vectors):
        splits.add(first, second)
        labels.add(first, second)
    found = [
        [[int(places[number]) for number in group] for group in links.groups()] for links in (splits, labels)
    ]
    # Only a cache: without it the next run compares the images again.
    with contextlib.suppress(StorageError):
        write_atomically(cache, canonical({"key": key, "splits": found[0], "labels": found[1]}) + "\n")
    return found[0], found[1]


class _Links:
    """A duplicate of each image on another side: of another split, or of another label.

    One link an image, however many pairs there are, so that a film's frames do not fill the memory.
    """

    def __init__(self, sides: Indices, contents: Indices) -> None:
        self._sides = sides
        self._contents = contents
        self._other = np.full(len(sides), -1, np.intp)

    def add(self, first: Indices, second: Indices) -> None:
        """Take in pairs of images that are alike."""
        open_ = (self._other[first] < 0) | (self._other[second] < 0)
        first, second = first[open_], second[open_]
        wanted = self._sides[first] != self._sides[second]
        wanted &= self._contents[first] != self._contents[second]
        first, second = first[wanted], second[wanted]
        self._other[first] = second
        self._other[second] = first

    def groups(self) -> _Numbers:
        """Join linked images."""
        leaders: dict[int, int] = {}

        def leader(number: int) -> int:
            while (above := leaders.setdefault(number, number)) != number:
                leaders[number] = leaders[above]
                number = above
            return number

        linked = np.flatnonzero(self._other >= 0).tolist()
        for number in linked:
            pair = sorted((leader(number), leader(int(self._other[number]))))
            leaders[pair[1]] = pair[0]
        groups: dict[int, list[int]] = defaultdict(list)
        for number in linked:
            groups[leader(number)].append(number)
        return list(groups.values())


def _codes(values: Sequence[str]) -> Indices:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.intp)


def _images(groups: Groups) -> int:
    return sum(len(group) for group in groups)


def _joined(group: Sequence[str], sign: str) -> str:
    return f" {sign} ".join(group[:3]) + (f" {sign} ..." if len(group) > 3 else "")
