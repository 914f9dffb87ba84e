"""What `harness leaderboard verify` reads and prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import DataError
from harness.text import safe_text

if TYPE_CHECKING:
    from harness.leaderboard.verify import Verdict


def check_files(
    files: Sequence[Path], data: str | None, plugins: tuple[str, ...]
) -> list[tuple[Path, Verdict]]:
    """Return the verdict of each bundle, of folders all that are in them.

    Raises:
        DataError: There is nothing to check, or a study is in its place, or the images are missing.
    """
    from harness.leaderboard.bundle import bundle_files
    from harness.leaderboard.verify import verify_file

    labels = None
    if data is not None:
        from harness.data.manifest import SplitRules, check_dataset
        from harness.registry import load_registry

        # Whatever splits these rules make: only names, classes and hashes are taken.
        registry = load_registry((*plugins, "no:terminal"))
        labels = check_dataset(data, registry, rules=SplitRules(), skip_bad=True).manifest.sample_list()
    found: list[Path] = []
    for file in files:
        if (file / "study.json").is_file():
            raise DataError(
                "this is a study, and only bundles are verified",
                where=str(file),
                fixes=[f"submit it first: harness leaderboard submit {shlex.quote(str(file))}"],
            )
        inside = list(bundle_files(file)) if file.is_dir() else [file]
        if not inside:
            raise DataError("there is no bundle in this folder", where=str(file))
        found += inside
    return [(path, verify_file(path, labels)[1]) for path in found]


def print_verdicts(verdicts: Sequence[tuple[Path, Verdict]], as_json: bool) -> None:
    """Print a line for each bundle, below it why it is rejected, and the counts."""
    if as_json:
        rows = [
            {
                "file": str(path),
                "accepted": not verdict.problems,
                "tier": verdict.tier,
                "problems": list(verdict.problems),
                "notes": list(verdict.notes),
            }
            for path, verdict in verdicts
        ]
        click.echo(json.dumps({"schema": "harness.verdicts/1", "bundles": rows}, indent=2))
        return
    for path, verdict in verdicts:
        word = "REJECTED" if verdict.problems else verdict.tier
        click.echo(f"{word:<12}{safe_text(path)}")
        for line in verdict.problems + verdict.notes:
            click.echo(f"{'':<12}{safe_text(line)}")
    rejected = sum(bool(verdict.problems) for _, verdict in verdicts)
    click.echo(f"{len(verdicts)} checked: {len(verdicts) - rejected} hold, {rejected} rejected", err=True)
