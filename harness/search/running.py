"""A study while it runs: the one owner of its Optuna index, its records and its worker."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from harness import paths
from harness.config import StudyConfig
from harness.data.manifest import Manifest
from harness.engine.job import EngineSettings, TrialJob, TrialOutcome
from harness.engine.weights import ResolvedWeights
from harness.errors import Interrupted, NoTrialSucceeded
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
from harness.search.card import write_card
from harness.search.executors import Executor, InlineExecutor, ProcessExecutor
from harness.search.folder import StudyFolder
from harness.search.result import StudyResult, choose_finalists, rank_trials
from harness.search.sampling import build_sampler, derive_seed
from harness.search.signals import StopSignal
from harness.search.space import COMPONENTS, Value

if TYPE_CHECKING:
    import optuna

_PACKAGES = ("transfer-harness", "torch", "torchvision", "timm", "optuna", "numpy", "pillow")


class RunningStudy:
    """A study while it runs: the one owner of its Optuna index and its records."""

    def __init__(
        self,
        config: StudyConfig,
        registry: Registry,
        manifest: Manifest,
        folder: StudyFolder,
        weights: Mapping[str, ResolvedWeights],
        stop: StopSignal,
    ) -> None:
        self._config = config
        self._registry = registry
        self._manifest = manifest
        self._folder = folder
        self._weights = weights
        self._space = folder.space
        self._dataset = manifest.dataset_record()
        self._protocol = manifest.protocol()
        self._versions = _versions()
        self._stop = stop

    def run(self) -> StudyResult:
        """Run to the end, or until a signal.

        Raises:
            NoTrialSucceeded: It came to its end without one complete trial.
            StorageError: The study's files or its database fail.
        """
        with self._folder.database_errors(), self._stop.polled():
            self._executor = self._build_executor()
            try:
                self._optuna = self._folder.optuna_study(self._config)
                return self._run()
            finally:
                self._executor.close()

    def _run(self) -> StudyResult:
        deadline = time.monotonic() + self._config.timeout if self._config.timeout else None
        points = self._grid()
        wanted = self._config.trials if points is None else min(self._config.trials, len(points))
        view = StudyView(
            name=self._folder.name,
            dataset=self._dataset.name,
            metric=self._config.metric,
            trials=wanted,
            epochs=self._config.train.epochs,
            folder=str(self._folder.path),
            finals=self._config.finalize.top * self._config.finalize.seeds,
        )
        timed_out = False
        self._registry.notify("harness_study_started", study=view, records=tuple(self._folder.records()))
        try:
            timed_out = self._search(view, wanted, points, deadline)
            self._finalize(view)
        except Interrupted:
            # Noted by the signal; what has ended is on disk.
            pass
        finally:
            records = tuple(self._folder.records())
            self._registry.notify("harness_study_finished", study=view, records=records)
        result = StudyResult(
            name=self._folder.name,
            folder=self._folder.path,
            dataset=self._dataset.name,
            metric=self._config.metric,
            trials=wanted,
            records=records,
            stopped=self._stop.code,
            timed_out=timed_out,
        )
        if not result.stopped and not rank_trials(records):
            raise NoTrialSucceeded(
                f"study {self._folder.name!r} ended without a complete trial, of {len(records)}",
                where=str(self._folder.path),
                why=next((record.reason for record in records if record.reason), ""),
                fixes=[f"read {self._folder.path}/trials/*/error.txt", "run harness doctor"],
            )
        return result

    def _search(
        self, view: StudyView, wanted: int, points: list[dict[str, Value]] | None, deadline: float | None
    ) -> bool:
        """Run trials until the wanted number has ended; return whether time ran out before."""
        imported = len(self._folder.imports)
        while True:
            number = len(self._optuna.get_trials(deepcopy=False))
            if number - imported >= wanted:
                return False
            if deadline and time.monotonic() >= deadline:
                return True
            self._stop.check()
            if points is not None:
                self._optuna.enqueue_trial(points[number - imported])
            # A sampler of its own for each trial: what it proposes depends on the history and the seed alone.
            seed = derive_seed(self._config.seed, "proposal", number)
            self._optuna.sampler = build_sampler(self._config.search, seed)
            trial = self._optuna.ask()
            config = self._space.trial_config(
                self._config,
                self._space.suggest(trial),
                derive_seed(self._config.seed, "trial", number),
            )
            record = self._train(view, "search", number, config, trial)
            self._folder.tell(self._optuna, trial, record)
            self._registry.notify("harness_trial_finished", study=view, record=record)

    def _grid(self) -> list[dict[str, Value]] | None:
        """Return the points that a grid study still has to visit, or has visited itself, in order.

        Optuna's own grid sampler ends the study from within, which works under `optimize` alone.
        """
        if self._config.search.sampler != "grid":
            return None
        seen = [self._space.params_of(imported.config) for imported in self._folder.imports]
        return [point for point in self._space.grid_points(self._config.seed) if point not in seen]

    def _finalize(self, view: StudyView) -> None:
        """Train the finalists with fresh seeds and open the test split for them, once each."""
        records = self._folder.records()
        have = {record.folder for record in records if record.kind == "final" and record.state == "complete"}
        for finalist in choose_finalists(records, self._config.finalize.top):
            for seed in range(1, self._config.finalize.seeds + 1):
                config = replace(finalist.config, seed=self._config.seed + seed)
                if folder_of("final", finalist.number, config.seed) in have:
                    continue
                record = self._train(view, "final", finalist.number, config, None)
                self._registry.notify("harness_trial_finished", study=view, record=record)

    def _train(
        self,
        view: StudyView,
        kind: Kind,
        number: int,
        config: TrialConfig,
        trial: optuna.Trial | None,
    ) -> TrialRecord:
        """Run one training, of a trial or of a finalist, and write its record."""
        self._registry.notify("harness_trial_started", study=view, trial=config, kind=kind, number=number)
        weights = self._weights.get(config.backbone)
        job = TrialJob(
            kind=kind,
            number=number,
            config=config,
            weights=weights.path if weights else None,
            folder=self._folder.path / folder_of(kind, number, config.seed),
            sharing=self._space.sharing(self._config.trials),
            depths=self._space.depths,
            test=self._manifest.of("test") if kind == "final" else (),
        )

        def on_epoch(epoch: EpochRecord) -> bool:
            value = epoch.value(self._config.metric)
            self._registry.notify(
                "harness_epoch_finished",
                study=view,
                trial=config,
                kind=kind,
                number=number,
                epoch=epoch.epoch,
                value=value,
            )
            if trial is None:
                return False
            trial.report(value, step=epoch.epoch)
            return trial.should_prune()

        self._stop.check()
        outcome = self._executor.run(job, on_epoch, self._stop)
        record = self._record(kind, number, config, outcome, self._told(trial))
        job.folder.mkdir(parents=True, exist_ok=True)
        if outcome.detail:
            (job.folder / "error.txt").write_text(outcome.detail, encoding="utf-8")
        if kind == "final" and record.state == "complete":
            backbone = self._registry.backbones.get(config.backbone).spec
            write_card(job.folder, record, backbone.input)
        write_record(self._folder.path, record)
        return record

    def _told(self, trial: optuna.Trial | None) -> SearchRecord | None:
        """Return what Optuna holds of a trial beyond its scores."""
        if trial is None:
            return None
        frozen = self._optuna.get_trials(deepcopy=False)[trial.number]
        attributes = {
            key: value for key, value in frozen.system_attrs.items() if key.startswith("completed_rung")
        }
        return SearchRecord(params=dict(trial.params), attributes=attributes)

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
            study=self._folder.name,
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
            environment={**self._versions, **outcome.environment},
            search=search,
        )

    def _providers(self, config: TrialConfig) -> dict[str, Provider]:
        return {
            kind: self._registry.catalog(kind).get(getattr(config, field)).provider
            for field, kind in COMPONENTS.items()
        }

    def _build_executor(self) -> Executor:
        settings = EngineSettings(
            plugins=self._registry.arguments,
            manifest=self._manifest.without("test"),
            device=self._config.run.device,
            threads=self._config.run.threads,
            home=paths.home(),
            cache=None if self._config.run.cache_gb is None else int(self._config.run.cache_gb * 1e9),
        )
        # The pipe to a worker is a file descriptor it inherits, which Windows does not have.
        if self._config.run.executor == "inline" or os.name != "posix":
            return InlineExecutor(settings, self._registry)
        return ProcessExecutor(settings, log=self._folder.path / "worker.log", stall=self._config.run.stall)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
