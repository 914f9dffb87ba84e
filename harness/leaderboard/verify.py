"""Check a bundle: every hash, and every score recomputed from its answers. Trusts nothing that it states.

What passes is consistent; that its answers came from a training is not shown by it, only a rerun can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from harness import metrics
from harness.documents import find_misfit
from harness.errors import StorageError
from harness.leaderboard.bundle import Bundle, read_bundle
from harness.leaderboard.entry import Answers, Entry, Tier
from harness.leaderboard.recompute import SHA256, failure_problems, record_problems, score_problems
from harness.leaderboard.rerun import RerunRecord, check_rerun, reruns_of
from harness.samples import SampleList, Samples, classes_digest, protocol_digest, split_digest

SPLITS = ("val", "test")
SURPRISES = (ArithmeticError, LookupError, TypeError, ValueError)
"""What comes of a value that no check foresaw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out of a check."""

    tier: Tier
    """As far as the bundle can be trusted; nothing that has a problem is ranked."""
    problems: tuple[str, ...]
    """Why it is rejected, each in a line; empty where all holds."""
    digest: str = ""
    """Names the bundle; empty where it is rejected."""
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
        The tier that it reaches and why it is rejected.
    """
    problems = list(_find_problems(bundle, labels))
    if problems:
        return Verdict(tier="self-reported", problems=tuple(problems))
    refused = {rerun.digest[:16]: check_rerun(bundle, rerun) for rerun in reruns}
    notes = tuple(f"rerun {name} does not count: {why}" for name, why in refused.items() if why)
    tier: Tier = "re-run" if len(notes) < len(refused) else "recomputed"
    return Verdict(tier=tier, problems=(), digest=bundle.digest, notes=notes)


def verify_file(path: Path, labels: SampleList | None = None) -> tuple[Bundle | None, Verdict]:
    """Read a bundle and check it; what cannot be read is a verdict too.

    Args:
        path: The file. Its reruns lie in a folder `reruns` beside it, or beside any folder that holds it.
        labels: As `verify` takes them.
    """
    try:
        bundle = read_bundle(path)
    except StorageError as error:
        why = f": {error.why}" if error.why else ""
        return None, Verdict(tier="self-reported", problems=(f"{error.what}{why}",))
    found: list[RerunRecord] = []
    damaged: list[str] = []
    for folder in path.absolute().parents:
        reruns, problems = reruns_of(bundle, folder / "reruns")
        found += reruns
        damaged += problems
    try:
        verdict = verify(bundle, labels, found)
    except SURPRISES as error:
        return None, Verdict(tier="self-reported", problems=(f"it cannot be checked: {error!r}",))
    notes = verdict.notes + tuple(f"rerun {line}" for line in damaged)
    return bundle, replace(verdict, notes=notes)


def bundle_entries(bundle: Bundle, verdict: Verdict) -> list[Entry]:
    """Return the entries of a bundle's records, after it was verified."""

    @cache
    def answers(number: int) -> Mapping[str, Answers]:
        return {
            split: Answers(
                labels=np.array(bundle.samples[split].labels, dtype=np.int64), chosen=packed.unpack()[0][:, 0]
            )
            for split, packed in bundle.answers[number].items()
        }

    complete = [
        Entry(record=record, answers=partial(answers, number), source=verdict.digest, tier=verdict.tier)
        for number, record in enumerate(bundle.records)
    ]
    return complete + [
        Entry(record=record, source=verdict.digest, tier=verdict.tier) for record in bundle.failed
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
    for record in bundle.failed:
        yield from (f"seed {record.config.seed}: {problem}" for problem in failure_problems(record))
    for number, record in enumerate(bundle.records):
        name = f"seed {record.config.seed}"
        yield from (f"{name}: {problem}" for problem in record_problems(record))
        for split in SPLITS:
            yield from (
                f"{name}: {problem}"
                for problem in score_problems(record, split, bundle.answers[number][split], own[split])
            )


def _form_problems(bundle: Bundle) -> Iterator[str]:
    misfit = find_misfit(Bundle, bundle)
    if misfit:
        yield f"it has not the form of its schema: {misfit} is of another type, or too large"
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
        elif not all(SHA256.fullmatch(sha256) for sha256 in part.sha256):
            yield f"{split}: an image's hash is no SHA-256"


def _run_problems(bundle: Bundle) -> Iterator[str]:
    """Yield why the records are not the final trainings of one configuration."""
    first = bundle.records[0]
    states = [(record, "complete") for record in bundle.records]
    states += [(record, "failed") for record in bundle.failed]
    seeds = [record.config.seed for record, _ in states]
    if len({*seeds}) < len(seeds):
        yield f"its records repeat a seed: {', '.join(map(str, seeds))}"
    for record, state in states:
        name = f"seed {record.config.seed}"
        if record.kind != "final" or record.state != state:
            yield f"{name}: a record of a {record.state} {record.kind} training, not of a {state} final one"
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
        if _counts(part, dataset.classes) != dataset.counts.get(split):
            yield f"the counts of {split} in the record are not those of its images"
    if {*dataset.counts} != {"train", *SPLITS}:
        found = ", ".join(sorted(dataset.counts)) or "nothing"
        yield f"its counts are those of {found}, not of train, val and test"
    size = len(dataset.classes)
    for split, counts in dataset.counts.items():
        if len(counts) != size or min(counts, default=0) < 0:
            yield f"the counts of {split} in the record are not one for each of {size} classes"


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
    elif _counts(train, labels.classes) != record.dataset.counts["train"]:
        yield "the counts of train in the record are not those of the images here"


def _counts(part: Samples, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the images of each class."""
    return tuple(np.bincount(part.labels, minlength=len(classes)).tolist())


def _by_id(labels: SampleList) -> dict[str, tuple[int, str]]:
    return {
        id: (label, sha256)
        for part in labels.splits.values()
        for id, label, sha256 in zip(part.ids, part.labels, part.sha256, strict=True)
    }


def _relabelled(part: Samples, labels: SampleList) -> Samples:
    own = _by_id(labels)
    return Samples(ids=part.ids, labels=tuple(own[id][0] for id in part.ids), sha256=part.sha256)
