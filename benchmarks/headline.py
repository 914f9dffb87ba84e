"""Time until the best score of a plain search is reached: Optuna's TPE around a plain loop, against a study.

Both arms search the default study's space with the same epochs, batches, schedule, weight decay and
augmentation (every other image mirrored), and have one core and the same folder of image files. The plain arm
is Optuna's TPE around the loop of `plain.py`: no pruning, nothing kept between trials, heads as timm builds
them. The other is a study with the harness's own settings and empty caches, with a share of the time that the
plain arm took as its budget; its clock starts with the call and has the scan of the data set, the start of
the worker and the decoding in it. Its heads start from ridge regression, unless `--head-init timm` asks for
what is left of the gain without that. A trial's score is the macro-F1 on the validation split after its last
epoch; pruned trials count for nothing.

Scores and seconds of each arm lie in `--work` as JSON lines; running it again goes on with the arms that are
missing. `--work` gets a plot as well: the best score so far against the seconds. Wants an idle machine.

usage: headline.py [--dataset petals] [--dataset DIR] [--seeds 3] [--trials 40] [--epochs 9] [--share 0.5]
                   [--augmentation flip] [--head-init ridge]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import subsets
import torch
from chart import Line, draw_steps
from plain import train_plain
from torchvision.transforms import v2

import harness
from harness.config import DEFAULT_STUDY
from harness.engine.freeze import apply_freeze, plan_freeze
from harness_builtin.petals import GARDENS

SPACE, TRAIN = DEFAULT_STUDY["space"], DEFAULT_STUDY["train"]
SEARCHED = "backbone", "freeze_depth", "lr", "optimizer"
SIZE = 64

Trials = list[dict[str, Any]]
"""By trial: seconds from the start of the search to its end, its score, in [0, 1], and what it tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", action="append", help="petals, or DIR with train and val; repeatable")
    parser.add_argument("--per-class", type=int, default=0, help="images to take of each class; 0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=TRAIN["epochs"])
    parser.add_argument("--augmentation", choices=["none", "flip"], default=SPACE["augmentation"])
    parser.add_argument("--share", type=float, default=0.5, help="of plain's time that the study gets")
    parser.add_argument("--head-init", default="ridge", help="of the study")
    parser.add_argument("--within", type=float, default=0.0, help="of plain's best counts as reached")
    parser.add_argument("--work", type=Path, default=Path("headline"), help="folder of data and measurements")
    arguments = parser.parse_args()
    use_one_core()
    found: dict[str, list[dict[str, Trials]]] = {}
    for dataset in arguments.dataset or ["petals"]:
        if dataset not in GARDENS and not (Path(dataset, "train").is_dir() and Path(dataset, "val").is_dir()):
            parser.error(f"{dataset}: give a folder with train and val, or one of {', '.join(GARDENS)}")
        name = Path(dataset).name + (f"-{arguments.per_class}" if arguments.per_class else "")
        folder = (arguments.work / name).absolute()
        sizes = dict.fromkeys(("train", "val", "test"), arguments.per_class)
        subsets.make_subset(dataset, folder, sizes)
        found[name] = []
        for seed in range(arguments.seeds):
            plain = measure("plain", folder, seed, arguments, search_plain)
            budget = max(1, round(arguments.share * plain[-1]["seconds"]))
            arm = f"ours-{arguments.share:g}-{arguments.head_init}"
            ours = measure(arm, folder, seed, arguments, partial(search_ours, budget))
            found[name].append({"plain": plain, "ours": ours})
    print_table(found, arguments.within)
    plot = arguments.work / f"headline-{arguments.trials}x{arguments.epochs}-{arguments.augmentation}.svg"
    panels = {
        name: [Line(arm=arm, points=best_so_far(trials)) for pair in pairs for arm, trials in pair.items()]
        for name, pairs in found.items()
    }
    plot.write_text(draw_steps(panels, "seconds", "best macro-F1 on the validation split"), encoding="utf-8")


def use_one_core() -> None:
    """Keep this process, and those it starts, on one core: the harness decodes in several threads."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure(
    arm: str, folder: Path, seed: int, arguments: argparse.Namespace, search: Callable[..., Trials]
) -> Trials:
    """Run an arm, unless it has been run before."""
    name = (
        f"{folder.name}-{arguments.trials}x{arguments.epochs}-{arguments.augmentation}-seed{seed}-{arm}.jsonl"
    )
    file = arguments.work / name
    if not file.exists():
        print(f"measuring {file.stem}", file=sys.stderr, flush=True)
        trials = search(folder, seed, arguments)
        part = file.with_suffix(".part")
        part.write_text("".join(json.dumps(trial) + "\n" for trial in trials), encoding="utf-8")
        part.rename(file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def search_plain(folder: Path, seed: int, arguments: argparse.Namespace) -> Trials:
    """Let Optuna search with the plain loop."""
    registry = harness.load_registry(["no:terminal"])
    classes = len(list((folder / "train").iterdir()))
    trials: Trials = []

    def train(trial: optuna.Trial) -> float:
        name = trial.suggest_categorical("backbone", SPACE["backbone"])
        depth = trial.suggest_float("freeze_depth", 0.0, 1.0, step=0.25)
        lr = trial.suggest_float("lr", **SPACE["lr"])
        optimizer = trial.suggest_categorical("optimizer", SPACE["optimizer"])
        spec = registry.backbones.get(name).spec
        own_seed = 1000 * seed + 100_000 * trial.number
        torch.manual_seed(own_seed)
        model = spec.build(classes, spec.weights.cached(), SIZE)
        plan = plan_freeze(model, depth, blocks=spec.blocks(model), head=spec.head(model), image_size=SIZE)
        apply_freeze(model, plan)
        result = train_plain(
            model,
            plan,
            folder,
            size=SIZE,
            batch=TRAIN["batch_size"],
            epochs=arguments.epochs,
            lr=lr,
            seed=own_seed,
            optimizer=optimizer,
            augment=v2.RandomHorizontalFlip() if arguments.augmentation == "flip" else None,
        )
        score = result.scores[-1][1]
        trials.append({"seconds": time.time() - began, "score": score, **trial.params})
        return score

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began = time.time()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(train, n_trials=arguments.trials)
    return trials


def search_ours(budget: int, folder: Path, seed: int, arguments: argparse.Namespace) -> Trials:
    """Run a study for some seconds, with nothing in its caches."""
    values: dict[str, Any] = {
        "dataset": str(folder),
        "budget": budget,
        "seed": seed,
        "space": {**SPACE, "augmentation": arguments.augmentation, "head_init": [arguments.head_init]},
        "train": {**TRAIN, "epochs": arguments.epochs},
        "finalize": {"top": 0},
        "run": {"threads": 1, "device": "cpu"},
    }
    if not (folder / "test").is_dir():
        # A test split is then taken out of train: the smallest, of one image a class.
        values["split"] = {"test": 1e-9}
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        os.environ["HARNESS_HOME"] = str(Path(work, "home").absolute())
        began = time.time()
        registry = harness.load_registry(["no:terminal"])
        config = harness.StudyConfig.model_validate(values)
        result = harness.run_study(config, registry=registry, runs=Path(work, "runs").absolute())
        if result.stopped:
            raise SystemExit(result.stopped)
        # A record is written when its trial has ended, and never again.
        trials = [
            {
                "seconds": (result.folder / record.folder / "record.json").stat().st_mtime - began,
                "score": record.scores["val"].f1 if record.state == "complete" else 0.0,
                **{axis: getattr(record.config, axis) for axis in SEARCHED},
            }
            for record in result.records
        ]
        return sorted(trials, key=lambda trial: trial["seconds"])


def best_so_far(trials: Trials) -> list[tuple[float, float]]:
    """Return seconds and score of each trial that was better than all before, and the end of the search."""
    best: list[tuple[float, float]] = []
    for trial in trials:
        if not best or trial["score"] > best[-1][1]:
            best.append((trial["seconds"], trial["score"]))
    return [*best, (trials[-1]["seconds"], best[-1][1])]


def first_to_reach(target: float, trials: Trials) -> float | None:
    """Return the seconds after which a score was first reached."""
    return next((trial["seconds"] for trial in trials if trial["score"] >= target), None)


def print_table(found: dict[str, list[dict[str, Trials]]], within: float) -> None:
    print("| data set | seed | score to reach | plain, s | ours, s | ratio | ours, best | all trials, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, pairs in found.items():
        ratios = []
        for seed, pair in enumerate(pairs):
            plain, ours = pair["plain"], pair["ours"]
            target = max(trial["score"] for trial in plain) - within
            slow, fast = first_to_reach(target, plain), first_to_reach(target, ours)
            # Never is slower than any time.
            ratios.append(slow / fast if slow and fast else 0.0)
            cells = [
                f"{target:.4f}",
                f"{slow:.1f}",
                f"{fast:.1f}" if fast else "not reached",
                f"{ratios[-1]:.1f}" if fast else "-",
                f"{max(trial['score'] for trial in ours):.4f}",
                f"{plain[-1]['seconds']:.0f} / {ours[-1]['seconds']:.0f}",
            ]
            print(f"| {name} | {seed} | {' | '.join(cells)} |")
        median = statistics.median(ratios)
        print(f"| {name} | median | | | | {f'{median:.1f}' if median else 'not reached'} | | |", flush=True)


if __name__ == "__main__":
    main()
