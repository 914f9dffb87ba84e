"""Make trial records for tests: complete and plausible unless told otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.documents import canonical, digest, write_atomically
from harness.leaderboard.entry import Answers, Entry
from harness.metrics import evaluate
from harness.predictions import FILE
from harness.records import (
    AuditRecord,
    ClassScores,
    CostRecord,
    DatasetRecord,
    EpochRecord,
    Kind,
    Protocol,
    Provider,
    Scores,
    State,
    TrialConfig,
    TrialRecord,
    WeightsRecord,
    write_record,
)

CLASSES = ("glass", "metal", "paper")
COUNTS = {"train": (30, 20, 50), "val": (6, 4, 10), "test": (9, 6, 15)}
BUILTIN = "transfer-harness"
CONFIG_KINDS = ("backbone", "optimizer", "augmentation", "loss", "schedule")


def make_config(**changes: Any) -> TrialConfig:
    values: dict[str, Any] = {
        "backbone": "resnet18.a1_in1k",
        "freeze_depth": 0.25,
        "lr": 3.1e-4,
        "optimizer": "adamw",
        "augmentation": "flip-crop",
        "loss": "cross-entropy",
        "schedule": "cosine",
        "weight_decay": 0.05,
        "head_init": "timm",
        "init": "pretrained",
        "epochs": 10,
        "batch_size": 32,
        "image_size": 224,
        "warmup": 0.1,
        "ema": 0.0,
        "clip_grad": 1.0,
        "precision": "auto",
        "seed": 0,
    }
    return TrialConfig(**{**values, **changes})


def make_scores(f1: float = 0.8, accuracy: float = 0.82, *, half: float = 0.02, split: str = "val") -> Scores:
    """Scores of the values asked for; the confusion matrix is filler and does not belong to them."""
    support = COUNTS[split]
    size = range(len(support))
    confusion = tuple(tuple(support[row] if row == column else 0 for column in size) for row in size)
    each = (f1,) * len(support)
    return Scores(
        n=sum(support),
        accuracy=accuracy,
        precision=f1,
        recall=f1,
        f1=f1,
        accuracy_interval=(accuracy - half, accuracy + half),
        f1_interval=(f1 - half, f1 + half),
        per_class=ClassScores(precision=each, recall=each, f1=each, support=support),
        confusion=confusion,
    )


def make_protocol(name: str = "one", **changes: Any) -> Protocol:
    values: dict[str, Any] = {
        "splits": {split: digest([name, split]) for split in COUNTS},
        "classes": digest(list(CLASSES)),
        "decode": "srgb/1",
        "metric": "macro-over-supported/1",
        "selection": "last",
    }
    values |= changes
    return Protocol(digest=digest([name, sorted(changes)]), **values)


def make_record(
    *,
    study: str = "demo",
    kind: Kind = "search",
    number: int = 0,
    state: State = "complete",
    dataset: str = "trashnet",
    f1: float = 0.8,
    accuracy: float = 0.82,
    val_f1: float | None = None,
    seconds: float = 252.0,
    params: int = 11_200_000,
    trainable: int = 513_000,
    licence: str = "apache-2.0",
    device: str = "cpu",
    protocol: Protocol | None = None,
    counts: Mapping[str, tuple[int, ...]] | None = None,
    distributions: Mapping[str, str] | None = None,
    scores: Mapping[str, Scores] | None = None,
    created: str = "2026-01-02T03:04:05+00:00",
    **config: Any,
) -> TrialRecord:
    """Make a record; `f1` and `accuracy` are those of val in the search and of test in a final training."""
    point = make_config(**config)
    names = dataclasses.asdict(point)
    homes = {**dict.fromkeys(CONFIG_KINDS, BUILTIN), **(distributions or {})}
    done = state == "complete"
    if scores is None and done:
        scores = {"val": make_scores(f1 if val_f1 is None else val_f1, accuracy)}
        if kind == "final":
            scores = {**scores, "test": make_scores(f1, accuracy, split="test")}
    curve = tuple(
        EpochRecord(epoch=epoch, lr=1e-3, train_loss=1 / epoch, val_accuracy=0.5, val_f1=0.5, seconds=1.5)
        for epoch in (1, 2)
    )
    scratch = point.init == "scratch"
    return TrialRecord(
        study=study,
        kind=kind,
        number=number,
        state=state,
        reason="" if done else f"{state} at epoch 2",
        metric="f1",
        created=created,
        config=point,
        providers={
            what: Provider(name=str(names.get(what)), plugin=f"the-{what}", distribution=home, version="1.0")
            for what, home in homes.items()
        },
        dataset=DatasetRecord(
            name=dataset,
            classes=CLASSES,
            counts=counts or COUNTS,
            licence="MIT",
            split="stratified, seed 0",
            skipped=0,
            audit=AuditRecord(
                exact_across_splits=0,
                near_across_splits=2,
                exact_within_split=0,
                exact_two_labels=0,
                near_two_labels=0,
                missing_classes=dict.fromkeys(COUNTS, 0),
                leaked_test=1,
                featureless=0,
            ),
        ),
        protocol=protocol or make_protocol(),
        weights=WeightsRecord(
            init=point.init,
            source="" if scratch else f"timm/{point.backbone}",
            sha256="" if scratch else "ab" * 32,
            licence="" if scratch else licence,
        )
        if done
        else None,
        scores=scores or {},
        curve=curve,
        cost=CostRecord(
            micro_batch=32,
            norm_in_parts=False,
            execution="eager",
            cut="none",
            prefix_passes=0,
            prefix_seconds=0.0,
            seconds=seconds,
            images_per_second=100.0,
            params=params,
            trainable=trainable,
            frozen_param_share=0.25,
            total_seconds=seconds,
            flops=None,
            frozen_flop_share=None,
            peak_memory=2**30,
        )
        if done
        else None,
        predictions={FILE: "cd" * 32} if done else {},
        model="ef" * 32 if done and kind == "final" else "",
        environment={"device": device, "torch": "2.11.0"},
        packages={"torch": "12" * 32},
    )


def make_entry(
    chosen: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    *,
    val: npt.NDArray[np.int64] | None = None,
    source: str = "",
    with_answers: bool = True,
    **values: Any,
) -> Entry:
    """Make an entry whose scores follow from its answers: on test for a final training, else on val.

    `val` are the answers of a final training on val, for the same labels.
    """
    split = "test" if values.get("kind") == "final" else "val"
    given = {"val": chosen if val is None else val, split: chosen}
    found = {name: Answers(labels=labels, chosen=part) for name, part in given.items()}
    support = tuple(np.bincount(labels, minlength=len(CLASSES)).tolist())
    scores = {name: evaluate(labels, part, len(CLASSES)) for name, part in given.items()}
    counts = values.pop("counts", dict.fromkeys(("train", "val", "test"), support))
    record = make_record(scores=scores, counts=counts, **values)
    return Entry(record=record, answers=lambda: found if with_answers else {}, source=source)


def answer(
    labels: npt.NDArray[np.int64], accuracy: float, seed: int, classes: int = len(CLASSES)
) -> npt.NDArray[np.int64]:
    """Answer right with a probability, else any other class."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(labels)) >= accuracy
    return np.where(wrong, (labels + generator.integers(1, classes, len(labels))) % classes, labels)


def write_runs(runs: Path, *records: TrialRecord) -> Path:
    """Write records below a runs folder as studies do, each study with its `study.json`."""
    for record in records:
        folder = runs / record.study
        document = {
            "schema": "harness.study-record/1",
            "name": record.study,
            "dataset": record.dataset.name,
            "metric": record.metric,
            "trials": sum(one.study == record.study and one.kind == "search" for one in records),
        }
        write_atomically(folder / "study.json", canonical(document) + "\n")
        write_record(folder, record)
    return runs
