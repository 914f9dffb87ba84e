"""One configuration, or a grid of them, trained with several seeds: what the comparing benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness


def train_finals(
    registry: harness.Registry, runs: Path, *, seeds: int, threads: int, **study: Any
) -> list[harness.TrialRecord]:
    """Search the whole grid of a study, train its best with fresh seeds, and return their records.

    A study that is there already is read; one that was stopped goes on.

    Args:
        registry: The plugins.
        runs: Folder of studies.
        seeds: Fresh seeds of the best configuration.
        threads: CPU threads.
        study: `StudyConfig` without search, finalize and run; `space` without optimizer and head_init.

    Raises:
        SystemExit: The study was stopped, or a seed failed: a mean over fewer would mislead.
    """
    config = harness.StudyConfig(
        # Both with and without pretraining a head starts from random weights.
        **{**study, "space": {"optimizer": ["adamw"], "head_init": ["timm"], **study["space"]}},
        search={"sampler": "grid", "pruner": "none"},
        finalize={"top": 1, "seeds": seeds},
        run={"threads": threads, "executor": "inline"},
    )
    result = harness.run_study(config, registry=registry, runs=runs)
    if result.stopped:
        raise SystemExit(result.stopped)
    finals = [record for record in result.records if "test" in record.scores]
    if len(finals) != seeds:
        raise SystemExit(f"{result.name}: not every seed came to its end")
    return finals
