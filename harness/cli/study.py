"""`harness study`: run, resume and inspect studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import paths
from harness.cli.rerun import rerun
from harness.cli.settings import study_values
from harness.cli.studies import AS_JSON, RUNS, best, find_study, list_, show, summary
from harness.text import counted, safe_text

if TYPE_CHECKING:
    from harness.config import StudyConfig
    from harness.search.result import StudyResult


@click.group()
def command() -> None:
    """Run, resume and inspect studies."""


for part in (rerun, list_, show, best):
    command.add_command(part)


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
@click.option("--sampler", help="gp, tpe, random or grid.")
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
@AS_JSON
@RUNS
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
        click.echo(json.dumps(summary(result), indent=2))
    else:
        _report(result, config)
    ctx.exit(result.exit_code)


@command.command()
@click.argument("study")
@click.option("--finalists", type=int, help="Trials to train again; default: as the study says.")
@click.option("--seeds", type=int, help="Fresh seeds for each finalist; default: as the study says.")
@AS_JSON
@RUNS
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
        click.echo(json.dumps(summary(result), indent=2))
    else:
        from harness.leaderboard.render import print_boards

        print_boards(result.leaderboard())
    ctx.exit(result.exit_code)


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
        use = f"harness predict {paths.study_arguments(result.folder)} IMAGES..."
        click.echo(f"use it:   {safe_text(use)}", err=True)
    flag = paths.runs_flag(result.folder.parent)
    click.echo(f"compare:  harness leaderboard show{safe_text(flag)}", err=True)
    if config.dataset in DRAWN:
        click.echo("yours:    harness study run --dataset DIR   (your images in DIR/<class>/)", err=True)
    failed = [record for record in result.records if record.state == "failed"]
    for record in failed[:3]:
        click.echo(f"failed:   trial {record.number}, {safe_text(record.reason)}", err=True)
