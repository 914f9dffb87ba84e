"""What trials cost: counted work, the same on every machine, and seconds as measured on this one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from harness.records import ProbeRecord, TrialRecord

OVERHEAD = 0.02
"""What a training costs beside its work: a share of that of the largest model seen, trained whole."""


class CostModel:
    """Predicts the cost of trials from the records of others.

    A backbone of which there is no record counts as the mean of those there are; between the freeze depths
    that were seen, the frozen share of its work is interpolated.

    Args:
        records: Of one study.
        probes: Of its backbones.
    """

    def __init__(self, records: Sequence[TrialRecord], probes: Sequence[ProbeRecord] = ()) -> None:
        self._looks = {probe.backbone: probe.seconds for probe in probes}
        self._flops: dict[str, float] = {}
        self._shares: dict[str, dict[float, float]] = {}
        for record in records:
            cost, config = record.cost, record.config
            if cost is None or cost.flops is None or cost.frozen_flop_share is None:
                continue
            self._flops[config.backbone] = cost.flops
            shares = self._shares.setdefault(config.backbone, {0.0: 0.0, 1.0: 1.0})
            # What runs before the cut costs nothing only where there is one.
            shares[config.freeze_depth] = cost.frozen_flop_share if cost.cut != "none" else 0.0
        self._mean = statistics.fmean(self._flops.values()) if self._flops else 1.0
        self._largest = max(self._flops.values(), default=1.0)
        self._rates: dict[str, list[float]] = {}
        self._once: list[float] = []
        self._prefix: dict[str, list[float]] = {}
        for record in records:
            if record.cost is not None and record.curve:
                name = record.config.backbone
                work = self.work(name, record.config.freeze_depth) * len(record.curve)
                # Passes of the frozen part are no part of the work behind the cut, and most trials have none.
                rest = max(0.0, record.cost.total_seconds - record.cost.prefix_seconds)
                # Nor is what a training takes once. It shows in short ones, and in first epochs.
                steady = min(rest, len(record.curve) * min(epoch.seconds for epoch in record.curve))
                self._rates.setdefault(name, []).append(steady / work)
                self._once.append(rest - steady)
                self._prefix.setdefault(name, []).append(record.cost.prefix_seconds)

    def work(self, backbone: str, freeze_depth: float) -> float:
        """Return the work of training on one image, relative to a forward pass of the largest backbone seen.

        A backward pass counts as two forward passes.
        """
        shares = self._shares.get(backbone, {0.0: 0.0, 1.0: 1.0})
        depths = sorted(shares)
        frozen = float(np.interp(freeze_depth, depths, [shares[depth] for depth in depths]))
        relative = self._flops.get(backbone, self._mean) / self._largest
        return 3 * (relative * (1 - frozen) + OVERHEAD)

    def seconds(self, backbone: str, freeze_depth: float, epochs: int) -> float:
        """Return how long a whole trial would take here; 0 before there is anything to go by.

        On the safe side: of the backbone's trials so far, that which took longest for its work.
        """
        known = self._rates.get(backbone) or [rate for some in self._rates.values() for rate in some]
        once = statistics.median_high(self._once) if self._once else 0.0
        passes = statistics.median_high(self._prefix.get(backbone, [0.0])) if freeze_depth else 0.0
        return max(known, default=0.0) * self.work(backbone, freeze_depth) * epochs + passes + once

    def final_seconds(self, record: TrialRecord) -> float:
        """Return how long it would take to train a complete trial again, and to test it."""
        if record.cost is None:
            return 0.0
        config = record.config
        trained, validated, tested = (
            sum(record.dataset.counts.get(split, ())) for split in ("train", "val", "test")
        )
        work = self.work(config.backbone, config.freeze_depth) * config.epochs * trained
        # A forward pass over the test split, frozen part included. What a head took says little of it, which
        # read what was stored: what a probe of the backbone took says more.
        passed = self.work(config.backbone, 0.0) / 3 * tested
        rates = [
            record.cost.total_seconds / work,
            *(r / trained for r in self._rates.get(config.backbone, [])),
        ]
        looked = self._looks.get(config.backbone, 0.0) * tested / max(1, trained + validated)
        return record.cost.total_seconds + max(max(rates) * passed, looked)
