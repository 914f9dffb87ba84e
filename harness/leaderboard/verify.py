"""Check a bundle: every hash, and every score recomputed from its answers. Trusts nothing that it states.

What passes is consistent; that its answers came from a training is not shown by it, only a rerun can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import metrics
from harness.documents import find_misfit
from harness.errors import StorageError
from harness.leaderboard.bundle import TOP, Bundle, PackedAnswers, bundle_files, read_bundle
from harness.leaderboard.entry import Answers, Entry, Tier
from harness.leaderboard.rerun import RerunRecord, check_rerun, reruns_of
from harness.predictions import FILE
from harness.records import CostRecord, Scores, TrialRecord
from harness.samples import SampleList, Samples, classes_digest, protocol_digest, split_digest

TOLERANCE = 1e-9
"""How far a stated score may be from the recomputed one."""
SPLITS = ("val", "test")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HALF = 1e-3
"""Half precision rounds each score by less than this share."""

_LONGEST = 60

Chosen = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out of a check."""

    tier: Tier
    """As far as the bundle can be trusted; nothing that has a problem is ranked."""
    problems: tuple[str, ...]
    """Why it is rejected, each in a line; empty where all holds."""
    notes: tuple[str, ...] = ()
    """Why a rerun does not count."""


def verify(bundle: Bundle, labels: SampleList | None = None, reruns: Sequence[RerunRecord] = ()) -> Verdict:
    """Recompute all that a bundle states.

    Args:
        bundle: As read.
        labels: The images as they are on this machine, in any splits: their classes and hashes then count,
            those of the bundle are compared with them.
        reruns: Documents of reruns of it.

    Returns:
        The tier that it reaches and why it is rejected. Never raises for what is in the bundle.
    """
    problems = list(_find_problems(bundle, labels))
    if problems:
        return Verdict(tier="self-reported", problems=tuple(problems))
    refused = {rerun.digest[:16]: check_rerun(bundle, rerun) for rerun in reruns}
    notes = tuple(f"rerun {name} does not count: {why}" for name, why in refused.items() if why)
    tier: Tier = "re-run" if len(notes) < len(refused) else "recomputed"
    return Verdict(tier=tier, problems=(), notes=notes)


def verify_file(
    path: Path, labels: SampleList | None = None, reruns: Path | None = None
) -> tuple[Bundle | None, Verdict]:
    """Read a bundle and check it; what cannot be read is a verdict too.

    Args:
        path: The file.
        labels: As `verify` takes them.
        reruns: Folder of reruns; None: `reruns` beside the folder of records that the file lies in.
    """
    try:
        bundle = read_bundle(path)
    except StorageError as error:
        why = f": {error.why}" if error.why else ""
        return None, Verdict(tier="self-reported", problems=(f"{error.what}{why}",))
    folder = path.absolute().parent.parent.parent / "reruns" if reruns is None else reruns
    found, damaged = reruns_of(bundle, folder)
    verdict = verify(bundle, labels, found)
    notes = verdict.notes + tuple(f"rerun {line}" for line in damaged)
    return bundle, Verdict(tier=verdict.tier, problems=verdict.problems, notes=notes)


def published(records: Path) -> tuple[list[Entry], list[str]]:
    """Return what a board shows of a folder of bundles, and a line for each that is rejected."""
    entries, problems = [], []
    for path in bundle_files(records):
        bundle, verdict = verify_file(path)
        problems += [f"{path}: {problem}" for problem in verdict.problems]
        if bundle is not None and not verdict.problems:
            entries += bundle_entries(bundle, verdict.tier)
    return entries, problems


def bundle_entries(bundle: Bundle, tier: Tier) -> list[Entry]:
    """Return the entries of a bundle's records."""
    source = bundle.digest

    @cache
    def answers(number: int) -> Mapping[str, Answers]:
        return {
            split: Answers(
                labels=np.array(bundle.samples[split].labels, dtype=np.int64), chosen=packed.unpack()[0][:, 0]
            )
            for split, packed in bundle.answers[number].items()
        }

    return [
        Entry(record=record, answers=partial(answers, number), source=source, tier=tier)
        for number, record in enumerate(bundle.records)
    ]


def _find_problems(bundle: Bundle, labels: SampleList | None) -> Iterator[str]:
    """Yield each fault; the later checks rely on what the earlier ones found sound."""
    for part in (_form_problems, _run_problems, _protocol_problems):
        found = list(part(bundle))
        yield from found
        if found:
            return
    own = bundle.samples
    if labels is not None:
        found = list(_label_problems(bundle, labels))
        yield from found
        if found:
            return
        own = {split: _relabelled(part, labels) for split, part in own.items()}
    for number, record in enumerate(bundle.records):
        name = f"seed {record.config.seed}"
        yield from (f"{name}: {problem}" for problem in _record_problems(record))
        for split in SPLITS:
            yield from (
                f"{name}: {problem}"
                for problem in _score_problems(record, split, bundle.answers[number][split], own[split])
            )


def _form_problems(bundle: Bundle) -> Iterator[str]:
    misfit = find_misfit(Bundle, bundle)
    if misfit:
        yield f"it has not the form of its schema: {misfit} is of another type"
        return
    if not bundle.records:
        yield "it holds no record"
        return
    if len(bundle.answers) != len(bundle.records):
        yield f"it holds {len(bundle.records)} records with {len(bundle.answers)} sets of predictions"
        return
    lacking = [split for split in SPLITS if split not in bundle.samples]
    extra = sorted({*bundle.samples} - {*SPLITS})
    if lacking or extra:
        yield f"its images are those of {', '.join(sorted(bundle.samples)) or 'nothing'}, not of val and test"
        return
    for number, answers in enumerate(bundle.answers):
        missing = [split for split in SPLITS if split not in answers]
        if missing:
            yield f"seed {bundle.records[number].config.seed}: no predictions for {' and '.join(missing)}"
    size = len(bundle.records[0].dataset.classes)
    for split, part in bundle.samples.items():
        if not len(part.ids) == len(part.labels) == len(part.sha256) or not part.ids:
            counts = f"{len(part.ids)} ids, {len(part.labels)} labels, {len(part.sha256)} hashes"
            yield f"{split}: {counts}"
        elif list(part.ids) != sorted({*part.ids}):
            yield f"{split}: its images are not sorted by id, or one is there twice"
        elif not all(0 <= label < size for label in part.labels):
            yield f"{split}: a label is none of its {size} classes"
        elif not all(_SHA256.fullmatch(sha256) for sha256 in part.sha256):
            yield f"{split}: an image's hash is no SHA-256"


def _run_problems(bundle: Bundle) -> Iterator[str]:
    """Yield why the records are not the final trainings of one configuration."""
    first = bundle.records[0]
    seeds = [record.config.seed for record in bundle.records]
    if len({*seeds}) < len(seeds):
        yield f"its records repeat a seed: {', '.join(map(str, seeds))}"
    for record in bundle.records:
        name = f"seed {record.config.seed}"
        if record.kind != "final" or record.state != "complete":
            yield f"{name}: a record of a {record.state} {record.kind} training, not of a complete final one"
        if record.config.digest() != first.config.digest():
            yield f"{name}: its configuration is not that of seed {first.config.seed}"
        for part in ("study", "number", "metric", "dataset", "protocol"):
            if getattr(record, part) != getattr(first, part):
                yield f"{name}: its {part} is not that of seed {first.config.seed}"
    if any(count < 0 for count in bundle.trials.values()):
        yield "it states a negative number of trials"


def _protocol_problems(bundle: Bundle) -> Iterator[str]:
    record = bundle.records[0]
    protocol, dataset = record.protocol, record.dataset
    if protocol_digest(protocol) != protocol.digest:
        yield f"the protocol's digest {protocol.digest[:8]} is not that of its parts"
    if protocol.metric != metrics.DEFINITION:
        yield f"scores of {protocol.metric!r} cannot be recomputed: here is {metrics.DEFINITION!r}"
    if classes_digest(dataset.classes) != protocol.classes:
        yield "the classes are not those of the protocol"
    for split, part in bundle.samples.items():
        if split_digest(dataset.classes, part) != protocol.splits.get(split):
            what = "an image, a label or a hash was changed"
            yield f"the manifest of {split} is not that of the protocol: {what}"
        counts = np.bincount(part.labels, minlength=len(dataset.classes)).tolist()
        if counts != list(dataset.counts.get(split, ())):
            yield f"the counts of {split} in the record are not those of its images"


def _label_problems(bundle: Bundle, labels: SampleList) -> Iterator[str]:
    """Yield in what a bundle's images are not those of this machine."""
    record = bundle.records[0]
    if record.dataset.classes != labels.classes:
        yield (
            f"its classes are not those of the images here: {len(record.dataset.classes)} there, "
            f"{len(labels.classes)} here"
        )
        return
    own = _by_id(labels)
    for split, part in bundle.samples.items():
        for id, label, sha256 in zip(part.ids, part.labels, part.sha256, strict=True):
            if id not in own:
                yield f"{split}: there is no image {id!r} here"
            elif own[id][1] != sha256:
                yield f"{split}: image {id!r} has another content here"
            elif own[id][0] != label:
                there, here = labels.classes[label], labels.classes[own[id][0]]
                yield f"{split}: image {id!r} is {there!r} there, {here!r} here"
            else:
                continue
            # One is enough to reject it, and there may be as many as images.
            return
    held = {id for part in bundle.samples.values() for id in part.ids}
    rest = sorted((id, *value) for id, value in own.items() if id not in held)
    train = Samples(
        ids=tuple(id for id, _, _ in rest),
        labels=tuple(label for _, label, _ in rest),
        sha256=tuple(sha256 for _, _, sha256 in rest),
    )
    if split_digest(labels.classes, train) != record.protocol.splits.get("train"):
        yield "train: the other images here are not those that it was trained on"


def _by_id(labels: SampleList) -> dict[str, tuple[int, str]]:
    return {
        id: (label, sha256)
        for part in labels.splits.values()
        for id, label, sha256 in zip(part.ids, part.labels, part.sha256, strict=True)
    }


def _relabelled(part: Samples, labels: SampleList) -> Samples:
    own = _by_id(labels)
    return Samples(ids=part.ids, labels=tuple(own[id][0] for id in part.ids), sha256=part.sha256)


def _record_problems(record: TrialRecord) -> Iterator[str]:
    """Yield what of a record cannot be."""
    if not _SHA256.fullmatch(record.model):
        yield "the hash of its weights is no SHA-256"
    if not _SHA256.fullmatch(record.predictions.get(FILE, "")):
        yield "the hash of its predictions is no SHA-256"
    if record.weights is None:
        yield "it does not say which weights it started from"
    elif record.weights.init != record.config.init:
        yield f"it started from {record.weights.init} weights, its configuration says {record.config.init}"
    elif record.weights.init == "pretrained":
        if not _SHA256.fullmatch(record.weights.sha256):
            yield "the hash of the weights it started from is no SHA-256"
        if not record.weights.licence:
            yield "the licence of the weights it started from is missing"
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        yield f"it was created at {record.created[:40]!r}, which is no time"
    yield from (["its cost is missing"] if record.cost is None else _cost_problems(record.cost))
    epochs = [epoch.epoch for epoch in record.curve]
    if len(epochs) != record.config.epochs:
        yield f"its learning curve has {len(epochs)} epochs, its configuration {record.config.epochs}"
    elif epochs != list(range(1, len(epochs) + 1)) or not epochs:
        yield "the epochs of its learning curve are not counted from 1"
    elif "val" in record.scores:
        last, scores = record.curve[-1], record.scores["val"]
        for name, end, score in (
            ("accuracy", last.val_accuracy, scores.accuracy),
            ("f1", last.val_f1, scores.f1),
        ):
            if not _is_close(end, score):
                yield f"its learning curve ends at val {name} {end!r}, its score is {score!r}"
    if sorted(record.scores) != sorted(SPLITS):
        yield f"it has scores of {', '.join(sorted(record.scores)) or 'nothing'}, not of val and test"


def _cost_problems(cost: CostRecord) -> Iterator[str]:
    counted = {
        "seconds": cost.seconds,
        "total_seconds": cost.total_seconds,
        "images_per_second": cost.images_per_second,
        "params": cost.params,
        "trainable": cost.trainable,
        "flops": cost.flops or 0.0,
        "prefix_passes": cost.prefix_passes,
        "prefix_seconds": cost.prefix_seconds,
        "peak_memory": cost.peak_memory,
        "micro_batch": cost.micro_batch,
    }
    for name, value in counted.items():
        if not 0 <= value < math.inf:
            yield f"its cost is no cost: {name} {value!r}"
    shares = {"frozen_param_share": cost.frozen_param_share, "frozen_flop_share": cost.frozen_flop_share}
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            yield f"its cost is no cost: {name} {share!r}"
    if cost.trainable > cost.params:
        yield f"its cost is no cost: {cost.trainable} of {cost.params} parameters train"


def _score_problems(
    record: TrialRecord, split: str, packed: PackedAnswers, samples: Samples
) -> Iterator[str]:
    """Yield what of the answers cannot be, or in what the scores of a split are not theirs."""
    size = len(record.dataset.classes)
    try:
        chosen = _chosen(packed, len(samples.ids), size)
    except ValueError as error:
        yield f"{split} predictions: {error}"
        return
    stated = record.scores.get(split)
    if stated is None:
        return
    # Before anything of that size is computed: the file has to hold as much.
    if len(stated.confusion) != size or any(len(row) != size for row in stated.confusion):
        yield f"{split} confusion matrix is not of {size} classes"
        return
    found = metrics.evaluate(np.array(samples.labels, dtype=np.int64), chosen, size)
    for name, one, other in _score_pairs(stated, found):
        if not _is_close(one, other):
            yield f"{split} {name} is {_shown(one)}, its predictions give {_shown(other)}"


def _chosen(packed: PackedAnswers, count: int, size: int) -> Chosen:
    """Return the class answered for each image.

    Raises:
        ValueError: The answers are damaged, not for these images, or no probabilities.
    """
    if packed.k != min(TOP, size):
        raise ValueError(f"{packed.k} classes of each answer, there must be {min(TOP, size)}")
    classes, scores = packed.unpack()
    if len(classes) != count:
        raise ValueError(f"{len(classes)} answers for {count} images")
    if not ((classes >= 0) & (classes < size)).all():
        raise ValueError(f"a class is none of {size}")
    if (np.diff(np.sort(classes, axis=1), axis=1) == 0).any():
        raise ValueError("an answer names a class twice")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if ((scores < 0) | (scores > 1)).any() or (scores.sum(axis=1) > 1 + _HALF).any():
        raise ValueError("scores are no probabilities")
    if packed.k == size and (scores.sum(axis=1) < 1 - _HALF).any():
        raise ValueError("scores of all classes do not sum to 1")
    if (np.diff(scores, axis=1) > 0).any():
        raise ValueError("scores do not decrease")
    best: Chosen = classes[:, 0]
    return best


def _score_pairs(stated: Scores, found: Scores) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, stated, recomputed) of each score."""
    for name in ("n", "accuracy", "precision", "recall", "f1"):
        yield name, getattr(stated, name), getattr(found, name)
    for name in ("accuracy_interval", "f1_interval", "confusion"):
        yield name.replace("_", " "), getattr(stated, name), getattr(found, name)
    for name in ("precision", "recall", "f1", "support"):
        yield f"{name} by class", getattr(stated.per_class, name), getattr(found.per_class, name)


def _is_close(one: Any, other: Any) -> bool:
    try:
        left, right = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    except OverflowError:
        return False
    # NaN is not within any distance.
    return left.shape == right.shape and bool((np.abs(left - right) <= TOLERANCE).all())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < _LONGEST else text[: _LONGEST - 3] + "..."
