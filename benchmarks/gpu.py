"""The engine on a GPU, on images that are drawn in memory; needs no network, and prints Markdown.

* Images a second of a full fine-tune against timm's own training step (bf16, channels last, AdamW, clipping)
  on the same images, which lie on the GPU as bytes for both; and how busy the GPU was meanwhile.
* A study: seconds, and trials by how they ended.
* Linear heads on features: images a second over all heads.
* Trials of bundled backbones on a CPU and on the GPU, side by side.

Weights are random but for the bundled ones. `--device cpu --quick` runs the same code on small networks, to
see that it runs: its figures say nothing about a GPU.

usage: gpu.py [--device cuda] [--quick] [--only training study heads metrics]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import timm
import timm.data.constants
import timm.optim
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_model
from timm.utils import AverageMeter, dispatch_clip_grad
from torch import nn

import harness
from harness import DatasetSpec, Sample, hookimpl
from harness.data.manifest import SplitRules, load_manifest
from harness.engine.device import choose_device
from harness.engine.job import EngineSettings, TrialJob
from harness.engine.trial import Engine
from harness.engine.weights import preflight
from harness.search.space import resolve_space

CLASSES = 10
FULL = {
    "dataset": "drawn",
    "networks": ("resnet50", "vit_small_patch16_224"),
    "size": 224,
    "batch": 128,
    "epochs": 5,
    "trials": 100,
    "heads": 64,
    "depths": (0.0, 0.5, 1.0),
}
QUICK = {
    "dataset": "drawn-small",
    "networks": ("test_resnet", "test_vit"),
    "size": 64,
    "batch": 16,
    "epochs": 2,
    "trials": 5,
    "heads": 4,
    "depths": (0.5,),
}
SIZES = {"drawn": (256, 2048, 256), "drawn-small": (72, 64, 32)}


def draw(name: str, folder: Path, download: bool):
    """Yield images of a colour a class, with grain."""
    side, training, others = SIZES[name]
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (CLASSES, 3))
    for split, count in (("train", training), ("val", others), ("test", others)):
        for number in range(count):
            grain = generator.integers(-40, 40, (side, side, 3), np.int16)
            pixels = (colours[number % CLASSES] + grain).astype(np.uint8)
            yield Sample(id=f"{split}/{number}", label=f"{number % CLASSES}", image=pixels, split=split)


@hookimpl
def harness_datasets():
    for name in SIZES:
        yield DatasetSpec(
            name=name, summary="drawn in memory", build=partial(draw, name), licence="CC0-1.0", url=""
        )


class Bench:
    """What all measurements share."""

    def __init__(self, device: torch.device, size: dict, home: Path) -> None:
        self.device, self.size, self.home = device, size, home
        self.registry = harness.load_registry(["gpu", "no:terminal"])

    def study(self, **changes) -> harness.StudyConfig:
        """Return a study of one point, which `changes` make another."""
        values = {
            "dataset": self.size["dataset"],
            "trials": 1,
            "space": {"lr": [1e-4], "optimizer": "adamw", "augmentation": "none"},
            "train": {
                "epochs": self.size["epochs"],
                "batch_size": self.size["batch"],
                "image_size": self.size["size"],
            },
            "search": {"sampler": "grid", "pruner": "none", "probes": False},
            "finalize": {"top": 0},
            "run": {"device": str(self.device), "executor": "inline"},
        }
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return harness.StudyConfig(**values)

    def weights(self, network: str) -> Path:
        """Write random weights: `--init scratch` would share nothing between trials."""
        file = self.home / f"{network}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            save_model(timm.create_model(network, num_classes=CLASSES), str(file))
        return file

    def engine(self, dataset: str, device: torch.device) -> Engine:
        manifest = load_manifest(dataset, self.registry, rules=SplitRules()).without("test")
        settings = EngineSettings(
            plugins=("gpu",), manifest=manifest, device=str(device), threads=0, home=self.home
        )
        return Engine(self.registry, settings)

    def job(self, study: harness.StudyConfig, weights: Path | None, folder: str) -> TrialJob:
        space = resolve_space(study, self.registry)
        config = space.trial_config(study, {axis.name: axis.choices[0] for axis in space.axes}, seed=0)
        return TrialJob(
            kind="search", number=0, config=config, weights=weights, folder=self.home / folder, sharing=2.0
        )


def main() -> None:
    measurements = {"training": training, "study": search, "heads": heads, "metrics": metrics}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks and few images")
    parser.add_argument("--only", nargs="+", choices=measurements, default=list(measurements))
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, no GPU"
    print(f"{name}; torch {torch.__version__}, timm {timm.__version__}{', --quick' * arguments.quick}")
    with tempfile.TemporaryDirectory() as home:
        os.environ["HARNESS_HOME"] = home
        bench = Bench(device, QUICK if arguments.quick else FULL, Path(home))
        failed = False
        for wanted in arguments.only:
            began = time.perf_counter()
            try:
                measurements[wanted](bench)
            except Exception:
                # The machine may be lent once: what else there is to measure is measured.
                failed = True
                print(f"\n{traceback.format_exc()}")
            print(f"\n({time.perf_counter() - began:.0f} s in all)", flush=True)
    if failed:
        raise SystemExit(1)


def training(bench: Bench) -> None:
    """Compare a full fine-tune with timm's loop. Each runs twice, and the second time counts."""
    print("\n## Full fine-tune\n")
    print("| network | timm, images/s | engine, images/s | share | timm, busy | engine, busy | images made |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    engine = bench.engine(bench.size["dataset"], bench.device)
    images, labels = read_images(bench)
    for network in bench.size["networks"]:
        study = bench.study(
            space={"backbone": network, "freeze_depth": 0.0}, weights={network: str(bench.weights(network))}
        )
        job = bench.job(study, bench.weights(network), network)
        found, shares = [], []
        for run in (partial(run_timm, bench, network, images, labels), partial(run_engine, engine, job)):
            run()
            with Busy(bench.device) as busy:
                found.append(run())
            shares.append(busy.share)
        (timms, _), (ours, place) = found
        cells = [f"{timms:,.0f}", f"{ours:,.0f}", f"{ours / timms:.0%}", *shares, f"on the {place}"]
        print(f"| {network} | {' | '.join(cells)} |", flush=True)


def run_engine(engine: Engine, job: TrialJob) -> tuple[float, str]:
    """Run a trial; return images a second of its training alone, and where its batches are made."""
    (outcome,) = engine.run([job], on_step=lambda: None, on_epoch=lambda number, record: False)
    if outcome.cost is None or outcome.cost.execution != "eager":
        raise RuntimeError(f"the trial did not run as expected: {outcome.reason} {outcome.detail}")
    return outcome.cost.images_per_second, outcome.environment["images"]


def read_images(bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training images, centre-cropped, and their labels, on the device."""
    size = bench.size["size"]
    samples = [sample for sample in draw(bench.size["dataset"], bench.home, False) if sample.split == "train"]
    top = (samples[0].image.shape[0] - size) // 2
    pixels = np.stack([sample.image[top : top + size, top : top + size] for sample in samples])
    labels = torch.tensor([int(sample.label) for sample in samples])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(bench.device), labels.to(bench.device)


def run_timm(bench: Bench, network: str, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, str]:
    """Train as timm's train.py does with --amp --amp-dtype bfloat16 --channels-last; return images a second.

    Its loader normalises bytes on the GPU; here they lie there from the start.
    """
    device, batch = bench.device, bench.size["batch"]
    on_gpu = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = on_gpu
    torch.backends.cudnn.benchmark = on_gpu
    amp = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=on_gpu)
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    options = {"img_size": bench.size["size"]} if "vit" in network else {}
    model = timm.create_model(network, num_classes=CLASSES, **options).to(device, memory_format=layout)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    loss_of = nn.CrossEntropyLoss().to(device)
    mean, std = (
        255 * torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (timm.data.constants.IMAGENET_DEFAULT_MEAN, timm.data.constants.IMAGENET_DEFAULT_STD)
    )
    losses = AverageMeter()
    done = 0
    wait(device)
    began = time.perf_counter()
    for _ in range(bench.size["epochs"]):
        model.train()
        order = torch.randperm(len(images), device=device)
        for start in range(0, len(images) - batch + 1, batch):
            rows = order[start : start + batch]
            values = images[rows].float().sub_(mean).div_(std).contiguous(memory_format=layout)
            with amp():
                loss = loss_of(model(values), labels[rows])
            loss.backward()
            dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
            optimizer.step()
            optimizer.zero_grad()
            done += batch
            if done // batch % 50 == 0:
                losses.update(loss.item(), batch)
    wait(device)
    seconds = time.perf_counter() - began
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False
    return done / seconds, "device"


def search(bench: Bench) -> None:
    """Run a study over freeze depths."""
    network, trials = bench.size["networks"][0], bench.size["trials"]
    print(f"\n## A study of {trials} trials of {network}\n")
    study = bench.study(
        name="search",
        trials=trials,
        weights={network: str(bench.weights(network))},
        space={
            "backbone": network,
            "freeze_depth": [0.0, 0.25, 0.5, 0.75, 1.0],
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        search={"sampler": "gp", "pruner": "halving", "probes": True},
    )
    began = time.perf_counter()
    with Busy(bench.device) as busy:
        result = harness.run_study(study, registry=bench.registry, runs=bench.home / "runs")
    seconds = time.perf_counter() - began
    states = [record.state for record in result.records]
    print("| trials | complete | pruned | failed | seconds | a trial, s | busy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    counts = " | ".join(str(states.count(state)) for state in ("complete", "pruned", "failed"))
    print(f"| {len(states)} | {counts} | {seconds:.0f} | {seconds / len(states):.2f} | {busy.share} |")
    print_reasons(result)


def heads(bench: Bench) -> None:
    """Train linear heads side by side."""
    network, count = bench.size["networks"][0], bench.size["heads"]
    print(f"\n## {count} linear heads on features of {network}\n")
    study = bench.study(
        name="heads",
        trials=count,
        weights={network: str(bench.weights(network))},
        space={
            "backbone": network,
            "freeze_depth": 1.0,
            "lr": [float(lr) for lr in np.geomspace(1e-4, 1e-2, count)],
        },
        train={"epochs": 30},
        # Without them a study does not know that the head is linear before its first trial has run.
        search={"probes": True},
    )
    began = time.perf_counter()
    result = harness.run_study(study, registry=bench.registry, runs=bench.home / "runs")
    seconds = time.perf_counter() - began
    costs = [record.cost for record in result.records if record.cost]
    images = sum(cost.images_per_second * cost.seconds for cost in costs)
    print("| heads | images/s over all, training | the study, s |\n| --- | --- | --- |")
    print(f"| {len(costs)} | {images / sum(cost.seconds for cost in costs):,.0f} | {seconds:.1f} |")
    print_reasons(result)


def print_reasons(result: harness.StudyResult) -> None:
    """Say why trials failed, each reason once, with the traceback of one of them."""
    failed = {record.reason: record for record in result.records if record.state == "failed"}
    for reason, record in failed.items():
        error = result.folder / record.folder / "error.txt"
        print(f"\nfailed: {reason}\n{error.read_text(encoding='utf-8') if error.exists() else ''}")


def metrics(bench: Bench) -> None:
    """Run trials of a bundled backbone on both devices."""
    backbone = "test_efficientnet.formula1"
    print(f"\n## {backbone} on petals, CPU and {bench.device.type}\n")
    print("| freeze depth | CPU, accuracy | F1 | device, accuracy | F1 | same class | furthest probability |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    file = preflight(
        [bench.registry.backbones.get(backbone)], init="pretrained", weights={}, weights_dir=None
    )[backbone].path
    devices = {"cpu": torch.device("cpu"), "device": bench.device}
    engines = {place: bench.engine("petals", device) for place, device in devices.items()}
    for depth in bench.size["depths"]:
        study = bench.study(
            dataset="petals",
            space={"backbone": backbone, "freeze_depth": depth, "lr": [5e-3], "augmentation": "flip-crop"},
            train={"epochs": 2, "batch_size": 32, "image_size": 0},
        )
        cells, found = [], []
        for place, engine in engines.items():
            job = bench.job(study, file, f"{place}-{depth}")
            (outcome,) = engine.run([job], on_step=lambda: None, on_epoch=lambda number, record: False)
            if outcome.state != "complete":
                raise RuntimeError(f"{place}: {outcome.reason} {outcome.detail}")
            cells += [f"{outcome.scores['val'].accuracy:.4f}", f"{outcome.scores['val'].f1:.4f}"]
            found.append(load_file(job.folder / "predictions.safetensors")["val.probabilities"])
        same = (found[0].argmax(1) == found[1].argmax(1)).mean()
        print(f"| {depth:g} | {' | '.join(cells)} | {same:.1%} | {np.abs(found[0] - found[1]).max():.1e} |")


class Busy:
    """The share of time in which the GPU had something to do, as its driver tells; a context."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[int] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        # Not torch.cuda.utilization: it asks a package for it that may not be there.
        number = torch.cuda.get_device_properties(self._device).uuid
        command = ["nvidia-smi", f"--id=GPU-{number}", "--query-gpu=utilization.gpu"]
        command += ["--format=csv,noheader,nounits", "--loop-ms=100"]
        with suppress(OSError), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            self._process = process
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip().isdigit():
                    self._samples.append(int(line))

    def __enter__(self) -> Busy:
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            # Not when its next line comes: that may take long.
            self._process.terminate()
            self._thread.join(timeout=5)
        mean = sum(self._samples) / len(self._samples) if self._samples else None
        self.share = "not measured" if mean is None else f"{mean:.0f} %"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
