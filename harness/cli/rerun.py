"""`harness study rerun`: train a run again and compare."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import paths
from harness.cli.studies import AS_JSON, RUNS
from harness.errors import UsageError
from harness.text import safe_text

if TYPE_CHECKING:
    from harness.records import TrialRecord
    from harness.search.rerun import Rerun

NOT_REPRODUCED = 3
"""Exit code where what came out is not what was asked for."""


@click.command()
@click.argument("run")
@click.option("--exact", is_flag=True, help="Demand the same weights, bit for bit.")
@click.option("--seed", type=int, help="Only the training with this seed; default: all.")
@click.option("--data", metavar="NAME|DIR", help="The images, for a bundle of a folder's.")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder with <backbone>.safetensors.")
@AS_JSON
@RUNS
@click.pass_context
def rerun(
    ctx: click.Context,
    run: str,
    exact: bool,
    seed: int | None,
    data: str | None,
    weights: Path | None,
    as_json: bool,
    runs: Path | None,
) -> None:
    """Train RUN again, STUDY/NUMBER or the file of a bundle, and compare what comes out.

    Exit code 3 where it is not reproduced: with --exact where one bit of the weights differs, else where
    more than 0.1 % of the test answers differ (on CPUs) or a mean test score by more than 0.2 points (where
    a GPU took part).
    """
    from harness.registry import load_registry
    from harness.search.rerun import rerun as train
    from harness.search.rerun import rerun_of_study

    registry = load_registry((*ctx.find_root().obj, "no:terminal"))
    runs = runs or paths.runs()
    if run.endswith(".json") and Path(run).is_file():
        from harness.leaderboard.bundle import read_bundle

        bundle = read_bundle(Path(run))
        done = train(
            bundle,
            registry=registry,
            folder=runs / "reruns" / bundle.digest[:16],
            dataset=data or bundle.records[0].dataset.name,
            seed=seed,
            weights_dir=weights,
            on_training=_say_training,
        )
    else:
        if data or weights:
            raise UsageError("--data and --weights are for a bundle; a study knows its own")
        folder, number = _only_run(run, runs)
        done = rerun_of_study(folder, number, registry=registry, seed=seed, on_training=_say_training)
    if as_json:
        body: dict[str, Any] = {"schema": "harness.comparison/1", **dataclasses.asdict(done.comparison)}
        click.echo(json.dumps({**body, "file": str(done.folder / "rerun.json")}, indent=2))
    else:
        _print(done, exact)
    wanted = ("identical",) if exact else ("identical", "within tolerance")
    ctx.exit(0 if done.comparison.outcome in wanted else NOT_REPRODUCED)


def _only_run(run: str, runs: Path) -> tuple[Path, int]:
    from harness.leaderboard.submit import find_runs

    found = find_runs(run, runs)
    if len(found) > 1:
        choices = ", ".join(f"{folder.name}/{number}" for folder, number in found)
        raise UsageError(f"study {run!r} has {len(found)} runs", fixes=[f"name one: {choices}"])
    return found[0]


def _say_training(record: TrialRecord) -> None:
    name = f"{record.config.backbone}, trial {record.number}, seed {record.config.seed}"
    click.echo(f"training again: {safe_text(name)}", err=True)


def _print(done: Rerun, exact: bool) -> None:
    for one in done.comparison.trainings:
        same = "identical" if one.weights else "different"
        click.echo(
            f"seed {one.seed}: weights {same}, {100 * one.answers:.2f} % of test answers differ, "
            f"accuracy {100 * one.accuracy:+.2f}, macro-F1 {100 * one.f1:+.2f} points"
        )
        if not one.weights:
            for line in one.environment or ("nothing known differs: versions, files, threads, device",):
                click.echo(f"  {safe_text(line)}")
    outcome = done.comparison.outcome
    if exact and outcome == "within tolerance":
        outcome = "not reproduced"
        click.echo("not identical, which --exact asks for")
    click.echo(outcome)
    click.echo(f"written: {done.folder / 'rerun.json'}", err=True)
