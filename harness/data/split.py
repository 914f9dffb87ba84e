"""Divide a data set that lacks official splits: stratified by class, decided by content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from harness.specs import Split

Labelled = tuple[str, str, Split | None]
"""Class, SHA-256 of the content, official split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRules:
    """How a data set without official splits is divided."""

    val: float = 0.15
    """Share of each class, in (0, 1)."""
    test: float = 0.15
    """Share of each class, in (0, 1)."""
    seed: int = 0


def split_images(images: Sequence[Labelled], rules: SplitRules) -> tuple[list[Split], str]:
    """Keep official splits, and take those that are missing out of the training images.

    Within a class, images are ordered by the SHA-256 of (seed, content), and each wanted split takes its
    exact share from the front, at least one. So the result depends neither on names nor on the order of
    files, and copies of an image stay together: shares count distinct contents.

    Returns:
        The split of each image, and the rule in words.
    """
    official = {split for _, _, split in images if split}
    if official == {"train", "val", "test"} or (official and "train" not in official):
        return [split or "train" for _, _, split in images], "official"
    wanted: dict[Split, float] = {}
    if "test" not in official:
        wanted["test"] = rules.test
    if "val" not in official:
        wanted["val"] = rules.val
    contents: dict[str, set[str]] = defaultdict(set)
    for label, sha256, split in images:
        if split in (None, "train"):
            contents[label].add(sha256)
    taken = {
        (label, sha256): split
        for label, found in contents.items()
        for sha256, split in _take(found, wanted, rules.seed).items()
    }
    splits: list[Split] = [
        split if split in ("val", "test") else taken.get((label, sha256), "train")
        for label, sha256, split in images
    ]
    return splits, _in_words(official, wanted, rules.seed)


def _take(contents: set[str], wanted: dict[Split, float], seed: int) -> dict[str, Split]:
    total = len(contents)
    quotas = {split: max(1, int(total * share + 0.5)) for split, share in wanted.items()}
    # A small class: training keeps at least one, and the larger quota gives first.
    while sum(quotas.values()) >= total and any(quotas.values()):
        largest = max(quotas, key=lambda split: (quotas[split], split))
        quotas[largest] -= 1
    order = sorted(contents, key=lambda sha256: hashlib.sha256(f"{seed} {sha256}".encode()).digest())
    taken: dict[str, Split] = {}
    start = 0
    for split, quota in quotas.items():
        taken.update(dict.fromkeys(order[start : start + quota], split))
        start += quota
    return taken


def _in_words(official: set[Split], wanted: dict[Split, float], seed: int) -> str:
    shares = " and ".join(f"{split} {share:g}" for split, share in sorted(wanted.items(), reverse=True))
    rule = f"{shares} of each class by content hash, seed {seed}"
    return f"official {' and '.join(sorted(official, reverse=True))}; {rule}" if official else rule
