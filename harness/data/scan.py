"""Read each image once: its SHA-256, its fingerprint, and whether it decodes. A second run reads nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import PIL

from harness.data.decode import DECODE, Pixels, decode, read_bytes
from harness.data.fingerprint import FINGERPRINT, fingerprint
from harness.documents import canonical, write_atomically
from harness.errors import DataError, StorageError
from harness.specs import Sample

SCHEMA = "harness.scan/3"
_RECIPE = [DECODE, FINGERPRINT, PIL.__version__]

Keep: TypeAlias = Callable[[str, Pixels], None]
"""Takes the SHA-256 of an image's content and its pixels, uint8 (H, W, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What reading one image found."""

    sha256: str
    """Of the file's bytes, or of the shape and pixels of an array; empty when it could not be read."""
    problem: str
    """Why it does not decode; empty when it does."""
    fingerprint: str
    """What `fingerprint` says of its structure; empty where it has none or does not decode."""


def scan(samples: Sequence[Sample], cache: Path, keep: Keep | None = None) -> list[Verdict]:
    """Hash, decode and fingerprint all images that are new or have changed since the last scan.

    Args:
        samples: Images to look at.
        cache: JSON file of verdicts by path, size and times of change; rewritten when anything is new.
        keep: Given each file that is decoded, from several threads.
    """
    known = _read_cache(cache)
    verdicts: dict[int, Verdict] = {}
    entries: dict[str, list[object]] = {}
    todo: list[int] = []
    for index, sample in enumerate(samples):
        stamp = _stamp(sample.image) if isinstance(sample.image, Path) else None
        entry = known.get(str(sample.image)) if stamp else None
        if entry is not None and entry[:3] == stamp:
            verdicts[index] = Verdict(sha256=str(entry[3]), problem=str(entry[4]), fingerprint=str(entry[5]))
            entries[str(sample.image)] = entry
        else:
            todo.append(index)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for index, (stamp, verdict) in zip(
            todo, pool.map(partial(_look, keep=keep), [samples[index] for index in todo]), strict=True
        ):
            verdicts[index] = verdict
            if stamp:
                entries[str(samples[index].image)] = [
                    *stamp,
                    verdict.sha256,
                    verdict.problem,
                    verdict.fingerprint,
                ]
    finally:
        # Also after Ctrl-C: what was read is kept.
        pool.shutdown(wait=True, cancel_futures=True)
        if entries and entries != known:
            body = {"schema": SCHEMA, "recipe": _RECIPE, "files": entries}
            # Only a cache: without it the next run reads the images again.
            with contextlib.suppress(StorageError):
                write_atomically(cache, canonical(body) + "\n")
    return [verdicts[index] for index in range(len(samples))]


def content_sha256(image: bytes | Pixels) -> str:
    """Return the SHA-256 of a file's content, or of the shape and pixels of an array."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    return hashlib.sha256(f"uint8 {image.shape} ".encode() + image.tobytes()).hexdigest()


def _look(sample: Sample, keep: Keep | None = None) -> tuple[list[int] | None, Verdict]:
    sha256 = ""
    stamp = None
    try:
        image = sample.image
        if isinstance(image, Path):
            # Taken before the content: a file that is being written is read again next time.
            stamp = _stamp(image)
            content: bytes | Pixels = read_bytes(image, sample.id)
        else:
            content = image
        sha256 = content_sha256(content)
        pixels = decode(content, sample.id)
        found = fingerprint(pixels)
        if keep and isinstance(image, Path):
            keep(sha256, pixels)
    except DataError as error:
        if not sha256:
            # Not the content's fault: it may be readable next time, and look the same from outside.
            stamp = None
        return stamp, Verdict(sha256=sha256, problem=error.why, fingerprint="")
    return stamp, Verdict(sha256=sha256, problem="", fingerprint=found)


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # A copy may bring its time of modification along, as unpacked archives do; where there is a time of
    # change (on Windows it is that of creation), nobody can set it.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_cache(cache: Path) -> dict[str, list[object]]:
    try:
        body = json.loads(cache.read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA or body["recipe"] != _RECIPE:
            return {}
        return {path: entry for path, entry in body["files"].items() if len(entry) == 6}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
