"""Compare two runs that are named on the command line, or say why they cannot be compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.documents import digest
from harness.errors import UnknownNameError, UsageError
from harness.leaderboard.entry import Entry
from harness.leaderboard.protocols import explain_differences
from harness.leaderboard.runs import Run, gather_runs
from harness.leaderboard.statistics import Bootstrap, Difference
from harness.records import Metric, TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two runs that are compared."""

    study: str
    number: int
    backbone: str
    score: float
    """Mean over its trainings."""
    trainings: int
    failed: int
    """Of these, counted with the score of the floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """By how much one run is above another on the same images."""

    dataset: str
    split: Literal["val", "test"]
    metric: Metric
    protocol: str
    images: int
    one: Side
    other: Side
    difference: Difference


def find_record(entries: Sequence[Entry], name: str) -> TrialRecord:
    """Return the record that `STUDY` or `STUDY/NUMBER` stands for, to read a protocol from.

    Raises:
        UnknownNameError: There is no such study, or it has no such trial.
    """
    return min(
        (entry.record for entry in _entries_of(entries, name)),
        key=lambda record: (
            record.state != "complete",
            record.kind != "final",
            record.number,
            record.created,
        ),
    )


def compare(
    entries: Sequence[Entry],
    one: str,
    other: str,
    *,
    metric: Metric = "f1",
    split: Literal["auto", "val", "test"] = "auto",
) -> Comparison:
    """Compare two runs.

    Args:
        entries: Of all studies.
        one: `STUDY`, which stands for its best run on val, or `STUDY/NUMBER`.
        other: As `one`.
        metric: What is compared.
        split: `auto` takes test where both have final trainings, else val.

    Raises:
        UnknownNameError: There is no such study, or it has no such trial.
        UsageError: They are of different protocols, one has no score on the split, or both are one run.
    """
    names = (one, other)
    records = [find_record(entries, name) for name in names]
    differences = explain_differences(*records)
    if differences:
        raise UsageError(
            f"{one} and {other} cannot be compared",
            why="; ".join(differences),
            fixes=[f"see it in full: harness leaderboard diff {shlex.join(names)}"],
        )
    found = {part: [_find_runs(entries, name, part) for name in names] for part in ("test", "val")}
    if split == "auto":
        split = "test" if all(any(run.entries for run in runs) for runs in found["test"]) else "val"
    sides = []
    for name, runs in zip(names, found[split], strict=True):
        ended = [run for run in runs if run.entries]
        if not ended:
            raise UsageError(f"{name} has no score on {split}", fixes=_other_split(split))
        sides.append(min(ended, key=lambda run: (-run.choice(metric), run.first.number)))
    first, second = sides
    if first.first.folder == second.first.folder and first.first.study == second.first.study:
        raise UsageError(f"{one} and {other} are the same run, or trials of one configuration")
    samples = [run.sample() for run in sides]
    protocol = records[0].protocol.digest
    bootstrap = Bootstrap(digest([protocol, split]), metric)
    return Comparison(
        dataset=records[0].dataset.name,
        split=split,
        metric=metric,
        protocol=protocol,
        images=first.first.scores[split].n if split in first.first.scores else 0,
        one=_side(first, metric),
        other=_side(second, metric),
        difference=bootstrap.difference(*samples),
    )


def _other_split(split: str) -> list[str]:
    return ["compare on val: --split val"] if split == "test" else ["run the study until a trial is complete"]


def _side(run: Run, metric: Metric) -> Side:
    return Side(
        study=run.first.study,
        number=run.first.number,
        backbone=run.first.config.backbone,
        score=run.value(metric),
        trainings=len(run.entries) + len(run.failed),
        failed=len(run.failed),
    )


def _find_runs(entries: Sequence[Entry], name: str, split: Literal["val", "test"]) -> list[Run]:
    own = _entries_of(entries, name)
    study = own[0].record.study
    wanted = {entry.record.config.digest() for entry in own}
    same = [entry for entry in entries if entry.record.study == study]
    return [run for run in gather_runs(same, split) if run.first.config.digest() in wanted]


def _entries_of(entries: Sequence[Entry], name: str) -> list[Entry]:
    """Return the entries of a study, or of one of its trials by number."""
    studies = sorted({entry.record.study for entry in entries})
    match = re.fullmatch(r"(.+)/(\d+)", name)
    study = name if name in studies or not match else match[1]
    own = [entry for entry in entries if entry.record.study == study]
    if not own:
        more = f"choose from {', '.join(studies)}" if studies else "make some: harness study run"
        raise UnknownNameError("study", study, studies, more=more)
    if study == name or not match:
        return own
    numbered = [entry for entry in own if entry.record.number == int(match[2])]
    if not numbered:
        known = sorted({entry.record.number for entry in own})
        shown = ", ".join(str(number) for number in known[:20]) + (" ..." if len(known) > 20 else "")
        raise UnknownNameError("trial", name, (), more=f"study {study} has trials {shown}")
    return numbered
