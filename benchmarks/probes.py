"""What the probes of frozen features cost, and find, beside a trained linear head.

Compares the ridge probe and the neighbours' vote with the usual linear probe: AdamW at three learning rates
for 30 epochs, of which the best on the validation split counts, trained one by one in a plain loop and side
by side with `fit_heads`. Ridge stops where it makes no error, which these features allow and photographs do
not: so it is measured with all its regularisations as well. Features are drawn with a spectrum that falls as
a power of its rank, as that of networks does, and with classes that differ mostly along its leading
directions. CPU seconds are the least over the repeats; ratios are to the ridge probe.

usage: probes.py [--repeats 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch
from batched_heads import make_jobs, one_by_one, together
from torch import Tensor

import harness
from harness import metrics
from harness.engine.probes import knn_probe, ridge_probe

# Classes, features, training images.
SIZES = ((10, 192, 1000), (102, 512, 1020), (102, 2048, 1020))
RATES = (1e-3, 3e-3, 1e-2)


class Correlated:
    """Features (N, D) with a power-law spectrum in a random basis; a source of features."""

    def __init__(self, num_classes: int, dim: int, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
        spread = torch.arange(1, dim + 1) ** -0.5
        centres = 0.6 * torch.randn(num_classes, dim, generator=generator) * spread
        self.train_size = size
        self._splits = {}
        for split in ("train", "val"):
            labels = torch.arange(size) % num_classes
            noise = torch.randn(size, dim, generator=generator) * spread
            features = (centres[labels] + noise) @ basis
            self._splits[split] = features / features.std(), labels

    def train(self, epoch: int) -> Tensor:
        return self._splits["train"][0]

    def split(self, name: str) -> Tensor:
        return self._splits[name][0]

    def labels(self, name: str) -> Tensor:
        return self._splits[name][1]


def cpu_seconds(function):
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    registry = harness.load_registry(["no:terminal"])
    print("| classes | features | images | probe | CPU s | times ridge | accuracy | macro-F1 | chosen |")
    print("| --- " * 9 + "|", flush=True)
    for num_classes, dim, size in SIZES:
        source = Correlated(num_classes, dim, size, seed=0)
        truth = source.labels("val").numpy()
        train, val = (source.train(0), source.labels("train")), (source.split("val"), source.labels("val"))
        data = (*train, *val, num_classes)
        jobs = [
            dataclasses.replace(
                job,
                weight=torch.zeros_like(job.weight),
                optimizer=registry.optimizers.get("adamw").spec,
                config=dataclasses.replace(job.config, lr=lr, optimizer="adamw", weight_decay=0.01),
            )
            for job, lr in zip(
                make_jobs(registry, "cross-entropy", num_classes, dim, len(RATES), 64, arguments.epochs),
                RATES,
                strict=True,
            )
        ]
        # One label that nothing can learn: no regularisation makes no error, so that all are tried.
        wrong = val[1].clone()
        wrong[0] = (wrong[0] + 1) % num_classes
        mistaken = (*train, val[0], wrong, num_classes)
        probes = {
            "ridge": lambda data=data: ridge_probe(*data),
            "ridge, all regularisations": lambda data=mistaken: ridge_probe(*data),
            "neighbours": lambda data=data: knn_probe(*data),
            "AdamW, side by side": lambda jobs=jobs, source=source: [
                result.val[0] for result in together(jobs, source)
            ],
            "AdamW, one by one": lambda jobs=jobs, source=source: [p for _, p in one_by_one(jobs, source)],
        }
        seconds, results = {}, {}
        for _ in range(arguments.repeats):
            for name, probe in probes.items():
                took, results[name] = cpu_seconds(probe)
                seconds[name] = min(took, seconds.get(name, took))
        for name, result in results.items():
            if isinstance(result, list):
                scores = [metrics.point_scores(truth, p.argmax(axis=1), num_classes) for p in result]
                (accuracy, f1), chosen = max(zip(scores, RATES, strict=True), key=lambda pair: pair[0][1])
            else:
                accuracy, f1, chosen = result.accuracy, result.f1, result.parameter
            print(
                f"| {num_classes} | {dim} | {size} | {name} | {seconds[name]:.3f} "
                f"| {seconds[name] / seconds['ridge']:.1f} | {accuracy:.3f} | {f1:.3f} | {chosen:g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
