"""Run a study: ask Optuna, train, write the record, tell Optuna; at the end open the test split once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import paths
from harness.config import StudyConfig
from harness.data.manifest import Manifest, SplitRules, load_manifest
from harness.engine.job import EngineSettings, TrialJob, TrialOutcome
from harness.engine.weights import ResolvedWeights, preflight
from harness.errors import NoTrialSucceeded, UsageError
from harness.leaderboard.rank import Leaderboard, rank
from harness.records import (
    EpochRecord,
    Kind,
    Provider,
    StudyView,
    TrialConfig,
    TrialRecord,
    read_records,
    write_record,
)
from harness.registry import Registry, load_registry
from harness.search.card import write_card
from harness.search.executors import Executor, InlineExecutor, ProcessExecutor, StopRequested
from harness.search.folder import StudyFolder, default_name, identity, value_of
from harness.search.sampling import build_sampler, derive_seed
from harness.search.space import COMPONENTS, Space, resolve_space

if TYPE_CHECKING:
    import optuna

# Exit codes of a study that a signal stopped. SIGUSR1 is how a cluster announces that time is up.
_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
_PACKAGES = ("transfer-harness", "torch", "torchvision", "timm", "optuna", "numpy", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What a study left behind."""

    name: str
    folder: Path
    metric: str
    records: tuple[TrialRecord, ...]
    stopped: int = 0
    """Exit code of the signal that stopped it; 0 when it ran to its end."""
    timed_out: bool = False

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
        ranked = _ranked(self.records)
        if not ranked:
            raise NoTrialSucceeded(f"study {self.name!r} has no complete trial", where=str(self.folder))
        return ranked[0]

    def leaderboard(self) -> list[Leaderboard]:
        """Rank the study's rows."""
        return rank(self.records, metric="accuracy" if self.metric == "accuracy" else "f1")


def run_study(
    config: StudyConfig,
    *,
    registry: Registry | None = None,
    runs: Path | None = None,
    extend: bool = False,
    where: str = "study",
) -> StudyResult:
    """Run a study, or go on with it where it was interrupted.

    Args:
        config: What is asked for.
        registry: The plugins; default: all that are installed.
        runs: Folder of studies; default `HARNESS_RUNS` or `runs` in the current folder.
        extend: If the named study exists with another space, open a new generation that imports its trials.
        where: Named in errors: the study file.

    Returns:
        The study's records, after its last trial or after a signal.

    Raises:
        UsageError: Unknown names, or a study of that name with another space.
        DataError: The data set is missing or unusable; before any training.
        WeightsError: Pretrained weights cannot be had; before any training.
        StorageError: The study's folder cannot be used.
        NoTrialSucceeded: All trials failed.
    """
    registry = registry or load_registry()
    runs = runs or paths.runs()
    space = resolve_space(config, registry, where=where)
    manifest = load_manifest(
        config.dataset,
        registry,
        rules=SplitRules(val=config.split.val, test=config.split.test, seed=config.split.seed),
        skip_bad=config.skip_bad,
    )
    weights = _preflight(space, config, registry)
    folder = _open_folder(config, space, manifest, weights, runs, extend=extend)
    with folder.lock():
        folder.want(config.trials)
        study = _Study(config, registry, manifest, folder, weights, runs)
        return study.run()


class _Study:
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
            metric=self._config.metric,
            records=records,
            stopped=self._stopped,
            timed_out=timed_out,
        )
        if not self._stopped and not _ranked(records):
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


def choose_finalists(records: list[TrialRecord], top: int) -> list[TrialRecord]:
    """Return the trials to train again and test: the best of each backbone first, then the next best."""
    ranked = _ranked(records)
    first: dict[str, TrialRecord] = {}
    for record in ranked:
        first.setdefault(record.config.backbone, record)
    others = [record for record in ranked if first[record.config.backbone] is not record]
    return [*first.values(), *others][:top]


def _ranked(records: list[TrialRecord] | tuple[TrialRecord, ...]) -> list[TrialRecord]:
    """Return complete trials, the best validation score first; of equals, the earlier."""
    complete = [record for record in records if record.kind == "search" and record.state == "complete"]
    return sorted(complete, key=lambda record: (-value_of(record, record.curve[-1]), record.number))


def _preflight(space: Space, config: StudyConfig, registry: Registry) -> dict[str, ResolvedWeights]:
    backbones = next(axis.choices for axis in space.axes if axis.name == "backbone")
    return preflight(
        [registry.backbones.get(str(name)) for name in backbones],
        init=config.init,
        weights=config.weights,
        weights_dir=config.weights_dir,
    )


def _open_folder(
    config: StudyConfig,
    space: Space,
    manifest: Manifest,
    weights: Mapping[str, ResolvedWeights],
    runs: Path,
    *,
    extend: bool,
) -> StudyFolder:
    """Open the study that a configuration means, or create it."""
    protocol = manifest.protocol().digest
    digests = {name: resolved.record.sha256 for name, resolved in weights.items()}
    name = config.name or default_name(manifest.dataset, config, protocol)

    def create(name: str, previous: str = "") -> StudyFolder:
        return StudyFolder.create(
            runs / name,
            config,
            space,
            dataset=manifest.dataset,
            protocol=protocol,
            weights=digests,
            previous=previous,
        )

    if not (runs / name / "study.json").exists():
        return create(name)
    generations = [StudyFolder.open(runs / name)]
    while (runs / f"{name}@{len(generations) + 1}" / "study.json").exists():
        generations.append(StudyFolder.open(runs / f"{name}@{len(generations) + 1}"))
    for folder in reversed(generations):
        if folder.document["identity"] == identity(config, protocol):
            _check_weights(folder, digests)
            return folder
    last = generations[-1]
    changes = last.differences(config, protocol)
    if extend and last.document["protocol"] == protocol:
        return create(f"{name}@{len(generations) + 1}", previous=last.name)
    raise UsageError(
        f"study {last.name!r} exists and is another study\n" + "\n".join(f"  {line}" for line in changes),
        where=str(last.path),
        fixes=[
            "choose another --name",
            *(["add --extend to open a new generation that imports its trials"] if not extend else []),
        ],
    )


def _check_weights(folder: StudyFolder, digests: Mapping[str, str]) -> None:
    stored: dict[str, str] = folder.document["weights"]
    changed = sorted(name for name, digest in stored.items() if digests.get(name, digest) != digest)
    if changed:
        raise UsageError(
            f"the weights of {', '.join(changed)} are not those that study {folder.name!r} began with",
            where=str(folder.path),
            fixes=["restore the files", "choose another --name"],
        )


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def load_study(folder: Path) -> StudyResult:
    """Read a stored study without running it."""
    opened = StudyFolder.open(folder)
    return StudyResult(
        name=opened.name,
        folder=folder,
        metric=opened.document["metric"],
        records=tuple(read_records(folder)),
    )
