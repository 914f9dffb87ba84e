"""The first trials of a study: chosen to tell most, not drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records import Metric, ProbeRecord
from harness.search.sampling import STARTUP_TRIALS
from harness.search.space import Axis, Space, Value


def count_opening(space: Space) -> int:
    """Return how many trials a study begins with, before scores have a say."""
    return max(STARTUP_TRIALS, len(space.backbones) + 2)


def plan_opening(space: Space, probes: Sequence[ProbeRecord], metric: Metric) -> list[dict[str, Value]]:
    """Return the first trials as parts of points; the sampler draws what they leave open.

    Each backbone is tried half frozen, in the order of the probes; then the best of them at the least and at
    the most frozen, and half frozen with the other optimizers. All at the middle of the learning rates, where
    an optimizer's bounds put the best guess. A probe sets the order; it drops nobody, for what trains best is
    not always what tells most apart before.

    Args:
        space: What is searched.
        probes: Of its backbones; none leave the order as it is.
        metric: Of the probes, that ranks.
    """
    values = {probe.backbone: probe.value(metric) for probe in probes}
    ranked = sorted(space.backbones, key=lambda name: -values.get(name, 0.0))
    axes = {axis.name: axis for axis in space.axes}
    low, middle, high = _spread(axes["freeze_depth"])
    lr = axes.get("lr") or axes["lr_position"]
    first, *others = axes["optimizer"].choices
    chosen = [(name, middle, first) for name in ranked]
    chosen += [(ranked[0], depth, first) for depth in dict.fromkeys((low, high)) if depth != middle]
    chosen += [(ranked[0], middle, optimizer) for optimizer in others]
    points = [
        {"backbone": name, "freeze_depth": depth, "optimizer": optimizer, lr.name: _spread(lr)[1]}
        for name, depth, optimizer in chosen
    ]
    # What has one value is no parameter of Optuna's.
    varied = {axis.name for axis in space.axes if len(axis.choices) != 1}
    return [
        {name: value for name, value in point.items() if name in varied}
        for point in points[: count_opening(space)]
    ]


def _spread(axis: Axis) -> tuple[Value, Value, Value]:
    """Return the least, the middle and the largest value of an axis of numbers."""
    if axis.choices:
        return axis.choices[0], axis.choices[len(axis.choices) // 2], axis.choices[-1]
    middle = math.sqrt(axis.low * axis.high) if axis.log else (axis.low + axis.high) / 2
    if not axis.step:
        return axis.low, middle, axis.high
    # On the steps, the last of which may lie below the end of the interval.
    low, middle, high = (
        round(axis.low + math.floor((value - axis.low) / axis.step + 1e-9) * axis.step, 9)
        for value in (axis.low, middle, axis.high)
    )
    return low, middle, high
