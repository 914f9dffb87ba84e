"""`harness study list|show|best`: read what studies left."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import paths
from harness.errors import StorageError, UnknownNameError
from harness.text import safe_text

if TYPE_CHECKING:
    from harness.records import Metric, ProbeRecord, TrialRecord
    from harness.search.result import StudyResult

RUNS = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), help="Folder of studies; default ./runs."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("list")
@AS_JSON
@RUNS
def list_(runs: Path | None, as_json: bool) -> None:
    """List the studies of this folder."""
    from harness.leaderboard.report import format_columns
    from harness.search.result import load_study

    found = []
    for folder in _folders(runs):
        try:
            found.append(load_study(folder))
        except StorageError as error:
            click.echo(f"warning: {safe_text(error.what)}: {safe_text(error.where)}", err=True)
    if as_json:
        click.echo(
            json.dumps(
                {"schema": "harness.studies/1", "studies": [summary(study) for study in found]}, indent=2
            )
        )
        return
    if not found:
        where = runs or paths.runs()
        start = f"harness study run{paths.runs_flag(where)}"
        click.echo(safe_text(f"no studies under {where}; start one with: {start}"), err=True)
        return
    rows: list[tuple[str, ...]] = [("study", "data set", "trials", "best", "metric")]
    for study in found:
        facts = summary(study)
        top = facts["best"]
        rows.append(
            (
                safe_text(study.name),
                safe_text(facts["dataset"]),
                f"{sum(facts['outcomes'].values())}/{facts['trials'] or '-'}",
                f"{100 * top['val'][study.metric]:.1f}" if top else "-",
                study.metric,
            )
        )
    sys.stdout.write(format_columns(rows))


@click.command()
@click.argument("study")
@AS_JSON
@RUNS
def show(study: str, runs: Path | None, as_json: bool) -> None:
    """Show the trials of a study."""
    from harness.leaderboard.report import format_columns

    result = find_study(study, runs)
    if as_json:
        click.echo(
            json.dumps(
                {
                    **summary(result),
                    "records": [_row(record, result.name) for record in result.records],
                    "probes": [dataclasses.asdict(probe) for probe in result.probes],
                },
                indent=2,
            )
        )
        return
    rows: list[tuple[str, ...]] = [
        ("trial", "state", result.metric, "backbone", "freeze", "lr", "optimizer", "augment", "loss", "why")
    ]
    for record in result.records:
        config = record.config
        scores = record.scores.get("test" if record.kind == "final" else "val")
        rows.append(
            (
                f"{record.number}" if record.kind == "search" else f"{record.number} final",
                record.state,
                f"{100 * getattr(scores, result.metric):.1f}" if scores else "-",
                safe_text(config.backbone),
                f"{config.freeze_depth:g}",
                f"{config.lr:.1e}",
                safe_text(config.optimizer),
                safe_text(config.augmentation),
                safe_text(config.loss),
                safe_text(record.reason),
            )
        )
    sys.stdout.write(format_columns(rows))
    if result.probes:
        click.echo("\nfeatures as they are, on val")
        heads = ("backbone", "ridge", "kNN", "why not")
        sys.stdout.write(format_columns([heads, *map(_probe_row, _ranked(result))]))


@click.command()
@click.argument("study")
@AS_JSON
@RUNS
def best(study: str, runs: Path | None, as_json: bool) -> None:
    """Show the best trial of a study, as settings to use elsewhere."""
    result = find_study(study, runs)
    record = result.best
    row = _row(record, result.name)
    if as_json:
        click.echo(json.dumps({"schema": "harness.best/1", **row}, indent=2))
        return
    finals = [other for other in result.records if other.kind == "final" and other.number == record.number]
    click.echo(f"trial {record.number} of {safe_text(result.name)}")
    for key, value in row["config"].items():
        click.echo(f"  {key:<13} {safe_text(value)}")
    for split, scores in row["scores"].items():
        click.echo(f"  {split:<13} macro-F1 {scores['f1']:.4f}  accuracy {scores['accuracy']:.4f}")
    for final in finals:
        if "test" in final.scores:
            scores = final.scores["test"]
            points = f"macro-F1 {scores.f1:.4f}  accuracy {scores.accuracy:.4f}"
            click.echo(f"  {'test':<13} {points}  (seed {final.config.seed})")
            click.echo(f"  {'weights':<13} {result.folder / final.folder / 'model.safetensors'}")


def find_study(name: str, runs: Path | None) -> StudyResult:
    """Read a study by its name or folder.

    Raises:
        UnknownNameError: There is none of that name.
    """
    from harness.search.result import load_study

    folders = {folder.name: folder for folder in _folders(runs)}
    if name in folders:
        return load_study(folders[name])
    if (Path(name) / "study.json").exists():
        return load_study(Path(name))
    where = runs or paths.runs()
    more = f"list them: harness study list{paths.runs_flag(where)}"
    raise UnknownNameError("study", name, folders, where=str(where), more=more)


def _folders(runs: Path | None) -> Iterator[Path]:
    from harness.records import study_folders

    return study_folders(runs or paths.runs())


def _ranked(result: StudyResult) -> list[tuple[ProbeRecord, Metric]]:
    ranked = sorted(result.probes, key=lambda probe: -probe.value(result.metric))
    return [(probe, result.metric) for probe in ranked]


def _probe_row(ranked: tuple[ProbeRecord, Metric]) -> tuple[str, ...]:
    probe, metric = ranked
    scores = (probe.ridge(metric), probe.knn(metric))
    shown = ("-", "-") if probe.reason else tuple(f"{100 * score:.1f}" for score in scores)
    return (safe_text(probe.backbone), *shown, safe_text(probe.reason))


def _row(record: TrialRecord, study: str) -> dict[str, Any]:
    return {
        "study": study,
        "kind": record.kind,
        "number": record.number,
        "state": record.state,
        "reason": record.reason,
        "config": dataclasses.asdict(record.config),
        "scores": {
            split: {"f1": scores.f1, "accuracy": scores.accuracy, "n": scores.n}
            for split, scores in record.scores.items()
        },
        "cost": dataclasses.asdict(record.cost) if record.cost else None,
    }


def summary(study: StudyResult) -> dict[str, Any]:
    """Return what there is to say of a study in a few lines."""
    from collections import Counter

    from harness.errors import NoTrialSucceeded

    try:
        top: dict[str, Any] | None = {"number": study.best.number, **_row(study.best, study.name)["scores"]}
    except NoTrialSucceeded:
        top = None
    return {
        "schema": "harness.study-summary/1",
        "name": study.name,
        "dataset": study.dataset,
        "metric": study.metric,
        "trials": study.trials,
        "outcomes": dict(Counter(record.state for record in study.records if record.kind == "search")),
        "finals": sum(record.kind == "final" for record in study.records),
        "best": top if top is None else {"number": top["number"], "val": top["val"]},
        "folder": str(study.folder),
    }
