"""Which folder a study lives in: its own, or that of a generation that learns from earlier ones."""

from __future__ import annotations

import contextlib
from pathlib import Path

from harness.config import StudyConfig
from harness.errors import StorageError, UsageError
from harness.records import study_folders
from harness.search.folder import ImportedTrial, StudyFolder, asked
from harness.search.space import Space


def was_asked(config: StudyConfig, runs: Path) -> bool:
    """Say whether a study has been asked for in these words."""
    wanted = asked(config)
    for path in study_folders(runs):
        # Another study that is damaged is no concern of this one; its own is read again below.
        with contextlib.suppress(StorageError):
            if StudyFolder.open(path).document["asked"] == wanted:
                return True
    return False


def find_study(name: str, runs: Path, wanted: str) -> StudyFolder | None:
    """Return the generation that is the study asked for; the newest if there are several."""
    found = [folder for folder in _generations(name, runs) if folder.document["identity"] == wanted]
    return found[-1] if found else None


def new_generation(
    name: str, runs: Path, config: StudyConfig, space: Space, protocol: str, *, extend: bool
) -> tuple[Path, list[ImportedTrial]]:
    """Return where a new study goes, and the trials it learns from.

    Raises:
        UsageError: The name is taken by another study, and its trials cannot be imported.
    """
    generations = _generations(name, runs)
    if not generations:
        return runs / name, []
    last = generations[-1]
    changes = last.differences(config, protocol)
    # Scores under other settings, or of another metric or data set, would mislead the search.
    can_extend = all(key.startswith("space.") for key in changes)
    if extend and can_extend:
        imports = [trial for trial in last.exports() if space.params_of(trial.config) is not None]
        return runs / f"{name}@{len(generations) + 1}", imports
    lines = [f"study {last.name!r} exists and is another study"]
    lines += [f"  {key}: {change}" for key, change in changes.items()]
    fixes = ["choose another --name"]
    if can_extend:
        fixes.append("add --extend to open a new generation that imports its trials")
    raise UsageError(
        "\n".join(lines),
        where=str(last.path),
        why="--extend allows changes of the space only" if extend else "",
        fixes=fixes,
    )


def _generations(name: str, runs: Path) -> list[StudyFolder]:
    """Return the study of that name and what `--extend` made of it, the oldest first."""
    found: list[StudyFolder] = []
    path = runs / name
    while (path / "study.json").exists():
        found.append(StudyFolder.open(path))
        path = runs / f"{name}@{len(found) + 1}"
    return found
