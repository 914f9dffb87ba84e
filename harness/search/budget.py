"""A study's time: what is left of it for the search, once the finalists have had theirs."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from harness.config import FinalizeConfig
from harness.records import TrialRecord
from harness.search.cost import CostModel
from harness.search.result import choose_finalists

SLACK = 0.02
"""Share of the budget that a training may run over before it is ended at the next epoch."""

THRIFT = 0.25
"""Power of the cost that counts at first. Costs differ fiftyfold: in full they would leave what trains more
than a head for the last minutes."""


class Budget:
    """Seconds that one run of a study may take, from now on.

    Args:
        seconds: Of them; None: without end.
        finalize: The finalists that the search must leave time for.
    """

    def __init__(self, seconds: float | None, finalize: FinalizeConfig) -> None:
        self._began = time.monotonic()
        self._seconds = seconds if seconds is not None else math.inf
        self._finalize = finalize
        self._reserve = 0.0
        self._cheapest = 0.0
        """Seconds of the finalist that would give way to another one; 0 while there is room for more."""
        self._has_result = False
        self._overheads: list[float] = []
        self.is_spent = False
        """Whether a training was left out, or ended, for lack of time."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (time.monotonic() - self._began)

    @property
    def thrift(self) -> float:
        """How much cost counts in what is tried next: most at first, nothing in the end (Lee et al., 2020).

        A study of a number of trials pays in trials, not in seconds: there it never counts.
        """
        return THRIFT * max(0.0, self.left / self._seconds) if math.isfinite(self._seconds) else 0.0

    def note_overhead(self, seconds: float) -> None:
        """Note what a training took beside what its record says: messages, files, a worker's start."""
        self._overheads.append(max(0.0, seconds))

    @property
    def _overhead(self) -> float:
        """Seconds. The median, for the first training of a worker waits for its start."""
        return statistics.median(self._overheads) if self._overheads else 0.0

    def plan(self, trials: Sequence[TrialRecord], finals: Sequence[TrialRecord], costs: CostModel) -> None:
        """Set time aside for the finalists as they are now, less those that are tested already.

        Until a trial is complete none is cut off or left out: a study without a result would be no use of the
        time.
        """
        self._has_result = any(record.state == "complete" for record in trials)
        if math.isinf(self._seconds):
            return
        tested = Counter(record.number for record in finals if record.state == "complete")
        each = [
            (costs.final_seconds(finalist) + self._overhead)
            * max(0, self._finalize.seeds - tested[finalist.number])
            for finalist in choose_finalists(trials, self._finalize.top)
        ]
        self._reserve = sum(each)
        self._cheapest = min(each) if len(each) == self._finalize.top and each else 0.0

    def check(self) -> None:
        """Note that the time is over, whatever came of it."""
        self.is_spent = self.is_spent or self.left <= 0

    def affords(self, seconds: float, *, longest: float) -> bool:
        """Say whether trials of some seconds fit into what is left; all do until one is complete.

        Args:
            seconds: Of all of them.
            longest: Of these, of one of them: it might become a finalist.
        """
        return not self._has_result or seconds + self._reserved(longest) <= self.left

    def pays_for(self, seconds: float, *, longest: float) -> bool:
        """Say whether there is time for trials, as `affords` does; notes it when there is not."""
        return self._pays(seconds + self._reserved(longest))

    def _reserved(self, longest: float) -> float:
        """Return the seconds of all finalists, if a trial of some seconds becomes one."""
        own = (longest + self._overhead) * self._finalize.seeds if self._finalize.top else 0.0
        return max(self._reserve, self._reserve - self._cheapest + own)

    def pays_for_final(self, record: TrialRecord, costs: CostModel) -> bool:
        """Say whether there is time to train a finalist; notes it when there is not."""
        return self._pays(costs.final_seconds(record) + self._overhead)

    def _pays(self, seconds: float) -> bool:
        # What is predicted is the worst seen: a little more than there is will do.
        pays = self.left > 0 and seconds <= self.left + SLACK * self._seconds
        if math.isinf(self._seconds) or not self._has_result:
            return True
        self.is_spent = self.is_spent or not pays
        return pays

    def is_overrun(self, seconds: float) -> bool:
        """Say whether another epoch of some seconds would take a trial too far over the time there is."""
        if math.isinf(self._seconds) or not self._has_result:
            return False
        over = self.left - self._reserve - seconds < -SLACK * self._seconds
        self.is_spent = self.is_spent or over
        return over
