"""Where things live on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import UsageError


def expand(path: str | Path) -> Path:
    """Return a path with the home folder that its `~` stands for.

    Raises:
        UsageError: There is no such user, or this one has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            "a path begins with the home folder of nobody known here",
            where=str(path),
            why=str(error),
            fixes=["write the path out", "put ./ before it if its name begins with ~"],
        ) from None


def home() -> Path:
    """Return the folder of data and caches: `HARNESS_HOME`, or the platform's cache folder."""
    given = os.environ.get("HARNESS_HOME")
    if given:
        return expand(given).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("harness"))


def runs() -> Path:
    """Return the folder of studies: `HARNESS_RUNS`, or `runs` in the current folder."""
    return expand(os.environ.get("HARNESS_RUNS") or "runs").absolute()
