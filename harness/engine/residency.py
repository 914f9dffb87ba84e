"""What may stay in a GPU's memory between batches and trials: decoded images and features."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

SHARE = 0.5
"""Of the memory that a process may take, at most for what stays; the rest is for training."""

Kept = TypeVar("Kept")


def resident_budget(free: int, total: int, share: float) -> int:
    """Return the bytes that may stay on a device.

    Args:
        free: Bytes of its memory that nobody has taken.
        total: All its bytes.
        share: Of all, what this process may take.
    """
    return int(SHARE * min(free, share * total))


def budget_of(device: torch.device, share: float) -> int:
    """Keep this process within its share of a GPU's memory; return the bytes that may stay there.

    What does not fit into the share is an OutOfMemoryError. 0 on a CPU, which reads mapped files.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.set_per_process_memory_fraction(share, device)
    free, total = torch.cuda.mem_get_info(device)
    return resident_budget(free, total, share)


class Residency(Generic[Kept]):
    """Keeps what trials share in a device's memory, the least recently used giving way.

    Args:
        budget: Bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._kept: dict[Hashable, tuple[int, Kept]] = {}
        self._in_use: set[Hashable] = set()
        self._claimed = 0

    @property
    def used(self) -> int:
        """Bytes that are kept or claimed."""
        return self._claimed + sum(size for size, _ in self._kept.values())

    def keep(self, key: Hashable, size: int, make: Callable[[], Kept]) -> Kept | None:
        """Return what is kept under a key, made if it is not there; None where there is no room for it.

        Whatever a trial was given stays until the trial ends.
        """
        if key in self._kept:
            # The last one is the most recently used.
            self._kept[key] = self._kept.pop(key)
        elif self._make_room(size):
            self._kept[key] = size, make()
        else:
            return None
        self._in_use.add(key)
        return self._kept[key][1]

    def claim(self, size: int) -> bool:
        """Say whether a trial may keep so many bytes on the device until it ends."""
        if not self._make_room(size):
            return False
        self._claimed += size
        return True

    def drop_idle(self) -> bool:
        """Give up what the present trial does not use; say whether there was anything."""
        idle = self._idle()
        for key in idle:
            del self._kept[key]
        return bool(idle)

    def end_trial(self) -> None:
        """Let what the trial used make room for others, and forget its claims."""
        self._in_use.clear()
        self._claimed = 0

    def _idle(self) -> list[Hashable]:
        return [key for key in self._kept if key not in self._in_use]

    def _make_room(self, size: int) -> bool:
        idle = self._idle()
        # Nothing goes in vain.
        if self.used + size - sum(self._kept[key][0] for key in idle) > self.budget:
            return False
        while self.used + size > self.budget:
            del self._kept[idle.pop(0)]
        return True
