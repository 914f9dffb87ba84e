"""The engine against the plain loop, by freeze depth, on drawn JPEG photographs, on one thread.

For each model and depth, everything being decoded and stored:

* an epoch with its validation, by the plain loop (`plain.py`) on the same files and by the engine;
* the set-up of a later trial, up to its first step;
* a training step in forward passes of what trains (S), and how many times as long a step of the plain loop
  takes, as a share of (P + 3S) / 3S, P being a forward pass of what is frozen;
* whether both loops, which start from one head and see one order of batches, give the same probabilities on
  the validation split, bit by bit, or by how much they differ;
* what filling the store took.

Seconds are those of the CPU, but for the last; the least of some counts.

Both compute in what `auto` comes to, unless `--precision` or `--plain-precision` says otherwise.

usage: engine_speed.py [--model NAME ...] [--depth D ...] [--images 64] [--batch 16] [--precision fp32]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from plain import train_plain
from safetensors.torch import save_model

import harness
from harness.config import parse_study
from harness.data.bank import centre_crop, prepare, short_side
from harness.data.manifest import SplitRules, load_manifest
from harness.data.views import normalise
from harness.engine.cut import bind_suffix
from harness.engine.freeze import set_train_mode
from harness.engine.job import EngineSettings, TrialJob
from harness.engine.model import Models
from harness.engine.precision import autocast, choose_precision
from harness.engine.setup import input_of
from harness.engine.trial import Engine
from harness.isolation import seed_all
from harness.predictions import read_predictions
from harness.search.space import resolve_space
from harness.search.worker import keep_freed_memory

MODELS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "efficientnet_b0")
DEPTHS = (0.25, 0.5, 0.75, 1.0)
CLASSES, SIZE, LAYOUT = 4, 224, torch.channels_last
HEADINGS = (
    "model",
    "freeze depth",
    "plain, s",
    "engine, s",
    "ratio",
    "set-up, s",
    "step, S",
    "of (P + 3S) / 3S",
    "same bits",
    "precision",
    "prefix, s",
    "cut",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="of timm; repeatable")
    parser.add_argument("--depth", action="append", type=float, help="repeatable")
    parser.add_argument("--images", type=int, default=64, help="for training; a third as many for validation")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3, help="of each loop, at least 2")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the engine")
    parser.add_argument("--plain-precision", choices=("fp32", "bf16"), help="default: that of the engine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # As in a worker, for both loops.
    keep_freed_memory(os.environ)
    with tempfile.TemporaryDirectory() as work:
        os.environ["HARNESS_HOME"] = f"{work}/home"
        folder = Path(work) / "photos"
        draw_photographs(folder, arguments.images)
        registry = harness.load_registry(["no:terminal"])
        print(f"| {' | '.join(HEADINGS)} |")
        print("| --- " * len(HEADINGS) + "|", flush=True)
        for name in arguments.model or MODELS:
            for depth in arguments.depth or DEPTHS:
                row = measure(name, depth, folder, Path(work), registry, arguments)
                print(f"| {name} | {depth:g} | {' | '.join(row)} |", flush=True)


def draw_photographs(folder: Path, images: int) -> None:
    """Write JPEG files of 500 x 375 px, of about the size that photographs have."""
    generator = np.random.default_rng(0)
    # Without a test split one is taken out of train.
    for split, count in (("train", images), ("val", images // 3), ("test", CLASSES)):
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
    weights = work / f"{name}.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_model(timm.create_model(name, num_classes=CLASSES), str(weights))
    study = parse_study(
        {
            "dataset": str(folder),
            "weights": {name: str(weights)},
            "space": {
                "backbone": [name],
                "freeze_depth": [depth],
                "lr": [1e-3],
                "optimizer": ["adamw"],
                "augmentation": "none",
                # From the trial's seed, for both loops.
                "head_init": "xavier",
            },
            "train": {
                "epochs": arguments.epochs,
                "batch_size": arguments.batch,
                "image_size": SIZE,
                "precision": arguments.precision,
            },
        }
    )
    space = resolve_space(study, registry)
    config = space.trial_config(study, {axis.name: axis.choices[0] for axis in space.axes}, seed=0)
    seed_all(0)
    model, part = Models(CLASSES, torch.device("cpu")).build(spec, config, weights)
    inputs = input_of(spec, config)
    transform = partial(to_tensor, inputs=inputs)
    # A head alone takes no step of this kind.
    cut = 0 < depth < 1
    precision = choose_precision(config.precision, torch.device("cpu"), model)
    halves = partial(time_halves, model, part, arguments.batch, precision)
    frozen, suffix = halves() if cut else (0.0, 0.0)
    plain = train_plain(
        model,
        part.plan,
        folder,
        size=SIZE,
        batch=arguments.batch,
        epochs=arguments.epochs,
        lr=config.lr,
        seed=0,
        fused=True,
        layout=LAYOUT,
        precision=arguments.plain_precision or precision,
        transform=transform,
    )
    if cut:
        # Once more: what runs beside this comes and goes.
        frozen, suffix = np.minimum((frozen, suffix), halves())
    manifest = load_manifest(str(folder), registry, rules=SplitRules()).without("test")
    settings = EngineSettings(plugins=(), manifest=manifest, device="cpu", threads=1, home=work / "home")
    engine = Engine(registry, settings)
    outcomes, epochs, set_up, seconds = [], [], [], []
    # The first fills the store; the second shows that of the backbone only the head is another.
    for number in range(3):
        job = TrialJob(
            kind="search",
            number=number,
            config=dataclasses.replace(config, seed=number),
            weights=weights,
            folder=work / f"{name}-{depth}-{number}",
            sharing=10.0,
            depths=(depth,),
        )
        began, steps, ends = time.process_time(), [], []
        outcomes += engine.run([job], on_step=partial(stamp, steps), on_epoch=partial(stamp, ends))
        if outcomes[-1].state != "complete":
            raise SystemExit(f"{name} at {depth}: {outcomes[-1].reason}")
        epochs.append(np.diff(ends).min())
        # Before an epoch's first step comes the end of the one before it, or of the set-up.
        each = sum(ends[0] < end < ends[1] for end in steps)
        set_up.append(steps[sum(end < ends[0] for end in steps) - each - 1] - began)
        for start in ends[:-1] if cut else ():
            own = [end for end in steps if end > start][: arguments.images // arguments.batch]
            seconds.append(np.diff([start, *own]).min())
    first, *later = outcomes
    if any(outcome.cost.prefix_passes for outcome in later):
        raise SystemExit(f"{name} at {depth}: a later trial computed what the first had stored")
    found = read_predictions(work / f"{name}-{depth}-0", first.predictions)["val"].probabilities
    off = float(np.abs(found - plain.probabilities.numpy()).max())
    step, share = "-", "-"
    if cut:
        step = f"{min(seconds) / suffix:.2f}"
        share = f"{plain.step / min(seconds) / ((frozen + 3 * suffix) / (3 * suffix)):.2f}"
    return [
        f"{min(plain.seconds):.2f}",
        f"{min(epochs):.4f}",
        f"{min(plain.seconds) / min(epochs):.1f}",
        f"{min(set_up[1:]):.3f}",
        step,
        share,
        "yes" if off == 0 else f"{off:.0e}",
        precision,
        f"{first.cost.prefix_seconds:.2f}",
        first.cost.cut,
    ]


def stamp(times: list[float], *_: object) -> bool:
    """Note the time, and let the training go on."""
    times.append(time.process_time())
    return False


def to_tensor(image: Image.Image, inputs) -> torch.Tensor:
    """Return the pixels that the engine shows its networks."""
    pixels = prepare(np.array(image), short_side(inputs.size, inputs.crop), inputs.interpolation)
    return normalise(centre_crop(pixels, inputs.size)[None], inputs.mean, inputs.std)[0]


def time_halves(model, part, batch: int, precision: str) -> tuple[float, float]:
    """Return CPU seconds of a forward pass of a batch through what is frozen, and through what trains."""
    images = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=LAYOUT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    half, run = part.cut.half(True), bind_suffix(model, part.cut)
    prefix = half.bind_prefix(model)
    set_train_mode(model, part.plan)
    with torch.no_grad(), autocast(precision, torch.device("cpu")):
        stored = half.boundary.pack(prefix(images))
        seconds = least_seconds(lambda: prefix(images)), least_seconds(lambda: run(stored, True))
    model.load_state_dict(before)
    return seconds


def least_seconds(work, times: int = 5) -> float:
    """Return the CPU seconds of the quickest of some runs."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
