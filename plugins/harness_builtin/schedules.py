"""Learning-rate schedules. The host puts the warm-up before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from harness import ScheduleSpec, hookimpl


def build_constant(steps: int) -> Callable[[int], float]:
    """Keep the learning rate."""
    return lambda step: 1.0


def build_cosine(steps: int) -> Callable[[int], float]:
    """Half a cosine, from 1 down to 0 (Loshchilov and Hutter, ICLR 2017)."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def build_step(steps: int) -> Callable[[int], float]:
    """Divide by 10 after 50 % and after 75 % of the steps."""
    return lambda step: 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))


def build_exponential(steps: int) -> Callable[[int], float]:
    """Decay evenly on a log scale, down to 1 %."""
    return lambda step: 0.01 ** (step / steps)


@hookimpl
def harness_schedules() -> Iterable[ScheduleSpec]:
    """Yield the schedules."""
    yield ScheduleSpec(name="constant", summary="no decay", build=build_constant)
    yield ScheduleSpec(name="cosine", summary="half a cosine down to zero", build=build_cosine)
    yield ScheduleSpec(name="step", summary="a tenth after 50 % and again after 75 %", build=build_step)
    yield ScheduleSpec(
        name="exponential", summary="even decay on a log scale to 1 %", build=build_exponential
    )
