"""What trainings that were ended early would have come to, by those that went on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial

from harness.search.box import Box
from harness.search.gaussian import Floats, GaussianProcess, draw_hyperparameters, standardize
from harness.search.sampling import FAILED

FEWEST = 3
"""Whole trainings that a forecast wants."""
MOST = 100
"""Whole trainings that one learns from, the latest: there may be a forecast for each epoch of a training."""


def foresee(box: Box, whole: Sequence[FrozenTrial], ended: Sequence[FrozenTrial]) -> list[float | None]:
    """Foresee the final scores of trainings that were ended, or are still on their way.

    A model of the final scores of whole trainings, over their parameters and their scores at the same step.
    The score alone would mislead: while the learning rate is high a training that moves far looks worse than
    one that hardly moves, and ends better.

    Args:
        box: The parameters that vary.
        whole: Trials that came to their end.
        ended: Trials that have reported a score.

    Returns:
        By trial, None where too few whole trainings reported a score at its last step, or it failed.
    """
    forecasts: list[float | None] = [None] * len(ended)
    for step in sorted({trial.last_step for trial in ended if trial.last_step is not None}):
        places = [place for place, trial in enumerate(ended) if _is_at(trial, step)]
        known = [trial for trial in whole if step in trial.intermediate_values][-MOST:]
        if places and len(known) >= FEWEST:
            found = _predict(box, known, [ended[place] for place in places], step)
            for place, score in zip(places, found.tolist(), strict=True):
                forecasts[place] = score
    return forecasts


def _is_at(trial: FrozenTrial, step: int) -> bool:
    return trial.last_step == step and trial.intermediate_values[step] != FAILED


def _predict(box: Box, known: Sequence[FrozenTrial], ended: Sequence[FrozenTrial], step: int) -> Floats:
    trials = [*known, *ended]
    points = box.encode(np.array([box.internal(trial.params) for trial in trials]))
    levels = standardize(np.array([trial.intermediate_values[step] for trial in trials]))[0]
    # Twice the deviation is the distance of two choices.
    inputs = np.column_stack([points, levels / 2])
    axes = (*box.axes, 1 + max(box.axes))
    targets, middle, spread = standardize(np.array([trial.value for trial in known], dtype=np.float64))
    draws = draw_hyperparameters(inputs[: len(known)], targets, axes, np.random.default_rng(0))
    model = GaussianProcess(inputs[: len(known)], targets, axes, draws)
    return middle + spread * model.mean(inputs[len(known) :])
