"""`harness study`: run, resume and inspect studies."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import paths
from harness.cli.rerun import rerun
from harness.cli.settings import study_values
from harness.errors import StorageError, UnknownNameError
from harness.text import counted, safe_text

if TYPE_CHECKING:
    from harness.config import StudyConfig
    from harness.records import Metric, ProbeRecord, TrialRecord
    from harness.search.result import StudyResult

_RUNS = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), help="Folder of studies; default ./runs."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Run, resume and inspect studies."""


command.add_command(rerun)


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("-d", "--dataset", help="A name of `harness data list`, a folder of images, or a CSV file.")
@click.option("-n", "--trials", type=int, help="Trials in total, over all resumptions.")
@click.option("--budget", help="Time for search and finalists together: 90s, 30m, 1h30m.")
@click.option("--backbone", multiple=True, help="Name or glob of a backbone. Repeatable.")
@click.option("--freeze-depth", multiple=True, type=float, help="Share of frozen blocks, 0 to 1. Repeatable.")
@click.option("--lr", multiple=True, help="A learning rate (repeatable), LOW:HIGH on a log scale, or auto.")
@click.option("--optimizer", multiple=True, help="Repeatable.")
@click.option("--augmentation", multiple=True, help="Augmentation policy. Repeatable.")
@click.option("--loss", multiple=True, help="Repeatable.")
@click.option("--schedule", multiple=True, help="Learning-rate schedule. Repeatable.")
@click.option("--epochs", type=int, help="Epochs of each trial.")
@click.option("--batch-size", type=int)
@click.option("--image-size", type=int, help="Pixels; default: each backbone's own.")
@click.option("--metric", help="f1 (macro) or accuracy, on the validation split.")
@click.option("--sampler", help="tpe, random, gp or grid.")
@click.option("--pruner", help="median, hyperband, halving or none.")
@click.option("--finalists", type=int, help="Trials that are trained again and scored on the test split.")
@click.option("--seeds", type=int, help="Fresh seeds for each finalist.")
@click.option("--seed", type=int, help="Seed of the whole study.")
@click.option("--init", help="pretrained or scratch.")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder with <backbone>.safetensors.")
@click.option(
    "--skip-bad",
    is_flag=True,
    default=None,
    help="Leave unreadable images out, counted, instead of refusing.",
)
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--threads", type=int, help="CPU threads of a trial.")
@click.option("--name", help="Name of the study.")
@click.option(
    "--extend",
    is_flag=True,
    help="If the study exists with another space, import its trials into a new generation.",
)
@click.option(
    "-s",
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any key of the study file, as TOML. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print the study, train nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@_JSON
@_RUNS
@click.pass_context
def run(ctx: click.Context, /, file: Path | None, runs: Path | None, **flags: Any) -> None:
    """Run a study, or go on with it: the same command again resumes it.

    Without FILE and --dataset it runs the default study, which needs no network and no images: flowers that
    are drawn here, and small backbones that are part of this package. `--dataset petals-hard` and
    `--dataset petals-longtail` take the same settings.
    """
    from harness.config import parse_study
    from harness.registry import load_registry

    values = study_values(file, flags)
    where = str(file) if file else "command line"
    config = parse_study(values, where=where)
    plugins: tuple[str, ...] = ctx.find_root().obj
    if flags["quiet"] or flags["as_json"]:
        plugins = (*plugins, "no:terminal")
    registry = load_registry(plugins)
    runs = (runs or paths.runs()).absolute()
    if flags["dry_run"]:
        from harness.search.study import check_study

        space = check_study(config, registry, where=where)
        click.echo(
            json.dumps(
                {"study": config.model_dump(mode="json", by_alias=True), "space": space.to_json()}, indent=2
            )
        )
        return
    from harness.search.study import run_study

    result = run_study(config, registry=registry, runs=runs, extend=flags["extend"], where=where)
    if flags["as_json"]:
        click.echo(json.dumps(_summary(result), indent=2))
    else:
        _report(result, config)
    ctx.exit(result.exit_code)


@command.command()
@click.argument("study")
@click.option("--finalists", type=int, help="Trials to train again; default: as the study says.")
@click.option("--seeds", type=int, help="Fresh seeds for each finalist; default: as the study says.")
@_JSON
@_RUNS
@click.pass_context
def finalize(
    ctx: click.Context,
    study: str,
    finalists: int | None,
    seeds: int | None,
    runs: Path | None,
    as_json: bool,
) -> None:
    """Train the finalists of a study that has ended, and score each once on the test split.

    A study does this itself at its end; this is for one that ended without it, or needs more finalists or
    seeds. What has been tested already is not tested again.
    """
    from harness.registry import load_registry
    from harness.search.study import finalize_study

    plugins: tuple[str, ...] = ctx.find_root().obj
    registry = load_registry((*plugins, "no:terminal") if as_json else plugins)
    folder = find_study(study, runs).folder
    result = finalize_study(folder, finalists=finalists, seeds=seeds, registry=registry)
    if as_json:
        click.echo(json.dumps(_summary(result), indent=2))
    else:
        from harness.leaderboard.render import print_boards

        print_boards(result.leaderboard())
    ctx.exit(result.exit_code)


@command.command("list")
@_JSON
@_RUNS
def list_(runs: Path | None, as_json: bool) -> None:
    """List the studies of this folder."""
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
                {"schema": "harness.studies/1", "studies": [_summary(study) for study in found]}, indent=2
            )
        )
        return
    if not found:
        click.echo(f"no studies under {runs or paths.runs()}; start one with: harness study run", err=True)
        return
    rows: list[tuple[str, ...]] = [("study", "data set", "trials", "best", "metric")]
    for study in found:
        summary = _summary(study)
        best = summary["best"]
        rows.append(
            (
                safe_text(study.name),
                safe_text(summary["dataset"]),
                f"{sum(summary['outcomes'].values())}/{summary['trials'] or '-'}",
                f"{100 * best['val'][study.metric]:.1f}" if best else "-",
                study.metric,
            )
        )
    _print_columns(rows)


@command.command()
@click.argument("study")
@_JSON
@_RUNS
def show(study: str, runs: Path | None, as_json: bool) -> None:
    """Show the trials of a study."""
    result = find_study(study, runs)
    if as_json:
        click.echo(
            json.dumps(
                {
                    **_summary(result),
                    "records": [_row(record) for record in result.records],
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
    _print_columns(rows)
    if result.probes:
        click.echo("\nfeatures as they are, on val")
        _print_columns([("backbone", "ridge", "kNN", "why not"), *map(_probe_row, _ranked(result))])


@command.command()
@click.argument("study")
@_JSON
@_RUNS
def best(study: str, runs: Path | None, as_json: bool) -> None:
    """Show the best trial of a study, as settings to use elsewhere."""
    result = find_study(study, runs)
    record = result.best
    row = _row(record)
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
    raise UnknownNameError(
        "study", name, folders, where=str(runs or paths.runs()), more="list them: harness study list"
    )


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


def _row(record: TrialRecord) -> dict[str, Any]:
    return {
        "study": record.study,
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


def _summary(study: StudyResult) -> dict[str, Any]:
    from collections import Counter

    from harness.errors import NoTrialSucceeded

    try:
        top: dict[str, Any] | None = {"number": study.best.number, **_row(study.best)["scores"]}
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


def _report(result: StudyResult, config: StudyConfig) -> None:
    """Print the study's leaderboard and what to do next."""
    from harness.config import DRAWN
    from harness.leaderboard.render import print_boards

    print_boards(result.leaderboard())
    ended = sum(record.kind == "search" for record in result.records)
    done = f"{ended} of {counted(config.trials, 'trial')}" if config.trials else counted(ended, "trial")
    if result.stopped:
        click.echo(f"stopped: {done} kept. Resume: run the same command again.", err=True)
        return
    if result.timed_out:
        click.echo(
            f"time is up: {done}. Go on: the same command, with a larger --budget if it adds none.", err=True
        )
    finals = [record for record in result.records if record.kind == "final" and record.state == "complete"]
    if finals:
        click.echo(f"use it:   harness predict {result.name} IMAGES...", err=True)
    click.echo("compare:  harness leaderboard show", err=True)
    if config.dataset in DRAWN:
        click.echo("yours:    harness study run --dataset DIR   (your images in DIR/<class>/)", err=True)
    failed = [record for record in result.records if record.state == "failed"]
    for record in failed[:3]:
        click.echo(f"failed:   trial {record.number}, {safe_text(record.reason)}", err=True)


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        )
