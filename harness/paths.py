"""Where things live on this machine."""

from __future__ import annotations

import os
import shlex
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


def runs_flag(folder: Path) -> str:
    """Return the flag, after a space, for studies in a folder; empty where commands look there anyway."""
    return "" if folder.absolute() == runs() else f" --runs {shlex.quote(str(folder))}"


def study_arguments(folder: Path) -> str:
    """Return how a command line names a study's folder: STUDY, quoted, and `--runs` where it needs that."""
    folder = folder.absolute()
    return shlex.quote(folder.name) + runs_flag(folder.parent)
