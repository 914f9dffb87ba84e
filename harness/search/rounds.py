"""Rounds of trials: asked for together, run in an order that keeps stored activations hot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from harness.records import TrialConfig

HEADS = 8
"""Trials of a round where only heads train, side by side. Anything larger trains alone, and then each
proposal had better know how the one before it fared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How trials are divided."""

    start: int
    """Number of the first trial that is not imported."""
    first: int
    """Trials of the first round."""
    size: int
    """Of every other round. Proposals know the scores of the rounds before, not those of their own."""

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first number of the round that a trial belongs to, and that of the next round."""
        opened = self.start + self.first
        if number < opened:
            return self.start, opened
        begin = opened + (number - opened) // self.size * self.size
        return begin, begin + self.size


def order(configs: Mapping[int, TrialConfig], linear: Collection[str]) -> list[list[int]]:
    """Return the numbers of a round's trials in the order they run, those that run together as one group.

    Together run those that train nothing but the linear head of one backbone, on the same images. Backbones
    follow one another as they were proposed, and within each the most frozen, cheapest trials come first.

    Args:
        configs: By number.
        linear: Backbones that are known to have a linear head. What trains a whole model runs alone, so that
            little is lost when it is cut off.
    """
    places: dict[str, int] = {}
    for config in configs.values():
        places.setdefault(config.backbone, len(places))

    def key(number: int) -> tuple[int, float, str]:
        config = configs[number]
        return places[config.backbone], -config.freeze_depth, config.augmentation

    groups: list[list[int]] = []
    for number in sorted(configs, key=lambda number: (*key(number), number)):
        config = configs[number]
        alike = groups and key(groups[-1][0]) == key(number)
        # Random weights are each trial's own.
        is_head = config.freeze_depth == 1 and config.backbone in linear
        if alike and is_head and config.init == "pretrained":
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
