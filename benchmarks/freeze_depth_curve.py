"""The whole freeze-depth curve of a bundled backbone on petals, with few and with many images a class.

Prints, for each number of images a class and each freeze depth, the mean macro-F1 on the test split over the
seeds with its 95 % interval (Student's t over seeds), and the training time. Running it again goes on where
it was stopped.

usage: freeze_depth_curve.py [--backbone test_resnet.formula1] [--per-class 20] [--per-class 200] [--seeds 5]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import subsets
from finals import train_finals
from scipy.stats import t

import harness

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="test_resnet.formula1")
    parser.add_argument("--per-class", type=int, action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_000, help="to see, within 5 to 25 epochs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("transfer"), help="folder of subsets and studies")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs at least two seeds")
    registry = harness.load_registry(["no:terminal"])
    print("| images a class | freeze depth | macro-F1 | 95 % interval | seconds of training |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for per_class in arguments.per_class or (20, 200):
        sizes = {"train": per_class, "val": 0, "test": 0}
        data = subsets.make_subset("petals", (arguments.work / f"curve-{per_class}").absolute(), sizes)
        epochs = max(5, min(25, arguments.images // (12 * per_class)))
        for depth in DEPTHS:
            finals = train_finals(
                registry,
                arguments.work / "runs",
                seeds=arguments.seeds,
                threads=arguments.threads,
                dataset=str(data),
                trials=1,
                space={
                    "backbone": [arguments.backbone],
                    "freeze_depth": [depth],
                    # The head alone bears, and needs, larger steps.
                    "lr": [1e-2 if depth == 1 else 2e-3],
                    "augmentation": "none",
                },
                train={"epochs": epochs},
            )
            scores = [100 * record.scores["test"].f1 for record in finals]
            seconds = statistics.median(record.cost.seconds for record in finals)
            half = t.ppf(0.975, len(scores) - 1) * statistics.stdev(scores) / len(scores) ** 0.5
            mean = statistics.fmean(scores)
            interval = f"{mean - half:.1f} to {mean + half:.1f}"
            print(f"| {per_class} | {depth:g} | {mean:.1f} | {interval} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
