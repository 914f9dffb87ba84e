"""The errors a user can cause, as a tree.

::

    HarnessError              1   internal: a bug in harness
    ├── UsageError            2   a wrong command line or study file
    │   └── UnknownNameError  2   a name nothing is registered under
    ├── NoTrialSucceeded      4   the study ended without one complete trial
    ├── DataError             5   images, folders or labels missing or bad
    ├── WeightsError          5   pretrained weights missing or bad
    ├── StorageError          6   a study's files cannot be read or written
    └── PluginError           7   a plugin is broken, or two plugins collide

The number is the exit code of the command line. Every error says what is wrong, where, why, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HarnessError(Exception):
    """What went wrong, in one short block a user can act on.

    Args:
        what: One sentence without a full stop.
        where: The file, field, plugin or trial concerned.
        why: The cause, when it is known and not said by `what`.
        fixes: What the user can do; each starts with a verb.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", fixes: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.fixes = tuple(fixes)

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  where  {self.where}"] if self.where else []
        lines += [f"  why    {self.why}"] if self.why else []
        lines += [f"  fix    {fix}" for fix in self.fixes]
        return "\n".join(lines)


class UsageError(HarnessError):
    """A command line or a study file asks for something that cannot be."""

    exit_code = 2


class UnknownNameError(UsageError):
    """Nothing is registered under a name."""

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, where: str = "", more: str = ""
    ) -> None:
        near = nearest(name, known)
        hint = f", did you mean {near!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{hint}", where=where, fixes=[more] if more else [])


class Interrupted(KeyboardInterrupt):
    """A signal stops a study; what has been recorded is kept.

    Args:
        exit_code: 130 for SIGINT, 143 for SIGTERM, 75 for SIGUSR1.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class NoTrialSucceeded(HarnessError):
    """A study ended and none of its trials is complete."""

    exit_code = 4


class DataError(HarnessError):
    """Images, folders or labels are missing or unusable."""

    exit_code = 5


class WeightsError(HarnessError):
    """Pretrained weights are missing or do not fit their backbone."""

    exit_code = 5


class StorageError(HarnessError):
    """A study's folder or database cannot be read or written."""

    exit_code = 6


class PluginError(HarnessError):
    """A plugin is broken, or two plugins claim one name."""

    exit_code = 7


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name closest to `name`, or None when nothing is as close as `cutoff` of difflib."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None
