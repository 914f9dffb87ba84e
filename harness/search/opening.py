"""The first trials of a study: chosen to tell most, not drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records import Metric, ProbeRecord
from harness.search.sampling import STARTUP_TRIALS
from harness.search.space import Axis, Space, Value


def count_opening(space: Space, sampler: str) -> int:
    """Return how many trials a study begins with, before scores have a say: TPE needs some to tell apart."""
    return max(3, len(space.backbones)) if sampler == "gp" else max(STARTUP_TRIALS, len(space.backbones) + 2)


def plan_opening(
    space: Space, probes: Sequence[ProbeRecord], metric: Metric, count: int
) -> list[dict[str, Value]]:
    """Return the first trials as parts of points; the sampler draws what they leave open.

    Each backbone is tried a quarter frozen, in the order of the probes: where little is frozen most networks
    come out best, and it saves time already. Then the best of them at the most and the least frozen, and a
    quarter frozen with the other optimizers. All at the middle of the learning rates, where an optimizer's
    bounds put the best guess. A probe sets the order; it drops nobody, for what trains best is not always
    what tells most apart before.

    Args:
        space: What is searched.
        probes: Of its backbones; none leave the order as it is.
        metric: Of the probes, that ranks.
        count: Trials, at most.
    """
    values = {probe.backbone: probe.value(metric) for probe in probes}
    ranked = sorted(space.backbones, key=lambda name: -values.get(name, 0.0))
    axes = {axis.name: axis for axis in space.axes}
    depths = axes["freeze_depth"]
    quarter = _at(depths, 0.25)
    first, *others = axes["optimizer"].choices
    chosen = [(name, quarter, first) for name in ranked]
    ends = dict.fromkeys((_at(depths, 1.0), _at(depths, 0.0)))
    chosen += [(ranked[0], depth, first) for depth in ends if depth != quarter]
    chosen += [(ranked[0], quarter, optimizer) for optimizer in others]
    points = [_point(space, *values) for values in chosen[:count]]
    varied = _varied(space)
    return [{name: value for name, value in point.items() if name in varied} for point in points]


def observe_probes(
    space: Space, probes: Sequence[ProbeRecord], metric: Metric
) -> list[tuple[dict[str, Value], float]]:
    """Return what probes say of the space: about the score of trials that train nothing but the head.

    Nothing where no trial of the space does so.
    """
    axes = {axis.name: axis for axis in space.axes}
    if _at(axes["freeze_depth"], 1.0) != 1.0:
        return []
    first = str(axes["optimizer"].choices[0])
    # A point of the model has all axes, those too that the opening leaves open.
    rest = {axis.name: _at(axis, 0.0) for axis in space.axes}
    varied = _varied(space)
    found = []
    for probe in probes:
        if not probe.reason:
            point = rest | _point(space, probe.backbone, 1.0, first)
            found.append(({name: point[name] for name in varied}, probe.value(metric)))
    return found


def _varied(space: Space) -> list[str]:
    # What has one value is no parameter of Optuna's.
    return [axis.name for axis in space.axes if len(axis.choices) != 1]


def _point(space: Space, backbone: str, depth: Value, optimizer: Value) -> dict[str, Value]:
    lr = next(axis for axis in space.axes if axis.name in ("lr", "lr_position"))
    return {"backbone": backbone, "freeze_depth": depth, "optimizer": optimizer, lr.name: _at(lr, 0.5)}


def _at(axis: Axis, share: float) -> Value:
    """Return the value of an axis that lies so far between its least, 0, and its largest, 1."""
    if axis.choices:
        return axis.choices[round(share * (len(axis.choices) - 1))]
    value = axis.low + share * (axis.high - axis.low)
    if axis.log:
        value = axis.low * (axis.high / axis.low) ** share
    if not axis.step:
        return value
    # On the steps, the last of which may lie below the end of the interval.
    return round(axis.low + math.floor((value - axis.low) / axis.step + 1e-9) * axis.step, 9)
