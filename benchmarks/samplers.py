"""What samplers find in how many trials: searches on models of recorded trials, with their noise.

The recorded trials are those of the plain searches of `headline.py`, in `results/headline/`. Of each data set
a Gaussian process is fitted to all of them: its mean says what a configuration is worth, and what a search
sees of it scatters as the recorded trials do about that mean. Each policy runs the same number of searches,
in number of trials, cost aside. What counts is the worth of the configuration that looked best, not the score
it was lucky to get. Models are smooth where real scores need not be: this ranks policies, it does not foresee
what a search will reach.

usage: samplers.py [--searches 20] [--trials 40] [--records DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

import harness
from harness.config import DEFAULT_STUDY, StudyConfig
from harness.records import ProbeRecord
from harness.search.box import Box
from harness.search.gaussian import GaussianProcess, draw_hyperparameters
from harness.search.gp import CostAwareGPSampler
from harness.search.opening import count_opening, observe_probes, plan_opening
from harness.search.sampling import STARTUP_TRIALS
from harness.search.space import Space, resolve_space
from harness.search.tpe import CostAwareTPESampler

RECORDS = Path(__file__).parent / "results" / "headline"
AFTER = (5, 10, 20, 40)

Params = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class World:
    """A data set, as recorded trials have shown it."""

    name: str
    model: GaussianProcess
    box: Box
    middle: float
    spread: float
    noise: float

    def worth(self, params: Params) -> float:
        """Return what a configuration scores on average."""
        encoded = self.box.encode(np.array([self.box.internal(params)]))
        return self.middle + self.spread * float(self.model.mean(encoded)[0])

    def score(self, params: Params, rng: np.random.Generator) -> float:
        """Return what one training of a configuration scores."""
        return self.worth(params) + self.noise * rng.normal()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a search begins and asks."""

    name: str
    sampler: Callable[[int, list[tuple[Params, float]]], optuna.samplers.BaseSampler]
    opening: str = ""
    """Whose number of first trials are chosen; none: they are left to the sampler."""


POLICIES = (
    Policy(name="random", sampler=lambda seed, known: optuna.samplers.RandomSampler(seed=seed)),
    Policy(
        name="Optuna's TPE",
        sampler=lambda seed, known: optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    ),
    Policy(
        name="Optuna's GP",
        sampler=lambda seed, known: optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    ),
    Policy(
        name="tpe",
        opening="tpe",
        sampler=lambda seed, known: CostAwareTPESampler(
            cost=lambda params: 1.0, exponent=0.0, seed=seed, n_startup_trials=STARTUP_TRIALS
        ),
    ),
    Policy(
        name="gp, without probes",
        opening="gp",
        sampler=lambda seed, known: CostAwareGPSampler(cost=lambda params: 1.0, exponent=0.0, seed=seed),
    ),
    Policy(
        name="gp",
        opening="gp",
        sampler=lambda seed, known: CostAwareGPSampler(
            cost=lambda params: 1.0, exponent=0.0, seed=seed, known=known
        ),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=20, help="of each policy and data set")
    parser.add_argument("--trials", type=int, default=40, help="of a search")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of headline.py's JSON lines")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = StudyConfig.model_validate(DEFAULT_STUDY)
    space = resolve_space(study, harness.load_registry(["no:terminal"]))
    after = [count for count in AFTER if count <= arguments.trials]
    print(f"| data set | policy | {' | '.join(f'after {count}' for count in after)} | best |")
    print("| --- | --- |" + " --- |" * (len(after) + 1), flush=True)
    for world in load_worlds(arguments.records, space):
        rng = np.random.default_rng(0)
        best = max(world.worth(params) for params in draw(world, 2000, rng))
        for policy in POLICIES:
            found = [search(world, policy, space, arguments.trials, n) for n in range(arguments.searches)]
            cells = [f"{np.mean([run[count - 1] for run in found]):.4f}" for count in after]
            print(f"| {world.name} | {policy.name} | {' | '.join(cells)} | {best:.4f} |", flush=True)


def load_worlds(folder: Path, space: Space) -> list[World]:
    """Fit a model to the recorded trials of each data set."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*-plain.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        trials.setdefault(file.name.partition("-")[0], []).extend(rows)
    box = Box(dict(sorted(space.distributions().items())))
    return [fit_world(name, rows, box) for name, rows in trials.items()]


def fit_world(name: str, rows: list[dict[str, Any]], box: Box) -> World:
    scores = np.array([row["score"] for row in rows])
    inputs = box.encode(np.array([box.internal(row) for row in rows]))
    targets = (scores - scores.mean()) / scores.std()
    draws = draw_hyperparameters(inputs, targets, box.axes, np.random.default_rng(0))
    model = GaussianProcess(inputs, targets, box.axes, draws)
    # About the best: scores of trials that fail scatter more.
    good = scores > np.quantile(scores, 0.6)
    noise = scores.std() * (targets - model.mean(inputs))[good].std()
    return World(
        name=name,
        model=model,
        box=box,
        middle=float(scores.mean()),
        spread=float(scores.std()),
        noise=float(noise),
    )


def draw(world: World, count: int, rng: np.random.Generator) -> list[Params]:
    return [world.box.external(point) for point in world.box.draw(count, rng)]


def search(world: World, policy: Policy, space: Space, trials: int, number: int) -> list[float]:
    """Return what the best-looking configuration is worth after each trial of a search."""
    rng = np.random.default_rng([number, 1])
    probes = probe(world, space, rng)
    known = observe_probes(space, probes, "f1")
    count = count_opening(space, policy.opening) if policy.opening else 0
    opening = plan_opening(space, probes, "f1", count)
    study = optuna.create_study(direction="maximize")
    found: list[float] = []
    best = -1.0
    for n in range(trials):
        study.sampler = policy.sampler(100_000 * number + n, known)
        if n < len(opening):
            study.enqueue_trial(opening[n])
        params = study.ask(space.distributions()).params
        score = world.score(params, rng)
        study.tell(n, score)
        if score > best:
            best = score
            worth = world.worth(params)
        found.append(worth)
    return found


def probe(world: World, space: Space, rng: np.random.Generator) -> list[ProbeRecord]:
    """Return what the probes of a search say: about what training the head alone comes to."""
    points = observe_probes(space, [_record(name, 0.0) for name in space.backbones], "f1")
    return [_record(params["backbone"], world.score(params, rng)) for params, _ in points]


def _record(backbone: str, score: float) -> ProbeRecord:
    scores = dict.fromkeys(("ridge_f1", "ridge_accuracy", "knn_f1", "knn_accuracy"), score)
    return ProbeRecord(backbone=backbone, seconds=0.0, **scores)


if __name__ == "__main__":
    main()
