"""How well the final scores of trials are foreseen from their first epochs.

Takes studies of which no trial was ended early (`--set search.pruner=none`). Of their whole trials a random
share is known to the end, the others up to an epoch, as if they had been ended there. Compared with what they
came to are the score at that epoch, which samplers take it for elsewhere, and the forecast.

usage: foresight.py STUDY [STUDY ...] [--epoch 3] [--share 0.5] [--repeats 20]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import spearmanr

from harness.records import TrialRecord, read_records
from harness.search.box import Box
from harness.search.folder import StudyFolder
from harness.search.foresight import foresee
from harness.search.space import Space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="folder of a study")
    parser.add_argument("--epoch", type=int, default=3, help="after which trials are ended")
    parser.add_argument("--share", type=float, default=0.5, help="of the trials that are known to the end")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    print("| study | trials | known | as | error | rank correlation | worse than the best by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in arguments.studies:
        space = StudyFolder.open(folder).space
        records = [record for record in read_records(folder) if record.kind == "search"]
        whole = [record for record in records if record.state == "complete"]
        found = [compare(space, whole, arguments, seed) for seed in range(arguments.repeats)]
        known = round(arguments.share * len(whole))
        for place, name in enumerate(("score then", "forecast")):
            error, correlation, loss = np.mean([each[place] for each in found], axis=0)
            cells = f"{error:.4f} | {correlation:.2f} | {loss:.4f}"
            print(f"| {folder.name} | {len(whole)} | {known} | {name} | {cells} |", flush=True)


def compare(
    space: Space, records: list[TrialRecord], arguments: argparse.Namespace, seed: int
) -> list[tuple[float, float, float]]:
    """Return root mean square error, rank correlation, and what is lost by trusting the order, of both."""
    order = np.random.default_rng(seed).permutation(len(records))
    count = round(arguments.share * len(records))
    whole = [as_trial(space, records[place], None) for place in order[:count]]
    ended = [as_trial(space, records[place], arguments.epoch) for place in order[count:]]
    truth = np.array([value_of(records[place]) for place in order[count:]])
    then = np.array([trial.intermediate_values[arguments.epoch] for trial in ended])
    foreseen = np.array(foresee(Box(space.distributions()), whole, ended), dtype=np.float64)
    return [
        (
            float(np.sqrt(np.mean((scores - truth) ** 2))),
            float(spearmanr(scores, truth)[0]),
            float(truth.max() - truth[scores.argmax()]),
        )
        for scores in (then, foreseen)
    ]


def as_trial(space: Space, record: TrialRecord, end: int | None) -> FrozenTrial:
    curve = [epoch.value(record.metric) for epoch in record.curve][:end]
    return create_trial(
        state=TrialState.COMPLETE if end is None else TrialState.PRUNED,
        params=space.params_of(record.config),
        distributions=space.distributions(),
        intermediate_values=dict(enumerate(curve, start=1)),
        value=curve[-1] if end is None else None,
    )


def value_of(record: TrialRecord) -> float:
    return record.curve[-1].value(record.metric)


if __name__ == "__main__":
    main()
