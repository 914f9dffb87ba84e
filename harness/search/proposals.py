"""What Optuna proposes, trial by trial, as settings of a training."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import StudyConfig
from harness.records import TrialConfig, TrialRecord
from harness.search.cost import CostModel
from harness.search.sampling import build_sampler, derive_seed
from harness.search.space import Space, Value

if TYPE_CHECKING:
    import optuna


class Proposals:
    """Asks Optuna for the trials of one study.

    Args:
        study: Its index.
        config: Of the study.
        space: What is searched.
        start: Number of the first trial that is not imported.
        points: What the first trials are to be, whole points or parts of them.
        known: Parameters and scores that are no trials.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        space: Space,
        *,
        start: int,
        points: Sequence[Mapping[str, Value]],
        known: Sequence[tuple[Mapping[str, Value], float]],
    ) -> None:
        self._study = study
        self._config = config
        self._space = space
        self._start = start
        self._points = points
        self._known = known

    def ask(
        self,
        number: int,
        record: TrialRecord | None,
        costs: CostModel,
        *,
        affords: Callable[[float], bool],
        thrift: float,
    ) -> tuple[optuna.Trial, TrialConfig]:
        """Ask for a trial.

        Args:
            number: Of the trial, the next.
            record: What there is of it from a run that was cut off: asked for as it was.
            costs: Predicts what candidates cost.
            affords: Says whether there is time for some seconds; what takes longer comes only if all does.
            thrift: How much cost counts.
        """
        fixed = {axis.name: axis.choices[0] for axis in self._space.axes if len(axis.choices) == 1}

        # Of hundreds of candidates, a few backbones and depths.
        @functools.cache
        def price(backbone: str, depth: float) -> float:
            fits = affords(costs.seconds(backbone, depth, self._config.train.epochs))
            return costs.work(backbone, depth) if fits else math.inf

        def cost(point: Mapping[str, Any]) -> float:
            values = {**fixed, **point}
            return price(str(values["backbone"]), float(values["freeze_depth"]))

        place = number - self._start
        if record is not None and record.search is not None:
            self._study.enqueue_trial(dict(record.search.params))
        elif place < len(self._points) and (
            # Of an opening what no longer fits gives way to what does; a grid is visited in its order.
            self._config.search.sampler == "grid" or math.isfinite(cost(self._points[place]))
        ):
            self._study.enqueue_trial(dict(self._points[place]))

        # A sampler of its own for each trial: what it proposes depends on the history and the seed alone.
        seed = derive_seed(self._config.seed, "proposal", number)
        self._study.sampler = build_sampler(
            self._config.search, seed, cost=cost, exponent=thrift, known=self._known
        )
        trial = self._study.ask()
        # At once: what is suggested comes from the sampler that the study has now.
        point = self._space.suggest(trial)
        return trial, self._space.trial_config(
            self._config, point, derive_seed(self._config.seed, "trial", number)
        )


def report_again(trials: Sequence[optuna.Trial], records: Sequence[TrialRecord]) -> None:
    """Give Optuna's pruner what it saw when trials ran side by side, in the same order."""
    for epoch in range(max((len(record.curve) for record in records), default=0)):
        for trial, record in zip(trials, records, strict=True):
            if epoch < len(record.curve):
                trial.report(record.curve[epoch].value(record.metric), step=epoch + 1)
                trial.should_prune()
