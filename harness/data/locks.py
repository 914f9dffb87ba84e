"""Locks between processes, for which one waits with a sign of life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 1.0
"""Seconds between two signs of life."""


@contextmanager
def locked(file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that other processes may hold for long.

    Args:
        file: Of the lock.
        on_wait: Called each second until it is had: who waits for another's work does not hang.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            on_wait()
    try:
        yield
    finally:
        lock.release()
