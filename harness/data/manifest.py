"""A data set as the host sees it: checked, split, and named by the SHA-256 of its content."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import metrics, paths
from harness.data.audit import SPLITS, Audit, audit
from harness.data.decode import DECODE, Pixels
from harness.data.fetch import fetch, folder_of
from harness.data.folder import LABELS_FILE, read_folder
from harness.data.remarks import find_remarks
from harness.data.scan import Keep, Verdict, scan
from harness.data.split import SplitRules as SplitRules
from harness.data.split import split_images
from harness.documents import digest
from harness.errors import DataError, UnknownNameError, UsageError
from harness.records import DatasetRecord, Protocol
from harness.registry import Registry
from harness.samples import SampleList, Samples, classes_digest, protocol_digest, split_digest
from harness.specs import DatasetSpec, Sample, Split
from harness.text import listed

SELECTION = "last-epoch/1"
"""Names in a record's protocol which weights are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image of a manifest."""

    id: str
    label: int
    """Index into the manifest's classes."""
    split: Split
    sha256: str
    """Of the file's bytes, or of the shape and pixels of an array."""
    image: Path | Pixels = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The images of a data set, with their classes and splits."""

    dataset: str
    classes: tuple[str, ...]
    """Sorted names."""
    items: tuple[Item, ...]
    """Sorted by id."""
    licence: str
    split_rule: str
    """`official`, or the rule and seed that made the splits."""
    audit: Audit
    """Of all images, also where a split is left out."""
    warnings: tuple[str, ...] = ()
    skipped: int = 0
    """Unreadable images that were left out."""

    def of(self, split: str) -> tuple[Item, ...]:
        """Return the images of one split, sorted by id."""
        return tuple(item for item in self.items if item.split == split)

    def without(self, split: str) -> Manifest:
        """Return the manifest with the images of one split left out."""
        return replace(self, items=tuple(item for item in self.items if item.split != split))

    def counts(self) -> dict[str, tuple[int, ...]]:
        """Return the number of images of each class, by split."""
        found = Counter((item.split, item.label) for item in self.items)
        return {split: tuple(found[split, label] for label in range(len(self.classes))) for split in SPLITS}

    def dataset_record(self) -> DatasetRecord:
        """Return what a trial's record says of its data."""
        return DatasetRecord(
            name=self.dataset,
            classes=self.classes,
            counts=self.counts(),
            licence=self.licence,
            split=self.split_rule,
            skipped=self.skipped,
            audit=self.audit.record(),
        )

    def samples(self, split: str) -> Samples:
        """Return what is stored of the images of one split."""
        items = self.of(split)
        return Samples(
            ids=tuple(item.id for item in items),
            labels=tuple(item.label for item in items),
            sha256=tuple(item.sha256 for item in items),
        )

    def sample_list(self) -> SampleList:
        """Return what is stored of all images."""
        return SampleList(
            dataset=self.dataset,
            classes=self.classes,
            splits={split: self.samples(split) for split in SPLITS},
        )

    def protocol(self) -> Protocol:
        """Return the fingerprint that decides which rows may share a table."""
        unnamed = Protocol(
            digest="",
            splits={split: split_digest(self.classes, self.samples(split)) for split in SPLITS},
            classes=classes_digest(self.classes),
            decode=DECODE,
            metric=metrics.DEFINITION,
            selection=SELECTION,
        )
        return replace(unnamed, digest=protocol_digest(unnamed))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCheck:
    """A manifest of all that is readable, and what speaks against training on it."""

    manifest: Manifest
    where: str
    """The folder or file that was read."""
    problems: tuple[str, ...]


def load_manifest(
    dataset: str,
    registry: Registry,
    *,
    rules: SplitRules,
    download: bool = True,
    skip_bad: bool = False,
    home: Path | None = None,
    keep: Keep | None = None,
) -> Manifest:
    """Read, check and split a data set.

    Args:
        dataset: A registered name, or an existing folder or CSV file; what holds a path separator is a path.
        registry: Where names are looked up.
        rules: How to make the splits that the data set does not have.
        download: Fetch a named data set that is not here.
        skip_bad: Leave unreadable images out instead of refusing the data set.
        home: Folder of data and caches; None takes `HARNESS_HOME`.
        keep: Given each file that is decoded to be checked, from several threads.

    Raises:
        UnknownNameError: There is no data set and no path of that name.
        DataError: The data are missing or cannot be trained on; lists all problems at once.
    """
    check = check_dataset(
        dataset, registry, rules=rules, download=download, skip_bad=skip_bad, home=home, keep=keep
    )
    if check.problems:
        count = len(check.problems)
        lines = "\n".join(f"  - {problem}" for problem in check.problems)
        plural = f"{count} problems" if count > 1 else "1 problem"
        raise DataError(
            f"data set {check.manifest.dataset!r} cannot be used, {plural}\n{lines}",
            where=check.where,
            fixes=[
                f"repair the data and run: harness data check {dataset}",
                *(
                    ["leave unreadable images out: --skip-bad, or skip_bad = true in the study file"]
                    if "unreadable" in lines
                    else []
                ),
            ],
        )
    return check.manifest


def check_dataset(
    dataset: str,
    registry: Registry,
    *,
    rules: SplitRules,
    download: bool = False,
    skip_bad: bool = False,
    home: Path | None = None,
    keep: Keep | None = None,
) -> DatasetCheck:
    """Do what `load_manifest` does, but return the problems instead of raising them.

    Raises:
        UnknownNameError: There is no data set and no path of that name.
        DataError: There is nothing to look at: the data are missing, or the folder's layout is unknown.
    """
    home = home or paths.home()
    found = resolve(dataset, registry)
    warnings: list[str] = []
    if isinstance(found, Path):
        where, licence, name = found, "not stated", display_name(found)
        samples = read_folder(found)
        warnings = find_remarks(found, samples)
    else:
        where, licence, name = folder_of(found.name, home), found.licence, found.name
        samples = fetch(found, home, download=download)
    samples = sorted(samples, key=lambda sample: sample.id)
    cache = home / "scan" / f"{digest(str(where.absolute()))[:24]}.json"
    check = _check(name, licence, str(where), samples, scan(samples, cache, keep), rules, skip_bad, cache)
    manifest = replace(check.manifest, warnings=(*warnings, *check.manifest.warnings))
    return replace(check, manifest=manifest)


def resolve(dataset: str, registry: Registry) -> DatasetSpec | Path:
    """Return the data set that is registered under a name, or the path of a folder or CSV file.

    Raises:
        UsageError: There is no name.
        UnknownNameError: A plain name is neither.
    """
    if not dataset:
        raise UsageError(
            "a data set has an empty name",
            fixes=["list the data sets: harness data list", "write ./ for the current folder"],
        )
    path = paths.expand(dataset)
    separators = {"/", os.sep, os.altsep or os.sep}
    if any(sign in dataset for sign in separators) or dataset in (".", "..") or path.suffix.lower() == ".csv":
        return path
    try:
        return registry.datasets.get(dataset).spec
    except UnknownNameError:
        if path.exists():
            return path
        names = registry.datasets.names()
        more = "list the data sets: harness data list; or name a folder: ./" + dataset
        raise UnknownNameError("data set", dataset, names, more=more) from None


def display_name(path: Path) -> str:
    """Return the name of the data set that a folder or CSV file is."""
    full = Path(os.path.realpath(path))
    if full.suffix.lower() != ".csv":
        return full.name or "images"
    return full.parent.name if full.name == LABELS_FILE and full.parent.name else full.stem


def _check(
    name: str,
    licence: str,
    where: str,
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict],
    rules: SplitRules,
    skip_bad: bool,
    cache: Path,
) -> DatasetCheck:
    problems, warnings = [], []
    pairs = list(zip(samples, verdicts, strict=True))
    bad = [f"{sample.id}: {verdict.problem}" for sample, verdict in pairs if verdict.problem]
    pairs = [(sample, verdict) for sample, verdict in pairs if not verdict.problem]
    if bad:
        found = listed("unreadable images", bad)
        if skip_bad:
            warnings.append(f"left out {found}")
        else:
            problems.append(found)
    ids = Counter(sample.id for sample in samples)
    repeated = [id for id, count in ids.items() if count > 1]
    if repeated:
        problems.append(listed("ids that name two images", repeated))
    official = {sample.split for sample, _ in pairs}
    if None in official and len(official) > 1:
        lacking = [sample.id for sample, _ in pairs if sample.split is None]
        problems.append(listed("images without a split beside others that have one", lacking))
    classes = tuple(sorted({sample.label for sample in samples}))
    fingerprints = [verdict.fingerprint for _, verdict in pairs]
    numbers = {label: number for number, label in enumerate(classes)}
    splits, rule = split_images(
        [(sample.label, verdict.sha256, sample.split) for sample, verdict in pairs], rules
    )
    items = tuple(
        Item(
            id=sample.id,
            label=numbers[sample.label],
            split=split,
            sha256=verdict.sha256,
            image=sample.image,
        )
        for (sample, verdict), split in zip(pairs, splits, strict=True)
    )
    manifest = Manifest(
        dataset=name,
        classes=classes,
        items=items,
        licence=licence,
        split_rule=rule,
        audit=audit(items, classes, fingerprints, cache.with_suffix(".near.json")),
        skipped=len(bad) if skip_bad else 0,
    )
    problems += _class_problems(manifest)
    warnings += manifest.audit.warnings()
    return DatasetCheck(
        manifest=replace(manifest, warnings=tuple(warnings)), where=where, problems=tuple(problems)
    )


def _class_problems(manifest: Manifest) -> list[str]:
    if len(manifest.classes) < 2:
        return [f"only {len(manifest.classes)} class: {', '.join(manifest.classes)}; at least 2 are needed"]
    counts = manifest.counts()
    if not sum(counts["train"]):
        return ["no images to train on"]
    untrained, small = [], []
    contents: dict[int, set[str]] = defaultdict(set)
    for item in manifest.items:
        contents[item.label].add(item.sha256)
    for label, name in enumerate(manifest.classes):
        of_class = {split: counts[split][label] for split in SPLITS}
        lacking = [split for split, count in of_class.items() if not count]
        if "train" in lacking and any(of_class.values()):
            untrained.append(f"{name}: {of_class['val']} in val, {of_class['test']} in test")
        elif lacking:
            small.append(
                f"{name}: 0 in {' and '.join(lacking)} (has {len(contents[label])} different images)"
            )
    problems = []
    if untrained:
        problems.append(listed("classes without training images", untrained))
    if small:
        problems.append(listed("classes with too few images, each split needs at least 1", small))
    return problems
