"""What a study left behind: its records, its best trial, its finalists."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import NoTrialSucceeded
from harness.leaderboard.entry import entry_of
from harness.leaderboard.rank import Leaderboard, rank
from harness.paths import study_arguments
from harness.records import Metric, ProbeRecord, TrialRecord, read_records
from harness.search.folder import StudyFolder

logger = logging.getLogger("harness.study")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What a study left behind."""

    name: str
    folder: Path
    dataset: str
    metric: Metric
    trials: int | None
    """Wanted in total; None: as many as the budget pays for."""
    records: tuple[TrialRecord, ...]
    stopped: int = 0
    """Exit code of the signal that stopped it; 0 when it ran to its end."""
    timed_out: bool = False
    """Whether the budget ended it before its last trial."""
    probes: tuple[ProbeRecord, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 0, 3 when some trials failed, or the code of the signal that stopped the study."""
        return self.stopped or (3 if any(record.state == "failed" for record in self.records) else 0)

    @property
    def best(self) -> TrialRecord:
        """Return the complete trial with the best validation score.

        Raises:
            NoTrialSucceeded: There is none.
        """
        ranked = rank_trials(self.records)
        if not ranked:
            raise NoTrialSucceeded(
                f"study {self.name!r} has no complete trial",
                where=str(self.folder),
                fixes=[
                    f"see what became of its trials: harness study show {study_arguments(self.folder)}",
                    "go on with it: the command that began it, again",
                ],
            )
        return ranked[0]

    def leaderboard(self) -> list[Leaderboard]:
        """Rank the study's rows."""
        entries = [entry_of(self.folder / record.folder, record) for record in self.records]
        return rank(entries, metric=self.metric)


def load_study(folder: Path) -> StudyResult:
    """Read a stored study without running it; warns of records that are damaged, and leaves them out."""
    opened = StudyFolder.open(folder)
    return StudyResult(
        name=opened.name,
        folder=folder,
        dataset=opened.document["dataset"],
        metric=opened.document["metric"],
        trials=opened.document["trials"],
        probes=opened.probes(),
        records=tuple(read_records(folder, lambda error: logger.warning("left out: %s", error))),
    )


def choose_finalists(records: Sequence[TrialRecord], top: int) -> list[TrialRecord]:
    """Return the trials to train again and test: the best of each backbone first, then the next best.

    Of trials with one configuration, the best stands for all: training them again would give one model twice.
    """
    distinct: dict[str, TrialRecord] = {}
    for record in rank_trials(records):
        distinct.setdefault(record.config.digest(), record)
    ranked = list(distinct.values())
    first: dict[str, TrialRecord] = {}
    for record in ranked:
        first.setdefault(record.config.backbone, record)
    others = [record for record in ranked if first[record.config.backbone] is not record]
    return [*first.values(), *others][:top]


def rank_trials(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return complete trials, the best validation score first; of equals, the earlier."""
    complete = [record for record in records if record.kind == "search" and record.state == "complete"]
    return sorted(complete, key=lambda record: (-record.curve[-1].value(record.metric), record.number))
