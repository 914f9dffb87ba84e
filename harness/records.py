"""The record of a trial: what was done, what came out, and on what. Records are the truth of a study.

A record is one canonical JSON file with a schema version and the SHA-256 of its own content. It is written
before Optuna hears of the result, so a finished trial is never lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from harness.documents import digest, parse_document, write_document
from harness.errors import StorageError

SCHEMA = "harness.record/1"

Kind: TypeAlias = Literal["search", "final"]
State: TypeAlias = Literal["complete", "pruned", "failed"]
Metric: TypeAlias = Literal["f1", "accuracy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """Everything one training is told: the point of the search space and the fixed settings around it."""

    backbone: str
    freeze_depth: float
    """Share of the backbone's blocks that is frozen: 0 trains all, 1 trains the head only."""
    lr: float
    optimizer: str
    augmentation: str
    loss: str
    schedule: str
    weight_decay: float
    head_init: Literal["ridge", "timm", "xavier", "kaiming", "zero"]
    init: Literal["pretrained", "scratch"]
    epochs: int
    batch_size: int
    image_size: int
    """Side of the square input in pixels."""
    warmup: float
    """Share of all steps."""
    ema: float
    """Decay of the averaged weights; 0 trains without."""
    clip_grad: float
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["auto", "fp32", "bf16"]
    seed: int

    def digest(self) -> str:
        """Name this configuration, leaving its seed out: rows that differ by seed only are one candidate."""
        return digest(dataclasses.replace(self, seed=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """What observers and readers may know of a study."""

    name: str
    dataset: str
    metric: Metric
    trials: int | None
    """Trials wanted in total; None: as many as the budget pays for."""
    epochs: int
    folder: str
    finals: int = 0
    """Trainings of the finalising step."""
    budget: float | None = None
    """Seconds for search and finalists together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a component came from."""

    name: str
    plugin: str
    distribution: str
    version: str
    sha256: str = ""
    """Of the plugin's code; filled in when a record is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What splits and labels of a data set give away: numbers of images. No part of the protocol."""

    exact_across_splits: int
    """Images of whose content another split holds a copy."""
    near_across_splits: int
    """Images whose picture another split holds with other content: re-encoded, resized, taken again."""
    exact_within_split: int
    """Images of whose content their own split holds another copy."""
    exact_two_labels: int
    """Images of whose content there is a copy under another label."""
    near_two_labels: int
    """Images whose picture there is with other content under another label."""
    missing_classes: Mapping[str, int]
    """Classes without images, by split."""
    leaked_test: int
    """Test images that train or val holds too, exactly or nearly."""
    featureless: int
    """Images without structure, which were compared by content only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """The data a trial saw."""

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    """Images of each class, by split."""
    licence: str
    split: str
    """How the splits came about: `official`, or the rule and seed that made them."""
    skipped: int
    """Images that were left out because they cannot be read; `counts` does not count them."""
    audit: AuditRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The evaluator's part. Rows with different digests never share a table."""

    digest: str
    splits: Mapping[str, str]
    """SHA-256 over the sorted (class, path, content) of each split."""
    classes: str
    """SHA-256 of the ordered class names."""
    decode: str
    metric: str
    selection: str
    """Which weights are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """Scores of each class, in class order."""

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of one split, in [0, 1]; macro averages are over the classes with support."""

    n: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    accuracy_interval: tuple[float, float]
    f1_interval: tuple[float, float]
    per_class: ClassScores
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One point of a learning curve."""

    epoch: int
    """Counts from 1."""
    lr: float
    """Learning rate of the last step."""
    train_loss: float
    val_accuracy: float
    val_f1: float
    seconds: float

    def value(self, metric: Metric) -> float:
        """Return the score on the validation split that a study maximises."""
        return self.val_f1 if metric == "f1" else self.val_accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord:
    """What a training took."""

    seconds: float
    """Wall time of the training alone."""
    total_seconds: float
    """Wall time from the building of the model to the scores; a share of it where heads train together."""
    images_per_second: float
    """Training images."""
    params: int
    trainable: int
    frozen_param_share: float
    """Share of the backbone's parameters that was frozen."""
    flops: float | None
    """Floating-point operations of a forward pass of one image; None where they cannot be counted."""
    frozen_flop_share: float | None
    """Share of a forward pass spent in frozen modules; None where it cannot be counted."""
    micro_batch: int
    """Images that went through at a time: fewer than a batch where memory did not suffice."""
    norm_in_parts: bool
    """Whether a BatchNorm that trains saw parts of a batch, so that a whole batch would train otherwise."""
    execution: str
    """`eager`, `compiled`, or `eager: ` and why compiling failed."""
    cut: Literal["trace", "replay", "none"]
    """How what is frozen was cut off; `none` where all of the model ran in each step."""
    prefix_passes: int
    """Batches of images that went through the frozen part; none where all was found in the store."""
    prefix_seconds: float
    """Spent in them, as part of `seconds` or of the evaluation; a share of it where heads train together."""
    peak_memory: int
    """Bytes: of the device on a GPU, of the process on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRecord:
    """How well the features of a backbone tell classes apart before anything is trained."""

    backbone: str
    ridge_f1: float
    """Macro-F1 on the validation split, of ridge regression in closed form."""
    ridge_accuracy: float
    knn_f1: float
    """Of the votes of the nearest training images."""
    knn_accuracy: float
    seconds: float
    """Of the features and both probes."""
    reason: str = ""
    """Why there are no scores, which are 0 then."""

    @staticmethod
    def failed(backbone: str, reason: str, seconds: float = 0.0) -> ProbeRecord:
        """Return the record of a probe that found nothing."""
        return ProbeRecord(
            backbone=backbone,
            ridge_f1=0.0,
            ridge_accuracy=0.0,
            knn_f1=0.0,
            knn_accuracy=0.0,
            seconds=seconds,
            reason=reason,
        )

    def ridge(self, metric: Metric) -> float:
        """Return the score of ridge regression."""
        return self.ridge_f1 if metric == "f1" else self.ridge_accuracy

    def knn(self, metric: Metric) -> float:
        """Return the score of the neighbours' votes."""
        return self.knn_f1 if metric == "f1" else self.knn_accuracy

    def value(self, metric: Metric) -> float:
        """Return the better probe's score."""
        return max(self.ridge(metric), self.knn(metric))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRecord:
    """Which weights a training started from."""

    init: Literal["pretrained", "scratch"]
    source: str
    sha256: str
    """Of the file; empty for scratch."""
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """What Optuna must be told to have its index rebuilt exactly."""

    params: Mapping[str, str | float]
    """As Optuna named and proposed them."""
    attributes: Mapping[str, float]
    """What its pruner noted on the trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One training, as stored."""

    study: str
    kind: Kind
    number: int
    """Trial number in the study; a final training keeps that of its trial."""
    state: State
    reason: str
    """Why a trial is not complete: `pruned at epoch 3`, `out of time at epoch 2`, `nan: ...`, `oom: ...`."""
    metric: Metric
    created: str
    """UTC, ISO 8601."""
    config: TrialConfig
    providers: Mapping[str, Provider]
    """By kind: backbone, optimizer, ..."""
    dataset: DatasetRecord
    protocol: Protocol
    weights: WeightsRecord | None
    scores: Mapping[str, Scores]
    """By split. `test` only in final records."""
    curve: tuple[EpochRecord, ...]
    cost: CostRecord | None
    predictions: Mapping[str, str]
    """SHA-256 of the file in the record's folder, by its name."""
    model: str
    """SHA-256 of the trained weights; empty where they were not kept."""
    environment: Mapping[str, str]
    packages: Mapping[str, str]
    """SHA-256 of each package that the result may depend on; their versions are part of the environment."""
    search: SearchRecord | None = None
    """None for a final training, which is no trial of the search."""
    schema: str = field(default=SCHEMA)

    @property
    def folder(self) -> str:
        """Return the record's folder below that of its study."""
        return folder_of(self.kind, self.number, self.config.seed)


def folder_of(kind: Kind, number: int, seed: int) -> str:
    """Return the folder of a training below that of its study."""
    return f"trials/{number:04d}" if kind == "search" else f"finals/{number:04d}-seed{seed}"


def write_record(study_folder: Path, record: TrialRecord) -> Path:
    """Store a record under its study's folder and return its file."""
    path = study_folder / record.folder / "record.json"
    write_document(path, dataclasses.asdict(record))
    return path


def read_record(path: Path) -> TrialRecord:
    """Read a record and check its hash.

    Raises:
        StorageError: The file is missing, damaged, edited, or of another schema.
    """
    return parse_document(TrialRecord, path, SCHEMA, "a record")


def read_records(
    study_folder: Path, on_damage: Callable[[StorageError], None] | None = None
) -> list[TrialRecord]:
    """Read all records of one study, trials first, each kind in order of number.

    Args:
        study_folder: The study.
        on_damage: Told of each record that cannot be read, which is then left out; None raises.

    Raises:
        StorageError: A record cannot be read.
    """
    records = []
    for part in ("trials", "finals"):
        found = []
        for path in sorted(study_folder.glob(f"{part}/*/record.json")):
            try:
                found.append(read_record(path))
            except StorageError as error:
                if on_damage is None:
                    raise
                on_damage(error)
        # Folders are named by numbers of four digits, or more.
        records += sorted(found, key=lambda record: (record.number, record.config.seed))
    return records


def study_folders(runs: Path) -> Iterator[Path]:
    """Yield the folders of all studies under `runs`, by name."""
    for path in sorted(runs.glob("*/study.json")):
        yield path.parent
