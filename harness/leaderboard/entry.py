"""What a leaderboard ranks: a record, its predictions where they can be had, and how far it was checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from harness.errors import StorageError
from harness.predictions import read_predictions
from harness.records import TrialRecord

Tier: TypeAlias = Literal["self-reported", "recomputed", "re-run"]
"""How far a row can be trusted: its numbers are as stated, follow from its predictions, or came out again."""
TIERS: tuple[Tier, ...] = ("self-reported", "recomputed", "re-run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """True and answered class of each image of a split, in the order of its manifest."""

    labels: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One training, as a leaderboard sees it."""

    record: TrialRecord
    answers: Callable[[], Mapping[str, Answers]] = dict
    """Reads what was answered, by split; empty where there are no predictions to be had."""
    source: str = ""
    """Digest of the bundle that it came in; empty for a record of one's own."""
    tier: Tier = "self-reported"


def entry_of(folder: Path, record: TrialRecord) -> Entry:
    """Return the entry of a record in its folder; damaged predictions count as none.

    Its study goes by the name of the study's folder, under which users find it.
    """

    @cache
    def answers() -> Mapping[str, Answers]:
        try:
            found = read_predictions(folder, record.predictions)
        except StorageError:
            return {}
        return {split: Answers(labels=part.labels, chosen=part.chosen) for split, part in found.items()}

    study = folder.absolute().parents[1].name
    return Entry(record=replace(record, study=study), answers=answers)
