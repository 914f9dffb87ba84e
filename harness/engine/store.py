"""Activations on disk: what a frozen prefix computes is computed once per machine, whoever reads it then."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from harness.data.locks import locked
from harness.engine.activations import Entry, EntrySpec, Part, TensorSpec, read_seconds
from harness.engine.pins import is_pinned, open_pinned, remove_unpinned
from harness.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

# All that users of the store need.
__all__ = ["ActivationStore", "Entry", "EntrySpec", "Filling", "StoreInfo", "TensorSpec", "default_budget"]

HALF_LIFE = 24 * 3600.0
"""Seconds without use after which an entry is worth half."""
FREE_SHARE = 0.2
LARGEST_BUDGET = 50 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What a store has on disk."""

    entries: int
    bytes: int
    """Of entries and parts."""
    budget: int
    parts: int
    """Files being written, or left behind by a process that was killed."""
    pinned: int
    """Entries that a living process has open; 0 on Windows, which does not tell."""


class Filling:
    """Entries being written, by one thread. Made by `ActivationStore.fill`."""

    def __init__(self, folder: Path) -> None:
        self.refused: set[str] = set()
        """Keys that do not fit the budget: nothing of them is stored."""
        self.seconds: dict[str, float] = {}
        """What computing an entry took, for eviction; where not set, the time from entering to leaving."""
        self._folder = folder
        self._parts: dict[str, Part] = {}

    @property
    def missing(self) -> set[str]:
        """Keys to write: those that nobody has written, without `refused`."""
        return set(self._parts)

    def write(self, key: str, name: str, first_row: int, tensor: Tensor) -> None:
        """Write consecutive rows of a tensor.

        Args:
            key: One of `missing`.
            name: The tensor.
            first_row: Number of the first row.
            tensor: (rows, *shape) of the dtype announced, on any device.

        Raises:
            StorageError: The disk is full, or the file cannot be written.
            ValueError: This is not what the entry's specification announced.
        """
        part = self._parts.get(key)
        if part is None or name not in part.spec.tensors:
            raise ValueError(f"no tensor {name!r} of {key} is to be written")
        with _storing(self._folder):
            part.write(name, first_row, tensor)


class ActivationStore:
    """A folder of entries that many processes of one machine share; an object is for one thread.

    When room is needed, the entry of least value goes first, of those that no living process has open:
    value = seconds that computing it took / bytes / 2 ** (time since its last use / `HALF_LIFE`). What this
    object has used since the last `close` but one gives way only to what is worth twice as much: trials that
    read the same views in turn, of which not all fit, would else each find what the one before it evicted.

    Args:
        folder: Of the entries; made when the first one is written.
        budget: Bytes that the entries of the folder may take, with those being written.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        self._opened: dict[str, Entry] = {}
        self._used: set[str] = set()
        self._used_before: set[str] = set()

    def open(self, key: str) -> Entry | None:
        """Map a complete entry and pin it until `release` or `close`; None if there is none.

        A damaged entry is removed.

        Raises:
            StorageError: The entry cannot be read.
        """
        path = self._path(key)
        if key not in self._opened:
            with _storing(self.folder):
                file = open_pinned(path)
                if file is None:
                    return None
                with file:
                    try:
                        self._opened[key] = Entry(file)
                    except ValueError:
                        path.unlink(missing_ok=True)
                        return None
        self._used.add(key)
        with suppress(OSError):  # of somebody else, or removed by hand
            os.utime(path)
        return self._opened[key]

    def release(self, key: str) -> None:
        """Unmap an entry, so that it can be evicted."""
        if key in self._opened:
            self._opened.pop(key).close()

    def close(self) -> None:
        """Unmap all entries: a trial has ended."""
        for key in list(self._opened):
            self.release(key)
        self._used, self._used_before = set(), self._used

    @contextmanager
    def fill(
        self, specs: Sequence[EntrySpec], on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[Filling]:
        """Write those of some entries that nobody has written, making room for them.

        Waits while another process writes one of them. The body writes all rows of `Filling.missing`; when it
        ends without error, every entry that was not refused is complete, and pinned as by `open`. After an
        error no parts remain. Fills must not be nested: two processes could wait for each other.

        Args:
            specs: Of the entries.
            on_wait: Called each second while another process writes one of them.

        Raises:
            StorageError: The disk is full, or the folder cannot be written.
            ValueError: Not all rows were written.
        """
        absent = {spec.key: spec for spec in specs if self.open(spec.key) is None}
        filling = Filling(self.folder)
        with ExitStack() as stack:
            if absent:
                with _storing(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    for key in sorted(absent):
                        stack.enter_context(locked(self._lock_file(key), on_wait))
                stack.callback(_discard, filling._parts)
                # Others may have written them meanwhile.
                waiting = [spec for key, spec in absent.items() if self.open(key) is None]
                with _storing(self.folder), self._making_room():
                    self._begin(waiting, filling)
            began = time.monotonic()
            yield filling
            seconds = time.monotonic() - began
            for part in filling._parts.values():
                part.check()
            if filling._parts:
                with _storing(self.folder):
                    self._commit(filling, seconds)

    def info(self) -> StoreInfo:
        """Count what is on disk."""
        entries, parts = _sizes(self.folder, "*.safetensors"), _sizes(self.folder, ".*.part")
        return StoreInfo(
            entries=len(entries),
            bytes=sum(entries.values()) + sum(parts.values()),
            budget=self.budget,
            parts=len(parts),
            pinned=sum(is_pinned(path) for path in entries),
        )

    def clear(self) -> int:
        """Remove entries that no living process has open, and parts of dead ones; return the bytes freed.

        `info` tells how much is left.

        Raises:
            StorageError: The folder cannot be written.
        """
        if not self.folder.is_dir():
            return 0
        with _storing(self.folder), self._making_room():
            freed = self._sweep()
            entries = _sizes(self.folder, "*.safetensors")
            return freed + sum(size for path, size in entries.items() if remove_unpinned(path))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _lock_file(self, key: str) -> Path:
        """Return the lock of who writes an entry."""
        return self.folder / f".{key}.lock"

    def _making_room(self) -> FileLock:
        """Make the lock of who makes room: held shortly, and taken last."""
        return FileLock(self.folder / ".lock")

    def _begin(self, specs: Sequence[EntrySpec], filling: Filling) -> None:
        """Begin a part for each entry that fits, evicting others. The caller holds all locks."""
        if not specs:
            return
        self._sweep({spec.key for spec in specs})
        sizes = _sizes(self.folder, "*.safetensors")
        used = sum(sizes.values()) + sum(_sizes(self.folder, ".*.part").values())
        values: dict[Path, float] | None = None
        for spec in specs:
            size = spec.bytes
            if used + size > self.budget:
                if values is None:
                    values = {path: _value(path) for path in sizes if not is_pinned(path)}
                idle = sorted(self._give_way(values, spec.seconds / size), key=values.__getitem__)
                # Nothing goes in vain.
                if used + size - sum(sizes[path] for path in idle) <= self.budget:
                    while idle and used + size > self.budget:
                        path = idle.pop(0)
                        del values[path]
                        used -= sizes[path] if remove_unpinned(path) else 0
            if used + size > self.budget:
                filling.refused.add(spec.key)
            else:
                filling._parts[spec.key] = Part(self.folder / f".{spec.key}.part", spec)
                used += size

    def _give_way(self, values: Mapping[Path, float], value: float) -> list[Path]:
        """Return those of some entries that may go for one of some value."""
        own = {self._path(key) for key in self._used | self._used_before}
        return [path for path in values if path not in own or 2 * values[path] <= value]

    def _commit(self, filling: Filling, seconds: float) -> None:
        for key, part in filling._parts.items():
            part.finish(filling.seconds.get(key, seconds))
        # Under this lock nobody evicts an entry between its appearance and its pin.
        with self._making_room():
            for key in list(filling._parts):
                filling._parts[key].path.replace(self._path(key))
                del filling._parts[key]
                self.open(key)

    def _sweep(self, own: Collection[str] = ()) -> int:
        """Remove parts whose writer is dead: nobody else holds their lock. Return the bytes freed."""
        freed = 0
        for path, size in _sizes(self.folder, ".*.part").items():
            key = path.name[1 : -len(".part")]
            with suppress(Timeout), ExitStack() as stack:
                if key not in own:
                    stack.enter_context(FileLock(self._lock_file(key)).acquire(timeout=0))
                path.unlink(missing_ok=True)
                freed += size
        return freed


def default_budget(folder: Path) -> int:
    """Return a fifth of the disk space that is free, or taken by the entries themselves; at most 50 GB."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free + sum(_sizes(folder, "*.safetensors").values())
    return min(int(FREE_SHARE * free), LARGEST_BUDGET)


def _value(path: Path) -> float:
    """Weigh an entry: seconds saved per byte, halved for each `HALF_LIFE` without use; 0 if damaged."""
    try:
        status = path.stat()
        age = max(0.0, time.time() - status.st_mtime)
        return read_seconds(path) / status.st_size * 2 ** -(age / HALF_LIFE)
    except (OSError, ValueError):
        return 0.0


def _sizes(folder: Path, pattern: str) -> dict[Path, int]:
    """Return the files of a folder with their bytes, without those that vanish meanwhile."""
    sizes = {}
    for path in sorted(folder.glob(pattern)):
        with suppress(OSError):
            sizes[path] = path.stat().st_size
    return sizes


def _discard(parts: dict[str, Part]) -> None:
    while parts:
        parts.popitem()[1].discard()


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            "activations cannot be stored",
            where=str(folder),
            why=error.strerror or str(error),
            fixes=["free disk space there: harness cache clear", "choose another folder with HARNESS_HOME"],
        ) from error
