"""The live display of a running study: an observer like any other, blocked with `-p no:terminal`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import ProbeRecord, StudyView, TrialConfig, TrialRecord, hookimpl, safe_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.progress import Progress, TaskID
    from rich.table import Table

SHOWN = 8
"""Rows of the live table."""


class Terminal:
    """Shows progress on standard error: live in a terminal, one plain line per trial in a pipe."""

    def __init__(self) -> None:
        self._console: Console | None = None
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._trials: TaskID | None = None
        self._epochs: TaskID | None = None
        self._probes: list[ProbeRecord] = []
        self._records: list[TrialRecord] = []
        self._ended = 0
        self._finals = 0

    @hookimpl
    def harness_study_started(self, study: StudyView, records: Sequence[TrialRecord]) -> None:
        """Open the display."""
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._records = list(records)
        self._ended = sum(record.kind == "search" for record in records)
        self._finals = len(records) - self._ended
        self._probes = []
        of = f" of {study.trials}" if study.trials else ""
        trials = f"{study.trials} trial{'s' * (study.trials > 1)}" if study.trials else "trials"
        within = f" within {_duration(study.budget)}" if study.budget else ""
        verb = (f"resumes at {self._ended}{of}" if records else trials) + within
        self._print(f"study {study.name} · {study.dataset} · {verb} · {study.folder}")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._open_live(study)

    @hookimpl
    def harness_probe_finished(self, study: StudyView, probe: ProbeRecord) -> None:
        """Show what the features of a backbone are worth."""
        self._probes.append(probe)
        if self._live is not None:
            self._refresh(study)
        elif probe.reason:
            self._print(f"[probe] none {probe.backbone}: {probe.reason}")
        else:
            ridge, knn = probe.ridge(study.metric), probe.knn(study.metric)
            self._print(
                f"[probe] {_metric(study)} ridge {ridge:.4f} kNN {knn:.4f} "
                f"{probe.backbone} {probe.seconds:.1f}s"
            )

    @hookimpl
    def harness_trial_started(self, study: StudyView, trial: TrialConfig, kind: str, number: int) -> None:
        """Show what is being trained."""
        if self._progress is None or self._epochs is None or self._trials is None:
            return
        word = "trial" if kind == "search" else "finalist"
        self._progress.reset(
            self._epochs, total=trial.epochs, description=f"{word} {number}: {safe_text(trial.backbone)}"
        )
        self._refresh(study)

    @hookimpl
    def harness_epoch_finished(
        self, study: StudyView, trial: TrialConfig, kind: str, number: int, epoch: int, value: float
    ) -> None:
        """Move the bar of the trial."""
        if self._progress is not None and self._epochs is not None:
            self._progress.update(self._epochs, completed=epoch)
            self._refresh(study)

    @hookimpl
    def harness_trial_finished(self, study: StudyView, record: TrialRecord) -> None:
        """Count the trial, and say its line where there is no live display."""
        self._records.append(record)
        if record.kind == "search":
            self._ended += 1
        else:
            self._finals += 1
        if self._live is None:
            self._print(self._line(study, record))
        else:
            if self._progress is not None and self._trials is not None:
                self._progress.update(self._trials, completed=self._ended + self._finals)
            self._refresh(study)

    @hookimpl
    def harness_study_finished(self, study: StudyView, records: Sequence[TrialRecord]) -> None:
        """Close the display."""
        if self._live is not None:
            self._live.stop()
            self._live = self._progress = None

    def _open_live(self, study: StudyView) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            # Trials differ in cost: an estimate from the last few would jump.
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            speed_estimate_period=3600,
        )
        self._trials = self._progress.add_task(
            "study",
            total=study.trials + study.finals if study.trials else None,
            completed=self._ended + self._finals,
        )
        self._epochs = self._progress.add_task("starting", total=study.epochs)
        self._live = Live(self._view(study), console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def _refresh(self, study: StudyView) -> None:
        if self._live is not None:
            self._live.update(self._view(study))

    def _view(self, study: StudyView) -> RenderableType:
        from rich.console import Group

        assert self._progress is not None
        return Group(self._progress, self._table(study))

    def _table(self, study: StudyView) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        best = sorted(
            (record for record in self._records if record.kind == "search" and record.scores),
            key=lambda record: -_score(study, record),
        )
        if self._probes and not best:
            return self._probe_table(study)
        table = Table(
            title=f"best by {_metric(study)} on val", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
        )
        for name in ("trial", "backbone", "freeze", "lr", "optimizer", _metric(study), "state"):
            table.add_column(name, overflow="fold")
        for record in best[:SHOWN]:
            config = record.config
            table.add_row(
                str(record.number),
                Text(safe_text(config.backbone)),
                f"{config.freeze_depth:g}",
                f"{config.lr:.1e}",
                Text(safe_text(config.optimizer)),
                f"{100 * _score(study, record):.1f}",
                record.state,
            )
        return table

    def _probe_table(self, study: StudyView) -> Table:
        """Return the first table there is: of what nothing was trained for."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=f"features as they are, {_metric(study)} on val",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        for name in ("backbone", "ridge", "kNN"):
            table.add_column(name, overflow="fold")
        for probe in sorted(self._probes, key=lambda probe: -probe.value(study.metric))[:SHOWN]:
            ridge, knn = probe.ridge(study.metric), probe.knn(study.metric)
            scores = [f"{100 * ridge:.1f}", f"{100 * knn:.1f}"]
            cells = [Text(safe_text(probe.reason)), ""] if probe.reason else scores
            table.add_row(Text(safe_text(probe.backbone)), *cells)
        return table

    def _line(self, study: StudyView, record: TrialRecord) -> str:
        config = record.config
        of = f"/{study.trials}" if study.trials else ""
        counter = f"{self._ended}{of}" if record.kind == "search" else "final"
        parts = [f"[{counter}]"]
        if record.scores:
            split = " val" if record.kind == "final" else ""
            parts.append(f"{_metric(study)}{split} {_score(study, record):.4f}")
        best = [
            _score(study, other)
            for other in self._records
            if other.kind == "search" and other.state == "complete"
        ]
        if best and record.kind == "search":
            parts.append(f"(best {max(best):.4f})")
        if record.kind == "final" and "test" in record.scores:
            scores = record.scores["test"]
            parts.append(f"test {scores.f1 if study.metric == 'f1' else scores.accuracy:.4f}")
        parts += [config.backbone, f"freeze {config.freeze_depth:g}", f"lr {config.lr:.1e}", config.optimizer]
        if record.cost is not None:
            parts.append(f"{record.cost.seconds:.0f}s")
        if record.state != "complete":
            parts.append(f"{record.state}: {record.reason}" if record.state == "failed" else record.reason)
        return " ".join(parts)

    def _print(self, line: str) -> None:
        from rich.text import Text

        assert self._console is not None
        self._console.print(Text(safe_text(line)))


def _metric(study: StudyView) -> str:
    return "macro-F1" if study.metric == "f1" else "accuracy"


def _score(study: StudyView, record: TrialRecord) -> float:
    scores = record.scores["val"]
    return scores.f1 if study.metric == "f1" else scores.accuracy


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h" * bool(hours), f"{minutes}m" * bool(minutes), f"{rest}s" * bool(rest)]
    return "".join(parts)
