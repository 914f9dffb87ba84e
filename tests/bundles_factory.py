"""Make bundles for tests: drawn predictions, with the scores and digests that follow from them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from records_factory import make_record

from harness import metrics
from harness.documents import digest
from harness.leaderboard.bundle import Bundle, PackedAnswers
from harness.predictions import Predictions
from harness.records import DatasetRecord, EpochRecord, Protocol, TrialRecord
from harness.samples import Samples, classes_digest, protocol_digest, split_digest

DECODE, SELECTION = "pil-rgb/1", "last-epoch/1"
TRAIN = 10
"""Training images of each class; the first class has one more."""


def make_bundle(
    *,
    dataset: str = "petals",
    classes: Sequence[str] | int = 6,
    n: int = 60,
    backbone: str = "resnet18.a1_in1k",
    seeds: Sequence[int] = (1, 2, 3),
    quality: float = 0.8,
    image: str = "test/{label}/{number:05d}.jpg",
    draw: int = 0,
    epochs: int = 10,
    trials: Mapping[str, int] | None = None,
    **record: Any,
) -> Bundle:
    """Make the bundle of a run.

    Args:
        dataset: Its name; with `classes`, `n` and `image` it decides the protocol.
        classes: Their names, or how many.
        n: Images of the test split; the validation split has half as many.
        backbone: Its name.
        seeds: One training each.
        quality: About the accuracy that comes out.
        image: Pattern of the images' ids.
        draw: Seeds the answers.
        epochs: Length of the learning curve.
        trials: Of the search, by state.
        record: Passed on to `make_record`.
    """
    names = tuple(f"class-{i:03d}" for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    samples = {split: _samples(dataset, names, size, image, split) for split, size in _sizes(n).items()}
    trainings = [
        _training(samples, dataset, names, quality, np.random.default_rng([draw, seed]), seed)
        for seed in seeds
    ]
    return Bundle(
        records=tuple(
            _record(scores, samples, dataset, names, seed, backbone, epochs, record)
            for seed, (scores, _) in zip(seeds, trainings, strict=True)
        ),
        samples=samples,
        answers=tuple(answers for _, answers in trainings),
        trials={"complete": 20, "pruned": 4, "failed": 0} if trials is None else trials,
    )


def make_failed(bundle: Bundle, *seeds: int) -> Bundle:
    """Add trainings that failed in their second epoch."""
    failed = tuple(
        dataclasses.replace(
            record,
            state="failed",
            reason="nan",
            config=dataclasses.replace(record.config, seed=seed),
            scores={},
            curve=record.curve[:1],
            cost=None,
            predictions={},
            model="",
        )
        for record in bundle.records[:1]
        for seed in seeds
    )
    return dataclasses.replace(bundle, failed=failed)


def _sizes(n: int) -> dict[str, int]:
    return {"val": max(n // 2, 1), "test": n}


@lru_cache(maxsize=8)
def _samples(dataset: str, names: tuple[str, ...], size: int, image: str, split: str) -> Samples:
    items = sorted(
        (
            image.format(label=names[number % len(names)], number=number, split=split),
            number % len(names),
            hashlib.sha256(f"{dataset}/{split}/{number}".encode()).hexdigest(),
        )
        for number in range(size)
    )
    ids, labels, hashes = zip(*items, strict=True)
    return Samples(ids=ids, labels=labels, sha256=hashes)


def _training(
    samples: Mapping[str, Samples],
    dataset: str,
    names: tuple[str, ...],
    quality: float,
    rng: np.random.Generator,
    seed: int,
) -> tuple[dict[str, Any], dict[str, PackedAnswers]]:
    """Draw what one training answers: right as often as `quality`, and a little too sure of itself."""
    scores, answers = {}, {}
    neighbour = 1 + rng.integers(0, max(len(names) - 1, 1), len(names)) % 2
    for split, part in samples.items():
        labels = np.array(part.labels)
        # Some classes are harder than others and are taken for their neighbours; all are a little too sure.
        hardness = np.linspace(-1, 1, len(names))[labels] * min(0.1, 1 - quality)
        sure = np.clip(quality - hardness + rng.normal(0.05, 0.12, len(labels)), 0.51, 0.995)
        right = rng.random(len(labels)) < sure * quality / max(sure.mean(), quality)
        wrong = np.where(
            rng.random(len(labels)) < 0.6,
            (labels + neighbour[labels]) % len(names),
            (labels + rng.integers(1, len(names), len(labels))) % len(names),
        )
        chosen = np.where(right, labels, wrong)
        probabilities = rng.exponential(1, (len(labels), len(names)))
        probabilities[np.arange(len(labels)), chosen] = 0
        probabilities *= ((1 - sure) / probabilities.sum(axis=1))[:, None]
        probabilities[np.arange(len(labels)), chosen] = sure
        probabilities = probabilities.astype(np.float32)
        predictions = Predictions(
            probabilities=probabilities,
            labels=labels,
            images=np.zeros((len(labels), 32), dtype=np.uint8),
        )
        answers[split] = PackedAnswers.pack(predictions)
        scores[split] = _evaluate(labels.tobytes(), predictions.chosen.tobytes(), len(names))
    return scores, answers


@lru_cache(maxsize=64)
def _evaluate(labels: bytes, chosen: bytes, classes: int) -> Any:
    return metrics.evaluate(
        np.frombuffer(labels, dtype=np.int64), np.frombuffer(chosen, dtype=np.int64), classes
    )


def _record(
    scores: dict[str, Any],
    samples: Mapping[str, Samples],
    dataset: str,
    names: tuple[str, ...],
    seed: int,
    backbone: str,
    epochs: int,
    changes: dict[str, Any],
) -> TrialRecord:
    counts = {
        "train": tuple(TRAIN + (label == 0) for label in range(len(names))),
        **{
            split: tuple(np.bincount(part.labels, minlength=len(names)).tolist())
            for split, part in samples.items()
        },
    }
    record = make_record(
        kind="final",
        dataset=dataset,
        backbone=backbone,
        seed=seed,
        epochs=epochs,
        scores=scores,
        protocol=make_protocol(dataset, names, samples),
        **{"trainable": min(changes.get("params", 513_000), 513_000), **changes},
    )
    final = scores["val"]
    curve = tuple(
        EpochRecord(
            epoch=epoch,
            lr=record.config.lr * (1 - epoch / (epochs + 1)),
            train_loss=0.2 + 2.5 * 0.7**epoch + 0.03 * seed,
            val_accuracy=final.accuracy * (1 - 0.6**epoch if epoch < epochs else 1),
            val_f1=final.f1 * (1 - 0.6**epoch if epoch < epochs else 1),
            seconds=1.5,
        )
        for epoch in range(1, epochs + 1)
    )
    data = DatasetRecord(
        name=dataset,
        classes=names,
        counts=counts,
        licence=record.dataset.licence,
        split="official",
        skipped=record.dataset.skipped,
        audit=record.dataset.audit,
    )
    return dataclasses.replace(record, dataset=data, curve=curve)


def make_protocol(dataset: str, names: tuple[str, ...], samples: Mapping[str, Samples]) -> Protocol:
    """Make the fingerprint of these images, as a manifest of them has it."""
    splits = {split: split_digest(names, part) for split, part in samples.items()}
    unnamed = Protocol(
        digest="",
        splits={"train": digest([dataset, list(names), "train"]), **splits},
        classes=classes_digest(names),
        decode=DECODE,
        metric=metrics.DEFINITION,
        selection=SELECTION,
    )
    return dataclasses.replace(unnamed, digest=protocol_digest(unnamed))
