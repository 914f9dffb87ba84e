"""What an augmentation policy and more epochs are worth: one configuration, trained with several seeds.

A bundled backbone, partly frozen, is trained by AdamW with each combination of policy and epochs. Seeds and
all else are the same for each. Prints macro-F1 on the validation split, and the seconds of a training, the
first of which also runs the frozen part.

usage: recipes.py [--dataset petals] [--backbone test_resnet.formula1] [--depth 0.25] [--lr 3e-3] [--seeds 4]
                  [--augmentation none --augmentation flip] [--epochs 5 --epochs 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch

import harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="petals", help="a name, or a folder of images")
    parser.add_argument("--backbone", default="test_resnet.formula1")
    parser.add_argument("--depth", type=float, default=0.25)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=4, help="two or more")
    parser.add_argument("--augmentation", action="append")
    parser.add_argument("--epochs", type=int, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    registry = harness.load_registry(["no:terminal"])
    print("| augmentation | epochs | macro-F1, mean | standard deviation | least | most | s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as work:
        os.environ["HARNESS_HOME"] = str(Path(work, "home"))
        for epochs in arguments.epochs or [5, 9]:
            for augmentation in arguments.augmentation or ["none", "flip"]:
                records = train(arguments, augmentation, epochs, registry, Path(work, "runs"))
                scores = [record.scores["val"].f1 for record in records]
                cells = [statistics.fmean(scores), statistics.stdev(scores), min(scores), max(scores)]
                seconds = statistics.median(record.cost.total_seconds for record in records)
                numbers = " | ".join(f"{cell:.4f}" for cell in cells)
                print(f"| {augmentation} | {epochs} | {numbers} | {seconds:.1f} |", flush=True)


def train(
    arguments: argparse.Namespace,
    augmentation: str,
    epochs: int,
    registry: harness.Registry,
    runs: Path,
) -> list[harness.TrialRecord]:
    """Train the configuration as a trial, and again with fresh seeds as its finalists are."""
    config = harness.StudyConfig.model_validate(
        {
            "dataset": arguments.dataset,
            "space": {
                "backbone": [arguments.backbone],
                "freeze_depth": [arguments.depth],
                "lr": [arguments.lr],
                "optimizer": ["adamw"],
                "augmentation": augmentation,
            },
            "train": {"epochs": epochs, "image_size": 64},
            "search": {"sampler": "grid", "pruner": "none", "probes": False},
            "finalize": {"top": 1, "seeds": arguments.seeds - 1},
            "run": {"threads": 1, "device": "cpu", "executor": "inline"},
        }
    )
    return list(harness.run_study(config, registry=registry, runs=runs).records)


if __name__ == "__main__":
    main()
