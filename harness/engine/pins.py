"""Pinned files: what a living process reads, no other removes.

A pin is a shared lock on the file itself. The kernel drops it when the process ends, in whatever way: no pin
outlives its process, or passes to another of the same number. It needs no files, and no cleaning up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def open_pinned(path: Path) -> IO[bytes] | None:
    """Open a file to read, and pin it for as long as it, or a map of it, is open; None if there is none.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if sys.platform != "win32":
        import fcntl

        # A file system without locks: there `is_pinned` says yes, and nothing is removed.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
    # It has no name any more: removed before it was pinned.
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return None
    return file


def is_pinned(path: Path) -> bool:
    """Tell whether a living process has pinned a file; never true on Windows, which does not tell."""
    try:
        with _exclusive(path):
            return False
    except OSError:
        return path.exists()


def remove_unpinned(path: Path) -> bool:
    """Remove a file unless it is pinned; tell whether it is gone."""
    with suppress(OSError), _exclusive(path):
        path.unlink()
    return not path.exists()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let nobody pin a file meanwhile; OSError if somebody has, or if that cannot be known."""
    if sys.platform == "win32":  # deletes no open file anyway
        yield
        return
    import fcntl

    with path.open("r+b") as file:  # to write: network file systems want that for such a lock
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
