"""An epoch of the engine against one of the plain loop, by freeze depth, on drawn JPEG photographs.

For each model and depth: seconds of an epoch with its validation, once everything is decoded and stored,
against those of the plain loop (`plain.py`) on the same files, and what filling the store took. Both run on
one thread in this process, one after the other; the least of the epochs counts.

usage: engine_speed.py [--model NAME ...] [--images 64] [--batch 16]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from plain import train_plain

import harness
from harness.engine.freeze import apply_freeze, plan_freeze

MODELS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "efficientnet_b0")
DEPTHS = (0.25, 0.5, 0.75, 1.0)
CLASSES, SIZE = 4, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="of timm; repeatable")
    parser.add_argument("--images", type=int, default=64, help="for training; a third as many for validation")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3, help="of each loop; the least counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        os.environ["HARNESS_HOME"] = f"{work}/home"
        folder = Path(work) / "photos"
        draw_photographs(folder, arguments.images)
        registry = harness.load_registry(["no:terminal"])
        print("| model | freeze depth | plain, s | engine, s | ratio | prefix, s | cut |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name in arguments.model or MODELS:
            for depth in DEPTHS:
                row = measure(name, depth, folder, Path(work), registry, arguments)
                print(f"| {name} | {depth:g} | {' | '.join(row)} |", flush=True)


def draw_photographs(folder: Path, images: int) -> None:
    """Write JPEG files of 500 x 375 px, of about the size that photographs have."""
    generator = np.random.default_rng(0)
    for split, count in (("train", images), ("val", images // 3)):
        for number in range(count):
            place = folder / split / str(number % CLASSES)
            place.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8))
            photograph = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
            grain = generator.integers(-12, 13, photograph.shape)
            pixels = (photograph + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number:04}.jpg", quality=85)


def measure(name, depth, folder, work, registry, arguments) -> list[str]:
    """Return the cells of a row."""
    spec = registry.backbones.get(name).spec
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES)
    plan = plan_freeze(model, depth, blocks=spec.blocks(model), head=spec.head(model), image_size=SIZE)
    apply_freeze(model, plan)
    weights = work / f"{name}.safetensors"
    if not weights.exists():
        from safetensors.torch import save_model

        save_model(model, str(weights))
    options = {"size": SIZE, "batch": arguments.batch, "lr": 1e-3, "seed": 0}
    plain, _ = train_plain(model, plan, folder, epochs=arguments.epochs, **options)
    records = []
    # The second study finds all that the first has stored.
    for number in (1, 2):
        config = harness.StudyConfig(
            dataset=str(folder),
            name=f"{name}-{depth}-{number}",
            trials=1,
            weights={name: weights},
            space={
                "backbone": [name],
                "freeze_depth": [depth],
                "lr": [1e-3],
                "optimizer": ["adamw"],
                "augmentation": "none",
            },
            train={"epochs": arguments.epochs, "batch_size": arguments.batch, "image_size": SIZE},
            search={"sampler": "grid", "pruner": "none"},
            finalize={"top": 0},
            run={"executor": "inline", "threads": 1, "device": "cpu"},
        )
        result = harness.run_study(config, registry=registry, runs=work / "runs")
        records.append(result.records[0])
    first, second = (record.cost for record in records)
    if second.prefix_passes:
        raise SystemExit(f"{name} at {depth}: the second study computed what the first had stored")
    epochs = [epoch.seconds for epoch in records[1].curve]
    ratio = min(plain) / min(epochs)
    return [
        f"{min(plain):.2f}",
        f"{min(epochs):.3f}",
        f"{ratio:.1f}",
        f"{first.prefix_seconds:.2f}",
        second.cut,
    ]


if __name__ == "__main__":
    main()
