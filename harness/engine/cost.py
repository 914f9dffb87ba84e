"""What is cheaper: to store what a prefix computes, or to compute it again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Bandwidth:
    """Bytes a second that the store takes, as measured so far."""

    def __init__(self) -> None:
        # That of a slow disk, until one has been seen.
        self._bytes, self._seconds = 5e7, 0.1

    @property
    def value(self) -> float:
        """Bytes a second."""
        return self._bytes / self._seconds

    @contextmanager
    def measured(self, size: int) -> Iterator[None]:
        """Count a write of some bytes."""
        began = time.perf_counter()
        yield
        self.note(size, time.perf_counter() - began)

    def note(self, size: int, seconds: float) -> None:
        """Count a write of some bytes that took some seconds."""
        self._bytes += size
        self._seconds += seconds


def is_worth_storing(*, seconds: float, size: float, reads: float, bandwidth: float) -> bool:
    """Compare computing an image's activations each time with computing, writing and reading them.

    Args:
        seconds: To compute one image's activations.
        size: Their bytes.
        reads: How many times they are wanted.
        bandwidth: Of writing and of reading, in bytes a second.
    """
    transfer = size / bandwidth
    return seconds * reads > seconds + transfer * (1 + reads)
