"""The images of a data set as stored: by name, class and SHA-256 of the content. No image is in it.

A study keeps them beside its records from its finalising step on, so that its scores can be checked, and
published, where the images are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.documents import digest, parse_document, write_document
from harness.records import Protocol

SCHEMA = "harness.manifest/1"
FILE = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The images of one split, sorted by id."""

    ids: tuple[str, ...]
    """Path in the data set's folder."""
    labels: tuple[int, ...]
    """Index into the classes of the data set."""
    sha256: tuple[str, ...]
    """Of the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleList:
    """All images of a data set."""

    dataset: str
    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    schema: str = SCHEMA


def split_digest(classes: Sequence[str], samples: Samples) -> str:
    """Return the SHA-256 over the sorted (class, id, content) of a split, as a protocol holds it."""
    rows = zip(samples.labels, samples.ids, samples.sha256, strict=True)
    return digest(sorted([classes[label], id, sha256] for label, id, sha256 in rows))


def classes_digest(classes: Sequence[str]) -> str:
    """Return the SHA-256 of the ordered class names, as a protocol holds it."""
    return digest(list(classes))


def protocol_digest(protocol: Protocol) -> str:
    """Return the digest that a protocol's parts give it, whatever digest it states."""
    parts = dataclasses.asdict(protocol)
    del parts["digest"]
    return digest(parts)


def write_samples(folder: Path, samples: SampleList) -> None:
    """Store the images' names, classes and hashes in a study's folder."""
    write_document(folder / FILE, dataclasses.asdict(samples))


def read_samples(folder: Path) -> SampleList:
    """Read what `write_samples` stored.

    Raises:
        StorageError: The file is missing, damaged, edited, or of another schema.
    """
    return parse_document(SampleList, folder / FILE, SCHEMA, "a manifest")
