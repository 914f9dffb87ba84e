"""What pretraining is worth: bundled backbones against the same architectures from random weights.

For each target and backbone four arms: a linear probe and a full fine-tune, pretrained and from scratch.
Every arm is tuned over two learning rates, on the validation split; the random arms get three times the
epochs. Each figure is the mean of the test split's accuracy or macro-F1, in percent, over fresh
seeds, and its standard deviation. Running it again goes on where it was stopped.

usage: transfer_table.py [--backbone NAME] [--arm full] [--target petals] [--target DIR:PER_CLASS] ...
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import subsets
from finals import train_finals

import harness

ARMS = {
    # arm: (freeze depth, learning rates of the pretrained arm, learning rates of the random arm)
    "linear probe": (1.0, [3e-3, 1e-2], [3e-3, 1e-2]),
    "full": (0.0, [1e-3, 2e-3], [1e-3, 4e-3]),
}
# target: (images a class in train, val and test; epochs; augmentation)
TARGETS = {
    "petals": ({"train": 0, "val": 0, "test": 0}, 5, "none"),
    "digits": ({"train": 20, "val": 30, "test": 0}, 20, "none"),
}
FOLDER_EPOCHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", action="append", help="repeatable; default: all bundled ones")
    parser.add_argument("--target", action="append", help="repeatable; default: petals and digits")
    parser.add_argument("--arm", action="append", choices=ARMS, help="repeatable; default: both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of the pretrained arms; default by target")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("transfer"), help="folder of subsets and studies")
    parser.add_argument("--out", type=Path, help="JSON for `formula.ship`; rows are added to it")
    arguments = parser.parse_args()
    for target in arguments.target or ():
        if target not in TARGETS and not target.rpartition(":")[2].isdigit():
            parser.error(f"{target}: write DIR:IMAGES_PER_CLASS, or one of {', '.join(TARGETS)}")
    registry = harness.load_registry(["no:terminal"])
    backbones = arguments.backbone or [
        component.provider.name
        for component in registry.backbones.specs()
        if component.provider.plugin == "builtin-formula"
    ]
    table: dict[str, list[dict[str, object]]] = {}
    if arguments.out and arguments.out.exists():
        table = json.loads(arguments.out.read_text(encoding="utf-8"))
    print("| target | backbone | arm | accuracy | random, 3x epochs | gain | macro-F1 | random | gain |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for target in arguments.target or list(TARGETS):
        for backbone in backbones:
            for arm in arguments.arm or ARMS:
                scores = {
                    init: measure(target, backbone, arm, init, registry, arguments)
                    for init in ("pretrained", "scratch")
                }
                for init, values in scores.items():
                    key = {"target": label(target), "arm": arm, "init": init}
                    rows = [row for row in table.get(backbone, []) if key.items() - row.items()]
                    table[backbone] = [*rows, {**key, **values}]
                cells = []
                for metric in ("accuracy", "f1"):
                    means = [100 * values[metric] for values in scores.values()]
                    spread = [100 * values[f"{metric}_sd"] for values in scores.values()]
                    cells += [f"{mean:.1f} ± {sd:.1f}" for mean, sd in zip(means, spread, strict=True)]
                    cells.append(f"{means[0] - means[1]:+.1f}")
                print(f"| {label(target)} | {backbone} | {arm} | {' | '.join(cells)} |", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def label(target: str) -> str:
    folder, colon, per_class = target.rpartition(":")
    return f"{Path(folder).name}, {per_class} a class" if colon else target


def measure(target, backbone, arm, init, registry, arguments) -> dict[str, object]:
    """Return the mean and spread of the test scores over the seeds, in [0, 1]."""
    if target in TARGETS:
        source, name, (sizes, epochs, policy) = target, target, TARGETS[target]
    else:
        source, _, per_class = target.rpartition(":")
        name = f"{Path(source).name}-{per_class}"
        # Validation chooses a learning rate and an epoch; a few hundred images are enough for that.
        train = int(per_class)
        sizes, epochs, policy = {"train": train, "val": train and 30, "test": 0}, FOLDER_EPOCHS, "flip-crop"
    depth, *rates_by_init = ARMS[arm]
    rates = rates_by_init[init == "scratch"]
    epochs = (arguments.epochs or epochs) * (3 if init == "scratch" else 1)
    finals = train_finals(
        registry,
        arguments.work / "runs",
        seeds=arguments.seeds,
        threads=arguments.threads,
        dataset=str(subsets.make_subset(source, (arguments.work / name).absolute(), sizes)),
        init=init,
        trials=len(rates),
        space={"backbone": [backbone], "freeze_depth": [depth], "lr": rates, "augmentation": policy},
        train={"epochs": epochs},
    )
    values: dict[str, object] = {
        "lr": finals[0].config.lr,
        "epochs": epochs,
        "seeds": len(finals),
        "test_images": finals[0].scores["test"].n,
    }
    for metric in ("f1", "accuracy"):
        scores = [getattr(record.scores["test"], metric) for record in finals]
        values[metric] = round(statistics.fmean(scores), 4)
        values[f"{metric}_sd"] = round(statistics.stdev(scores), 4) if len(scores) > 1 else 0.0
    return values


if __name__ == "__main__":
    main()
