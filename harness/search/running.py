"""A study while it runs: the one owner of its Optuna index, its records and its worker."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from harness import paths
from harness.config import StudyConfig
from harness.data.manifest import Manifest
from harness.engine.job import EngineSettings, ProbeJob, TrialJob, TrialOutcome
from harness.engine.weights import ResolvedWeights
from harness.errors import Interrupted, NoTrialSucceeded
from harness.records import (
    EpochRecord,
    Kind,
    ProbeRecord,
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
from harness.search.cost import CostModel
from harness.search.executors import Executor, InlineExecutor, ProcessExecutor
from harness.search.folder import StudyFolder
from harness.search.result import StudyResult, choose_finalists, rank_trials
from harness.search.rounds import SIZE, Rounds, allocate, order
from harness.search.sampling import STARTUP_TRIALS, build_sampler, derive_seed
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
        self._budget = Budget(config.budget, config.finalize)

    def run(self) -> StudyResult:
        """Run to the end, or until a signal.

        Raises:
            NoTrialSucceeded: It came to its end without one complete trial.
            StorageError: The study's files or its database fail.
        """
        with self._folder.database_errors(), self._stop.polled():
            self._executor = self._build_executor()
            try:
                return self._run()
            finally:
                self._executor.close()

    def _run(self) -> StudyResult:
        points = self._grid()
        wanted = self._config.trials
        if points is not None:
            wanted = len(points) if wanted is None else min(wanted, len(points))
        finals = self._config.finalize.top * self._config.finalize.seeds
        self._view = StudyView(
            name=self._folder.name,
            dataset=self._dataset.name,
            metric=self._config.metric,
            trials=wanted,
            epochs=self._config.train.epochs,
            folder=str(self._folder.path),
            finals=finals,
            budget=self._config.budget,
        )
        self._registry.notify(
            "harness_study_started", study=self._view, records=tuple(self._folder.records())
        )
        try:
            self._search(wanted, points)
            self._finalize()
        except Interrupted:
            # Noted by the signal; what has ended is on disk.
            pass
        finally:
            records = tuple(self._folder.records())
            self._registry.notify("harness_study_finished", study=self._view, records=records)
        result = StudyResult(
            name=self._folder.name,
            folder=self._folder.path,
            dataset=self._dataset.name,
            metric=self._config.metric,
            trials=wanted,
            records=records,
            stopped=self._stop.code,
            timed_out=self._budget.is_spent,
            probes=self._folder.probes(),
        )
        if not result.stopped and not rank_trials(records):
            raise NoTrialSucceeded(
                f"study {self._folder.name!r} ended without a complete trial, of {len(records)}",
                where=str(self._folder.path),
                why=next((record.reason for record in records if record.reason), ""),
                fixes=[f"read {self._folder.path}/trials/*/error.txt", "run harness doctor"],
            )
        return result

    def _search(self, wanted: int | None, points: list[dict[str, Value]] | None) -> None:
        """Run rounds of trials until the wanted number has ended, or the budget pays for no more."""
        imported = len(self._folder.imports)
        end = math.inf if wanted is None else imported + wanted
        numbers = {record.number for record in self._trials()}
        rounds = self._rounds()
        if numbers:
            self._folder.check_numbers(numbers, rounds.bounds(max(numbers))[0])
        missing = next(number for number in itertools.count(imported) if number not in numbers)
        is_over = missing >= end
        # A round that was begun is asked for anew, from the history it began with.
        told = imported + len(numbers) if is_over else rounds.bounds(missing)[0]
        self._optuna = self._folder.optuna_study(self._config, told)
        if is_over:
            return
        probes = self._probe()
        if not imported and points is None and probes:
            share = allocate(self._space.backbones, probes, rounds.first, self._config.metric)
            points = [{"backbone": name} for name in share] if len(self._space.backbones) > 1 else None
        while told < end and not self._budget.is_spent:
            begin, stop = rounds.bounds(told)
            told = int(min(stop, end))
            self._run_round(range(begin, told), points)

    def _rounds(self) -> Rounds:
        imported = len(self._folder.imports)
        if imported or self._config.search.sampler == "grid":
            return Rounds(start=imported, first=SIZE)
        first = max(STARTUP_TRIALS, len(self._space.backbones))
        # A Gaussian process does not spread what it proposes at one time.
        return Rounds(start=0, first=first, size=1 if self._config.search.sampler == "gp" else SIZE)

    def _run_round(self, numbers: range, points: list[dict[str, Value]] | None) -> None:
        """Ask for the trials of a round, run those of which there is no record, and tell all."""
        self._stop.check()
        records = self._trials()
        costs = CostModel(records)
        self._budget.plan(records)
        trials: dict[int, optuna.Trial] = {}
        configs: dict[int, TrialConfig] = {}
        seconds: dict[int, float] = {}
        for number in numbers:
            affordable = self._budget.for_search - sum(seconds.values())
            trials[number] = self._ask(number, points, costs, affordable)
            # At once: what is suggested comes from the sampler that the study has now.
            point = self._space.suggest(trials[number])
            seed = derive_seed(self._config.seed, "trial", number)
            config = configs[number] = self._space.trial_config(self._config, point, seed)
            seconds[number] = costs.seconds(config.backbone, config.freeze_depth, config.epochs)
        for group in order(configs):
            known = {record.number: record for record in self._trials()}
            # Another version of the sampler may ask for something else.
            has_ended = all(number in known and known[number].config == configs[number] for number in group)
            if has_ended:
                records = [known[number] for number in group]
                self._report_again([trials[number] for number in group], records)
            else:
                self._budget.plan(list(known.values()))
                if not self._budget.pays_for(sum(seconds[number] for number in group)):
                    continue
                records = self._train("search", {number: configs[number] for number in group}, trials)
            for record in records:
                self._folder.tell(self._optuna, trials[record.number], record)
            for record in () if has_ended else records:
                self._registry.notify("harness_trial_finished", study=self._view, record=record)

    def _ask(
        self,
        number: int,
        points: list[dict[str, Value]] | None,
        costs: CostModel,
        affordable: float,
    ) -> optuna.Trial:
        """Ask Optuna for a trial of no more than some seconds, if that can be."""
        place = number - len(self._folder.imports)
        if points is not None and place < len(points):
            self._optuna.enqueue_trial(points[place])

        def cost(point: Mapping[str, Any]) -> float:
            values = {axis.name: axis.choices[0] for axis in self._space.axes if len(axis.choices) == 1}
            values |= point
            backbone, depth = str(values["backbone"]), float(values["freeze_depth"])
            fits = costs.seconds(backbone, depth, self._config.train.epochs) <= affordable
            return costs.work(backbone, depth) if fits else math.inf

        # A sampler of its own for each trial: what it proposes depends on the history and the seed alone.
        seed = derive_seed(self._config.seed, "proposal", number)
        self._optuna.sampler = build_sampler(
            self._config.search, seed, cost=cost, exponent=self._budget.thrift
        )
        return self._optuna.ask()

    def _report_again(self, trials: Sequence[optuna.Trial], records: Sequence[TrialRecord]) -> None:
        """Give Optuna's pruner what it saw when these trials ran, in the same order."""
        for epoch in range(max((len(record.curve) for record in records), default=0)):
            for trial, record in zip(trials, records, strict=True):
                if epoch < len(record.curve):
                    trial.report(record.curve[epoch].value(record.metric), step=epoch + 1)
                    trial.should_prune()

    def _trials(self) -> list[TrialRecord]:
        """Return the records of the search."""
        return [record for record in self._folder.records() if record.kind == "search"]

    def _grid(self) -> list[dict[str, Value]] | None:
        """Return the points that a grid study still has to visit, or has visited itself, in order.

        Optuna's own grid sampler ends the study from within, which works under `optimize` alone.
        """
        if self._config.search.sampler != "grid":
            return None
        seen = [self._space.params_of(imported.config) for imported in self._folder.imports]
        return [point for point in self._space.grid_points(self._config.seed) if point not in seen]

    def _probe(self) -> tuple[ProbeRecord, ...]:
        """Probe the features of each backbone, once in a study; random weights have none to speak of."""
        if not self._config.search.probes or self._config.init != "pretrained":
            return ()
        probes = list(self._folder.probes())
        for backbone in self._space.backbones:
            if any(probe.backbone == backbone for probe in probes):
                continue
            self._stop.check()
            weights = self._weights.get(backbone)
            job = ProbeJob(
                config=self._space.probe_config(self._config, backbone),
                weights=weights.path if weights else None,
                sharing=self._space.sharing(self._config.trials),
                depths=self._space.depths,
            )
            probes.append(self._executor.probe(job, self._stop))
            self._folder.keep_probes(probes)
            self._registry.notify("harness_probe_finished", study=self._view, probe=probes[-1])
        return tuple(probes)

    def _finalize(self) -> None:
        """Train the finalists with fresh seeds and open the test split for them, once each."""
        records = self._folder.records()
        costs = CostModel([record for record in records if record.kind == "search"])
        have = {record.folder for record in records if record.kind == "final" and record.state == "complete"}
        for finalist in choose_finalists(records, self._config.finalize.top):
            for seed in range(1, self._config.finalize.seeds + 1):
                config = replace(finalist.config, seed=self._config.seed + seed)
                folder = folder_of("final", finalist.number, config.seed)
                # The best of all is tested, whatever it takes.
                if folder in have or (have and not self._budget.pays_for_final(finalist, costs)):
                    continue
                (record,) = self._train("final", {finalist.number: config}, {})
                have.add(folder)
                self._registry.notify("harness_trial_finished", study=self._view, record=record)

    def _train(
        self, kind: Kind, configs: Mapping[int, TrialConfig], trials: Mapping[int, optuna.Trial]
    ) -> list[TrialRecord]:
        """Run trainings together, of trials or of a finalist, and write their records."""
        jobs = [self._job(kind, number, config) for number, config in configs.items()]
        for number, config in configs.items():
            self._registry.notify(
                "harness_trial_started", study=self._view, trial=config, kind=kind, number=number
            )
        reported: set[tuple[int, int]] = set()

        def on_epoch(place: int, epoch: EpochRecord) -> bool:
            number = jobs[place].number
            value = epoch.value(self._config.metric)
            self._registry.notify(
                "harness_epoch_finished",
                study=self._view,
                trial=jobs[place].config,
                kind=kind,
                number=number,
                epoch=epoch.epoch,
                value=value,
            )
            over = self._budget.is_overrun(epoch.seconds, final=kind == "final")
            if kind == "final":
                # Half a finalist is none: its test would not count.
                return False
            trial = trials[number]
            if (number, epoch.epoch) not in reported:
                reported.add((number, epoch.epoch))
                trial.report(value, step=epoch.epoch)
            return trial.should_prune() or over

        self._stop.check()
        outcomes = self._executor.run(jobs, on_epoch, self._stop)
        return [
            self._keep(job, outcome, self._told(trials.get(job.number)))
            for job, outcome in zip(jobs, outcomes, strict=True)
        ]

    def _job(self, kind: Kind, number: int, config: TrialConfig) -> TrialJob:
        weights = self._weights.get(config.backbone)
        return TrialJob(
            kind=kind,
            number=number,
            config=config,
            weights=weights.path if weights else None,
            folder=self._folder.path / folder_of(kind, number, config.seed),
            sharing=self._space.sharing(self._config.trials),
            depths=self._space.depths,
            test=self._manifest.of("test") if kind == "final" else (),
        )

    def _keep(self, job: TrialJob, outcome: TrialOutcome, told: SearchRecord | None) -> TrialRecord:
        """Write what a training leaves behind."""
        record = self._record(job.kind, job.number, job.config, outcome, told)
        job.folder.mkdir(parents=True, exist_ok=True)
        if outcome.detail:
            (job.folder / "error.txt").write_text(outcome.detail, encoding="utf-8")
        if job.kind == "final" and record.state == "complete":
            backbone = self._registry.backbones.get(job.config.backbone).spec
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
