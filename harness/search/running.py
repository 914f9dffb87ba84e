"""A study while it runs: the one owner of its Optuna index, its records and its worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from harness import paths
from harness.config import StudyConfig
from harness.data.manifest import Manifest
from harness.engine.job import EngineSettings, TrialJob, TrialOutcome
from harness.engine.weights import ResolvedWeights
from harness.errors import NoTrialSucceeded
from harness.records import (
    EpochRecord,
    Kind,
    Provider,
    StudyView,
    TrialConfig,
    TrialRecord,
    write_record,
)
from harness.registry import Registry
from harness.search.card import write_card
from harness.search.executors import Executor, InlineExecutor, ProcessExecutor, StopRequested
from harness.search.folder import StudyFolder
from harness.search.result import StudyResult, choose_finalists, rank_trials
from harness.search.sampling import build_sampler, derive_seed
from harness.search.space import COMPONENTS

if TYPE_CHECKING:
    import optuna

# Exit codes of a study that a signal stopped. SIGUSR1 is how a cluster announces that time is up.
_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
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
        runs: Path,
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
        self._stop = threading.Event()
        self._stopped = 0
        self._runs = runs

    def run(self) -> StudyResult:
        """Run to the end, or until a signal.

        Raises:
            NoTrialSucceeded: It came to its end without one complete trial.
        """
        with self._signals():
            self._executor = self._build_executor()
            try:
                self._optuna = self._folder.optuna_study(
                    self._config.search, self._config.train.epochs, self._runs
                )
                return self._run()
            finally:
                self._executor.close()

    def _run(self) -> StudyResult:
        deadline = time.monotonic() + self._config.timeout if self._config.timeout else None
        size = self._space.size() if self._config.search.sampler == "grid" else None
        wanted = min(self._config.trials, size or self._config.trials)
        finished = self._optuna.get_trials(deepcopy=False)
        view = StudyView(
            name=self._folder.name,
            dataset=self._dataset.name,
            metric=self._config.metric,
            trials=wanted,
            epochs=self._config.train.epochs,
            folder=str(self._folder.path),
            finals=self._config.finalize.top * self._config.finalize.seeds,
            finished=sum(trial.state.is_finished() for trial in finished),
        )
        timed_out = False
        self._registry.notify("harness_study_started", study=view)
        try:
            timed_out = self._search(view, wanted, deadline)
            self._finalize(view)
        except StopRequested:
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
            stopped=self._stopped,
            timed_out=timed_out,
        )
        if not self._stopped and not rank_trials(records):
            raise NoTrialSucceeded(
                f"none of {len(records)} trials of study {self._folder.name!r} is complete",
                where=str(self._folder.path),
                why=next((record.reason for record in records if record.reason), ""),
                fixes=[f"read {self._folder.path}/trials/*/error.txt", "run harness doctor"],
            )
        return result

    def _search(self, view: StudyView, wanted: int, deadline: float | None) -> bool:
        """Run trials until the wanted number has ended; return whether time ran out before."""
        while True:
            trials = self._optuna.get_trials(deepcopy=False)
            # A trial that a killed process left behind goes first: same number, same point, same seed.
            number = next((trial.number for trial in trials if not trial.state.is_finished()), len(trials))
            if number >= wanted:
                return False
            if deadline and time.monotonic() >= deadline:
                return True
            self._propose(trials, number)
            trial = self._folder.live_trial(self._optuna, number)
            config = self._space.trial_config(
                self._config,
                self._space.suggest(trial),
                derive_seed(self._config.seed, "trial", number),
            )
            record = self._train(view, "search", number, config, self._reporter(trial))
            self._folder.tell(self._optuna, number, record)
            self._registry.notify("harness_trial_finished", study=view, record=record)

    def _propose(self, trials: list[optuna.trial.FrozenTrial], number: int) -> None:
        """Have Optuna hold the trial of that number, running."""
        if number == len(trials) and self._config.search.sampler == "grid":
            # Optuna's own grid sampler ends the study from within, which works under `optimize` alone.
            self._optuna.enqueue_trial(self._space.grid_point(number, self._config.seed))
        self._optuna.sampler = self._sampler(number)
        if number == len(trials) or trials[number].state.name == "WAITING":
            self._optuna.ask()
        # The one that asked has drawn numbers; a resumed study would start from here.
        self._optuna.sampler = self._sampler(number)

    def _reporter(self, trial: optuna.Trial) -> Callable[[EpochRecord], bool]:
        # A resumed trial has told its first epochs before.
        told = set(self._optuna.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def report(epoch: EpochRecord) -> bool:
            value = epoch.val_f1 if self._config.metric == "f1" else epoch.val_accuracy
            if epoch.epoch not in told:
                trial.report(value, step=epoch.epoch)
            return trial.should_prune()

        return report

    def _finalize(self, view: StudyView) -> None:
        """Train the finalists with fresh seeds and open the test split for them, once each."""
        records = self._folder.records()
        have = {record.folder for record in records if record.kind == "final"}
        for finalist in choose_finalists(records, self._config.finalize.top):
            for seed in range(1, self._config.finalize.seeds + 1):
                config = replace(finalist.config, seed=self._config.seed + seed)
                if f"finals/{finalist.number:04d}-seed{config.seed}" in have:
                    continue
                record = self._train(view, "final", finalist.number, config, lambda epoch: False)
                self._registry.notify("harness_trial_finished", study=view, record=record)

    def _train(
        self,
        view: StudyView,
        kind: Kind,
        number: int,
        config: TrialConfig,
        report: Callable[[EpochRecord], bool],
    ) -> TrialRecord:
        """Run one training and write its record."""
        self._registry.notify("harness_trial_started", study=view, trial=config, kind=kind, number=number)
        weights = self._weights.get(config.backbone)
        record = self._record(kind, number, config, TrialOutcome(state="stopped"))
        job = TrialJob(
            kind=kind,
            number=number,
            config=config,
            weights=weights.path if weights else None,
            folder=self._folder.path / record.folder,
            test=self._manifest.of("test") if kind == "final" else (),
        )

        def on_epoch(epoch: EpochRecord) -> bool:
            prune = report(epoch)
            self._registry.notify(
                "harness_epoch_finished",
                study=view,
                trial=config,
                kind=kind,
                number=number,
                epoch=epoch.epoch,
                value=epoch.val_f1 if self._config.metric == "f1" else epoch.val_accuracy,
            )
            return prune

        if self._stop.is_set():
            raise StopRequested
        outcome = self._executor.run(job, on_epoch, self._stop)
        record = self._record(kind, number, config, outcome)
        job.folder.mkdir(parents=True, exist_ok=True)
        if outcome.detail:
            (job.folder / "error.txt").write_text(outcome.detail, encoding="utf-8")
        if kind == "final" and record.state == "complete":
            backbone = self._registry.backbones.get(config.backbone).spec
            write_card(job.folder, record, backbone.input)
        write_record(self._folder.path, record)
        return record

    def _record(self, kind: Kind, number: int, config: TrialConfig, outcome: TrialOutcome) -> TrialRecord:
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
        )

    def _providers(self, config: TrialConfig) -> dict[str, Provider]:
        return {
            kind: self._registry.catalog(kind).get(getattr(config, field)).provider
            for field, kind in COMPONENTS.items()
        }

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._config.seed, "proposal", number)
        return build_sampler(self._config.search, seed)

    def _build_executor(self) -> Executor:
        settings = EngineSettings(
            plugins=self._registry.arguments,
            manifest=self._manifest.without("test"),
            device=self._config.run.device,
            threads=self._config.run.threads,
            home=paths.home(),
        )
        # The pipe to a worker is a file descriptor it inherits, which Windows does not have.
        if self._config.run.executor == "inline" or os.name != "posix":
            return InlineExecutor(settings, self._registry)
        return ProcessExecutor(settings, log=self._folder.path / "worker.log", stall=self._config.run.stall)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first signal into a request to stop; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask_to_stop(number: int, frame: object) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._stopped = _SIGNALS[signal.Signals(number).name]
            self._stop.set()

        names = [name for name in _SIGNALS if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), ask_to_stop) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
