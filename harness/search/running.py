"""A study while it runs: the one owner of its Optuna index, its records and its worker."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from harness.config import DEFAULT_TRIALS, StudyConfig
from harness.data.manifest import Manifest
from harness.engine.job import ProbeJob
from harness.engine.weights import ResolvedWeights
from harness.errors import Interrupted, NoTrialSucceeded
from harness.records import (
    ProbeRecord,
    StudyView,
    TrialConfig,
    TrialRecord,
)
from harness.registry import Registry
from harness.samples import write_samples
from harness.search.budget import Budget
from harness.search.child import Child
from harness.search.cost import CostModel
from harness.search.executors import build_executor
from harness.search.folder import StudyFolder
from harness.search.index import Index
from harness.search.opening import count_opening, observe_probes, plan_opening
from harness.search.proposals import Proposals, report_again
from harness.search.result import StudyResult, choose_finalists, rank_trials
from harness.search.rounds import HEADS, Rounds, order
from harness.search.sampling import MODELLED
from harness.search.signals import StopSignal
from harness.search.space import Value
from harness.search.training import Trainings

if TYPE_CHECKING:
    import optuna


class RunningStudy:
    """A study while it runs: the one owner of its Optuna index and its records."""

    def __init__(
        self,
        config: StudyConfig,
        registry: Registry,
        manifest: Manifest,
        folder: StudyFolder,
        weights: Mapping[str, ResolvedWeights],
        budget: Budget,
        stop: StopSignal,
        child: Child | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._manifest = manifest
        self._folder = folder
        self._weights = weights
        self._space = folder.space
        self._index = Index(folder, config)
        self._stop = stop
        self._budget = budget
        self._child = child

    def run(self, *, search: bool = True) -> StudyResult:
        """Run to the end, or until a signal.

        Args:
            search: Run the trials that are missing; without it only the finalising step.

        Raises:
            NoTrialSucceeded: It came to its end without a complete trial, or after 20 that failed.
            StorageError: The study's files or its database fail.
        """
        with self._index.errors(), self._stop.polled():
            self._executor = build_executor(
                self._config.run,
                self._registry,
                self._manifest,
                log=self._folder.path / "worker.log",
                child=self._child,
            )
            try:
                return self._run(search=search)
            finally:
                self._executor.close()

    def _run(self, *, search: bool) -> StudyResult:
        points = self._grid()
        wanted = self._config.trials
        if points is not None:
            wanted = len(points) if wanted is None else min(wanted, len(points))
        finals = self._config.finalize.top * self._config.finalize.seeds
        self._view = StudyView(
            name=self._folder.name,
            dataset=self._manifest.dataset,
            metric=self._config.metric,
            trials=wanted,
            epochs=self._config.train.epochs,
            folder=str(self._folder.path),
            finals=finals,
            budget=self._config.budget,
        )
        self._trainings = Trainings(
            self._config,
            self._registry,
            self._manifest,
            self._folder,
            self._weights,
            view=self._view,
            executor=self._executor,
            budget=self._budget,
            stop=self._stop,
        )
        self._registry.notify(
            "harness_study_started", study=self._view, records=tuple(self._folder.records())
        )
        try:
            if search:
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
            dataset=self._manifest.dataset,
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
                fixes=_ways_out(records),
            )
        return result

    def _search(self, wanted: int | None, grid: list[dict[str, Value]] | None) -> None:
        """Run rounds of trials until the wanted number has ended, or the budget pays for no more."""
        imported = len(self._folder.imports)
        end = math.inf if wanted is None else imported + wanted
        records = self._folder.records()
        self._trials = {record.number: record for record in records if record.kind == "search"}
        # A search trains no finalists: those there are stay as they are until it has ended.
        self._finals = [record for record in records if record.kind == "final"]
        rounds = self._rounds()
        if self._trials:
            self._folder.check_numbers(self._trials, rounds.bounds(max(self._trials))[0])
        missing = next(number for number in itertools.count(imported) if number not in self._trials)
        is_over = missing >= end
        # A round that was begun is asked for anew, from the history it began with.
        told = imported + len(self._trials) if is_over else rounds.bounds(missing)[0]
        self._optuna = self._index.open(told)
        if is_over:
            return
        self._probes = probes = self._probe()
        self._linear = {probe.backbone for probe in probes if not probe.reason}
        points: Sequence[Mapping[str, Value]] = grid or ()
        sampler, metric = self._config.search.sampler, self._config.metric
        if sampler in MODELLED and not imported:
            points = plan_opening(self._space, probes, metric, count_opening(self._space, sampler))
        self._proposals = Proposals(
            self._optuna,
            self._config,
            self._space,
            start=imported,
            points=points,
            known=observe_probes(self._space, probes, metric),
        )
        before = len(self._trials)
        while told < end and not self._budget.is_spent and not self._is_hopeless(before):
            begin, stop = rounds.bounds(told)
            told = int(min(stop, end))
            self._run_round(range(begin, told))
            self._budget.check()

    def _is_hopeless(self, before: int) -> bool:
        """Say whether all trials failed, of which a usual number was run on top of some.

        A night must not be spent on what goes wrong every time. The same command tries as many again.
        """
        failed = all(record.state == "failed" for record in self._trials.values())
        return failed and len(self._trials) - before >= DEFAULT_TRIALS

    def _rounds(self) -> Rounds:
        imported = len(self._folder.imports)
        learns = self._config.search.sampler in MODELLED
        size = HEADS if self._space.depths == (1.0,) or not learns else 1
        # Within a budget each of the opening is asked for once it is known what is left of the time.
        opens = learns and not imported and self._config.budget is None
        first = count_opening(self._space, self._config.search.sampler) if opens else size
        return Rounds(start=imported, first=first, size=size)

    def _run_round(self, numbers: range) -> None:
        """Ask for the trials of a round, run those of which there is no record, and tell all."""
        self._stop.check()
        costs = self._plan()
        trials: dict[int, optuna.Trial] = {}
        configs: dict[int, TrialConfig] = {}
        committed = 0.0
        for number in numbers:
            trials[number], config = self._proposals.ask(
                number,
                self._trials.get(number),
                costs,
                affords=partial(self._affords, committed),
                thrift=self._budget.thrift,
            )
            configs[number] = config
            committed += costs.seconds(config.backbone, config.freeze_depth, config.epochs)
        for group in order(configs, self._linear):
            ended = [number for number in group if number in self._trials]
            report_again([trials[n] for n in ended], [self._trials[n] for n in ended])
            fresh = {number: configs[number] for number in group if number not in self._trials}
            if fresh and self._pays_for(fresh):
                records = self._trainings.run("search", fresh, trials)
                self._trials |= {record.number: record for record in records}
            for number in group:
                if number in self._trials:
                    self._index.tell(self._optuna, trials[number], self._trials[number])

    def _plan(self) -> CostModel:
        """Set time aside for the finalists that are not tested yet; return what trials have cost."""
        trials = [*self._trials.values()]
        costs = CostModel(trials, self._probes)
        self._budget.plan(trials, self._finals, costs)
        return costs

    def _affords(self, before: float, seconds: float) -> bool:
        """Say whether a trial of some seconds fits in after others that take some."""
        return self._budget.affords(before + seconds, longest=seconds)

    def _pays_for(self, configs: Mapping[int, TrialConfig]) -> bool:
        """Say whether there is time for trials that run together."""
        if self._config.budget is None:
            return True
        costs = self._plan()
        each = [costs.seconds(c.backbone, c.freeze_depth, c.epochs) for c in configs.values()]
        return self._budget.pays_for(sum(each), longest=max(each))

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
        if self._trials:
            # What they were opened with: later probes would give later ones of the opening other places.
            return tuple(probes)
        for backbone in self._space.backbones:
            if any(probe.backbone == backbone for probe in probes) or self._budget.left <= 0:
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
        trials = [record for record in records if record.kind == "search"]
        costs = CostModel(trials, self._folder.probes())
        # Also where the search had ended before.
        self._budget.plan(trials, [record for record in records if record.kind == "final"], costs)
        tested = [r.config for r in records if r.kind == "final" and r.state == "complete"]
        finalists = choose_finalists(records, self._config.finalize.top)
        if finalists:
            # Not before: until here nothing in the study's folder says which image is of which class.
            write_samples(self._folder.path, self._manifest.sample_list())
        for finalist in finalists:
            for seed in range(1, self._config.finalize.seeds + 1):
                config = replace(finalist.config, seed=self._config.seed + seed)
                # The best of all is tested, whatever it takes.
                if config in tested or (tested and not self._budget.pays_for_final(finalist, costs)):
                    continue
                self._trainings.run("final", {finalist.number: config}, {})
                tested.append(config)


def _ways_out(records: Sequence[TrialRecord]) -> list[str]:
    """Return what to do where every trial failed."""
    reasons = {record.reason.partition(":")[0] for record in records}
    fixes = []
    if "nan" in reasons:
        fixes.append("search lower learning rates: --lr 1e-5:1e-3")
    if "oom" in reasons:
        fixes.append("use a smaller --batch-size or --image-size")
    if reasons - {"nan", "oom"}:
        fixes += ["read what the trials left: trials/*/error.txt there, and worker.log", "run harness doctor"]
    return fixes
