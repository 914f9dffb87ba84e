"""Say in words in what two protocols differ, as far as records tell."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records import Protocol, TrialRecord

SPLITS = ("train", "val", "test")
_RULES = {
    "decode": "decoding of images",
    "metric": "definition of the metric",
    "selection": "which weights are scored",
}


def name_differences(one: Protocol, others: Sequence[Protocol]) -> tuple[str, ...]:
    """Name the parts of the protocol in which `others` are not as `one`."""
    found = [
        f"{name} split"
        for name in SPLITS
        if any(one.splits.get(name) != other.splits.get(name) for other in others)
    ]
    found += [
        name
        for name in ("classes", *_RULES)
        if any(getattr(one, name) != getattr(other, name) for other in others)
    ]
    return tuple(found)


def explain_differences(one: TrialRecord, other: TrialRecord) -> tuple[str, ...]:
    """Say why two trainings stand in different tables, one line for each reason; none if they do not.

    Names of classes and data sets in it are as recorded.
    """
    found = []
    if one.dataset.name != other.dataset.name:
        found.append(f"data set: {one.dataset.name} against {other.dataset.name}")
    if one.protocol.digest != other.protocol.digest:
        named = name_differences(one.protocol, [other.protocol])
        found += _classes(one, other) if "classes" in named else []
        changed = [name for name in SPLITS if f"{name} split" in named]
        found += [_images(one, other, name) for name in changed]
        if changed and one.dataset.split != other.dataset.split:
            found.append(f"how the splits came about: {one.dataset.split} against {other.dataset.split}")
        for name, meaning in _RULES.items():
            if name in named:
                found.append(
                    f"{meaning}: {getattr(one.protocol, name)} against {getattr(other.protocol, name)}"
                )
        if not named:
            found.append(f"protocol: {one.protocol.digest[:8]} against {other.protocol.digest[:8]}")
    starts = [record.weights.init if record.weights else record.config.init for record in (one, other)]
    if starts[0] != starts[1]:
        found.append(f"initialisation: {starts[0]} against {starts[1]}")
    return tuple(found)


def _classes(one: TrialRecord, other: TrialRecord) -> list[str]:
    first, second = one.dataset.classes, other.dataset.classes
    added = [name for name in second if name not in first]
    removed = [name for name in first if name not in second]
    found = [
        f"classes: {len(names)} {what} ({_few(names)})"
        for names, what in ((added, "added"), (removed, "removed"))
        if names
    ]
    return found or ["classes: the same in another order"]


def _images(one: TrialRecord, other: TrialRecord, split: str) -> str:
    first, second = (
        dict(zip(record.dataset.classes, record.dataset.counts.get(split, ()), strict=False))
        for record in (one, other)
    )
    if first == second:
        return f"{split} images: as many of each class, but not the same files, or under other names"
    names = dict.fromkeys((*first, *second))
    changes = {name: second.get(name, 0) - first.get(name, 0) for name in names}
    added = sum(change for change in changes.values() if change > 0)
    removed = -sum(change for change in changes.values() if change < 0)
    parts = [f"{added} added"] * bool(added) + [f"{removed} removed"] * bool(removed)
    by_class = [f"{name} {change:+d}" for name, change in changes.items() if change]
    sizes = f"{sum(first.values())} against {sum(second.values())}"
    return f"{split} images: {sizes}, at least {' and '.join(parts)} ({_few(by_class)})"


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
