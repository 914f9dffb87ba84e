"""`harness leaderboard`: rank what the studies found, and compare it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from harness import paths
from harness.errors import UnknownNameError, UsageError
from harness.text import counted, safe_text

if TYPE_CHECKING:
    from harness.leaderboard.entry import Entry
    from harness.leaderboard.rank import Leaderboard
    from harness.records import Metric


DIFF_SCHEMA = "harness.leaderboard-diff/1"

_METRIC = click.option(
    "--metric", type=click.Choice(["f1", "accuracy"]), default="f1", show_default=True, help="Rank by it."
)
_RUNS = click.option("--runs", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the studies.")


@click.group()
def command() -> None:
    """Rank what the studies found."""


@command.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option(
    "-d", "--dataset", "datasets", multiple=True, metavar="NAME", help="Only this data set. Repeatable."
)
@_METRIC
@click.option(
    "--by",
    type=click.Choice(["run", "backbone"]),
    default="run",
    show_default=True,
    help="A row for each configuration, or for each backbone's best.",
)
@click.option(
    "--split",
    type=click.Choice(["auto", "val", "test"]),
    default="auto",
    show_default=True,
    help="Final trainings on test, trials on val, or test where there are final trainings.",
)
@click.option("--format", "form", type=click.Choice(["table", "md", "csv", "json"]), help="Default: table.")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option("--across", is_flag=True, help="Backbones across data sets: mean rank, Borda, win rate.")
@_RUNS
def show(
    studies: tuple[str, ...],
    datasets: tuple[str, ...],
    metric: Metric,
    by: Literal["run", "backbone"],
    split: Literal["auto", "val", "test"],
    form: str | None,
    as_json: bool,
    across: bool,
    runs: Path | None,
) -> None:
    """Show the leaderboards of all studies, or of those named."""
    from harness.leaderboard.rank import rank
    from harness.leaderboard.render import format_csv, format_json, format_markdown, print_boards

    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} exclude each other")
    if across and form in ("md", "csv"):
        raise UsageError(f"--across has no format {form}", fixes=["take table or json"])
    folder = runs or paths.runs()
    chosen = _of_studies(_load(folder), studies, folder)
    boards: list[Leaderboard] = []
    for name in dict.fromkeys(datasets) or (None,):
        boards += rank(chosen, metric=metric, by="backbone" if across else by, split=split, dataset=name)
    _explain_absence(chosen, boards, studies, datasets, folder, split)
    if across:
        _show_across(boards, as_json or form == "json")
        return
    formats: dict[str, Callable[[Iterable[Leaderboard]], str]] = {
        "md": format_markdown,
        "csv": format_csv,
        "json": format_json,
    }
    form = "json" if as_json else form or "table"
    if form == "table":
        print_boards(boards)
    else:
        sys.stdout.write(formats[form](boards))


def _show_across(boards: Sequence[Leaderboard], as_json: bool) -> None:
    from harness.leaderboard.report import format_summaries_json, format_summary
    from harness.leaderboard.summary import summarise

    summaries = []
    for init in sorted({board.init for board in boards}):
        found = summarise(board for board in boards if board.init == init)
        if found:
            summaries.append(found)
        else:
            _say(
                f"nothing to summarise of {init} runs: no two backbones are ranked on the same two data sets"
            )
    if as_json:
        sys.stdout.write(format_summaries_json(summaries))
    else:
        sys.stdout.write("\n".join(map(format_summary, summaries)))


@command.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@_METRIC
@click.option(
    "--split",
    type=click.Choice(["auto", "val", "test"]),
    default="auto",
    show_default=True,
    help="Auto: test where both have final trainings, else val.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_RUNS
def compare(
    one: str,
    other: str,
    metric: Metric,
    split: Literal["auto", "val", "test"],
    as_json: bool,
    runs: Path | None,
) -> None:
    """Compare two runs on the same images.

    A and B are STUDY, which stands for its best run on val, or STUDY/NUMBER.
    """
    from harness.leaderboard.comparison import compare
    from harness.leaderboard.report import format_comparison, format_comparison_json

    found = compare(_load(runs or paths.runs()), one, other, metric=metric, split=split)
    sys.stdout.write(format_comparison_json(found) if as_json else format_comparison(found))


@command.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_RUNS
def diff(one: str, other: str, as_json: bool, runs: Path | None) -> None:
    """Say why the rows of two studies stand in different tables.

    A and B are STUDY or STUDY/NUMBER.
    """
    from harness.leaderboard.comparison import find_record
    from harness.leaderboard.protocols import explain_differences

    entries = _load(runs or paths.runs())
    records = [find_record(entries, name) for name in (one, other)]
    found = explain_differences(*records)
    if as_json:
        protocols = [record.protocol.digest for record in records]
        body = {"schema": DIFF_SCHEMA, "protocols": protocols, "comparable": not found, "differences": found}
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
    elif found:
        sys.stdout.write("".join(f"{safe_text(line)}\n" for line in found))
    else:
        sys.stdout.write(f"comparable: both are of protocol {records[0].protocol.digest[:8]}\n")


def _load(runs: Path) -> list[Entry]:
    from harness.leaderboard.rank import load

    entries, problems = load(runs)
    for problem in problems:
        _say(f"warning: left out {problem}")
    return entries


def _of_studies(entries: Sequence[Entry], studies: Sequence[str], runs: Path) -> list[Entry]:
    from harness.records import study_folders

    if not studies:
        return list(entries)
    known = {entry.record.study for entry in entries} | {folder.name for folder in study_folders(runs)}
    for name in studies:
        if known and name not in known:
            raise UnknownNameError(
                "study", name, known, where=str(runs), more=f"choose from {', '.join(sorted(known))}"
            )
    return [entry for entry in entries if entry.record.study in studies]


def _explain_absence(
    entries: Sequence[Entry],
    boards: Sequence[Leaderboard],
    studies: Sequence[str],
    datasets: Sequence[str],
    runs: Path,
    split: str,
) -> None:
    """Say on stderr why a study, a data set, or everything, has no table."""
    records = [entry.record for entry in entries]
    for name in dict.fromkeys(studies) if runs.is_dir() else ():
        if not any(record.study == name for record in records):
            _say(*_why_without_records(runs / name))
    if not records:
        make = f"  make some  harness study run{paths.runs_flag(runs)}"
        if not runs.is_dir():
            _say(f"nothing to rank: no such folder {runs}", make)
        elif not studies:
            found = any(runs.glob("*/*/*/record.json"))
            what = "no record can be read" if found else "no records"
            _say(f"nothing to rank: {what} under {runs}", make)
        return
    ranked = {board.dataset for board in boards}
    for name in sorted({record.dataset.name for record in records} - ranked):
        if not datasets or name in datasets:
            done = sum(record.state == "complete" for record in records if record.dataset.name == name)
            _say(
                f"nothing to rank for {name}: {counted(done, 'complete training')}"
                + (f", none with {split} scores" if done and split != "auto" else "")
            )


def _why_without_records(study: Path) -> list[str]:
    if any(study.glob("*/*/record.json")):
        return [f"no record of study {study.name!r} can be read", f"  they are in  {study}"]
    return [f"study {study.name!r} has no records yet", "  go on  the command that began it"]


def _say(*lines: str) -> None:
    for line in lines:
        click.echo(safe_text(line), err=True)


@command.command()
@click.argument("run")
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    default="leaderboard/records",
    show_default=True,
    help="Folder of bundles.",
)
@click.option("--runs", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the studies.")
def submit(run: str, to: Path, runs: Path | None) -> None:
    """Write the evidence of RUN into a folder of bundles: STUDY, STUDY/NUMBER, a bundle, or a rerun.json.

    The same run gives the same file. Reruns of it go into `reruns` beside the folder.
    """
    from harness.leaderboard.submit import submit as write

    done = write(run, to, runs or paths.runs())
    for submission in done:
        sys.stdout.write("".join(f"{path}\n" for path in (submission.bundle, *submission.reruns)))
    _say(
        "these files hold the names, classes and hashes of the images of val and test, and no image",
        f"  check them   harness leaderboard verify {shlex.quote(str(to))}",
    )


@command.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", metavar="NAME|DIR", help="Take labels and hashes from these images on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, files: tuple[Path, ...], data: str | None, as_json: bool) -> None:
    """Recompute what bundles state, from FILES or folders of them; exit code 5 where one is rejected.

    With --data the labels are those of the images on this machine, and each image's hash is compared.
    """
    from harness.cli.verdicts import check_files, print_verdicts

    verdicts = check_files(files, data, ctx.find_root().obj)
    print_verdicts(verdicts, as_json)
    ctx.exit(5 if any(verdict.problems for _, verdict in verdicts) else 0)


@command.command()
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False),
    default="leaderboard/records",
    show_default=True,
    help="Folder of bundles.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    default="leaderboard",
    show_default=True,
    help="Folder of the published files.",
)
@click.option("--check", is_flag=True, help="Write nothing; fail where a file is not fresh.")
@click.pass_context
def publish(ctx: click.Context, records: Path, to: Path, check: bool) -> None:
    """Write the leaderboard as Markdown, CSV, JSON, LaTeX and one HTML page, from bundles alone.

    Each bundle is verified; one that fails is listed and left out, and the exit code is 3. With --check it
    is 6 where a published file is missing, or is not what the bundles give.
    """
    from harness.leaderboard import publish as publishing

    made = publishing.publish(records, jobs=_processors())
    for rejected in made.rejected:
        _say(f"left out {rejected.file}: {rejected.reason}")
    for repeated in made.repeated:
        _say(f"counts once {repeated.file}: {repeated.reason}")
    if not made.runs:
        _say(
            f"nothing to rank: no sound bundle under {records}",
            "  make one  harness leaderboard submit STUDY",
        )
    if check:
        publishing.check_publication(made, to)
    for name in publishing.write_publication(made, to):
        sys.stdout.write(f"{to / name}\n")
    _say(f"{counted(made.runs, 'run')} in {counted(len(made.boards), 'table')}, up to date in {to}")
    ctx.exit(3 if made.rejected else 0)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
