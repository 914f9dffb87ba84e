"""Find the plugins that are installed or named on the command line, without loading any."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from typing import Literal

from harness.errors import PluginError
from harness.isolation import describe_error

GROUP = "harness"
NAMED = "-p"
"""Stands for the distribution of a module named on the command line."""


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A plugin before, while and after it is loaded."""

    name: str
    distribution: str
    version: str
    load: Callable[[], object]
    status: Literal["ok", "blocked", "broken"] = "ok"
    reason: str = ""
    missing: str = ""
    """The module that was not found, where that is the reason."""
    hooks: tuple[str, ...] = ()
    components: tuple[tuple[str, str, str], ...] = ()


def installed(blocked: set[str]) -> list[Candidate]:
    """Return the plugins of all installed distributions, by name.

    Raises:
        PluginError: Two distributions register one name, and it is not among `blocked`.
    """
    by_name: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for dist in distributions():
        text = _entry_points_text(dist)
        # Nothing of the many others is parsed: one malformed file must not end the tool.
        if not re.search(rf"^\s*\[\s*{GROUP}\s*\]", text, re.MULTILINE):
            continue
        for candidate in _candidates(dist):
            # The first on the path wins, as for the import: one distribution may be described twice.
            by_name[candidate.name].setdefault(canonical_name(candidate.distribution), candidate)
    candidates = []
    for name, homes in sorted(by_name.items()):
        if len(homes) > 1 and name not in blocked:
            providers = ", ".join(sorted(f"{one.distribution} {one.version}" for one in homes.values()))
            raise PluginError(
                f"two installed packages register a plugin named {name!r}: {providers}",
                fixes=["uninstall one of them", f"block both: -p no:{name}"],
            )
        candidates.append(next(iter(homes.values())))
    return candidates


def _entry_points_text(dist: Distribution) -> str:
    try:
        return dist.read_text("entry_points.txt") or ""
    except (OSError, ValueError):
        return ""


def _candidates(dist: Distribution) -> list[Candidate]:
    """Return one distribution's plugins; one broken plugin where its metadata cannot be read."""
    name, version = "unknown", ""
    try:
        name, version = str(dist.metadata["Name"] or name), str(dist.metadata["Version"] or "")
        if _is_shadowed(dist, name):
            return []
        return [
            Candidate(name=point.name, distribution=name, version=version, load=point.load)
            for point in dist.entry_points
            if point.group == GROUP
        ]
    except Exception as error:
        reason = f"its metadata cannot be read: {describe_error(error)}"
        return [Candidate(name=name, distribution=name, version=version, load=lambda: _fail(reason))]


def _is_shadowed(dist: Distribution, name: str) -> bool:
    """Return whether the import path holds another version of a distribution before this one."""
    try:
        first = distribution(name)
    except PackageNotFoundError:
        return False
    return _entry_points_text(first) != _entry_points_text(dist)


def canonical_name(name: str) -> str:
    """Return the one form of a distribution's name that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _fail(reason: str) -> None:
    raise PluginError(reason)


def from_module(name: str) -> Candidate:
    """Return the plugin that is a module of the current folder or of an installed package."""

    def load() -> object:
        # At the end, so that a file of the current folder shadows no installed module.
        if not {"", os.getcwd()} & set(sys.path):  # noqa: PTH109
            sys.path.append(os.getcwd())  # noqa: PTH109
            importlib.invalidate_caches()
        return importlib.import_module(name)

    return Candidate(name=name, distribution=NAMED, version="", load=load)
