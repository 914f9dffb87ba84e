"""How much faster linear heads train side by side than one by one, on cached feature vectors.

Trains the same jobs, half with SGD and half with AdamW, each with its own learning rate, weight decay and
order of images, through `fit_heads` and, one after the other, through a plain loop over `nn.Linear`, autograd
and torch's optimizers. The two take turns; the ratio is that of their least CPU seconds, and its range is
over the repeats. Then trains each head alone with `fit_heads` and compares the bits.

usage: batched_heads.py [--loss cross-entropy] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import numpy as np
import torch
from torch import Tensor, nn

import harness
from harness import metrics
from harness.engine.batched import HeadJob, HeadResult, fit_heads
from harness.engine.fit import build_optimizer, warmed_up
from harness.records import TrialConfig
from harness.specs import ClassInfo

# Classes, features, heads, batch.
SIZES = ((10, 192, 8, 64), (10, 192, 64, 64), (102, 512, 8, 64), (102, 512, 32, 64), (102, 512, 8, 256))
CPU = torch.device("cpu")


class Features:
    """Gaussian classes; a source of features for `fit_heads`."""

    def __init__(self, num_classes: int, dim: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        centres = 0.3 * torch.randn(num_classes, dim, generator=generator)
        self._splits = {}
        for split in ("train", "val"):
            labels = torch.randint(num_classes, (size,), generator=generator)
            self._splits[split] = centres[labels] + torch.randn(size, dim, generator=generator), labels
        self.train_size = size

    def train(self, epoch: int) -> Tensor:
        return self._splits["train"][0]

    def split(self, name: str) -> Tensor:
        return self._splits[name][0]

    def labels(self, name: str) -> Tensor:
        return self._splits[name][1]


def make_jobs(
    registry: harness.Registry, loss: str, num_classes: int, dim: int, heads: int, batch: int, epochs: int
) -> list[HeadJob]:
    generator = torch.Generator().manual_seed(1)
    counts = ClassInfo(num_classes=num_classes, counts=(1,) * num_classes)
    jobs = []
    for number in range(heads):
        optimizer = ("sgd", "adamw")[number % 2]
        config = TrialConfig(
            backbone="features",
            freeze_depth=1.0,
            lr=(0.05, 0.003)[number % 2] * 0.5 ** (number % 5),
            optimizer=optimizer,
            augmentation="none",
            loss=loss,
            schedule="cosine",
            weight_decay=10.0 ** -(number % 4 + 1),
            head_init="timm",
            init="pretrained",
            epochs=epochs,
            batch_size=batch,
            image_size=224,
            warmup=0.1,
            ema=0.0,
            clip_grad=0.0,
            precision="fp32",
            seed=number,
        )
        jobs.append(
            HeadJob(
                config=config,
                weight=torch.randn(num_classes, dim, generator=generator) * dim**-0.5,
                bias=torch.zeros(num_classes),
                loss=registry.losses.get(loss).spec.build(counts),
                optimizer=registry.optimizers.get(optimizer).spec,
                schedule=registry.schedules.get("cosine").spec,
            )
        )
    return jobs


def together(jobs: list[HeadJob], source: Features) -> list[HeadResult]:
    return fit_heads(
        jobs,
        source,
        num_classes=len(jobs[0].weight),
        device=CPU,
        on_step=lambda: None,
        on_epoch=lambda number, record: False,
    )


def one_by_one(jobs: list[HeadJob], source: Features) -> list[tuple[nn.Linear, np.ndarray]]:
    """Train as a loop for any model does: a module, autograd, the optimizer's own step, batches by index."""
    return [train_alone(job, source) for job in jobs]


def train_alone(job: HeadJob, source: Features) -> tuple[nn.Linear, np.ndarray]:
    config, (num_classes, dim) = job.config, job.weight.shape
    model = nn.Linear(dim, num_classes)
    model.load_state_dict({"weight": job.weight, "bias": job.bias})
    updater = build_optimizer(model, job.loss, config, job.optimizer)
    factor = warmed_up(job.schedule, config.epochs * (source.train_size // config.batch_size), config.warmup)
    labels, val_labels = source.labels("train"), source.labels("val")
    step = 0
    for epoch in range(config.epochs):
        features, total = source.train(epoch), torch.zeros(())
        order = np.random.default_rng([config.seed, epoch]).permutation(source.train_size)
        for start in range(0, source.train_size - config.batch_size + 1, config.batch_size):
            rows = order[start : start + config.batch_size].tolist()
            for group in updater.param_groups:
                group["lr"] = config.lr * factor(step)
            value = job.loss(model(features[rows]), labels[rows])
            updater.zero_grad(set_to_none=True)
            value.backward()
            updater.step()
            total += value.detach()
            step += 1
        with torch.inference_mode():
            parts = source.split("val").split(config.batch_size)
            probabilities = torch.cat([torch.softmax(model(part), dim=1) for part in parts]).numpy()
        metrics.point_scores(val_labels.numpy(), probabilities.argmax(axis=1), num_classes)
        assert np.isfinite(float(total))
    return model, probabilities


def cpu_seconds(train, jobs, source):
    started = time.process_time()
    results = train(jobs, source)
    return (time.process_time() - started) / len(jobs), results


def same_bits(first: HeadResult, second: HeadResult) -> bool:
    curves = [[dataclasses.replace(record, seconds=0.0) for record in r.curve] for r in (first, second)]
    pairs = [(*first.head, torch.from_numpy(first.val[0])), (*second.head, torch.from_numpy(second.val[0]))]
    return curves[0] == curves[1] and all(map(torch.equal, *pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", default="cross-entropy")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=1020, help="of training, and as many of validation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    registry = harness.load_registry(["no:terminal"])
    print(
        "| classes | features | heads | batch | one by one, ms a head | together, ms a head | ratio ", end=""
    )
    print("| weights differ by | equal predictions | bits as alone |\n" + "| --- " * 10 + "|", flush=True)
    for num_classes, dim, heads, batch in SIZES:
        source = Features(num_classes, dim, arguments.images)
        jobs = make_jobs(registry, arguments.loss, num_classes, dim, heads, batch, arguments.epochs)
        together(jobs[:2], source)
        slow, fast = [], []
        for _ in range(arguments.repeats):
            seconds, plain = cpu_seconds(one_by_one, jobs, source)
            slow.append(seconds)
            seconds, batched = cpu_seconds(together, jobs, source)
            fast.append(seconds)
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        pairs = [(result, *other) for result, other in zip(batched, plain, strict=True)]
        off = max(float((result.head[0] - model.weight).detach().abs().max()) for result, model, _ in pairs)
        equal = np.mean([(result.val[0].argmax(1) == p.argmax(1)).mean() for result, _, p in pairs])
        alone = all(same_bits(together([job], source)[0], b) for job, b in zip(jobs, batched, strict=True))
        print(
            f"| {num_classes} | {dim} | {heads} | {batch} | {1e3 * min(slow):.1f} | {1e3 * min(fast):.1f} "
            f"| {min(slow) / min(fast):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) | {off:.0e} "
            f"| {equal:.2%} | {'yes' if alone else 'no'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
