"""A bundle: one run with all the evidence for its scores, in one canonical JSON file that travels.

It holds the records of the final trainings of one configuration, those that failed too, the images of the
validation and test splits by name, class and SHA-256, and what each training answered for each. From it every
score can be computed again, and beside the images every label can be checked; no image is in it.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.documents import SPARSE, body_of, digest, parse_document, write_document
from harness.errors import StorageError
from harness.predictions import Predictions
from harness.records import TrialRecord
from harness.samples import Samples

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = "harness.bundle/1"
TOP = 5
"""Classes of each answer that are kept, the best first."""
_LARGEST = 2**28
"""Bytes that a packed array may unfold to."""
_LARGEST_FILE = 2**28
"""Bytes of a document that is read at all."""
T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedAnswers:
    """What a training answered for the images of a split, as text."""

    classes: str
    """uint16 (N, k): the k most probable classes, the best first."""
    scores: str
    """float16 (N, k): their probabilities."""
    k: int

    @staticmethod
    def pack(predictions: Predictions) -> PackedAnswers:
        """Keep the most probable classes of each image; of equal ones, that of the lower number first."""
        probabilities = predictions.probabilities
        k = min(TOP, probabilities.shape[1])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(probabilities, best, axis=1)
        return PackedAnswers(classes=_pack(best.astype("<u2")), scores=_pack(scores.astype("<f2")), k=k)

    def unpack(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return classes (N, k) and their probabilities (N, k).

        Raises:
            ValueError: They are damaged.
        """
        if self.k < 1:
            raise ValueError(f"answers of {self.k} classes each")
        classes = _unpack(self.classes, "<u2").reshape(-1, self.k).astype(np.int64)
        scores = _unpack(self.scores, "<f2").reshape(-1, self.k).astype(np.float32)
        if classes.shape != scores.shape:
            raise ValueError(f"{classes.shape} classes with {scores.shape} scores")
        return classes, scores


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """One run, as published."""

    records: tuple[TrialRecord, ...]
    """Final trainings of one configuration that are complete, by seed."""
    samples: Mapping[str, Samples]
    """By split: val and test."""
    answers: tuple[Mapping[str, PackedAnswers], ...]
    """By record, then by split."""
    trials: Mapping[str, int]
    """Trials of the search that led here, by state."""
    failed: tuple[TrialRecord, ...] = field(default=(), metadata=SPARSE)
    """Final trainings of the same configuration that failed, by seed; they answered nothing."""
    schema: str = SCHEMA

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 that names the bundle."""
        return digest(self)


def write_bundle(folder: Path, bundle: Bundle) -> Path:
    """Store a bundle under the name that its content gives it, and return its file.

    So folders of bundles merge by copying, in any order and any number of times: what is the same has the
    same name and content, and what is not never meets.
    """
    name = bundle.records[0].dataset.name
    plain = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in name)
    path = folder / (plain.strip("-._")[:60] or "dataset") / f"{bundle.digest[:16]}.json"
    write_document(path, body_of(bundle))
    return path


def read_bundle(path: Path) -> Bundle:
    """Read a bundle and check its hash and form, whoever wrote it.

    Raises:
        StorageError: The file is missing, too large, truncated, edited, of another schema, of another form,
            or without answers.
    """
    bundle = read_foreign(Bundle, path, SCHEMA, "a bundle")
    if not bundle.records or not bundle.answers:
        what = "records" if not bundle.records else "predictions"
        raise StorageError(f"a bundle without {what}", where=str(path))
    if len(bundle.answers) != len(bundle.records):
        raise StorageError(
            "a bundle has not the form of its schema",
            where=str(path),
            why=f"{len(bundle.records)} records with {len(bundle.answers)} sets of answers",
        )
    return bundle


def read_foreign(cls: type[T], path: Path, schema: str, what: str) -> T:
    """Read a document that a stranger may have written.

    Raises:
        StorageError: As `parse_document`, or it is larger than any.
    """
    # A missing file is for the reader to name.
    if path.is_file() and path.stat().st_size > _LARGEST_FILE:
        size = f"{path.stat().st_size / 2**20:.0f} MiB"
        raise StorageError(f"{what} is too large to be one", where=str(path), why=size)
    return parse_document(cls, path, schema, what, foreign=True)


def bundle_files(folder: Path) -> Iterator[Path]:
    """Yield the files of all bundles below a folder, at any depth, by name.

    Hidden ones are left out, and so is what lies in a folder `reruns`.
    """
    for path in sorted(folder.rglob("*.json")):
        parts = path.relative_to(folder).parts
        if "reruns" not in parts[:-1] and not any(part.startswith(".") for part in parts):
            yield path


def _pack(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")


def _unpack(text: str, dtype: str) -> npt.NDArray[Any]:
    inflater = zlib.decompressobj()
    try:
        # Bounded: a few bytes of a stranger's may unfold to more than memory holds.
        values = inflater.decompress(base64.b64decode(text, validate=True), _LARGEST)
        if not inflater.eof:
            raise ValueError("answers are cut short, or larger than any")
        return np.frombuffer(values, dtype=dtype)
    except (zlib.error, binascii.Error, TypeError) as error:
        raise ValueError(f"answers are damaged: {error}") from error
