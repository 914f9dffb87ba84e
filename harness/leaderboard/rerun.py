"""The document of a rerun: what came out when the trainings of a run were done again, with all its answers.

Whoever made it says so, no more: its numbers can be checked against the bundle, that the trainings took
place cannot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from harness import metrics
from harness.documents import digest, write_document
from harness.errors import StorageError
from harness.leaderboard.bundle import Bundle, PackedAnswers, read_foreign
from harness.records import Provider, TrialRecord

SCHEMA = "harness.rerun/1"
FILE = "rerun.json"
CPU_TOLERANCE = 0.001
"""Share of the test answers of a training that may differ between two CPUs."""
GPU_TOLERANCE = 0.002
"""Difference of the mean test scores, in [0, 1], that is allowed where a GPU took part."""

Outcome: TypeAlias = Literal["identical", "within tolerance", "not reproduced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """One training, done again."""

    record: str
    """Digest of the record that it repeats."""
    seed: int
    model: str
    """SHA-256 of the trained weights."""
    predictions: Mapping[str, str]
    """SHA-256 of the file of its predictions, by its name."""
    answers: Mapping[str, PackedAnswers]
    """By split."""
    seconds: float
    """Wall time."""
    environment: Mapping[str, str]
    packages: Mapping[str, str]
    providers: Mapping[str, Provider]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunRecord:
    """A rerun, as stored."""

    bundle: str
    """Digest of the bundle of the run."""
    trainings: tuple[Retraining, ...]
    outcome: Outcome
    created: str
    """UTC, ISO 8601."""
    schema: str = SCHEMA

    @property
    def digest(self) -> str:
        """Return the SHA-256 that names the document."""
        return digest(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A training beside its repetition."""

    seed: int
    weights: bool
    """Whether the weights are the same to the bit."""
    predictions: bool
    """Whether the predictions are the same to the bit."""
    answers: float
    """Share of the test images that were answered otherwise."""
    accuracy: float
    """Of the repetition on the test split, less that of the record."""
    f1: float
    environment: tuple[str, ...]
    """What is not as it was, each in a line: versions, hashes, threads, device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A run beside its rerun."""

    outcome: Outcome
    trainings: tuple[Difference, ...]


def record_digest(record: TrialRecord) -> str:
    """Return the SHA-256 that a record's file states of itself."""
    return digest(record)


def compare(bundle: Bundle, trainings: tuple[Retraining, ...]) -> Comparison:
    """Compare a run with the trainings that repeat it, or some of it.

    It is `identical` where all weights and predictions are the same to the bit; else `within tolerance`
    where on CPUs at most `CPU_TOLERANCE` of the test answers of each training differ, or, where a GPU took
    part, the means of accuracy and of macro-F1 over the trainings are within `GPU_TOLERANCE`.

    Raises:
        StorageError: A training repeats no record of the bundle, or its answers are not for its images.
    """
    known = {record_digest(record): number for number, record in enumerate(bundle.records)}
    found = []
    is_cpu = True
    for training in trainings:
        if training.record not in known:
            raise StorageError(f"the training of seed {training.seed} repeats no record of this bundle")
        number = known.pop(training.record)
        record = bundle.records[number]
        found.append(_difference(bundle, number, training))
        is_cpu &= {record.environment.get("device"), training.environment.get("device")} == {"cpu"}
    if not found:
        raise StorageError("a rerun without trainings")
    outcome: Outcome = "not reproduced"
    if all(one.weights and one.predictions and not one.answers for one in found):
        outcome = "identical"
    elif is_cpu:
        if max(one.answers for one in found) <= CPU_TOLERANCE:
            outcome = "within tolerance"
    else:
        means = [
            math.fsum(getattr(one, metric) for one in found) / len(found) for metric in ("accuracy", "f1")
        ]
        if max(map(abs, means)) <= GPU_TOLERANCE:
            outcome = "within tolerance"
    return Comparison(outcome=outcome, trainings=tuple(found))


def join_reruns(bundle: Bundle, reruns: Sequence[RerunRecord]) -> RerunRecord:
    """Return what reruns of a run's trainings show of a bundle of it: of each training the last repetition.

    They may name other bundles of the run, with fewer seeds or from before more trials.

    Raises:
        StorageError: They repeat none of its trainings, or answers are not for its images.
    """
    known = [record_digest(record) for record in bundle.records]
    last: dict[str, Retraining] = {}
    # Sorting keeps the order of what was made within a second.
    for rerun in sorted(reruns, key=lambda rerun: rerun.created):
        last |= {training.record: training for training in rerun.trainings}
    trainings = tuple(last[name] for name in known if name in last)
    return RerunRecord(
        bundle=bundle.digest,
        trainings=trainings,
        outcome=compare(bundle, trainings).outcome,
        created=max((rerun.created for rerun in reruns), default=""),
    )


def repeats_any(bundle: Bundle, rerun: RerunRecord) -> bool:
    """Say whether a rerun repeats a training of a bundle, whichever bundle it names."""
    known = {record_digest(record) for record in bundle.records}
    return any(training.record in known for training in rerun.trainings)


def check_rerun(bundle: Bundle, rerun: RerunRecord) -> str:
    """Return why a rerun does not count for a bundle; nothing where all its trainings came out again."""
    if rerun.bundle != bundle.digest:
        return "it is of another bundle"
    try:
        comparison = compare(bundle, rerun.trainings)
    except StorageError as error:
        return error.what
    if comparison.outcome != rerun.outcome:
        return f"it says {rerun.outcome!r}, its answers say {comparison.outcome!r}"
    missing = {record.config.seed for record in bundle.records} - {one.seed for one in comparison.trainings}
    if missing:
        return f"it lacks seed {min(missing)}"
    return "the run was not reproduced" if comparison.outcome == "not reproduced" else ""


def write_rerun(folder: Path, rerun: RerunRecord) -> Path:
    """Store a rerun among others, under the name that its content gives it, and return its file."""
    path = folder / rerun.bundle[:16] / f"{rerun.digest[:16]}.json"
    write_document(path, dataclasses.asdict(rerun))
    return path


def read_rerun(path: Path) -> RerunRecord:
    """Read the document of a rerun and check its hash and form, whoever wrote it.

    Raises:
        StorageError: The file is missing, damaged, edited, of another schema, or of another form.
    """
    rerun = read_foreign(RerunRecord, path, SCHEMA, "a rerun")
    if len(rerun.bundle) != 64 or not set(rerun.bundle) <= set("0123456789abcdef"):
        raise StorageError("a rerun names no bundle", where=str(path))
    return rerun


def reruns_of(bundle: Bundle, folder: Path) -> tuple[list[RerunRecord], list[str]]:
    """Return the reruns of a bundle that lie in a folder, and what is damaged."""
    found, problems = [], []
    for path in sorted((folder / bundle.digest[:16]).glob("*.json")):
        try:
            found.append(read_rerun(path))
        except StorageError as error:
            problems.append(f"{path.name}: {error.what}")
    return found, problems


def _difference(bundle: Bundle, number: int, training: Retraining) -> Difference:
    record = bundle.records[number]
    samples = bundle.samples["test"]
    labels = np.array(samples.labels, dtype=np.int64)
    size = len(record.dataset.classes)
    try:
        before = bundle.answers[number]["test"].unpack()[0][:, 0]
        after = training.answers["test"].unpack()[0][:, 0]
    except (KeyError, ValueError) as error:
        raise StorageError(f"the answers of seed {training.seed} are missing or damaged") from error
    if after.shape != labels.shape or not ((after >= 0) & (after < size)).all():
        raise StorageError(f"the answers of seed {training.seed} are not for the images of this bundle")
    accuracy, f1 = metrics.point_scores(labels, after, size)
    return Difference(
        seed=record.config.seed,
        weights=bool(record.model) and training.model == record.model,
        predictions=bool(record.predictions) and dict(training.predictions) == dict(record.predictions),
        answers=float(np.mean(before != after)),
        accuracy=accuracy - record.scores["test"].accuracy,
        f1=f1 - record.scores["test"].f1,
        environment=tuple(_changes(record, training)),
    )


def _changes(record: TrialRecord, training: Retraining) -> Iterator[str]:
    """Say what of the code and the machine is not as it was."""
    for name in sorted({*record.environment, *training.environment}):
        there, here = record.environment.get(name, "absent"), training.environment.get(name, "absent")
        if there != here:
            yield f"{name}: {there} there, {here} here"
    for name in sorted({*record.packages, *training.packages}):
        same_version = record.environment.get(name) == training.environment.get(name)
        if same_version and record.packages.get(name) != training.packages.get(name):
            yield f"{name}: the same version with other files"
    for kind in sorted({*record.providers, *training.providers}):
        old, new = record.providers.get(kind), training.providers.get(kind)
        if old != new:
            yield f"{kind}: {_named(old)} there, {_named(new)} here"


def _named(provider: Provider | None) -> str:
    if provider is None:
        return "absent"
    parts = (provider.distribution, provider.version, provider.sha256[:12])
    return " ".join(part for part in parts if part)
