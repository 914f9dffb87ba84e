"""Recompute what a bundle claims from what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness import metrics
from harness.documents import digest
from harness.leaderboard.bundle import Bundle
from harness.leaderboard.entry import Answers, Entry, Tier

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a check."""

    tier: Tier
    problems: tuple[str, ...]


def verify(bundle: Bundle) -> Verdict:
    """Check a bundle's scores against its predictions, and its images against its protocol."""
    try:
        problems = _problems(bundle)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problems = [f"has not the form of its schema: {error!r}"]
    return Verdict(tier="recomputed", problems=tuple(problems))


def _problems(bundle: Bundle) -> list[str]:
    problems = []
    first = bundle.records[0]
    classes = first.dataset.classes
    for split, part in bundle.samples.items():
        found = digest(
            sorted(
                [classes[label], name, sha256]
                for name, label, sha256 in zip(part.ids, part.labels, part.sha256, strict=True)
            )
        )
        if found != first.protocol.splits[split]:
            problems.append(f"the images of {split} are not those of the protocol")
    for record, answers in zip(bundle.records, bundle.answers, strict=True):
        if set(answers) != set(record.scores):
            problems.append(f"seed {record.config.seed}: no predictions")
            continue
        for split, packed in answers.items():
            labels = np.array(bundle.samples[split].labels, dtype=np.int64)
            chosen = packed.unpack()[0][:, 0]
            accuracy, f1 = metrics.point_scores(labels, chosen, len(classes))
            scores = record.scores[split]
            if max(abs(accuracy - scores.accuracy), abs(f1 - scores.f1)) > TOLERANCE:
                problems.append(f"seed {record.config.seed}: {split} scores do not follow from predictions")
    return problems


def bundle_entries(bundle: Bundle, tier: Tier) -> list[Entry]:
    """Return the entries of a bundle's records."""
    source = bundle.digest

    def answers(number: int) -> Mapping[str, Answers]:
        return {
            split: Answers(
                labels=np.array(bundle.samples[split].labels, dtype=np.int64), chosen=packed.unpack()[0][:, 0]
            )
            for split, packed in bundle.answers[number].items()
        }

    return [
        Entry(record=record, answers=lambda number=number: answers(number), source=source, tier=tier)
        for number, record in enumerate(bundle.records)
    ]
