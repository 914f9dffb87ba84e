"""Successive halving that compares like with like, and Hyperband that proposes the same when resumed."""

from __future__ import annotations

from typing import Any, cast

import optuna
from optuna.trial import TrialState

from harness.search.box import Box
from harness.search.foresight import foresee
from harness.search.sampling import IMPORTED

BANDS = 4
"""Freeze depths are told apart by quarters."""


class PeerHalvingPruner(optuna.pruners.SuccessiveHalvingPruner):
    """Asynchronous successive halving (Li et al., MLSys 2020) among trials of about the same freeze depth.

    The more is frozen, the faster a trial learns at first and the lower it ends: among all, halving would let
    no trial that trains everything come to its end.

    As in the paper, a rung lies at least a reduction factor below the whole training. Optuna, which does not
    know how long that is, would end trials shortly before their end: little is saved, and while the learning
    rate is still high their scores say next to nothing about where they come out.

    Nor is a score at a rung all there is to go by: a large learning rate is behind at first. A trial that is
    behind goes on where it is foreseen to end among the best third of all.

    A backbone without a whole training goes on where other backbones are still wanted: the finalists are the
    best trial of each, and a comparison has a row for each.

    Args:
        epochs: Of a whole training.
        min_resource: Epochs before the first rung.
        reduction_factor: Of its peers, one trial in so many goes on beyond a rung.
        backbones: That are to have a trial that came to its end, at least.
    """

    def __init__(self, *, epochs: int, min_resource: int, reduction_factor: int, backbones: int) -> None:
        super().__init__(min_resource=min_resource, reduction_factor=reduction_factor)
        self._last_rung = epochs // reduction_factor
        self._factor = reduction_factor
        self._backbones = backbones

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Say whether a trial is to end at its last reported epoch."""
        if trial.last_step is None or trial.last_step > self._last_rung:
            return False
        # Asked in any case, for it notes the score with which later trials are compared.
        is_behind = super().prune(cast(optuna.Study, _Peers(study, trial)), trial)
        return is_behind and not self._is_wanted(study, trial) and not self._is_promising(study, trial)

    def _is_wanted(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        # Where one backbone is all there is, it is no parameter.
        if "backbone" not in trial.params:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # Those of an earlier generation are no finalists of this one.
        own = [other for other in ended if IMPORTED not in other.user_attrs]
        whole = {other.params.get("backbone") for other in own}
        return len(whole) < self._backbones and trial.params["backbone"] not in whole

    def _is_promising(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        # Where nothing varies there is nothing to tell one from another by.
        if not trial.params:
            return False
        others = [
            other for other in study.get_trials(deepcopy=False) if other.params.keys() == trial.params.keys()
        ]
        whole = [other for other in others if other.state == TrialState.COMPLETE]
        ended = [
            other for other in others if other.state == TrialState.PRUNED and other.last_step is not None
        ]
        own, *foreseen = foresee(Box(dict(sorted(trial.distributions.items()))), whole, [trial, *ended])
        if own is None:
            return False
        finals = [other.value for other in whole] + foreseen
        ahead = sum(final is not None and final > own for final in finals)
        return ahead < max(1, (1 + len(finals)) // self._factor)


class PreparedHyperbandPruner(optuna.pruners.HyperbandPruner):
    """Hyperband (Li et al., JMLR 2018) that has its brackets from the start.

    Optuna's gets them with its first verdict. Until then samplers see the trials of all brackets, and from
    then on those of a trial's own: a study that is resumed would propose otherwise than one that was not.

    Args:
        epochs: Of a whole training.
        reduction_factor: Of its peers, one trial in so many goes on beyond a rung.
    """

    def __init__(self, *, epochs: int, reduction_factor: int) -> None:
        super().__init__(min_resource=1, max_resource=epochs, reduction_factor=reduction_factor)
        # The study has a say only where nobody knows how long a training is.
        self._try_initialization(cast(optuna.Study, None))


class _Peers:
    """A study with those of its trials that a trial is compared with."""

    def __init__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self._whole = study
        self._band = _band(trial)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def get_trials(self, *values: Any, **named: Any) -> list[optuna.trial.FrozenTrial]:
        """Return the peers."""
        trials = self._whole.get_trials(*values, **named)
        return [trial for trial in trials if _band(trial) == self._band]


def _band(trial: optuna.trial.FrozenTrial) -> int:
    # Where one depth is all there is, it is no parameter.
    return round(BANDS * float(trial.params.get("freeze_depth", 0.0)))
