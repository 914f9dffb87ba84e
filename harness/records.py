"""The record of a trial: what was done, what came out, and on what. Records are the truth of a study.

A record is one canonical JSON file with a schema version and the SHA-256 of its own content. It is written
before Optuna hears of the result, so a finished trial is never lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from harness.errors import StorageError

SCHEMA = "harness.record/1"

Kind: TypeAlias = Literal["search", "final"]
State: TypeAlias = Literal["complete", "pruned", "failed", "stopped"]
Metric: TypeAlias = Literal["f1", "accuracy"]
T = TypeVar("T")


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
    head_init: Literal["timm", "xavier", "kaiming", "zero"]
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
        return digest(dataclasses.asdict(dataclasses.replace(self, seed=0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """What observers and readers may know of a study."""

    name: str
    dataset: str
    metric: Metric
    trials: int
    """Trials wanted in total."""
    epochs: int
    folder: str
    finals: int = 0
    """Trainings of the finalising step."""
    finished: int = 0
    """Trials that had ended when the study started or resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a component came from."""

    name: str
    plugin: str
    distribution: str
    version: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord:
    """What a training took."""

    seconds: float
    """Wall time of the training alone."""
    images_per_second: float
    """Training images."""
    params: int
    trainable: int
    frozen_param_share: float
    """Share of the backbone's parameters that was frozen."""
    frozen_flop_share: float | None
    """Share of a forward pass spent in frozen modules; None where it cannot be counted."""
    peak_memory: int
    """Bytes: of the device on a GPU, of the process on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRecord:
    """Which weights a training started from."""

    init: Literal["pretrained", "scratch"]
    source: str
    sha256: str
    """Of the file; empty for scratch."""
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One training, as stored."""

    study: str
    kind: Kind
    number: int
    """Trial number in the study; a final training keeps that of its trial."""
    state: State
    reason: str
    """Why a trial is not complete: `pruned at epoch 3`, `nan: ...`, `oom: ...`; empty otherwise."""
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
    """File name in the record's folder, by SHA-256."""
    environment: Mapping[str, str]
    schema: str = field(default=SCHEMA)

    @property
    def folder(self) -> str:
        """Return the record's folder below that of its study."""
        if self.kind == "search":
            return f"trials/{self.number:04d}"
        return f"finals/{self.number:04d}-seed{self.config.seed}"


def canonical(value: object) -> str:
    """Write JSON in the one form that digests are taken of: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one, the new one, or none; never a part.

    Raises:
        StorageError: The folder cannot be written, or the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        if os.name == "posix":
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise StorageError(
            "cannot write a study's file",
            where=str(path),
            why=str(error),
            fixes=["free disk space or choose another folder with --runs"],
        ) from error


def write_record(study_folder: Path, record: TrialRecord) -> Path:
    """Store a record under its study's folder and return its file."""
    body = dataclasses.asdict(record)
    path = study_folder / record.folder / "record.json"
    write_atomically(path, canonical({**body, "sha256": digest(body)}) + "\n")
    return path


def read_record(path: Path) -> TrialRecord:
    """Read a record and check its hash.

    Raises:
        StorageError: The file is missing, damaged, edited, or of another schema.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        stored = body.pop("sha256")
        schema = body["schema"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StorageError("a record cannot be read", where=str(path), why=repr(error)) from error
    if schema != SCHEMA:
        raise StorageError(
            f"a record has schema {schema!r}, this version reads {SCHEMA!r}",
            where=str(path),
            fixes=["upgrade transfer-harness"],
        )
    try:
        if digest(body) != stored:
            raise StorageError(
                "a record does not match its own SHA-256: it was damaged or edited", where=str(path)
            )
        return from_json(TrialRecord, body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "a record has not the form of its schema", where=str(path), why=repr(error)
        ) from error


def read_records(study_folder: Path) -> list[TrialRecord]:
    """Read all records of one study, trials first, each kind in order of number."""
    return [
        read_record(path)
        for part in ("trials", "finals")
        for path in sorted(study_folder.glob(f"{part}/*/record.json"))
    ]


def study_folders(runs: Path) -> Iterator[Path]:
    """Yield the folders of all studies under `runs`, by name."""
    for path in sorted(runs.glob("*/study.json")):
        yield path.parent


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_json(cls: type[T], value: Any) -> T:
    """Build a record dataclass from its JSON form, restoring tuples and nested records."""
    hints = typing.get_type_hints(cls)
    return cls(**{name: _restore(hints[name], item) for name, item in value.items()})


def _restore(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _restore(args[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if origin is tuple:
        # No look at each cell of a confusion matrix: at a hundred classes that took nearly all the time.
        if args[0] in (int, float, str) and args[-1] is Ellipsis:
            return tuple(value)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_restore(args[0], item) for item in value)
        return tuple(_restore(part, item) for part, item in zip(args, value, strict=True))
    if origin is not None and isinstance(value, dict):
        return {key: _restore(args[1], item) for key, item in value.items()}
    return value
