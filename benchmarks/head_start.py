"""What it is worth to start heads from ridge regression: against those that timm draws, by freeze depth.

Trains each bundled backbone with one learning rate and several seeds on folders of images, or on petals, and
prints means of the macro-F1 on the test split, which has no say in where a head starts.

usage: head_start.py [DIR ...] [--depth 0 --depth 0.5] [--seeds 2] [--lr 4e-3] [--work head-start]
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from finals import train_finals

import harness
from harness.config import DEFAULT_STUDY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="*", default=["petals"], metavar="DIR")
    parser.add_argument("--depth", action="append", type=float, help="default: 0 and 0.5; repeatable")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=DEFAULT_STUDY["train"]["epochs"])
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--work", type=Path, default=Path("head-start"), help="goes on with what is there")
    arguments = parser.parse_args()
    os.environ["HARNESS_HOME"] = str((arguments.work / "home").absolute())
    registry = harness.load_registry(["no:terminal"])
    print("| data set | backbone | freeze depth | timm | ridge | gain |")
    print("| --- " * 6 + "|", flush=True)
    for dataset in arguments.datasets:
        for backbone in DEFAULT_STUDY["space"]["backbone"]:
            for depth in arguments.depth or (0.0, 0.5):
                timm, ridge = (
                    score(registry, arguments, dataset, backbone, depth, how) for how in ("timm", "ridge")
                )
                name = Path(dataset).name
                print(
                    f"| {name} | {backbone} | {depth:g} | {timm:.1f} | {ridge:.1f} | {ridge - timm:+.1f} |",
                    flush=True,
                )


def score(registry, arguments, dataset: str, backbone: str, depth: float, how: str) -> float:
    """Return the mean macro-F1 on the test split, in percent."""
    finals = train_finals(
        registry,
        arguments.work / "runs",
        seeds=arguments.seeds,
        threads=1,
        dataset=dataset,
        name=f"{Path(dataset).name}-{backbone}-{depth:g}-{how}-{arguments.lr:g}",
        space={
            "backbone": [backbone],
            "freeze_depth": [depth],
            "lr": [arguments.lr],
            "augmentation": "none",
            "head_init": [how],
        },
        train={**DEFAULT_STUDY["train"], "epochs": arguments.epochs},
    )
    return 100 * statistics.fmean(record.scores["test"].f1 for record in finals)


if __name__ == "__main__":
    main()
