"""Where things live on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the folder of data and caches: `HARNESS_HOME`, or the platform's cache folder."""
    given = os.environ.get("HARNESS_HOME")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("harness"))


def runs() -> Path:
    """Return the folder of studies: `HARNESS_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("HARNESS_RUNS", "runs")).expanduser().absolute()
