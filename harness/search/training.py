"""Trainings of a study: run by its executor, judged by its pruner, and kept as records."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.config import StudyConfig
from harness.data.manifest import Manifest
from harness.documents import write_atomically
from harness.engine.job import TrialJob, TrialOutcome
from harness.engine.weights import ResolvedWeights
from harness.provenance import package_digests, package_versions
from harness.records import (
    EpochRecord,
    Kind,
    Provider,
    SearchRecord,
    StudyView,
    TrialConfig,
    TrialRecord,
    folder_of,
    write_record,
)
from harness.registry import Registry
from harness.search.budget import Budget
from harness.search.card import write_card
from harness.search.executors import Executor
from harness.search.folder import StudyFolder
from harness.search.signals import StopSignal
from harness.search.space import COMPONENTS

if TYPE_CHECKING:
    import optuna


class Trainings:
    """Runs the trainings of a study and writes a record of each."""

    def __init__(
        self,
        config: StudyConfig,
        registry: Registry,
        manifest: Manifest,
        folder: StudyFolder,
        weights: Mapping[str, ResolvedWeights],
        *,
        view: StudyView,
        executor: Executor,
        budget: Budget,
        stop: StopSignal,
    ) -> None:
        self._config = config
        self._registry = registry
        self._manifest = manifest
        self._folder = folder
        self._weights = weights
        self._view = view
        self._executor = executor
        self._budget = budget
        self._stop = stop
        self._dataset = manifest.dataset_record()
        self._protocol = manifest.protocol()
        self._versions = package_versions()
        self._late: set[int] = set()
        """Of the trials that run, those that the budget ends."""

    def run(
        self, kind: Kind, configs: Mapping[int, TrialConfig], trials: Mapping[int, optuna.Trial]
    ) -> list[TrialRecord]:
        """Run trainings together, of trials or of a finalist, and write their records.

        Args:
            kind: Of all of them.
            configs: By number of the trial.
            trials: By number, those that the pruner judges.

        Raises:
            Interrupted: A signal came; of these trainings there is no record then.
        """
        jobs = [self._job(kind, number, config) for number, config in configs.items()]
        for number, config in configs.items():
            self._registry.notify(
                "harness_trial_started", study=self._view, trial=config, kind=kind, number=number
            )
        curves: list[list[EpochRecord]] = [[] for _ in jobs]
        verdicts: dict[tuple[int, int], bool] = {}
        self._late.clear()

        def on_epoch(place: int, epoch: EpochRecord) -> bool:
            # A training that begins again, alone, is told what it was told before.
            if (place, epoch.epoch) not in verdicts:
                curves[place].append(epoch)
                trial = trials.get(jobs[place].number)
                ended = {other for (other, _), is_end in verdicts.items() if is_end}
                # Of an epoch of heads side by side each has its share.
                seconds = epoch.seconds * (len(jobs) - len(ended))
                verdicts[place, epoch.epoch] = self._judge(jobs[place], epoch, trial, seconds)
            return verdicts[place, epoch.epoch]

        self._stop.check()
        began = time.monotonic()
        outcomes = self._executor.run(jobs, on_epoch, self._stop)
        records = []
        for job, outcome, curve in zip(jobs, outcomes, curves, strict=True):
            # A worker that died has told its epochs already.
            whole = outcome if outcome.curve else replace(outcome, curve=tuple(curve))
            if whole.state == "pruned" and job.number in self._late:
                reason = f"out of time at epoch {len(whole.curve)} of {job.config.epochs}"
                whole = replace(whole, reason=reason)
            records.append(self._keep(job, whole, _told(trials.get(job.number))))
            self._registry.notify("harness_trial_finished", study=self._view, record=records[-1])
        took = sum(outcome.cost.total_seconds for outcome in outcomes if outcome.cost)
        self._budget.note_overhead((time.monotonic() - began - took) / len(jobs))
        return records

    def _judge(self, job: TrialJob, epoch: EpochRecord, trial: optuna.Trial | None, seconds: float) -> bool:
        """Tell observers and the pruner of an epoch; return whether the training ends with it.

        Args:
            job: The training.
            epoch: Its epoch.
            trial: None for a finalist.
            seconds: That the next epoch will take, of all that train together.
        """
        value = epoch.value(self._config.metric)
        self._registry.notify(
            "harness_epoch_finished",
            study=self._view,
            trial=job.config,
            kind=job.kind,
            number=job.number,
            epoch=epoch.epoch,
            value=value,
        )
        if trial is None:
            # Half a finalist is none: its test would not count.
            return False
        trial.report(value, step=epoch.epoch)
        if trial.should_prune():
            return True
        is_last = epoch.epoch == job.config.epochs
        is_late = not is_last and self._budget.is_overrun(seconds)
        if is_late:
            self._late.add(job.number)
        return is_late

    def _job(self, kind: Kind, number: int, config: TrialConfig) -> TrialJob:
        weights = self._weights.get(config.backbone)
        return TrialJob(
            kind=kind,
            number=number,
            config=config,
            weights=weights.path if weights else None,
            folder=self._folder.path / folder_of(kind, number, config.seed),
            sharing=self._folder.space.sharing(self._config.trials),
            depths=self._folder.space.depths,
            test=self._manifest.of("test") if kind == "final" else (),
        )

    def _keep(self, job: TrialJob, outcome: TrialOutcome, told: SearchRecord | None) -> TrialRecord:
        """Write what a training leaves behind."""
        record = self._record(job.kind, job.number, job.config, outcome, told)
        error = job.folder / "error.txt"
        # A finalist that failed is trained again, in the same place.
        if outcome.detail:
            write_atomically(error, outcome.detail)
        else:
            error.unlink(missing_ok=True)
        if job.kind == "final" and record.state == "complete":
            backbone = self._registry.backbones.get(job.config.backbone).spec
            write_card(job.folder, record, backbone.input)
        write_record(self._folder.path, record)
        return record

    def _record(
        self,
        kind: Kind,
        number: int,
        config: TrialConfig,
        outcome: TrialOutcome,
        search: SearchRecord | None,
    ) -> TrialRecord:
        weights = self._weights.get(config.backbone)
        return TrialRecord(
            # All records of a run name one study, whatever its folder is called since.
            study=self._folder.document["name"],
            kind=kind,
            number=number,
            state=outcome.state,
            reason=outcome.reason,
            metric=self._config.metric,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config=config,
            providers=self._providers(config),
            dataset=self._dataset,
            protocol=self._protocol,
            weights=weights.record if weights else None,
            scores=outcome.scores,
            curve=outcome.curve,
            cost=outcome.cost,
            predictions=outcome.predictions,
            model=outcome.model,
            environment={**self._versions, **outcome.environment},
            packages=package_digests(),
            search=search,
        )

    def _providers(self, config: TrialConfig) -> dict[str, Provider]:
        return {
            kind: self._registry.provider(kind, getattr(config, field)) for field, kind in COMPONENTS.items()
        }


def _told(trial: optuna.Trial | None) -> SearchRecord | None:
    """Return what Optuna holds of a trial beyond its scores."""
    if trial is None:
        return None
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    attributes = {
        key: value for key, value in frozen.system_attrs.items() if key.startswith("completed_rung")
    }
    return SearchRecord(params=dict(trial.params), attributes=attributes)
